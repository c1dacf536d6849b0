"""Anchor passes in the WebUI: frame 1 is the still, passes of any size give the same clip, nothing is left behind."""

from __future__ import annotations

import pytest

from host import AND, BAR, HIRES, REFINER, SDE, STILL, UNBATCHED, change, difference, without
from webui import HostError

KEYS = {"frames": 8, "frames_per_pass": 8, "anchor_stride": 3, "anchor_depth": "medium", "anchor_start": 0.1}
LONG = {"prompt": STILL["prompt"] + ", photo, cute, simple, bright, flat style" * 12}
HYPERTILE = {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 128, "hypertile_swap_size_unet": 1}
SDXL, PIX2PIX = ({"sd_model_checkpoint": f"{name}.safetensors"} for name in ("sdxl", "pix2pix"))
CASES = {
    "SD 1.x": {},
    "SD 1.x, DPM++ SDE": SDE,
    "SDXL": {"override_settings": SDXL},
    "AND": {"prompt": AND},
    "AND, batch_cond_uncond off": {"prompt": AND, "override_settings": UNBATCHED},
    "unequal lengths": LONG,
    "NGMS": {"s_min_uncond": 30},
    "hires.fix": HIRES,
    "refiner": REFINER,
    "HyperTile": {"width": 256, "height": 256, "steps": 3, "override_settings": HYPERTILE},
    "Instruct-Pix2Pix": {"denoising_strength": 0.8, "image_cfg_scale": 1.5, "override_settings": PIX2PIX},
}


PARTS = {"HyperTile": "HyperTile", "Instruct-Pix2Pix": "pix2pix"}


@pytest.mark.parametrize("depth", ["medium", "strong"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=without(PARTS.get(name, ""))) for name in CASES])
def test_anchors(host, name, depth):
    payload, settings = dict(CASES[name]), {**KEYS, "anchor_depth": depth}
    if name == "Instruct-Pix2Pix":
        payload["init_images"] = [host.generate(seed=3).frames[0]]
    with host.no_trace(**payload) as still:
        host.arm()
        whole = host.clip(settings, **payload).frames
        rows = max(call["rows"] for call in host.disarm())
        host.arm()
        pieces = host.clip({**settings, "frames_per_pass": 2}, **payload).frames
        rows_in_pieces = max(call["rows"] for call in host.disarm())
    exact = host.clip({**settings, "anchor_stride": 1}, **payload).frames

    assert difference(whole[0], still[0]) <= BAR
    assert difference(pieces, whole) <= BAR
    # with calls of four frames, a pass may hold all of one: the frames up to the next but one anchor
    assert rows_in_pieces < rows or "off" in name
    assert difference(whole, exact) > 0, "anchors are not at work"
    assert 0 < change(whole) < 2 * change(exact)


def test_stride_1_is_the_exact_method(host):
    settings = {key: KEYS[key] for key in ("frames", "frames_per_pass")}
    exact = host.clip(settings).frames
    assert difference(host.clip({**settings, "anchor_stride": 1, "anchor_depth": "strong"}).frames, exact) == 0


@pytest.mark.parametrize("at", [2, 2 * STILL["steps"]])
def test_exception(host, at):
    """At the second pass, and at the last of two passes a step."""
    with host.no_trace():
        host.arm("exception", at)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip({**KEYS, "frames_per_pass": 4})


def test_out_of_memory(host):
    """Down to two gaps the clip is the same; below that, the error names the stride."""
    whole = host.clip(KEYS).frames
    host.arm("oom", rows_over=2 * 5)
    result = host.clip(KEYS)
    host.disarm()
    assert difference(result.frames, whole) <= BAR
    host.arm("oom", rows_over=2 * 2)
    with pytest.raises(HostError, match="lower anchor_stride"):
        host.clip(KEYS)
    host.disarm()


@without("LoRA weights by frame")
def test_changing_lora_weights_need_all_frames(host):
    """Each pass then holds one frame: the stride is not used, and a note says so."""
    prompts = "0: <lora:zs2_lora:0.2>\n4: <lora:zs2_lora:1>"
    result = host.clip({**KEYS, "frames": 4, "prompts": prompts}, steps=2)
    assert "was not used: LoRA weights" in str(result.info["extra_generation_params"])
