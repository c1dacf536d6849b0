"""Faults at any point: the host is left as it was, what was finished is delivered, and less memory costs only time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import clipfiles
from host import AND, BAR, FRAMES, HIRES, KIND, REFINER, SDE, STILL, UNBATCHED, difference
from webui import HostError

PASSES = {"frames_per_pass": 2}
STEP, STEPS = FRAMES // 2, STILL["steps"]
"""The passes for a step of the sampler, and the steps of a clip."""
PAYLOADS = {
    "Euler": {},
    "DPM++ SDE": SDE,
    "hires.fix": HIRES,
    "refiner": REFINER,
    "AND": {"prompt": AND},
    "batch_cond_uncond off": {"override_settings": UNBATCHED},
    "ToMe": {"override_settings": {"token_merging_ratio": 0.5}},
}
PAYLOADS = {name: payload for name, payload in PAYLOADS.items() if name.partition(" off")[0] not in KIND.lacks}


@pytest.mark.parametrize("at", [1, 5, STEP * STEPS], ids=lambda at: f"call {at}")
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_exception(host, payload, at):
    with host.no_trace(**payload):
        host.arm("exception", at)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip(PASSES, **payload)
        assert len(host.disarm()) == at


def test_exception_in_the_second_pass_of_hires_fix(host):
    with host.no_trace(**HIRES):
        host.arm("exception", STEP * STEPS + 2)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip(PASSES, **HIRES)


def test_exception_while_decoding(host):
    with host.no_trace():
        host.arm("exception", 1 if KIND.is_family else 3, site="vae")  # the family decodes all at once
        with pytest.raises(HostError, match="the vae failed as asked"):
            host.clip()


def test_exception_in_img2img(host):
    payload = {"init_images": [host.generate(seed=3).frames[0]], "denoising_strength": 0.6}
    with host.no_trace(**payload):
        host.arm("exception", 4)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip(PASSES, **payload)


def test_the_clip_before_an_exception_is_saved(host):
    """The answer is the error, but the first clip's frames and file are on the disk."""
    before = files(host)
    with host.no_trace():
        host.arm("exception", STEP * STEPS + 5)
        with pytest.raises(HostError, match="the unet failed as asked"):
            host.clip({**PASSES, "return": "both", "formats": ["gif"]}, n_iter=2, save_images=True)
    assert sorted(path.suffix for path in files(host) - before) == [".gif"] + [".png"] * FRAMES


@pytest.mark.parametrize("kind", ["interrupt", "skip"])
@pytest.mark.parametrize("at", [1, 5, STEP * STEPS - 1], ids=lambda at: f"call {at}")
@pytest.mark.parametrize("payload", [{}, SDE], ids=["Euler", "DPM++ SDE"])
def test_interrupt_and_skip_end_the_clip_at_the_next_pass(host, kind, at, payload):
    with host.no_trace(**payload):
        host.arm(kind, at)
        result = host.clip(PASSES, **payload)
        assert len(host.disarm()) == at
        assert len(result.files) == FRAMES


def test_interrupt_in_the_second_clip_delivers_the_first(host):
    settings = {**PASSES, "return": "video", "formats": ["gif"]}
    whole = host.clip(settings)
    with host.no_trace():
        host.arm("interrupt", STEP * STEPS + 5)
        result = host.clip(settings, n_iter=2)
    assert result.clips[0] == whole.clips[0] and result.files[:FRAMES] == whole.files
    assert [clip.get("stopped", False) for clip in result.info["zs2_clips"]] == [False, True]


@pytest.mark.parametrize("incomplete", [False, True])
def test_a_stopped_clip_is_saved_as_the_host_saves_pictures(host, incomplete):
    """Not, unless the host saves incomplete pictures; its name and infotext say what it is."""
    before, options = files(host), {"save_incomplete_images": incomplete}
    with host.no_trace():
        host.arm("skip", 5)
        result = host.clip(
            {**PASSES, "return": "video", "formats": ["gif"]}, n_iter=2, save_images=True, override_settings=options
        )
    stopped, whole = result.info["zs2_clips"]
    new = sorted(path.name for path in files(host) - before if path.suffix == ".gif")
    assert new == sorted(Path(clip["path"]).name for clip in ([stopped] * incomplete + [whole]))
    assert stopped["path"].endswith("-stopped.gif") and "stopped" not in whole["path"]
    assert len([path for path in files(host) - before if path.suffix == ".png"]) == FRAMES * (1 + incomplete)
    for file, text in zip(result.clips, (result.infotext, result.info["infotexts"][-1])):
        assert host.client.infotext(file) == text
    assert ["ZS2 stopped: before the end" in text for text in result.info["infotexts"]] == [True] * FRAMES + [
        False
    ] * FRAMES


