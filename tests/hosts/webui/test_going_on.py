"""Going on from a clip: in-betweens, more frames, another take. What is kept of it are the same pictures."""

from __future__ import annotations

import numpy as np
import pytest

from host import AND, EULER_A, FRAMES, HIRES, KIND, UNBATCHED, change, difference
from sources import EDIT, scene
from sources import folder as source_folder

EXACT = 0 if KIND.name == "a1111" else 1
"""How far kept pictures may be apart, of 255: some hosts decode all of a batch at once, and round by its size."""
TRAVEL = {"prompts": f"0: a red circle\n{FRAMES - 1}: a yellow star"}
ANCHORS = {"anchor_stride": 3, "anchor_start": 0.1}
CASES = {
    # name: settings, payload
    "Euler": ({}, {}),
    "DDIM": ({}, {"sampler_name": "DDIM"}),
    "Euler a": ({}, EULER_A),
    "DPM++ 2M SDE": ({}, {"sampler_name": "DPM++ 2M SDE"}),
    "LCM": ({}, {"sampler_name": "LCM"}),
    "hires.fix": ({}, {**HIRES, **EULER_A}),
    "prompt travel": (TRAVEL, {"prompt": ""}),
    "anchors": (ANCHORS, EULER_A),
    "anchors, passes": ({**ANCHORS, "frames_per_pass": 2}, {}),
    "passes": ({"frames_per_pass": 4}, EULER_A),
    "AND": ({}, {"prompt": AND}),
    "AND, batch_cond_uncond off": ({"frames_per_pass": 2}, {"prompt": AND, "override_settings": UNBATCHED}),
    "CFG 1": ({}, {"cfg_scale": 1}),
    "keyframes of motion and momentum": ({"motion": "0:0.02, 5:0.2", "momentum": "0:1, 5:0.3", "inertia": 0.5}, {}),
    "mixed noise": ({"noise_model": "mixed"}, EULER_A),
    "img2img": ({}, {"init_images": [np.asarray(scene(0))], "denoising_strength": 0.7}),
}
CUT_BY_ROWS = ("AND, batch_cond_uncond off",)
"""The host cuts the rows of these into calls by the size of the batch: there kept pictures are within 1 of 255."""


@pytest.fixture(autouse=True)
def no_trace(host):
    with host.no_trace(seed=1):
        yield


def assert_goes_on(host, settings: dict, most: int = EXACT, **payload) -> None:
    """In-betweens, an extension and a retake of the clip: what is kept is the same, what is new is new."""
    clip = host.clip(settings, **payload).frames
    assert change(clip) > 0
    for times in (2, 4):
        finer = host.clip({**settings, "in_betweens": times}, **payload).frames
        assert len(finer) == times * (len(clip) - 1) + 1
        assert difference(finer[::times], clip) <= most
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3)).max()
        assert change(finer[: times + 1]) > 0 and np.abs(np.diff(finer, axis=0)).mean((1, 2, 3)).max() <= 1.1 * step
    longer = host.clip({**settings, "frames": len(clip) + 3, "extended": str(len(clip))}, **payload).frames
    assert len(longer) == len(clip) + 3 and difference(longer[: len(clip)], clip) <= most
    assert difference(longer[-1:], clip[-1:]) > 0
    first, second = (host.clip({**settings, "retakes": f"3:{take}"}, **payload).frames for take in (1, 2))
    for take in (first, second):
        assert difference(take[:3], clip[:3]) <= most and difference(take[3:4], clip[3:4]) > 0
    assert difference(first[3:], second[3:]) > 0


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_is_the_same(host, name):
    settings, payload = CASES[name]
    assert_goes_on(host, settings, max(EXACT, name in CUT_BY_ROWS), **payload)


def test_of_a_source_video(host):
    """Its own frames lie in between: each at λ = 0, μ = 0 is what the finer selection makes of it."""
    path = source_folder(host.data / "going on source")
    settings = {"source": str(path), "source_every": 2, "frames": 0, "fps": 0}
    clip = host.clip(settings, **EDIT).frames
    finer = host.clip({**settings, "in_betweens": 2}, **EDIT).frames
    assert len(finer) == 2 * len(clip) - 1 and difference(finer[::2], clip) <= EXACT
    still = {**settings, "motion": 0, "momentum": 0}
    every = host.clip({**still, "source_every": 1, "frames": len(finer)}, **EDIT).frames
    assert difference(host.clip({**still, "in_betweens": 2}, **EDIT).frames, every) <= max(EXACT, 2)
