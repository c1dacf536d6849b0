"""Going on from a clip: in-betweens, more frames, another take. What is kept of it are the same pictures."""

from __future__ import annotations

import base64
from pathlib import Path

import av
import numpy as np
import pytest

from host import AND, EULER_A, FRAMES, HIRES, KIND, STILL, UNBATCHED, change, difference, without
from sources import EDIT, scene, video
from sources import folder as source_folder
from webui import HostError, picture, png_base64

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
PARTS = {"AND, batch_cond_uncond off": "batch_cond_uncond"}
TIMES = (2,) if KIND.full_shape else (2, 4)
RETAKEN = FRAMES // 2
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
    for times in TIMES:
        finer = host.clip({**settings, "in_betweens": times}, **payload).frames
        assert len(finer) == times * (len(clip) - 1) + 1
        assert difference(finer[::times], clip) <= most
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3)).max()
        assert change(finer[: times + 1]) > 0 and np.abs(np.diff(finer, axis=0)).mean((1, 2, 3)).max() <= 1.1 * step
    longer = host.clip({**settings, "frames": len(clip) + 3, "extended": str(len(clip))}, **payload).frames
    assert len(longer) == len(clip) + 3 and difference(longer[: len(clip)], clip) <= most
    assert difference(longer[-1:], clip[-1:]) > 0
    if "anchor_stride" in settings:  # a retake of its file: below
        return
    first, second = (host.clip({**settings, "retakes": f"{RETAKEN}:{take}"}, **payload).frames for take in (1, 2))
    for take in (first, second):
        assert difference(take[:RETAKEN], clip[:RETAKEN]) <= most
        assert difference(take[RETAKEN:][:1], clip[RETAKEN:][:1]) > 0
    assert difference(first[RETAKEN:], second[RETAKEN:]) > 0


@pytest.mark.parametrize("name", [pytest.param(name, marks=without(PARTS.get(name, ""))) for name in CASES])
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


# --- by the clip's file --------------------------------------------------------------------------------------------


def made(host, step: str, **values) -> dict:
    return host.client.post(f"/zs2/v1/{step}", {"request": {"send_images": True}, **values})


def pictures(answer: dict) -> np.ndarray:
    return np.stack([picture(base64.b64decode(image)) for image in answer["images"]])


def assert_same(pictures: np.ndarray, kept: np.ndarray, lossy: bool) -> None:
    """`lossy`: those that an MP4 has, which alone knows them; it keeps little of what is noise."""
    if lossy:
        assert np.abs(pictures - kept).mean() < (30 if KIND.full_shape else 4)
    else:
        assert difference(pictures, kept) <= EXACT


@pytest.mark.parametrize("format", ["png", "mp4"])
@pytest.mark.parametrize("name", ["Euler a", "hires.fix", "anchors", "prompt travel"])
def test_by_the_recipe_in_its_file(host, name, format):
    """What a route makes of a saved clip keeps its pictures; and so once more."""
    settings, payload = CASES[name]
    clip = host.clip({**settings, "formats": [format], "return": "video"}, save_images=True, **payload)
    file, count = clip.info["zs2_clips"][0], len(clip.frames)

    finer = made(host, "in-betweens", clip=file["name"], times=2)
    assert difference(pictures(finer)[::2], clip.frames) <= EXACT
    longer = made(host, "extend", clip=file["path"], frames=2)
    assert len(longer["images"]) == count + 2
    assert difference(pictures(longer)[:count], clip.frames) <= EXACT
    longest = made(host, "extend", clip=longer["clips"][0]["name"], frames=2)
    assert difference(pictures(longest)[: count + 2], pictures(longer)) <= EXACT
    takes = [made(host, "retake", clip=file["name"], frame=RETAKEN) for _ in range(2)]
    once_more = made(host, "retake", clip=takes[0]["clips"][0]["name"], frame=RETAKEN + 1)
    assert_same(pictures(takes[0])[:RETAKEN], clip.frames[:RETAKEN], lossy=format == "mp4" and name == "anchors")
    assert difference(pictures(takes[0])[RETAKEN:], pictures(takes[1])[RETAKEN:]) > 0  # each time another
    again = made(host, "retake", clip=file["name"], frame=RETAKEN, take=1)
    assert difference(pictures(again), pictures(takes[0])) == 0
    assert f'ZS2 retakes: "{RETAKEN}:1"' in takes[0]["infotext"]
    assert f'"{RETAKEN}:1, {RETAKEN + 1}:2"' in once_more["infotext"]
    assert_same(
        pictures(once_more)[: RETAKEN + 1],
        pictures(takes[0])[: RETAKEN + 1],
        lossy=format == "mp4" and name == "anchors",
    )
    assert difference(pictures(once_more)[RETAKEN + 1 :][:1], pictures(takes[0])[RETAKEN + 1 :][:1]) > 0


