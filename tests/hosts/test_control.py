"""Protects ControlNets in clips by diffusers: each frame follows its own image; which models are taken."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import test_diffusers
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from test_diffusers import PROMPT, SEED, SIZE, STEPS, clip

from small_models import net_for
from zs2_lib.hosts.diffusers import checkpoints, control
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.settings.table import Settings

loaded, xl_pipe = test_diffusers.loaded, test_diffusers.xl_pipe
FRAMES = 3
ALONE = {"frames": FRAMES, "motion": 0, "momentum": 0}
"""Each frame is the still of its own control image."""


def images(count=FRAMES, seed=0):
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((SIZE, SIZE)) for image in small]


def unit(pictures, *numbers):
    return control.Unit(lambda frames, size: [pictures[frame] for frame in frames], *numbers)


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """A ControlNet in the format of diffusers."""
    path = tmp_path_factory.mktemp("control") / "edges"
    net_for(loaded.unet).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(loaded, folder):
    made = control.with_controls(loaded, [folder])
    made.set_progress_bar_config(disable=True)
    yield made
    for owner in (made, made.controlnet, made.unet):
        assert not {"forward", "prepare_image", "encode_prompt"} & set(vars(owner))


def stills(pipe, nets, pictures, **options):
    """By diffusers alone, with the control images `pictures[k]` for still k (k, channels, height, width)."""
    cls = StableDiffusionXLControlNetPipeline if hasattr(pipe, "text_encoder_2") else StableDiffusionControlNetPipeline
    alone = cls(**{**pipe.components, "controlnet": nets}, **more_of(pipe))
    alone.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "width": SIZE, "height": SIZE, **options}
    made = [
        alone(PROMPT, image=image, generator=torch.Generator().manual_seed(SEED), output_type="latent", **how).images
        for image in pictures
    ]
    return torch.cat(made)


def more_of(pipe) -> dict:
    return {"add_watermarker": False} if hasattr(pipe, "text_encoder_2") else {"requires_safety_checker": False}


def assert_frames_are(latents, expected):
    assert (latents - expected).abs().max() < 1e-4
    assert expected.diff(dim=0).abs().mean(dim=(1, 2, 3)).min() > 0.01  # the images do something


# --- each frame its own image --------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("frames_per_pass", [0, 2])
def test_every_frame_follows_its_image(pipe, loaded, folder, guidance, frames_per_pass):
    settings = Settings(**ALONE, frames_per_pass=frames_per_pass)
    latents = clip(pipe, settings, guidance=guidance, control=[unit(images())])
    net = ControlNetModel.from_pretrained(folder)
    assert_frames_are(latents, stills(loaded, net, images(), guidance_scale=guidance))


def test_weight_start_and_end(pipe, loaded, folder):
    net, latents = ControlNetModel.from_pretrained(folder), {}
    for weight, start, end in ((0.5, 0.0, 1.0), (1.0, 0.3, 0.7), (1.0, 0.5, 1.0)):
        latents[weight, start, end] = clip(pipe, Settings(**ALONE), control=[unit(images(), weight, start, end)])
        numbers = {"control_guidance_start": start, "control_guidance_end": end}
        expected = stills(loaded, net, images(), controlnet_conditioning_scale=weight, **numbers)
        assert (latents[weight, start, end] - expected).abs().max() < 1e-4
    assert (latents[0.5, 0.0, 1.0] - latents[1.0, 0.3, 0.7]).abs().max() > 0.01


def test_several_units(loaded, folder, tmp_path):
    other = net_for(loaded.unet, seed=2)
    other.save_pretrained(tmp_path / "depth")
    pipe = control.with_controls(loaded, [folder, tmp_path / "depth", folder])
    pipe.set_progress_bar_config(disable=True)
    pictures = [images(seed=seed) for seed in range(3)]
    units = [unit(pictures[0]), unit(pictures[1], 0.5, 0.0, 0.7), unit(pictures[2], 0.2)]
    latents = clip(pipe, Settings(**ALONE, frames_per_pass=2), control=units)
    net = ControlNetModel.from_pretrained(folder)
    numbers = {"controlnet_conditioning_scale": [1.0, 0.5, 0.2], "control_guidance_end": [1.0, 0.7, 1.0]}
    assert_frames_are(latents, stills(loaded, [net, other, net], map(list, zip(*pictures)), **numbers))


def test_sdxl(xl_pipe, tmp_path):
    net_for(xl_pipe.unet, conditioning_embedding_out_channels=(16, 32)).save_pretrained(tmp_path)  # a pixel is 1/2
    pipe = control.with_controls(xl_pipe, [tmp_path])
    pipe.set_progress_bar_config(disable=True)
    latents = clip(pipe, Settings(**ALONE, frames_per_pass=2), control=[unit(images())])
    assert_frames_are(latents, stills(xl_pipe, ControlNetModel.from_pretrained(tmp_path), images()))
    assert [frame.size for frame in host.decode_frames(pipe, latents[:1])] == [(SIZE, SIZE)]


def test_the_size_is_the_models_own(pipe):
    sizes = []

    def pictures(frames, size):
        sizes.append(size)
        return images(len(frames))

    latents = host.sample_latents(pipe, PROMPT, Settings(frames=2), SEED, steps=1, control=[control.Unit(pictures)])
    assert latents.shape == (2, 4, 16, 16) and sizes == [(128, 128)]


# --- what goes on beside it ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"control_momentum": True}, {"anchor_stride": 2}, {"in_betweens": 2}], ids=str)
def test_passes_of_any_size_give_the_same_clip(pipe, more):
    pictures, settings = images(10), {"frames": 5, "control": ["images"], **more}
    whole, parts = (
        clip(pipe, Settings(**settings, frames_per_pass=count), control=[unit(pictures)]) for count in (10, 2)
    )
    assert (whole - parts).abs().max() < 1e-4


def test_momentum_in_the_controlnet(pipe):
    """It changes the frames after the first; without self-attention's average in the UNet too it is what is left."""
    without, with_it = (
        clip(pipe, Settings(frames=3, control_momentum=on), control=[unit(images())]) for on in (False, True)
    )
    assert torch.equal(without[0], with_it[0])
    assert (without[2] - with_it[2]).abs().max() > 1e-3


