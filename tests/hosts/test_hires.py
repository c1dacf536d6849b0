"""Protects hires. fix by diffusers: each frame is the still of img2img from its own larger latents, as in the WebUI."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import test_control
import test_diffusers
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from test_diffusers import PROMPT, SEED, SIZE, STEPS, assert_untouched, clip, plain, use

from small_models import net_for
from zs2_lib.hosts.diffusers import control, hires
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.hires import Hires
from zs2_lib.settings import table
from zs2_lib.settings.table import Settings

loaded, pipe, xl_pipe = test_diffusers.loaded, test_diffusers.pipe, test_diffusers.xl_pipe
TEXTS = ["a red circle", "a blue square"]
ALONE = {"frames": 2, "motion": 0, "momentum": 0, "prompts": "\n".join(f"{n}: {text}" for n, text in enumerate(TEXTS))}
"""Each frame is the still of its own prompt."""


def second_pass(pipe):
    """The img2img pipeline of `diffusers` with the same components."""
    xl = hasattr(pipe, "tokenizer_2")
    second = (StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline)(
        **pipe.components, **({"add_watermarker": False} if xl else {"requires_safety_checker": False})
    )
    second.set_progress_bar_config(disable=True)
    return second


def first_pass(pipe, text: str, guidance=5.0) -> torch.Tensor:
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "width": SIZE, "height": SIZE}
    return pipe(text, generator=torch.Generator().manual_seed(SEED), output_type="latent", **how).images


def still(pipe, text: str, large: torch.Tensor, steps: int, strength: float, guidance=5.0, **more) -> torch.Tensor:
    """What `diffusers` alone makes of the larger latents."""
    generator, how = torch.Generator().manual_seed(SEED), {"num_inference_steps": steps, "strength": strength}
    second = second_pass(pipe)
    return second(text, image=large, generator=generator, output_type="latent", guidance_scale=guidance, **how).images


def interpolated(latents: torch.Tensor, size: int, mode: str, **how) -> torch.Tensor:
    return torch.nn.functional.interpolate(latents, size=(size, size), mode=mode, **how)


@pytest.mark.parametrize(
    ("upscaler", "mode"),
    [
        ("Latent", {"mode": "bilinear"}),
        ("Latent (antialiased)", {"mode": "bilinear", "antialias": True}),
        ("Latent (bicubic)", {"mode": "bicubic"}),
        ("Latent (bicubic antialiased)", {"mode": "bicubic", "antialias": True}),
        ("Latent (nearest)", {"mode": "nearest"}),
        ("Latent (nearest-exact)", {"mode": "nearest-exact"}),
    ],
)
@pytest.mark.parametrize("model", ["pipe", "xl_pipe"])
def test_frames_are_the_stills(request, model, upscaler, mode):
    """Of five steps at strength 0.7 the WebUI samples all, as a part of seven."""
    pipe = request.getfixturevalue(model)
    latents = clip(pipe, Settings(**ALONE), prompt="", hires=Hires(1.5, upscaler=upscaler, steps=5))
    for number, text in enumerate(TEXTS):
        large = interpolated(first_pass(pipe, text), 96 // pipe.vae_scale_factor, **mode)
        assert (latents[number] - still(pipe, text, large, 7, 5.2 / 7)).abs().max() < 1e-4
    assert (latents[1] - latents[0]).abs().max() > 0.05


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "DPM++ SDE", "Heun", "UniPC", "PNDM"])
def test_other_schedulers(pipe, name):
    use(pipe, name)
    settings = Settings(**ALONE)
    latents = clip(pipe, settings, prompt="", guidance=1.0, hires=Hires(2.0, denoising=0.5, guidance=3.0))
    assert torch.equal(latents, clip(pipe, settings, prompt="", guidance=1.0, hires=Hires(denoising=0.5, guidance=3.0)))
    large = interpolated(first_pass(pipe, TEXTS[1], 1.0), 16, "bilinear")
    assert (latents[1] - still(pipe, TEXTS[1], large, 2 * STEPS, 0.5, 3.0)).abs().max() < 1e-3


@pytest.mark.parametrize("model", ["pipe", "xl_pipe"])
def test_by_pictures(request, model):
    """An upscaler of pictures: frames are decoded, made larger, and encoded without a draw."""
    pipe = request.getfixturevalue(model)
    seen = []

    def larger(picture: Image.Image, size) -> Image.Image:
        seen.append(picture.size)
        return picture.resize(size, Image.Resampling.LANCZOS)

    latents = clip(pipe, Settings(frames=2, motion=0, momentum=0), hires=Hires(1.5, upscaler=larger, steps=5))
    image = pipe.image_processor.preprocess(larger(plain(pipe, output_type="pil")[0], (96, 96)))
    large = pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor
    assert (latents - still(pipe, PROMPT, large, 7, 5.2 / 7)).abs().max() < 0.005  # of pixels that differ by 1
    assert seen == [(SIZE, SIZE)] * 3


def test_another_prompt_and_scheduler(pipe):
    own = pipe.scheduler
    use(pipe, "Euler")
    second, pipe.scheduler = pipe.scheduler, own
    how = Hires(steps=5, prompt="a yellow star", negative="dark", scheduler=second)
    latents = clip(pipe, Settings(frames=1), negative_prompt="small", hires=how)
    large = interpolated(plain(pipe, negative_prompt="small"), 16, "bilinear")
    pipe.scheduler = second
    alone = second_pass(pipe)(
        "a yellow star",
        negative_prompt="dark",
        image=large,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        guidance_scale=5.0,
        num_inference_steps=7,
        strength=5.2 / 7,
    ).images
    assert (latents - alone).abs().max() < 1e-4


def test_with_controlnets(pipe, tmp_path):
    """In both passes, with images of their sizes."""
    net_for(pipe.unet).save_pretrained(tmp_path / "net")
    shown, asked = test_control.images(2), []

    def pictures(frames, size):
        asked.append((frames, size))
        return [shown[frame].resize(size) for frame in frames]

    controlled = control.with_controls(pipe, [tmp_path / "net"])
    controlled.set_progress_bar_config(disable=True)
    settings, how = Settings(frames=2, motion=0, momentum=0, frames_per_pass=1), Hires(2.0, steps=5)
    latents = clip(controlled, settings, hires=how, control=[control.Unit(pictures, 0.8)])
    assert asked == [(range(2), (SIZE, SIZE)), (range(2), (2 * SIZE, 2 * SIZE))]
    net = ControlNetModel.from_pretrained(tmp_path / "net")
    second = StableDiffusionControlNetImg2ImgPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    for number in range(2):
        first = test_control.stills(pipe, net, [shown[number]], controlnet_conditioning_scale=0.8)
        alone = second(
            PROMPT,
            image=interpolated(first, 16, "bilinear"),
            control_image=shown[number].resize((2 * SIZE, 2 * SIZE)),
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            guidance_scale=5.0,
            num_inference_steps=7,
            strength=5.2 / 7,
            controlnet_conditioning_scale=0.8,
        ).images
        assert (latents[number] - alone[0]).abs().max() < 1e-4


# --- as a clip -----------------------------------------------------------------------------------------


def test_noise_and_momentum_join_the_frames(pipe):
    """The noise of the second pass is that of a clip: with the whole way sampled anew nothing else is left."""
    use(pipe, "Euler a")
    settings, how = {"frames": 3, "momentum": 0}, Hires(2.0, denoising=1.0)
    calm, lively = (clip(pipe, Settings(motion=motion, **settings), hires=how) for motion in (0.02, 0.3))
    assert (calm[0] - lively[0]).abs().max() < 1e-4
    differences = [(latents[1:] - latents[:-1]).abs().mean() for latents in (calm, lively)]
    assert 0 < differences[0] < 0.5 * differences[1]
    with_momentum = clip(pipe, Settings(frames=3, motion=0.3, momentum=0.98), hires=how)
    assert (with_momentum - lively).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("more", "segment"), [({"in_betweens": 2}, 2), ({"anchor_stride": 2}, 128)], ids=["in-betweens", "anchors"]
)
def test_passes_and_segments_change_nothing(pipe, more, segment, monkeypatch):
    """Where segments end, clips with anchors have another one."""
    use(pipe, "Euler a")
    settings = {"frames": 5, "motion": 0.1, **more}
    whole = clip(pipe, Settings(**settings), hires=Hires(1.5, steps=5))
    monkeypatch.setattr(table, "SEGMENT", segment)
    parts = clip(pipe, Settings(frames_per_pass=2, **settings), hires=Hires(1.5, steps=5))
    assert (whole - parts).abs().max() < 1e-4
    assert whole.shape[-2:] == (12, 12)


def test_a_stopped_second_pass_leaves_no_trace(pipe, monkeypatch):
    monkeypatch.setattr(table, "SEGMENT", 2)
    before, seen = plain(pipe), []

    def stop(now: host.Progress):
        seen.append(now)
        if now.hires and now.frames[0] > 2 and now.step == 2:
            raise KeyboardInterrupt

    frames = host.sample_clip(
        pipe, PROMPT, Settings(frames=4), SEED, steps=STEPS, width=SIZE, height=SIZE, hires=Hires(), progress=stop
    )
    assert next(frames).size == next(frames).size == (2 * SIZE, 2 * SIZE)
    with pytest.raises(KeyboardInterrupt):
        next(frames)
    assert_untouched(pipe)
    assert torch.equal(plain(pipe), before)
    done = [now.done for now in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == pytest.approx(0.5 + 0.5 * (0.2 + 0.8 / 3))
    assert [now.hires for now in seen] == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("how", "large", "size"),
    [
        ({"scale": 2.0}, (1024, 1536), (1024, 1536)),
        ({"scale": 1.1}, (560, 840), (560, 840)),
        ({"resize": (1024, 0)}, (1024, 1536), (1024, 1536)),
        ({"resize": (0, 1000)}, (664, 1000), (664, 1000)),
        ({"resize": (1000, 1000)}, (1000, 1496), (1000, 1000)),
        ({"resize": (512, 1024)}, (680, 1024), (512, 1024)),
    ],
)
def test_sizes_are_the_webuis(how, large, size):
    """Of 512×768, as StableDiffusionProcessingTxt2Img.calculate_target_resolution has them, down to multiples of 8."""
    assert Hires(**how).sizes((512, 768)) == (large, size)


def test_what_is_beyond_is_cut_off(pipe):
    latents = torch.arange(8.0).repeat(1, 4, 8, 1)
    wide, high = (Hires(resize=size).enlarged(pipe, latents) for size in ((64, 128), (128, 72)))
    assert wide.shape == (1, 4, 16, 8) and high.shape == (1, 4, 9, 16)
    whole = interpolated(latents, 16, "bilinear")
    assert torch.equal(wide, whole[..., 4:12]) and torch.equal(high, whole[:, :, 3:12])


def test_steps_are_counted_as_the_webui_does():
    assert [hires.schedule(20, denoising)[0] for denoising in (1, 0.7, 0.5, 0.05)] == [20, 28, 40, 400]
    for steps in range(1, 60):
        for denoising in (0.05, 0.3, 0.55, 0.7, 0.99, 1.0):
            count, strength = hires.schedule(steps, denoising)
            assert min(int(count * strength), count) == steps and strength <= 1  # as the pipelines count them