def test_skip_goes_on_with_the_next_clip(host):
    seed = STILL["seed"]
    alone = host.clip(PASSES, seed=seed + 1).frames
    with host.no_trace():
        host.arm("skip", 5)
        frames = host.clip(PASSES, n_iter=2).frames
    assert len(frames) == 2 * FRAMES
    assert difference(frames[FRAMES:], alone) == 0


def test_interrupt_by_the_api(host):
    with host.no_trace():
        host.arm()
        job = host.in_background(host.clip, {"frames": 24, "frames_per_pass": 1}, steps=20)
        while not host.client.progress()["progress"] and job.is_alive():
            pass
        host.client.interrupt()
        job.result(timeout=60)
        assert len(host.disarm()) < 24 * 20 / 2


@pytest.mark.parametrize(
    "payload, settings, at",
    [
        *(pytest.param(payload, PASSES, 5, id=f"{name}, one of several passes") for name, payload in PAYLOADS.items()),
        pytest.param({}, {}, 1, id="first call"),
        pytest.param({}, {}, 3, id="one pass"),
        pytest.param({}, {"frames_per_pass": FRAMES // 2}, 2, id="last of two passes"),
    ],
)
def test_out_of_memory_once(host, payload, settings, at):
    """Goes on with half the frames per pass, from the pass that failed: the clip is the same."""
    whole = host.clip(settings, **payload).frames
    with host.no_trace(**payload):
        host.arm("oom", at)
        result = host.clip(settings, **payload)
        rows = [call["rows"] for call in host.disarm()]
    assert difference(result.frames, whole) <= BAR
    assert max(rows[at:]) < rows[at - 1] or rows[at - 1] < max(rows)
    assert "emory" in str(result.info["extra_generation_params"])


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_out_of_memory_above_so_many_rows(host, payload):
    whole = host.clip(**payload).frames
    with host.no_trace(**payload):
        host.arm("oom", rows_over=4)
        result = host.clip(**payload)
        rows = [call["rows"] for call in host.disarm()]
    assert difference(result.frames, whole) <= BAR
    failed = [number for number, count in enumerate(rows) if count > 4]
    assert failed and failed[-1] < len(rows) / 4, "memory ran out again and again"


def test_out_of_memory_with_a_single_frame_is_an_error(host):
    with host.no_trace():
        host.arm("oom", rows_over=0)
        with pytest.raises(HostError, match="out of memory"):
            host.clip()
        assert len(host.disarm()) == 3  # all frames, half, and one


@pytest.mark.parametrize("returns", ["both", "video"])
def test_clip_that_cannot_be_written(host, returns):
    """Its frames are saved and all is returned, and `info` says why the clip is not saved."""
    settings = {"return": returns, "formats": ["mp4", "gif"]}
    before = files(host)
    whole = host.clip(settings, save_images=True)
    new = files(host) - before
    clip, frame = (next(path for path in new if path.suffix == suffix) for suffix in (".mp4", ".png"))
    shared = Path(os.path.commonpath([clip.parent, frame.parent]))
    folder = shared / clip.relative_to(shared).parts[0]
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("a file where the folder of the clips should be")
    try:
        before = files(host)
        with host.no_trace():
            result = host.clip(settings, save_images=True)
        saved = files(host) - before
    finally:
        folder.unlink()
        aside.rename(folder)
    assert difference(result.frames[-FRAMES:], whole.frames[-FRAMES:]) == 0
    assert [clipfiles.kind(file) for file in result.clips] == ["mp4", "gif"]
    assert sorted(path.suffix for path in saved) == [".png"] * FRAMES
    notes = str(result.info["extra_generation_params"])
    assert "mp4" in notes and folder.name in notes, notes


@pytest.mark.slow
def test_panel_that_cannot_be_built(start, monkeypatch):
    """The WebUI starts, says so, and makes the pictures it makes without the extension."""
    with start(extension=False) as host:
        still = host.generate().frames
    monkeypatch.setenv("ZS2_PROBE_ACCORDION", "fails")
    with start() as host:
        assert "the panel of ZS² could not be built" in (host.data / "server.log").read_text(errors="replace")
        assert "could not be built in this WebUI" in json.dumps(host.client.get("/config"), ensure_ascii=False)
        assert difference(host.generate().frames, still) == 0


def files(host) -> set[Path]:
    """What lies in the host's output folder."""
    return {path for path in host.outputs.rglob("*") if path.is_file()}
