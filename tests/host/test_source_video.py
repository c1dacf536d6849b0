"""A video as the source of img2img: each of its frames is edited as if it were the init image of a still."""

from __future__ import annotations

import base64
import io
import os
import wave
from fractions import Fraction
from pathlib import Path

import av
import clipfiles
import numpy as np
import pytest
from host import change, difference, left_behind
from PIL import Image, ImageDraw
from webui import HostError

from zs2_lib.source import Selection, open_source

BAR = 2
FRAMES = 6
EDIT = {"prompt": "a yellow star on a green background", "denoising_strength": 0.6, "steps": 10, "init_images": []}
SEPARATE = {"motion": 0, "momentum": 0, "return": "frames"}
"""Each frame by itself, so that it can be compared with the still."""


# --- sources ---------------------------------------------------------------------------------------------------

def scene(number: int, size=(128, 128)) -> Image.Image:
    """A red circle on blue that moves to the right."""
    width, height = size
    image = Image.new("RGB", size, (40, 60, 220))
    x = width * (0.2 + 0.08 * number)
    ImageDraw.Draw(image).ellipse((x, height * 0.3, x + width * 0.35, height * 0.7), fill=(220, 40, 40))
    return image


def mask(number: int, size=(128, 128)) -> Image.Image:
    """White where the circle of `scene` is."""
    image = Image.new("L", size, 0)
    x = size[0] * (0.2 + 0.08 * number)
    ImageDraw.Draw(image).rectangle((x, size[1] * 0.25, x + size[0] * 0.35, size[1] * 0.75), fill=255)
    return image


def folder(path: Path, draw=scene, count=FRAMES, **options) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        draw(number, **options).save(path / f"frame{number}.png")
    return path


