"""A finished clip made larger and given more frames: what was there stays, the rest is kept, nothing is half done."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clipfiles import comment, frames, kind
from host import STILL
from sources import animation, folder, scene, video
from webui import HostError

ROUTE = "/zs2/v1/postprocess"
COUNT, SIZE, MORE = 6, (128, 128), 11
"""Frames of a clip and their size; frames after interpolation by 2."""


def clips_folder(host) -> Path:
    return Path(host.client.options()["outdir_txt2img_samples"]).resolve() / "zs2-videos"


@pytest.fixture
def place(host, tmp_path):
    """A folder among the host's clips; in the end no file in it is half done, and the host works on nothing."""
    path = clips_folder(host) / tmp_path.name
    path.mkdir(parents=True)
    yield path
    assert not host.state()["job"]["running"]
    assert not [file for file in host.outputs.rglob("*") if file.name.startswith(".")]


def work(host, clip, **settings) -> dict:
    return host.client.post(ROUTE, {"clip": str(clip), **settings})


def stored(entry: dict) -> np.ndarray:
    """The frames of a result, (frames, height, width, rgb) in 0..255."""
    path = Path(entry["path"])
    if path.is_dir():
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(path.iterdir())]
        return np.stack(pictures).astype(np.int16)
    return frames(path.read_bytes())


def scenes(size=SIZE) -> np.ndarray:
    return np.stack([np.asarray(scene(number, size)) for number in range(COUNT)]).astype(np.int16)


def large(size, scale) -> np.ndarray:
    """The frames as the host's Lanczos makes them."""
    to = [side * scale for side in size]
    resized = [scene(number, size).resize(to, Image.Resampling.LANCZOS) for number in range(COUNT)]
    return np.stack([np.asarray(picture) for picture in resized]).astype(np.int16)


