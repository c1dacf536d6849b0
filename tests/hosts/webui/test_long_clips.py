"""Clips of more frames than are sampled at once: segment by segment, against all frames in one batch."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from clipfiles import frames as stored
from host import BAR, EULER_A, HIRES, KIND, SDE, STILL, change, difference
from sources import EDIT, folder, mask, scene
from webui import HostError

FRAMES, SEGMENT = 9, 4
"""Segments of 4, 4 and 1 frames."""
LONG_CLIP = {"frames": FRAMES, "frames_per_pass": 2}


@contextlib.contextmanager
def limit(host, module: str, name: str, value: int):
    def set_to(value: int) -> int:
        return host.client.post("/zs2-probe/limit", {"module": module, "name": name, "value": value})

    before = set_to(value)
    try:
        yield
    finally:
        set_to(before)


def segments_of(host, frames: int):
    return limit(host, "segments", "SEGMENT", frames)


@pytest.fixture(autouse=True)
def no_trace(host):
    with host.no_trace(seed=1):
        yield


def chained(host, settings: dict | None = None, segment: int = SEGMENT, **payload):
    with segments_of(host, segment):
        return host.clip({**LONG_CLIP, **(settings or {})}, **payload)


CASES = {
    "Euler": {},
    "Euler a": EULER_A,
    "DPM++ 2M": {"sampler_name": "DPM++ 2M"},
    "SDE": SDE,
    "Heun": {"sampler_name": "Heun"},
    "CFG 1": {"cfg_scale": 1},
    "AND": {"prompt": STILL["prompt"] + " AND a yellow star on a green background :0.6"},
    "NGMS": {"s_min_uncond": 5, "steps": 4},
    "hires.fix": {**HIRES, **EULER_A},
    "img2img": {"init_images": [np.asarray(scene(0))], "denoising_strength": 0.7},
}


@pytest.mark.parametrize("payload", CASES.values(), ids=CASES)
@pytest.mark.parametrize("segment", [4, 7])
def test_segments_are_the_whole_clip(host, payload, segment):
    whole = host.clip(LONG_CLIP, **payload).frames
    result = chained(host, segment=segment, **payload)
    assert difference(result.frames, whole) <= BAR
    assert difference(whole[:1], host.generate(**payload).frames) <= BAR
    assert change(whole) > 0.1
    assert len(result.info["infotexts"]) == len(result.info["all_seeds"]) == FRAMES
    assert "ZS2 stopped" not in result.info["extra_generation_params"]


@pytest.mark.parametrize("settings", [{}, {"anchor_stride": 3, "anchor_start": 0.1}], ids=["exact", "anchors"])
def test_going_on_over_segments(host, settings):
    """What is kept is the same with in-betweens, whose segments have as many more frames, and in a longer clip."""
    exact = 0 if KIND.name == "a1111" else 1
    clip = chained(host, settings, **EULER_A).frames
    finer = chained(host, {**settings, "in_betweens": 2}, **EULER_A).frames
    assert len(finer) == 2 * FRAMES - 1 and difference(finer[::2], clip) <= exact
    for frames in (3, 6):
        shorter = chained(host, {**settings, "frames": frames}, **EULER_A).frames
        longer = chained(host, {**settings, "extended": str(frames)}, **EULER_A).frames
        assert difference(longer[:frames], shorter) <= exact


def test_segments_of_anchors(host):
    """Where a segment ends lies an anchor, so the clip is near that of one batch, and its first segment the same."""
    settings = {"anchor_stride": 2, "anchor_start": 0}
    whole = host.clip({**LONG_CLIP, **settings}).frames
    result = chained(host, settings).frames
    assert difference(result[:1], whole[:1]) <= BAR
    assert np.abs(result - whole).mean() < change(whole)


def test_prompts_by_frame(host):
    settings = {"prompts": f"0: {STILL['prompt']}\n8: a yellow star on a green background"}
    whole = host.clip({**LONG_CLIP, **settings}, prompt="").frames
    assert difference(chained(host, settings, prompt="").frames, whole) <= BAR


def test_two_clips(host):
    whole = host.clip({**LONG_CLIP, "return": "video"}, n_iter=2)
    result = chained(host, {"return": "video"}, n_iter=2, segment=5)
    assert difference(result.frames, whole.frames) <= BAR
    assert result.info["all_seeds"] == whole.info["all_seeds"]
    assert len(result.info["all_prompts"]) == 2 * FRAMES
    assert [clip["seed"] for clip in result.info["zs2_clips"]] == [clip["seed"] for clip in whole.info["zs2_clips"]]
    assert [len(stored(file)) for file in result.clips] == [FRAMES, FRAMES]


def test_source_video_with_masks(host, tmp_path):
    place = host.data / f"long {tmp_path.name}"
    place.mkdir()
    settings = {"source": str(folder(place / "frames", count=FRAMES)), "frames": 0}
    payload = {**EDIT, "denoising_strength": 0.7}
    for more in ({}, {"mask": str(folder(place / "masks", mask, FRAMES))}):
        whole = host.clip({**LONG_CLIP, **settings, **more}, **payload).frames
        assert difference(chained(host, {**settings, **more}, **payload).frames, whole) <= BAR


def test_an_error_keeps_the_finished_segments(host):
    before = set(host.outputs.rglob("*.mp4"))
    with segments_of(host, 3):
        host.arm("exception", at=2 * host_calls_of_a_segment(host) + 1)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip({**LONG_CLIP, "formats": ["mp4"]}, save_images=True)
    (file,) = set(host.outputs.rglob("*.mp4")) - before
    assert file.stem.endswith("-stopped") and len(stored(file.read_bytes())) == 6


def test_a_job_that_ends_between_two_segments(host):
    """As an interrupt while a segment is decoded does, or one that waits until the picture is finished."""
    with segments_of(host, 3):
        host.arm("interrupt", at=1, site="vae")
        result = host.clip({**LONG_CLIP, "formats": ["gif"], "return": "both"})
    (clip,) = result.info["zs2_clips"]
    assert clip["stopped"] and clip["frames"] == 3 and clip["path"].endswith("-stopped.gif")
    assert "ZS2 stopped: before the end" in host.client.infotext(result.clips[0])


def test_frames_that_no_page_shows_are_saved(host):
    """Pictures that are left out of the result are made empty, but not before the host has saved them."""
    before = set(host.outputs.rglob("*.png"))
    with segments_of(host, 3), limit(host, "clips", "AT_ONCE", 4):
        result = host.clip(LONG_CLIP, save_images=True)
    saved = sorted(set(host.outputs.rglob("*.png")) - before)
    assert len(result.frames) == len(result.info["infotexts"]) == 4
    assert [Image.open(path).size for path in saved] == [(STILL["width"], STILL["height"])] * FRAMES


def host_calls_of_a_segment(host) -> int:
    """UNet calls of a clip of three frames."""
    host.arm()
    host.clip({**LONG_CLIP, "frames": 3})
    return len(host.disarm())


@pytest.mark.parametrize("settings", [{"loop": True}])
def test_what_needs_all_frames_is_one_batch(host, settings):
    assert difference(chained(host, settings).frames, host.clip({**LONG_CLIP, **settings}).frames) <= BAR


@pytest.mark.skipif("DPM adaptive" not in KIND.samplers, reason="the host has no such sampler")
def test_adaptive_samplers_are_refused_for_long_clips(host):
    host.refusal({"frames": 1025}, ["frames", "1025", "DPM adaptive", "at most 1024"], sampler_name="DPM adaptive")