def video(path: Path, count=FRAMES, fps=8, size=(128, 128), codec="libx264", pix_fmt="yuv420p", times=None, sound=False, setup=None) -> Path:
    """A video file of `scene`; `times` (seconds) for a variable rate; `sound`: a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if setup:
            setup(stream)
        tone = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_image(scene(number, size)).reformat(format=pix_fmt)
            frame.pts, frame.time_base = (round(times[number] * 1000), Fraction(1, 1000)) if times else (number, Fraction(1, fps))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            wave = np.sin(np.arange(44100 * count // fps) * 0.06).astype(np.float32)
            for start in range(0, len(wave) - 1023, 1024):
                block = av.AudioFrame.from_ndarray(wave[None, start:start + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts = 44100, start
                container.mux(tone.encode(block))
            container.mux(tone.encode())
    return path


def animation(path: Path, **options) -> Path:
    first, *others = [scene(number) for number in range(FRAMES)]
    first.save(path, save_all=True, append_images=others, duration=125, **options)
    return path


def rotated(path: Path) -> Path:
    """A MOV that a player turns by 90 degrees, as phones write them: the display matrix in its track header is set by hand."""
    data = bytearray(video(path, size=(128, 96)).read_bytes())
    position = data.index(b"tkhd") + 4 + 40  # version 0: the matrix begins after 40 bytes
    one = 0x10000
    for number, value in enumerate((0, one, 0, -one, 0, 0, 0, 0, 0x40000000)):
        data[position + 4 * number:position + 4 * number + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


SOURCES = {
    "folder": folder,
    "MP4": lambda path: video(path.with_suffix(".mp4")),
    "MKV, variable rate": lambda path: video(path.with_suffix(".mkv"), times=[0, 0.1, 0.15, 0.5, 0.7, 0.75]),
    "MOV, rotated": lambda path: rotated(path.with_suffix(".mov")),
    "MKV, odd size": lambda path: video(path.with_suffix(".mkv"), size=(129, 97), codec="ffv1", pix_fmt="yuv444p"),
    "MKV, 10 bit": lambda path: video(path.with_suffix(".mkv"), codec="ffv1", pix_fmt="yuv420p10le"),
    "WebM": lambda path: video(path.with_suffix(".webm"), codec="libvpx-vp9"),
    "MP4 with sound": lambda path: video(path.with_suffix(".mp4"), sound=True),
    "GIF": lambda path: animation(path.with_suffix(".gif")),
    "WebP": lambda path: animation(path.with_suffix(".webp"), lossless=True),
    "APNG": lambda path: animation(path.with_suffix(".png")),
}


@pytest.fixture(scope="module")
def sources(host) -> Path:
    """A folder that requests may name files in."""
    path = host.data / "sources"
    path.mkdir()
    return path


def edit(host, source, settings=None, **payload):
    return host.generate(**{**EDIT, **payload, "alwayson_scripts": {"ZS2": {"args": [
        {"enabled": True, "source": str(source), **SEPARATE, **(settings or {})}]}}})


def stills(host, frames, masks=None, **payload) -> np.ndarray:
    """What the host makes of each frame alone."""
    payload = {**EDIT, **payload}
    results = []
    for number, frame in enumerate(frames):
        payload["init_images"] = [np.asarray(frame)]
        if masks:
            payload["mask"] = np.asarray(masks[number].convert("RGB"))
        results.append(host.generate(**payload).frames[0])
    return np.stack(results)


# --- the frames -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", SOURCES)
def test_every_frame_is_the_still_of_its_source_frame(host, sources, kind):
    path = SOURCES[kind](sources / kind)
    frames = [picture for _, picture in open_source(path).frames()]
    assert len(frames) == FRAMES
    if kind == "MOV, rotated":
        assert frames[0].size == (96, 128)
    result = edit(host, path).frames
    assert difference(result, stills(host, frames)) <= BAR
    assert change(result) > 1


@pytest.fixture(scope="module")
def frames(sources):
    return folder(sources / "frames")


@pytest.mark.parametrize("payload", [{"sampler_name": "Euler a"}, {"sampler_name": "DPM++ SDE"}, {"resize_mode": 1, "width": 128, "height": 96}],
                         ids=["Euler a", "DPM++ SDE", "crop and resize"])
def test_with_other_settings_of_the_tab(host, frames, payload):
    result = edit(host, frames, **payload).frames
    assert difference(result, stills(host, map(scene, range(FRAMES)), **payload)) <= BAR


def test_colour_correction(host, frames):
    """It matches histograms, which makes a rounding error of 1 large in a few pixels."""
    corrected = {"override_settings": {"img2img_color_correction": True}}
    result, expected = edit(host, frames, **corrected).frames, stills(host, map(scene, range(FRAMES)), **corrected)
    assert np.mean(np.abs(result - expected) > BAR) < 1e-4
    assert np.abs(result - edit(host, frames).frames).mean() > BAR


def test_passes_of_any_size(host, frames):
    settings = {"motion": 0.05, "momentum": 0.75}
    whole, parts = (edit(host, frames, {**settings, "frames_per_pass": number}).frames for number in (FRAMES, 2))
    assert difference(whole, parts) <= BAR
    separate = edit(host, frames).frames
    assert difference(whole[:1], separate[:1]) <= BAR
    assert difference(whole, separate) > BAR


def test_base64(host, sources, frames):
    file = SOURCES["GIF"](sources / "as base64").read_bytes()
    by_path = edit(host, sources / "as base64.gif").frames
    for text in (base64.b64encode(file).decode(), "data:image/gif;base64," + base64.b64encode(file).decode()):
        assert difference(edit(host, text).frames, by_path) == 0


@pytest.mark.parametrize("settings, numbers", [
    ({"source_start": 0.25}, [2, 3, 4, 5]), ({"source_end": 0.5}, [0, 1, 2, 3]), ({"source_every": 2}, [0, 2, 4]), ({"frames": 3}, [0, 1, 2]),
    ({"source_fps": 4}, [0, 2, 4]), ({"source_fps": 12, "frames": 4}, [0, 0, 1, 2]), ({"source_start": 0.25, "source_end": 0.5}, [2, 3]),
], ids=str)
def test_selection(host, frames, settings, numbers):
    result = edit(host, frames, settings, steps=2)
    assert difference(result.frames, stills(host, map(scene, numbers), steps=2)) <= BAR
    assert f"ZS2 frames: {len(numbers)}," in result.infotext


def test_rate_of_the_clip(host, sources, frames):
    """As fast as the source, unless `fps` says otherwise."""
    for settings, seconds in (({}, 6 / 8), ({"source_every": 2}, 6 / 8), ({"fps": 12}, 6 / 12)):
        file, = edit(host, frames, {"return": "video", **settings}, steps=2).files
        assert clipfiles.seconds(file) == pytest.approx(seconds, abs=0.02)


def test_more_frames_asked_for_than_there_are(host, frames):
    result = edit(host, frames, {"frames": 9}, steps=2)
    assert len(result.files) == FRAMES
    assert "6 frames where 9 were asked for" in result.info["extra_generation_params"]["ZS2 notes"]


def test_batch_count(host, frames):
    result = edit(host, frames, n_iter=2, steps=4)
    assert difference(result.frames[:FRAMES], stills(host, map(scene, range(FRAMES)), steps=4)) <= BAR
    assert difference(result.frames[FRAMES:], stills(host, map(scene, range(FRAMES)), steps=4, seed=12)) <= BAR


def test_infotext_names_the_source_without_its_folder(host, frames):
    infotext = edit(host, frames, {"source_start": 0.25}, steps=2).infotext
    assert "ZS2 source: frames," in infotext and "ZS2 source start: 0.25," in infotext
    assert str(frames) not in infotext


def test_leaves_no_trace(host, frames):
    init = {"init_images": [np.asarray(scene(0))], **{key: value for key, value in EDIT.items() if key != "init_images"}}
    before, clean = host.generate(**init).frames, host.state()
    edit(host, frames, {"motion": 0.05, "momentum": 0.9})
    assert difference(host.generate(**init).frames, before) == 0
    assert left_behind(clean, host.state()) == []


# --- masks ------------------------------------------------------------------------------------------------------

INPAINT = {"inpainting_fill": 1, "mask_blur": 2, "denoising_strength": 0.75, "inpaint_full_res": False}
SOFT = {"alwayson_scripts": {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}}


@pytest.fixture(scope="module")
def masks(sources):
    return folder(sources / "masks", mask)


@pytest.mark.parametrize("payload", [{}, {"inpaint_full_res": True}, {"inpainting_fill": 2}, {"inpainting_mask_invert": 1}],
                         ids=["whole picture", "only masked", "latent noise", "inverted"])
def test_one_mask_for_all_frames(host, frames, payload):
    payload = {**INPAINT, **payload}
    result = edit(host, frames, mask=np.asarray(mask(2).convert("RGB")), **payload).frames
    assert difference(result, stills(host, map(scene, range(FRAMES)), [mask(2)] * FRAMES, **payload)) <= BAR


@pytest.mark.parametrize("payload", [{}, {"inpainting_fill": 0}, {"inpainting_mask_invert": 1}], ids=["original", "fill", "inverted"])
def test_mask_video(host, frames, masks, payload):
    payload = {**INPAINT, **payload}
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    assert difference(result, stills(host, map(scene, range(FRAMES)), list(map(mask, range(FRAMES))), **payload)) <= BAR


def test_soft_inpainting(host, frames, masks):
    payload = {**INPAINT, "mask_blur": 4}
    soft = {**SOFT["alwayson_scripts"]}
    expected = stills(host, map(scene, range(FRAMES)), list(map(mask, range(FRAMES))), **payload, alwayson_scripts=soft)
    hard = stills(host, [scene(0)], [mask(0)], **payload)
    clip = host.generate(**{**EDIT, **payload, "alwayson_scripts": {**soft, "ZS2": {"args": [
        {"enabled": True, "source": str(frames), "mask": str(masks), **SEPARATE}]}}}).frames
    assert difference(clip, expected) <= BAR
    assert difference(expected[:1], hard) > BAR


def test_mask_video_with_a_part_of_the_source(host, frames, masks):
    """The mask belongs to the frame of the source, not to that of the clip."""
    result = edit(host, frames, {"mask": str(masks), "source_start": 0.25}, **INPAINT).frames
    expected = stills(host, map(scene, range(2, FRAMES)), list(map(mask, range(2, FRAMES))), **INPAINT)
    assert difference(result, expected) <= BAR


def cornered_mask(number: int) -> Image.Image:
    """`mask` with two dots, the same in all frames, that span what all masks cover."""
    image = mask(number)
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 28, 24, 32), fill=255)
    draw.rectangle((120, 96, 124, 100), fill=255)
    return image


@pytest.mark.parametrize("padding", [0, 8])
def test_only_masked(host, sources, frames, padding):
    """Where the masks of all frames span the same area, each frame is the still with its mask."""
    payload = {**INPAINT, "inpaint_full_res": True, "inpaint_full_res_padding": padding}
    masks = folder(sources / f"cornered masks {padding}", cornered_mask)
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    assert difference(result, stills(host, map(scene, range(FRAMES)), list(map(cornered_mask, range(FRAMES))), **payload)) <= BAR


def test_only_masked_stays_put(host, frames, masks):
    """All frames are cropped to where any of them is masked: a large area, so that frame 1 is not its still with a small one."""
    payload = {**INPAINT, "mask_blur": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0}
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    for number in range(FRAMES):
        outside = np.asarray(mask(number)) == 0
        assert difference(result[number][outside], np.asarray(scene(number)).astype(int)[outside]) <= BAR
    assert difference(result[:1], stills(host, [scene(0)], [mask(0)], **payload)) > BAR


# --- Instruct-Pix2Pix -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("per_pass", [FRAMES, 2])
def test_instruct_pix2pix(host, frames, per_pass):
    payload = {"image_cfg_scale": 1.5, "override_settings": {"sd_model_checkpoint": "pix2pix.safetensors"}}
    with host.client.options_set(sd_model_checkpoint="pix2pix.safetensors"):
        result = edit(host, frames, {"frames_per_pass": per_pass}, **payload).frames
        assert difference(result, stills(host, map(scene, range(FRAMES)), **payload)) <= BAR


# --- sound ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, seconds", [({}, 0.75), ({"source_start": 0.25}, 0.5)], ids=str)
def test_sound(host, sources, settings, seconds):
    path = sources / "sound.mp4"
    if not path.exists():
        video(path, sound=True)
    result = edit(host, path, {"source_audio": True, "return": "video", "formats": ["mp4", "webm", "gif"], **settings}, steps=2)
    for file in result.files[:2]:
        with av.open(io.BytesIO(file)) as container:
            samples = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
            rate = container.streams.audio[0].rate
        assert len(samples) / rate == pytest.approx(seconds, abs=0.1)
        assert np.abs(samples).max() > 0.5
    silent = edit(host, path, {"return": "video", **settings}, steps=2).files[0]
    with av.open(io.BytesIO(silent)) as container:
        assert not container.streams.audio


def test_sound_that_would_drift_away(host, sources):
    path = sources / "drift.mp4"
    result = edit(host, video(path, sound=True), {"source_audio": True, "fps": 3, "return": "video"}, steps=2)
    assert len(clipfiles.frames(result.files[0])) == FRAMES
    assert "the sound would drift away" in result.info["extra_generation_params"]["ZS2 notes"]


# --- bad input --------------------------------------------------------------------------------------------------

def silent_wave(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mixed_sizes(path: Path) -> Path:
    scene(1, (64, 64)).save(folder(path) / "frame1.png")
    return path


def truncated(path: Path) -> Path:
    whole = video(path.with_suffix(".whole.mp4"), count=48).read_bytes()
    return written(path, whole[:len(whole) // 3])


GOOD = object()
"""Stands for a source without fault."""
BAD = {
    "nothing there": (lambda path: path, {}, ["there is no file or folder", "check its name"]),
    "outside the allowed folders": (lambda path: "/etc/passwd", {}, ["/etc/passwd", "allowed", "base64"]),
    "outside, by dots": (lambda path: path / "../../../../../../../../etc", {}, ["not allowed", "inside"]),
    "outside, by a link": (lambda path: path.symlink_to("/etc") or path, {}, ["not allowed", "inside"]),
    "empty": (lambda path: written(path, b""), {}, ["empty (0 bytes)"]),
    "text called .mp4": (lambda path: written(path.with_suffix(".mp4"), b"no video " * 99), {}, ["is no video", "give an MP4"]),
    "cut off": (lambda path: truncated(path.with_suffix(".mp4")), {}, ["cut off.mp4", "incomplete"]),
    "only sound": (lambda path: silent_wave(path.with_suffix(".wav")), {}, ["no video", "wav"]),
    "folder without images": (lambda path: path.mkdir() or path, {}, ["holds no frames", ".png"]),
    "folder of different sizes": (mixed_sizes, {}, ["frame1.png is 64x64", "one size"]),
    "base64 of text": (lambda path: base64.b64encode(b"no video at all " * 9).decode(), {}, ["is no video"]),
    "base64 cut off": (lambda path: "A" * 101, {}, ["base64"]),
    "start after the end": (GOOD, {"source_start": 3}, ["start is 3", "ends at 0.75 s"]),
    "end before start": (GOOD, {"source_start": 0.5, "source_end": 0.25}, ["end is 0.25", "after the start"]),
    "nothing in between": (GOOD, {"source_start": 0.01, "source_end": 0.02}, ["no frame", "longer range"]),
    "negative rate": (GOOD, {"source_fps": -1}, ["source_fps", "-1", "120"]),
    "rate below all": (GOOD, {"source_fps": 0.01}, ["fps is 0.01", "0.1"]),
    "every 0th": (GOOD, {"source_every": 0}, ["source_every", "0", "1000"]),
    "too many frames": (GOOD, {"source_fps": 120, "frames": 1025}, ["frames", "1025", "1024"]),
    "no text": (5, {}, ["source", "5", "text"]),
    "sound of a silent source": (GOOD, {"source_audio": True}, ["source_audio", "no sound"]),
    "mask without source": ("", {"mask": "mask.png"}, ["mask", "source"]),
    "mask not there": (GOOD, {"mask": "no mask.png"}, ["mask", "there is no file"]),
    "mask outside": (GOOD, {"mask": "/etc/passwd"}, ["mask", "/etc/passwd", "allowed"]),
    "wrong mask count": (GOOD, {"mask": 4}, ["mask", "4 frames", "6"]),
    "mask of another shape": (GOOD, {"mask": (96, 128)}, ["mask", "96x128", "128x128"]),
    "unknown key": (GOOD, {"source_begin": 1}, ["source_begin", "did you mean"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(host, sources, frames, name):
    """The message names what is wrong and what would be right; the UNet has not been called."""
    source, settings, words = BAD[name]
    if source is GOOD:
        source = frames
    elif callable(source):
        source = source(sources / name)
    settings = dict(settings)
    if isinstance(settings.get("mask"), int):
        settings["mask"] = str(folder(sources / f"{name} masks", mask, settings["mask"]))
    elif isinstance(settings.get("mask"), tuple):
        settings["mask"] = str(folder(sources / f"{name} masks", mask, size=settings["mask"]))
    settings["source"] = source if isinstance(source, (str, int)) else str(source)
    host.arm()
    with pytest.raises(HostError) as error:
        host.generate(**EDIT, alwayson_scripts={"ZS2": {"args": [{"enabled": True, **settings}]}})
    assert host.disarm() == []
    assert error.value.status == 422
    assert not [word for word in words if word not in error.value.message], error.value.message


def test_a_frame_that_is_damaged_stops_the_job_in_words(host, sources):
    path = folder(sources / "one damaged")
    file = path / "frame3.png"
    file.write_bytes(file.read_bytes()[:200])
    clean = host.state()
    with pytest.raises(HostError) as error:
        edit(host, path)
    assert error.value.status == 422 and "frame3.png is damaged" in error.value.message
    assert left_behind(clean, host.state()) == []


def test_the_host_goes_on_after_bad_input(host, frames, sources):
    expected = edit(host, frames, steps=3).frames
    with pytest.raises(HostError):
        edit(host, sources / "not there")
    assert difference(edit(host, frames, steps=3).frames, expected) == 0


# --- long sources -----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_memory_of_a_long_source(start):
    """300 frames of 64×64 need at most 1.10 times the memory of 16."""
    peaks = {}
    for count in (16, 300):
        with start() as fresh:
            path = folder(fresh.data / "source", count=count, size=(64, 64))
            result = edit(fresh, path, {"frames_per_pass": 8, "motion": 0.05, "momentum": 0.9, "return": "video"}, width=64, height=64, steps=2)
            assert len(clipfiles.frames(result.files[0])) == count
            peaks[count] = fresh.about()["peak memory"]
    assert peaks[300] <= 1.10 * peaks[16], peaks