def sound_seconds(path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.parametrize("interpolator", ["minterpolate", "probe blend"])
def test_interpolated_frames(host, place, interpolator):
    """Those that were there are the same pictures, the others lie between."""
    answer = work(host, folder(place / "walk", count=COUNT), interpolate=3, interpolator=interpolator)
    (entry,) = answer["clips"]
    made, before = stored(entry), scenes()
    assert (entry["frames"], entry["fps"], entry["format"]) == (16, 24, "png")
    assert entry["path"] == str(place / "walk-24fps")
    assert len(made) == 16 and (made[::3] == before).all()
    assert 0 < np.abs(made[1] - before[0]).mean() < np.abs(before[1] - before[0]).mean()


@pytest.mark.parametrize("order", ["upscale first", "interpolate first"])
def test_larger_and_more(host, place, order):
    """In both orders the kept frames are what the upscaler makes of those that were there."""
    clip = folder(place / "walk", count=COUNT)
    answer = work(host, clip, upscaler="Lanczos", scale=2, interpolate=2, order=order, formats=["png", "mp4"])
    png, mp4 = answer["clips"]
    made = stored(png)
    assert made.shape == (MORE, 256, 256, 3) and (made[::2] == large(SIZE, 2)).all()
    assert np.abs(stored(mp4) - made).mean() < 4
    assert Path(mp4["path"]).name == "walk-x2-16fps.mp4" and (png["width"], png["height"]) == (256, 256)


def test_a_clip_by_its_name(host, place):
    """As the other routes name clips: so is the result, which can be worked on in turn. The route is described."""
    video(place / "walk.mp4", count=COUNT)
    label = clips_folder(host).parent.name
    (entry,) = work(host, f"{label}/{place.name}/walk.mp4", interpolate=2)["clips"]
    assert entry["name"] == f"{label}/{place.name}/walk-16fps.mp4"
    (entry,) = work(host, entry["name"], upscaler="Lanczos", scale=2)["clips"]
    assert (entry["frames"], entry["fps"], entry["width"]) == (MORE, 16, 256)
    described = host.client.get("/openapi.json")["paths"][ROUTE]["post"]["requestBody"]
    assert described["content"]["application/json"]["schema"]["properties"]["scale"]["maximum"] == 8


def test_a_rate_and_a_name_that_is_taken(host, place):
    clip = video(place / "walk.mp4", count=COUNT)
    first, again = (work(host, clip, fps=12)["clips"][0] for _ in range(2))
    assert [Path(entry["path"]).name for entry in (first, again)] == ["walk-12fps.mp4", "walk-12fps-1.mp4"]
    assert (first["frames"], first["fps"]) == (8, 12) and len(stored(again)) == 8


def test_recipe_and_sound_stay(host, place):
    """The text of a clip that the host made, with what was done to it; a clip that loops is interpolated to its end."""
    settings = {"frames": 3, "in_betweens": 2, "formats": ["png"], "loop": "seamless", "fps": 5}
    result = host.clip(settings, save_images=True)
    clip = Path(result.info["zs2_clips"][0]["path"])
    answer = work(host, clip, upscaler="Nearest", scale=2, interpolate=2, formats=["mp4", "png"])
    mp4, png = answer["clips"]
    text = Path(mp4["path"]).read_bytes()
    before, after = result.infotext, comment(text)
    assert after.startswith(before) and after == answer["infotext"]
    assert (
        after[len(before) :] == ", ZS2 upscaler: Nearest, ZS2 upscaled by: 2, ZS2 interpolated to: 12 frames at 20 fps"
    )
    assert mp4["seed"] == STILL["seed"] and (mp4["frames"], mp4["fps"]) == (12, 20)
    assert host.client.infotext((Path(png["path"]) / "00012.png").read_bytes()) == after
    again = work(host, png["path"], fps=40)["clips"][0]
    assert (again["frames"], again["fps"]) == (24, 40)

    tone = video(place / "tone.mp4", count=24, sound=True)
    for format in ("mp4", "webm"):
        (entry,) = work(host, tone, interpolate=2, formats=[format])["clips"]
        assert sound_seconds(entry["path"]) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("format", ["gif", "webp", "apng"])
def test_a_clip_in_the_request(host, place, format):
    """As base64: the result has its format, is among the host's clips, and comes with its bytes."""
    options = {"gif": {}, "webp": {"lossless": True}, "apng": {"format": "PNG"}}[format]
    content = animation(place / f"walk.{format}", **options).read_bytes()
    (entry,) = work(host, base64.b64encode(content).decode(), interpolate=2)["clips"]
    assert kind(base64.b64decode(entry["data"])) == format == entry["format"]
    path = Path(entry["path"])
    assert path.parent == clips_folder(host)
    assert len(frames(path.read_bytes())) == MORE


def test_interrupt_leaves_a_whole_clip(host, place):
    """With the frames that were finished; the host tells meanwhile how far it is."""
    clip = video(place / "walk.mp4", count=48, size=(256, 256))
    request = host.in_background(work, host, clip, upscaler="Lanczos", scale=2, interpolate=4, formats=["mp4", "png"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        progress = host.client.progress()
        if progress["state"]["job"] == "zs2-postprocess" and progress["state"]["sampling_step"] >= 10:
            break
        time.sleep(0.05)
    host.client.interrupt()
    mp4, png = request.result()["clips"]
    assert progress["state"]["sampling_steps"] == 189 and 0 < progress["progress"] < 1
    assert progress["textinfo"].endswith("of 189")
    assert mp4["stopped"] and 10 <= mp4["frames"] < 189
    assert Path(mp4["path"]).name == "walk-x2-32fps-stopped.mp4"
    assert len(stored(mp4)) == len(stored(png)) == mp4["frames"]
    assert "ZS2 stopped: before the end" in comment(Path(mp4["path"]).read_bytes())


def test_an_error_keeps_the_finished_frames(host, place):
    clip = folder(place / "walk", count=COUNT)
    with pytest.raises(HostError, match="probe fail.*it fails as asked.*1 frames.*walk-16fps-stopped") as raised:
        work(host, clip, interpolate=2, interpolator="probe fail")
    assert raised.value.status == 500
    assert (stored({"path": place / "walk-16fps-stopped"}) == scenes()[:1]).all()


def test_an_upscaler_without_its_model_is_an_error(host, place):
    """The host resizes the frame then, and says so on its console alone."""
    clip = folder(place / "walk", count=2)
    with pytest.raises(HostError, match="'probe idle' gave back the frame as it was") as raised:
        work(host, clip, upscaler="probe idle", scale=2)
    assert raised.value.status == 500 and [path.name for path in place.iterdir()] == ["walk"]


REFUSED = {
    "no clip": ({"clip": ""}, ["clip", "none is given"]),
    "nothing to do": ({}, ["nothing to do", "upscaler", "interpolate"]),
    "key": ({"upscalr": "Lanczos"}, ["'upscalr'", 'did you mean "upscaler"']),
    "upscaler": ({"upscaler": "Lanczoss"}, ["upscaler", "'Lanczoss'", 'did you mean "Lanczos"']),
    "scale": ({"upscaler": "Lanczos", "scale": 9}, ["scale", "9", "from 1 to 8"]),
    "no scale": ({"upscaler": "Lanczos", "scale": "big"}, ["scale", "'big'"]),
    "factor": ({"interpolate": 5}, ["interpolate", "5", "from 1 to 4"]),
    "two rates": ({"interpolate": 2, "fps": 30}, ["fps", "30", "interpolate 2"]),
    "rate": ({"fps": 500}, ["fps", "500", "240"]),
    "slower": ({"fps": 4}, ["fps", "4", "8 frames per second"]),
    "rate of a format": ({"fps": 60, "formats": ["gif"]}, ["fps", "gif", "50"]),
    "interpolator": ({"interpolate": 2, "interpolator": "RIFFE"}, ["interpolator", "'RIFFE'", "minterpolate"]),
    "order": ({"interpolate": 2, "order": "both"}, ["order", "'both'", "upscale first"]),
    "format": ({"interpolate": 2, "formats": ["mp5"]}, ["formats", "'mp5'", 'did you mean "mp4"']),
    "no file": ({"interpolate": 2, "clip": "nothing.mp4"}, ["clip", "nothing.mp4"]),
    "not allowed": ({"interpolate": 2, "clip": "/etc/passwd"}, ["clip", "/etc/passwd", "--zs2-source-dir"]),
    "no text": ({"interpolate": 2, "clip": 7}, ["clip", "7"]),
}


@pytest.mark.parametrize("settings, words", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(host, place, settings, words):
    clip = folder(place / "walk", count=2)
    with pytest.raises(HostError) as raised:
        host.client.post(ROUTE, {"clip": str(clip), **settings})
    assert raised.value.status == 422, raised.value.message
    assert [word for word in words if word not in raised.value.message] == [], raised.value.message
    assert [path.name for path in place.iterdir()] == ["walk"]


def test_frames_that_are_too_large_or_small(host, place):
    big = folder(place / "big", count=2, size=(1200, 1100))
    small = folder(place / "small", count=2, size=(6, 20))
    for clip, scale, words in ((big, 8, "9600x8800.*--zs2-max-source-pixels"), (small, 1, "6x20.*multiples of 8")):
        with pytest.raises(HostError, match=words) as raised:
            work(host, clip, upscaler="Lanczos", scale=scale)
        assert raised.value.status == 422


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(start, tmp_path):
    peaks = {}
    for count in (60, 600):
        with start() as fresh:
            place = clips_folder(fresh)
            place.mkdir(parents=True)
            clip = video(place / "walk.mp4", count=count, size=(256, 256))
            (entry,) = work(fresh, clip, upscaler="Lanczos", scale=2, interpolate=2)["clips"]
            assert (entry["frames"], entry["width"]) == (2 * count - 1, 512)
            peaks[count] = fresh.about()["peak memory"]
    print(f"peak memory with 60 frames {peaks[60] / 2**20:.0f} MiB, with 600 {peaks[600] / 2**20:.0f} MiB")
    assert peaks[600] <= 1.10 * peaks[60], peaks
