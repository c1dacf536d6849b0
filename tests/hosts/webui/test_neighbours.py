"""Beside other extensions: habits of theirs, which the probe has, and the extensions themselves (ZS2_EXTENSIONS)."""

from __future__ import annotations

import contextlib

import pytest

from host import AND, BAR, CLIP, HIRES, SDE, UNBATCHED, Host, difference
from webui import HostError

PASSES = {"frames_per_pass": 2}
FLAT = {"motion": 0, "momentum": 0}
"""Every frame is the still."""


@contextlib.contextmanager
def habit(host: Host, name: str):
    """The probe takes up a habit; yields the numbers of pictures that are made inside of jobs."""
    inside: list[int] = []
    host.client.post("/zs2-probe/habit", {"name": name})
    try:
        yield inside
    finally:
        inside += host.client.post("/zs2-probe/habit", {"name": ""})


# --- jobs inside of jobs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, made", [("ADetailer", []), ("ADetailer, copies", [1] * 6)])
def test_copies_of_the_job(host, name, made):
    """Copies of the job are ended, begun and run at its pictures: its clips are whole all the same."""
    settings = {**CLIP, "frames": 3, "return": "both", "formats": ["gif"]}
    payload = {"n_iter": 2, "steps": 3}
    whole = host.clip(settings, **payload)
    with host.no_trace(), habit(host, name) as inside:
        result = host.clip(settings, **payload)
    assert inside == made
    assert result.files == whole.files and result.clips == whole.clips
    assert result.info["infotexts"] == whole.info["infotexts"]


@pytest.mark.parametrize("name, made", [("ADetailer, faces", [1] * 6), ("postprocess", [1])])
def test_a_job_inside_of_a_job_is_no_clip(host, name, made):
    """Each frame has a region painted anew, by a job of one picture that has the clip's scripts and their arguments."""
    settings, payload = {**CLIP, "frames": 3, "return": "both", "formats": ["gif"]}, {"n_iter": 2, "steps": 3}
    whole = host.clip(settings, **payload)
    with host.no_trace(), habit(host, name) as inside:
        result = host.clip(settings, **payload)
    assert inside == made
    assert len(result.clips) == 2 and len(result.files) == len(whole.files)
    for before, after in zip(whole.frames[-6:], result.frames[-6:]):  # before them come the clips
        assert difference(before[104:], after[104:]) <= 2 * BAR
        assert (difference(before, after) > 20) == (name != "postprocess")
    assert host.clip(settings, **payload).files == whole.files


# --- what others keep, swallow, reorder and count --------------------------------------------------------------


@pytest.mark.parametrize("payload", [{}, SDE, HIRES], ids=["Euler", "DPM++ SDE", "hires.fix"])
def test_methods_that_another_extension_keeps(host, payload):
    """It puts back after the clip what it found during it: to what follows, that is the host's own."""
    before, clip = host.generate(**payload).frames, host.clip(PASSES, **payload).frames
    with habit(host, "keeps methods"):
        for _ in range(3):
            assert difference(host.clip(PASSES, **payload).frames, clip) == 0
            assert difference(host.generate(**payload).frames, before) == 0


@pytest.mark.parametrize("at", [2, 4])
def test_error_in_a_call_of_another_extension(host, at):
    """The host swallows what is raised in a callback; a UNet call of the clip that failed there stops it."""
    with host.no_trace(), habit(host, "asks again"):
        host.arm("exception", at)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip(steps=2)


NEIGHBOURS = {
    "asks again": {},
    "reorders": {"prompt": AND},
    "reorders, slices": {"prompt": AND, "override_settings": UNBATCHED},
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_rows_that_another_extension_asks_for(host, name):
    """Frame 1 is the still that is made beside it, passes of any size give the same clip."""
    payload = {**NEIGHBOURS[name], "steps": 4}
    plain = host.generate(**payload).frames
    with habit(host, name.partition(",")[0]):
        still = host.generate(**payload).frames
        clip, pieces = host.clip(**payload).frames, host.clip(PASSES, **payload).frames
        flat = host.clip({**PASSES, **FLAT}, **payload).frames
    assert (difference(still, plain) > BAR) == (name == "asks again")
    assert difference(clip[0], still[0]) <= BAR
    assert difference(clip, pieces) <= BAR
    assert max(difference(frame, still[0]) for frame in flat) <= BAR
    if name != "asks again":
        assert difference(clip, host.clip(**payload).frames) <= BAR, "momentum mixes prompts"


def test_code_on_attention_that_counts_rows(host):
    """Passes hold all frames, anchors are off, and notes say so."""
    with habit(host, "counts rows"):
        still = host.generate().frames
        flat = host.clip({**PASSES, **FLAT, "anchor_stride": 3})
    notes = str(flat.info["extra_generation_params"])
    assert difference(still, host.generate().frames) > BAR
    assert max(difference(frame, still[0]) for frame in flat.frames) <= BAR
    assert "zs2_neighbours.py" in notes and "not 2" in notes and "Anchor stride 3 was not used" in notes


def test_code_on_attention_and_too_little_memory(host):
    with host.no_trace(), habit(host, "counts rows"):
        host.arm("oom", rows_over=4)
        with pytest.raises(HostError, match="another extension works inside the UNet"):
            host.clip(PASSES)