def test_by_a_file_that_was_remuxed(host):
    """Copied once into another container, as FFmpeg's `-c copy` does, it makes the same clip again."""
    clip = host.clip({"return": "video"}, save_images=True, prompt=STILL["prompt"] + ' 🎬, "quoted"\nand a line: more')
    copied = host.outputs / "zs2 copied.mkv"
    with av.open(clip.info["zs2_clips"][0]["path"]) as old, av.open(str(copied), "w") as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    again = made(host, "in-betweens", clip=str(copied), times=1)
    assert again["infotext"] == clip.infotext
    assert difference(pictures(again), clip.frames) <= EXACT


def test_a_request_says_what_a_file_cannot_carry(host):
    payload = {"init_images": [np.asarray(scene(0))], "denoising_strength": 0.7}
    clip = host.clip({"return": "video"}, save_images=True, **payload)
    name = clip.info["zs2_clips"][0]["name"]
    with pytest.raises(HostError, match="422.*init_images"):
        made(host, "extend", clip=name, frames=1)
    given = {"send_images": True, "init_images": [png_base64(scene(0))]}
    longer = made(host, "extend", clip=name, frames=1, request=given)
    assert difference(pictures(longer)[:-1], clip.frames) <= EXACT


def test_styles_are_not_taken_out_of_the_prompt(host):
    """The host would paste the text of a style as the style, and apply it to whatever comes then."""
    (host.data / "styles.csv").write_text('name,prompt,negative_prompt\nfoo,"{prompt}, a yellow star on green",\n')
    clip = host.clip({"return": "video"}, save_images=True, styles=["foo"])
    longer = made(host, "extend", clip=clip.info["zs2_clips"][0]["name"], frames=1)
    assert difference(pictures(longer)[:-1], clip.frames) <= EXACT and not longer["notes"]


@pytest.mark.parametrize("more", [{"request": {"cfg_scale": 2, "send_images": True}}, {"settings": {"motion": 0.5}}])
def test_a_clip_that_is_to_be_another_keeps_no_pictures(host, more):
    clip = host.clip({"return": "video", "formats": ["png"]}, save_images=True)
    longer = made(host, "extend", clip=clip.info["zs2_clips"][0]["name"], frames=1, **more)
    assert difference(pictures(longer)[1:FRAMES], clip.frames[1:]) > 0
    assert ("CFG scale '5.0' is '2.0' now" in " ".join(longer["notes"])) == ("request" in more)


def interrupted(host, job):
    while host.client.progress()["progress"] < 0.1 and job.is_alive():
        pass
    host.client.interrupt()
    return job.result()


