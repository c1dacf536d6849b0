"""Protects clips made of pictures by diffusers: each frame is the still of its own picture, mask and prompt."""

import os

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import test_control
import test_diffusers
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from test_diffusers import PROMPT, SEED, SIZE, assert_untouched, use

from small_models import CONFIG, net_for, sdxl, single_file
from zs2_lib import cli_edit
from zs2_lib.hosts.diffusers import checkpoints, control, editing
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.editing import Editing
from zs2_lib.settings import table
from zs2_lib.settings.table import Settings

loaded, xl_pipe = test_diffusers.loaded, test_diffusers.xl_pipe
FRAMES, STEPS, STRENGTH = 3, 4, 0.6
ALONE = {"frames": FRAMES, "motion": 0, "momentum": 0}
"""Each frame is the still of its own picture."""


def picture(number: int, mode="RGB", size=SIZE) -> Image.Image:
    """Blocks of 16 pixels."""
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).convert(mode).resize((size, size), Image.Resampling.NEAREST)


def edit(masks=False, size=SIZE, **more) -> Editing:
    def pictures(mode):
        return lambda frames: [picture(number, mode, size) for number in frames]

    return Editing(pictures("RGB"), (size, size), pictures("L") if masks else None, **more)


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    file = single_file(tmp_path_factory.mktemp("model") / "edit.safetensors", 8)
    return quiet(checkpoints.load_pipeline(file, CONFIG, device="cpu"))


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    file = single_file(tmp_path_factory.mktemp("model") / "paint.safetensors", 9)
    return quiet(checkpoints.load_pipeline(file, CONFIG, device="cpu"))


@pytest.fixture(scope="module")
def xl_inpainting(loaded):
    return quiet(StableDiffusionXLInpaintPipeline(**sdxl(loaded, channels=9).components, add_watermarker=False))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def still(pipe, number: int, edit: Editing, prompt=PROMPT, guidance=5.0, **more) -> torch.Tensor:
    """What `diffusers` alone makes of one picture (channels, height / 8, width / 8)."""
    size = edit.size[0]
    if isinstance(pipe, StableDiffusionInstructPix2PixPipeline):
        more |= {"image_guidance_scale": edit.image_guidance}
    else:
        more |= {"strength": edit.strength}
    if checkpoints.takes_masks(pipe):
        mask = picture(number, "L", size) if edit.masks else Image.new("L", edit.size, "white")
        more |= {"mask_image": mask, "width": size, "height": size}
    generator = torch.Generator().manual_seed(SEED)
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "latent"}
    return pipe(prompt, image=picture(number, size=size), generator=generator, **how, **more).images[0]


def clip(pipe, edit: Editing, settings=ALONE, prompt=PROMPT, guidance=5.0, **more) -> torch.Tensor:
    made = host.sample_latents(
        pipe, prompt, Settings(**settings), SEED, steps=STEPS, guidance=guidance, editing=edit, **more
    )
    assert_untouched(pipe)
    return made


def assert_stills(pipe, edit: Editing, **more) -> None:
    frames = clip(pipe, edit, **more)
    stills = torch.stack([still(pipe, number, edit, **more) for number in range(FRAMES)])
    assert (frames - stills).abs().max() < 1e-4
    assert (stills[1:] - stills[:-1]).abs().max() > 0.05


