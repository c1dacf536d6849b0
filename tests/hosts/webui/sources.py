"""Source videos, folders and masks, made by the tests, and how they are edited."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from host import zs2

FRAMES = 6
EDIT = {"prompt": "a yellow star on a green background", "denoising_strength": 0.6, "steps": 10, "init_images": []}
SEPARATE = {"motion": 0, "momentum": 0, "return": "frames"}
"""Each frame by itself, so that it can be compared with the still."""


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


def faded(number: int, size=(128, 128)) -> Image.Image:
    """`scene`, transparent but for its circle."""
    image = scene(number, size)
    image.putalpha(mask(number, size))
    return image


def folder(path: Path, draw=scene, count=FRAMES, **options) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        draw(number, **options).save(path / f"frame{number}.png")
    return path


def video(
    path: Path,
    count=FRAMES,
    fps=8,
    size=(128, 128),
    codec="libx264",
    pix_fmt="yuv420p",
    times=None,
    sound=False,
    draw=scene,
    options=None,
    index_first=False,
) -> Path:
    """A video file of what `draw` draws; `times` (seconds) for a variable rate; `sound`: a tone; `options` of the
    encoder; `index_first`: an MP4 begins with its index, so that a part of it can be read.
    """
    with av.open(str(path), "w", options={"movflags": "+faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        tone = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for number in range(count):
            image = draw(number, size=size)
            pixels = av.VideoFrame.from_ndarray(np.asarray(image), format="rgba" if image.mode == "RGBA" else "rgb24")
            frame = pixels.reformat(format=pix_fmt)
            frame.time_base = Fraction(1, 1000 if times else fps)
            frame.pts = round(times[number] * 1000) if times else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            wave = np.sin(np.arange(44100 * count // fps) * 0.06).astype(np.float32)
            for start in range(0, len(wave) - 1023, 1024):
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts = 44100, start
                container.mux(tone.encode(block))
            container.mux(tone.encode())
    return path


def animation(path: Path, **options) -> Path:
    first, *others = [scene(number) for number in range(FRAMES)]
    first.save(path, save_all=True, append_images=others, duration=125, **options)
    return path


def rotated(path: Path) -> Path:
    """A MOV that a player turns by 90 degrees, as phones write them: the matrix in its track header is set by hand."""
    data = bytearray(video(path, size=(128, 96)).read_bytes())
    position = data.index(b"tkhd") + 4 + 40  # version 0: the matrix begins after 40 bytes
    one = 0x10000
    for number, value in enumerate((0, one, 0, -one, 0, 0, 0, 0, 0x40000000)):
        data[position + 4 * number : position + 4 * number + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def edit(host, source, settings=None, **payload):
    scripts = {**payload.pop("alwayson_scripts", {}), **zs2({"source": str(source), **SEPARATE, **(settings or {})})}
    return host.generate(**{**EDIT, **payload, "alwayson_scripts": scripts})