def test_a_clip_that_was_stopped(host):
    """Its pictures are no frames: all are computed anew. What is stopped itself is kept among the previews."""
    settings, payload = {"return": "video", "formats": ["png"]}, {"save_images": True}
    whole = host.clip(settings, **payload)
    keep = {"save_incomplete_images": True}
    job = host.in_background(host.clip, settings, steps=150, override_settings=keep, **payload)
    stopped = interrupted(host, job)
    name = next(entry["name"] for entry in stopped.info["zs2_clips"] if entry.get("stopped"))
    longer = made(host, "extend", clip=name, frames=1, request={"steps": STILL["steps"], "send_images": True})
    assert difference(pictures(longer)[:-1], whole.frames) <= EXACT

    step = {"clip": whole.info["zs2_clips"][0]["name"], "frames": 8, "request": {"steps": 150}}
    job = host.in_background(host.client.post, "/zs2/v1/extend", step)
    entry = interrupted(host, job)["clips"][0]
    assert entry["stopped"] and Path(entry["path"]).exists() and entry["name"].startswith("previews/")


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        ("extend", {"frames": 1}, ["clip", "none is given"]),
        ("extend", {"clip": "CLIP"}, ["frames", "none is given"]),
        ("extend", {"clip": "CLIP", "frames": 0}, ["frames", "0", "whole number"]),
        ("extend", {"clip": "CLIP", "frame": 1}, ["'frame'", "frames"]),
        ("retake", {"clip": "CLIP", "frame": 1, "take": 0}, ["take", "0", "whole number"]),
        ("retake", {"clip": "CLIP", "frame": 0}, ["frame", "the still", "seed"]),
        ("retake", {"clip": "CLIP", "frame": FRAMES}, ["frame", str(FRAMES)]),
        ("in-betweens", {"clip": "CLIP", "times": 5}, ["in_betweens", "5", "1 to 4"]),
        ("in-betweens", {"clip": "/etc/passwd", "times": 2}, ["clip", "not allowed"]),
        ("in-betweens", {"clip": "previews/../../x.mp4", "times": 2}, ["clip"]),
        ("extend", {"clip": 5, "frames": 1}, ["clip", "give a text"]),
        ("extend", {"clip": "\ud800", "frames": 1}, ["clip", "half of a character"]),
        ("extend", {"clip": "CLIP", "frames": 1, "request": {"steps": "x"}}, ["request", "steps"]),
        ("extend", {"clip": "CLIP", "frames": 1, "request": {"send_image": True}}, ["send_image", "send_images"]),
        ("extend", {"clip": "CLIP", "frames": 1, "request": {"alwayson_scripts": [1]}}, ["alwayson_scripts", "object"]),
        ("extend", {"clip": "CLIP", "frames": 1, "settings": {"frames": 2}}, ["frames", "extend decides it"]),
        ("extend", {"clip": "LOOP", "frames": 1}, ["seamless", "nothing would stay the same"]),
        ("extend", {"clip": "PLAIN", "frames": 1}, ["does not say how it was made"]),
    ],
)
def test_what_cannot_be_gone_on_from(host, step, values, words):
    clip = host.clip({"return": "video", "loop": values.get("clip") == "LOOP"}, steps=1, save_images=True)
    entry = clip.info["zs2_clips"][0]
    plain = host.outputs / "zs2 plain.mp4"
    names = {"CLIP": entry["name"], "LOOP": entry["name"], "PLAIN": str(video(plain))}
    if "clip" in values:
        values = {**values, "clip": names.get(values["clip"], values["clip"])}
    with pytest.raises(HostError) as refused:
        made(host, step, **values)
    assert refused.value.status == 422
    assert [word for word in words if word not in refused.value.message] == []


def test_loops(host):
    """A ping-pong's files come back; in-betweens of a closed loop lie between its last and first frame as well."""
    clip = host.clip({"return": "video", "formats": ["png"]}, save_images=True)
    there = host.clip({"return": "video", "formats": ["png"], "loop": "ping-pong"}, save_images=True)
    assert difference(there.frames, clip.frames) == 0
    assert there.info["zs2_clips"][0]["frames"] == 2 * FRAMES - 2 == len(list(Path(path_of(there)).iterdir()))
    loop, finer = (host.clip({"loop": "seamless", "in_betweens": times}).frames for times in (1, 2))
    assert len(finer) == 2 * FRAMES and difference(finer[::2], loop) <= EXACT
    closing = np.abs(np.diff(np.concatenate([finer[-2:], finer[:1]]), axis=0)).mean((1, 2, 3))
    assert 0 < closing.max() <= 1.1 * np.abs(loop[0] - loop[-1]).mean()


def path_of(result) -> str:
    return result.info["zs2_clips"][0]["path"]