def test_segments_see_their_own_images(pipe):
    whole = clip(pipe, Settings(frames=5), control=[unit(images(5))])
    asked = []

    def pictures(frames, size):
        asked.append(frames)
        return [images(5)[frame] for frame in frames]

    sampling = host.ClipSampling(pipe, Settings(frames=5), SEED, control=[control.Unit(pictures)])
    sampling.clip.segment = 2
    parts = []
    with sampling.clip:
        for frames in sampling.clip.segments:
            sampling.clip.begin_segment(frames)
            with sampling:
                parts += pipe(
                    PROMPT,
                    num_images_per_prompt=len(frames),
                    num_inference_steps=STEPS,
                    guidance_scale=5.0,
                    generator=torch.Generator().manual_seed(SEED),
                    output_type="latent",
                    **sampling.controls.arguments(SIZE, SIZE),
                ).images
    assert asked == [range(0, 2), range(2, 4), range(4, 5)]
    assert (torch.stack(parts) - whole).abs().max() < 1e-4


def test_a_unit_for_each_is_needed(pipe, loaded):
    with pytest.raises(ValueError, match="0 units for a StableDiffusionControlNetPipeline with 1"):
        clip(pipe, Settings(frames=2))
    with pytest.raises(ValueError, match="1 units for a StableDiffusionPipeline with 0.*with_controls"):
        clip(loaded, Settings(frames=2), control=[unit(images())])


# --- models --------------------------------------------------------------------------------------------