# --- each frame is the still of its own picture --------------------------------------------------------


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize(
    ("model", "edits", "cls"),
    [
        ("loaded", {"strength": STRENGTH}, StableDiffusionImg2ImgPipeline),
        ("loaded", {"strength": STRENGTH, "masks": True}, StableDiffusionInpaintPipeline),
        ("xl_pipe", {"strength": STRENGTH}, StableDiffusionXLImg2ImgPipeline),
        ("xl_pipe", {"strength": STRENGTH, "masks": True}, StableDiffusionXLInpaintPipeline),
        ("inpainting", {"strength": STRENGTH, "masks": True}, StableDiffusionInpaintPipeline),
        ("inpainting", {"strength": STRENGTH}, StableDiffusionInpaintPipeline),
        ("xl_inpainting", {"strength": STRENGTH, "masks": True}, StableDiffusionXLInpaintPipeline),
        ("pix2pix", {"image_guidance": 1.2}, StableDiffusionInstructPix2PixPipeline),
    ],
)
def test_frames_are_the_stills(request, model, edits, cls, guidance):
    changes = edit(**edits)
    pipe = changes.pipeline(request.getfixturevalue(model))
    assert type(pipe) is cls
    assert pipe.unet is request.getfixturevalue(model).unet
    assert_stills(pipe, changes, guidance=guidance, negative_prompt="dark")


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "Heun", "LCM"])
@pytest.mark.parametrize("masks", [False, True])
def test_frames_are_the_stills_with_other_schedulers(loaded, name, masks):
    """Those that draw on the way, after all that the VAE has drawn."""
    changes = edit(masks, strength=STRENGTH)
    pipe = changes.pipeline(loaded)
    use(pipe, name)
    assert_stills(pipe, changes)


def test_prompts_by_frame(pix2pix, loaded):
    texts = ["a red circle", "a blue square", "a yellow star"]
    settings = {**ALONE, "prompts": "\n".join(f"{frame}: {text}" for frame, text in enumerate(texts))}
    for model, changes in ((pix2pix, edit(image_guidance=1.5)), (loaded, edit(strength=STRENGTH))):
        pipe = changes.pipeline(model)
        frames = clip(pipe, changes, settings, prompt="")
        for number, text in enumerate(texts):
            assert (frames[number] - still(pipe, number, changes, text)).abs().max() < 1e-4
        assert "_encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("model", ["loaded", "inpainting", "xl_pipe"])
@pytest.mark.parametrize("masks", [False, True])
def test_with_controlnets(request, loaded, tmp_path, model, masks):
    """Each frame follows its own control image as well."""
    pipe = request.getfixturevalue(model)
    small = {"conditioning_embedding_out_channels": (16, 32)} if model == "xl_pipe" else {}  # a pixel is 1/2
    net = net_for(loaded.unet if model == "inpainting" else pipe.unet, **small)  # they take latents alone
    net.save_pretrained(tmp_path / "net")
    changes = edit(masks, strength=STRENGTH)
    pipe = quiet(changes.pipeline(control.with_controls(pipe, [tmp_path / "net"])))
    shown = [picture(10 + number) for number in range(FRAMES)]
    assert "ControlNet" in type(pipe).__name__
    frames = clip(pipe, changes, control=[test_control.unit(shown, 0.8, 0.0, 0.6)])
    more = {"controlnet_conditioning_scale": [0.8], "control_guidance_start": [0.0], "control_guidance_end": [0.6]}
    more |= {"width": SIZE, "height": SIZE}
    for number in range(FRAMES):
        alone = still(pipe, number, changes, control_image=[shown[number]], **more)
        assert (frames[number] - alone).abs().max() < 1e-4
    assert (alone - still(pipe, number, changes, control_image=[shown[0]], **more)).abs().max() > 1e-3


# --- as a clip -----------------------------------------------------------------------------------------


def test_noise_and_momentum_join_the_frames(loaded):
    """Of one picture: the noise of the frames is that of a clip, and that of the VAE adds none of its own."""
    changes = Editing(lambda frames: [picture(0)] * len(frames), (SIZE, SIZE), strength=1.0)
    pipe = changes.pipeline(loaded)
    still_one = clip(pipe, changes)
    calm, lively = (clip(pipe, changes, {**ALONE, "motion": motion}) for motion in (0.02, 0.3))
    assert (still_one - still_one[:1]).abs().max() < 1e-4
    assert (calm[0] - still_one[0]).abs().max() < 1e-4
    differences = [(latents[1:] - latents[:-1]).abs().mean() for latents in (calm, lively)]
    assert 0 < differences[0] < 0.5 * differences[1]
    assert (clip(pipe, changes, {**ALONE, "motion": 0.3, "momentum": 0.98}) - lively).abs().max() > 1e-3


