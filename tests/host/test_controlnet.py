"""ControlNet units with an image for each frame: with λ = 0 and μ = 0 every frame is the still made with its own control image."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from host import difference, left_behind, zs2
from PIL import Image, ImageDraw
from webui import HostError

BAR = 2
FRAMES = 5
STILL = {"prompt": "a red circle on a blue background", "seed": 11, "steps": 4, "width": 128, "height": 128, "cfg_scale": 4,
         "sampler_name": "Euler", "override_settings": {"sd_model_checkpoint": "sd15.safetensors"}}
SEPARATE = {"motion": 0, "momentum": 0, "frames": FRAMES, "return": "frames"}
AND = STILL["prompt"] + " AND a yellow star on a green background :0.6"
LONG = STILL["prompt"] + ", a picture of a red circle on blue" * 10
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_second_pass_steps": 3, "hr_upscaler": "Latent"}

NET = {"module": "none", "model": "control_sd15_zs2"}
UNITS = {
    "ControlNet": NET,
    "ControlNet, canny": {**NET, "module": "canny", "processor_res": 128, "threshold_a": 40, "threshold_b": 90},
    "ControlNet, pixel perfect": {**NET, "module": "canny", "pixel_perfect": True},
    "ControlNet, weight and steps": {**NET, "weight": 0.6, "guidance_start": 0.3, "guidance_end": 0.8},
    "ControlNet, prompt more important": {**NET, "control_mode": "My prompt is more important"},
    "ControlNet, control more important": {**NET, "control_mode": "ControlNet is more important"},
    "ControlNet, inpaint": {**NET, "module": "inpaint"},
    "ControlNet, inpaint only": {**NET, "module": "inpaint_only"},
    "ControlNet, tile with colour fix": {**NET, "module": "tile_colorfix"},
    "ControlNet, shuffle": {**NET, "module": "shuffle"},
    "T2I-Adapter": {"module": "none", "model": "t2iadapter_sd15_zs2"},
    "T2I-Adapter, control more important": {"module": "none", "model": "t2iadapter_sd15_zs2", "control_mode": "ControlNet is more important"},
    "Control-LoRA": {"module": "none", "model": "controllora_sd15_zs2"},
    "IP-Adapter": {"module": "ip-adapter_zs2", "model": "ip-adapter_sd15_zs2"},
    "reference only": {"module": "reference_only", "threshold_a": 0.5},
    "reference, adain and attention": {"module": "reference_adain+attn", "threshold_a": 1.0},
    "recolor": {**NET, "module": "recolor_luminance"},
}
MASKED = ("ControlNet, inpaint", "ControlNet, inpaint only")
LAYOUTS = {
    "AND": {"prompt": AND}, "unequal lengths": {"prompt": LONG}, "unequal lengths, AND": {"prompt": LONG + " AND a yellow star"},
    "batch_cond_uncond off": {"override_settings": {**STILL["override_settings"], "batch_cond_uncond": False}},
    "NGMS": {"s_min_uncond": 30}, "CFG 1": {"cfg_scale": 1}, "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
}


def scene(number: int, size=(128, 128)) -> Image.Image:
    """A shape that moves to the right and changes its colour."""
    image = Image.new("RGB", size, (60 * number, 40, 240 - 60 * number))
    x = size[0] * (0.1 + 0.1 * number)
    ImageDraw.Draw(image).ellipse((x, size[1] * 0.3, x + size[0] * 0.4, size[1] * 0.7), fill=(240 - 60 * number, 60 * number, 40))
    return image


def mask(size=(128, 128)) -> Image.Image:
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((32, 32, 96, 96), fill="white")
    return image


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def host(controlnet_host):
    return controlnet_host


@pytest.fixture(scope="module")
def folder(host):
    """A folder of control images that requests may name."""
    path = host.data / "control"
    path.mkdir()
    for number in range(FRAMES):
        scene(number).save(path / f"{number}.png")
    return path


def enabled(unit: dict, image: Image.Image | None = None) -> dict:
    unit = {"enabled": True, "save_detected_map": False, **unit}
    return {**unit, "image": encoded(image)} if image else unit


def still(host, units: list[dict], **payload) -> np.ndarray:
    return host.generate(**{**STILL, **payload}, alwayson_scripts={"ControlNet": {"args": units}}).frames[0]


def clip(host, units: list[dict], settings: dict, **payload):
    return host.generate(**{**STILL, **payload}, alwayson_scripts={"ControlNet": {"args": units}, **zs2({**SEPARATE, **settings})})


def compare(host, folder, units: list[dict], payload: dict, per_pass=(0, 2), bar=BAR) -> None:
    """Every frame against the still with its control images; each unit takes them from the folder."""
    with_images = [{**unit, "mask": encoded(mask())} if unit["module"].startswith("inpaint") else unit for unit in units]
    stills = np.stack([still(host, [enabled(unit, scene(number)) for unit in with_images], **payload) for number in range(FRAMES)])
    assert difference(stills[0], stills[-1]) > 3 * bar, "the control images make no difference: the unit is not at work"
    given = [enabled(unit, scene(0)) if "mask" in unit else enabled(unit) for unit in with_images]
    for frames_per_pass in per_pass:
        settings = {"control": [str(folder)] * len(units), "frames_per_pass": frames_per_pass}
        frames = clip(host, given, settings, **payload).frames
        assert difference(frames, stills) <= bar, f"{frames_per_pass} frames per pass"


@pytest.mark.parametrize("unit", UNITS)
def test_every_frame_is_the_still_of_its_control_image(host, folder, unit):
    # recolouring computes the colours of a finished frame anew, by which a level of difference becomes a few
    compare(host, folder, [UNITS[unit]], {}, bar=3 * BAR if unit == "recolor" else BAR)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unit", ["ControlNet, canny", "T2I-Adapter", "IP-Adapter", "reference only"])
def test_every_layout_of_the_unets_rows(host, folder, unit, layout):
    compare(host, folder, [UNITS[unit]], LAYOUTS[layout], per_pass=(2,))


@pytest.mark.parametrize("unit", ["ControlNet, canny", "ControlNet, inpaint only", "T2I-Adapter", "IP-Adapter", "reference only"])
@pytest.mark.parametrize("option", ["Both", "Low res only", "High res only"])
def test_hires_fix(host, folder, unit, option):
    compare(host, folder, [{**UNITS[unit], "hr_option": option}], HIRES, per_pass=(2,))