def released(folder):
    """The tensors of a ControlNet of the tiny checkpoint as those of the original releases are named."""
    net = load_file(folder / "diffusion_pytorch_model.safetensors")
    tiny = load_file(checkpoints.TINY_SD / "tiny-sd.safetensors")
    unet = "model.diffusion_model."
    parts = ("input_blocks.", "middle_block.", "time_embed.")
    made = {name.removeprefix(unet): tensor for name, tensor in tiny.items() if name.startswith(unet)}
    made = {name: tensor for name, tensor in made.items() if name.startswith(parts)}
    for name, tensor in net.items():
        part, *numbers, kind = name.split(".")
        if part == "controlnet_down_blocks":
            made[f"zero_convs.{numbers[0]}.0.{kind}"] = tensor
        elif part == "controlnet_mid_block":
            made[f"middle_block_out.0.{kind}"] = tensor
        elif part == "controlnet_cond_embedding":
            place = {"conv_in": 0, "conv_out": 14}
            number = place[numbers[0]] if numbers[0] in place else 2 + 2 * int(numbers[1])
            made[f"input_hint_block.{number}.{kind}"] = tensor
    return made


@pytest.mark.parametrize("form", ["diffusers", "released", "control_model."])
def test_single_files(loaded, folder, tmp_path, form):
    file = tmp_path / "edges.safetensors"
    if form == "diffusers":
        shutil.copy(folder / "diffusion_pytorch_model.safetensors", file)
    else:
        prefix = "" if form == "released" else form
        save_file({prefix + name: tensor.contiguous() for name, tensor in released(folder).items()}, file)
    net, expected = control.load_control(file, loaded.unet), control.load_control(folder, loaded.unet)
    assert net.dtype == loaded.unet.dtype and not net.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_a_single_file_for_an_inpainting_checkpoint(loaded, folder):
    """Its UNet takes more channels than a ControlNet."""
    shape = {**loaded.unet.config, "in_channels": 9}
    net = control.load_control(folder / "diffusion_pytorch_model.safetensors", UNet2DConditionModel.from_config(shape))
    assert net.config.in_channels == 4


def refused(model, pipe):
    with pytest.raises(checkpoints.ModelError) as error:
        control.load_control(model, pipe.unet)
    return str(error.value)


def test_controlnets_for_other_checkpoints_are_refused(loaded, folder, tmp_path):
    own = loaded.unet.config.cross_attention_dim
    other = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=2048)))
    for model in (folder, folder / "diffusion_pytorch_model.safetensors"):
        assert f"is made for texts of {own} values a token, the checkpoint is of SDXL; choose" in refused(model, other)
    shape = json.loads((folder / "config.json").read_text())
    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps({**shape, "block_out_channels": [8, 16, 16]}))
    assert "blocks of [8, 16, 16] channels, the checkpoint of" in refused(copy, loaded)
    (copy / "config.json").write_text(json.dumps({**shape, "global_pool_conditions": True}))
    assert "guess mode" in refused(copy, loaded)
    (copy / "config.json").write_text(json.dumps({**shape, "_class_name": "ControlNetUnionModel"}))
    assert "is a ControlNetUnionModel; ZS² works with ControlNetModel" in refused(copy, loaded)


def test_other_files_are_refused(loaded, folder, tmp_path):
    assert "there is no" in refused(tmp_path / "none.safetensors", loaded)
    assert "no config.json" in refused(tmp_path, loaded)
    (tmp_path / "a.pth").write_bytes(b"\x80\x04")
    assert "can run code" in refused(tmp_path / "a.pth", loaded)
    assert "is no ControlNet; choose" in refused(checkpoints.TINY_SD / "tiny-sd.safetensors", loaded)
    save_file({"lora_controlnet": torch.zeros(1)}, tmp_path / "lora.safetensors")
    assert "is a Control-LoRA; choose" in refused(tmp_path / "lora.safetensors", loaded)
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04")
    assert "cannot be loaded" in refused(tmp_path / "broken.safetensors", loaded)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "mid_block" not in name}, tmp_path / "a.safetensors")
    assert "lacks" in refused(tmp_path / "a.safetensors", loaded)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "diffusion_pytorch_model.safetensors").rename(pickled / "diffusion_pytorch_model.bin")
    assert "can run code" in refused(pickled, loaded)


def test_instruct_pix2pix_has_none(loaded, folder):
    pipe = StableDiffusionInstructPix2PixPipeline(**loaded.components, requires_safety_checker=False)
    with pytest.raises(checkpoints.ModelError, match="InstructPix2PixPipeline has no ControlNet; give one of"):
        control.with_controls(pipe, [folder])