@pytest.mark.parametrize("model", ["loaded", "pix2pix"])
def test_passes_and_segments_change_nothing(request, model, monkeypatch):
    changes = edit()
    pipe = changes.pipeline(request.getfixturevalue(model))
    settings = {"frames": 5, "motion": 0.1, "in_betweens": 2}
    whole = clip(pipe, changes, settings)
    asked = []

    def counted(frames):
        asked.append(frames)
        return edit().pictures(frames)

    monkeypatch.setattr(editing, "MOST_PIXELS", 4 * SIZE * SIZE)
    parts = clip(pipe, Editing(counted, changes.size), {**settings, "frames_per_pass": 2})
    assert (whole - parts).abs().max() < 1e-4
    assert asked == [range(0, 4), range(4, 8), range(8, 9)]


def test_segments_of_large_pictures(monkeypatch):
    sizes = {size: edit(size=size).segment(Settings(in_betweens=4)) for size in (64, 512, 1024, 4096)}
    assert sizes == {64: 4 * table.SEGMENT, 512: 128, 1024: 32, 4096: 4}
    assert edit(size=4096).segment(Settings(loop="seamless")) is None


def test_decoded_frames_are_those_of_the_pipelines(loaded, xl_pipe):
    for model in (loaded, xl_pipe):
        changes = edit(strength=STRENGTH)
        pipe = changes.pipeline(model)
        frame = next(host.decode_frames(pipe, clip(pipe, changes)))
        generator = torch.Generator().manual_seed(SEED)
        how = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "strength": STRENGTH}
        alone = pipe(PROMPT, image=picture(0), generator=generator, **how).images[0]
        assert abs(np.asarray(frame).astype(int) - np.asarray(alone)).max() <= 1


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "cls"),
    [
        ("inpainting", StableDiffusionInpaintPipeline),
        ("pix2pix", StableDiffusionInstructPix2PixPipeline),
        ("xl_inpainting", StableDiffusionXLInpaintPipeline),
    ],
)
def test_folders_are_recognised(request, model, cls, tmp_path):
    request.getfixturevalue(model).save_pretrained(tmp_path / "model")
    pipe = checkpoints.load_pipeline(tmp_path / "model", device="cpu")
    assert type(pipe) is cls
    checkpoints.check_pipeline(pipe)


def test_a_folder_is_what_its_unet_is(loaded, tmp_path):
    """A text checkpoint may be named after inpainting, as some are."""
    StableDiffusionInpaintPipeline(**loaded.components, requires_safety_checker=False).save_pretrained(tmp_path / "a")
    assert type(checkpoints.load_pipeline(tmp_path / "a", device="cpu")) is StableDiffusionPipeline
    sdxl(loaded, channels=8).save_pretrained(tmp_path / "b")
    with pytest.raises(checkpoints.ModelError, match="takes 8 channels.*StableDiffusionXLPipeline.*that take 4, 9"):
        checkpoints.load_pipeline(tmp_path / "b", device="cpu")


def test_what_their_unets_predict_is_found_out(inpainting, loaded):
    assert checkpoints.predicts_noise(loaded)
    checkpoints.predicts_noise(inpainting)  # whose first layer has random weights


def test_wrong_things_are_refused(loaded, pix2pix, inpainting):
    with pytest.raises(ValueError, match=r"mask: an Instruct-Pix2Pix checkpoint takes none.*leave it out"):
        edit(masks=True).pipeline(pix2pix)
    with pytest.raises(ValueError, match=r"strength: an Instruct-Pix2Pix checkpoint takes none.*leave it out"):
        edit(strength=0.5).pipeline(pix2pix)
    with pytest.raises(ValueError, match=r"image cfg: it is for Instruct-Pix2Pix.*leave it out"):
        edit(image_guidance=1.5).pipeline(loaded)
    for pipe, what in ((pix2pix, "an Instruct-Pix2Pix checkpoint.*8"), (inpainting, "for inpainting.*9")):
        with pytest.raises(ValueError, match=f"{what} channels.*give a source video or an image to edit"):
            editing.check_without_pictures(pipe)
    editing.check_without_pictures(loaded)


def test_defaults_are_said_alike():
    assert cli_edit.DEFAULT_STRENGTH == editing.STRENGTH
