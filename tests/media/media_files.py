"""Sources for the tests: videos, animated images and folders, each frame with its number painted on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from zs2_lib.media.source import EVERYTHING
from zs2_lib.media.write import write_clip

av = pytest.importorskip("av")


SIZE = (64, 48)
X264 = {"preset": "veryfast", "bf": "2", "g": "250", "x264-params": "scenecut=0"}
GROUPS = {
    "one": X264,
    "many": {"preset": "veryfast", "bf": "2", "g": "12", "x264-params": "scenecut=0"},
    "short": {"preset": "veryfast", "bf": "3", "g": "4", "x264-params": "scenecut=0:b-adapt=0"},
    "open": {"preset": "veryfast", "bf": "3", "g": "15", "x264-params": "scenecut=0:open-gop=1:b-adapt=0"},
    "intra refresh": {"preset": "veryfast", "g": "20", "x264-params": "scenecut=0:intra-refresh=1"},
}


def paint(number, size=SIZE):
    """A picture (height, width, 3) that shows the 8 bits of `number`, and below each its opposite, as 4x4 blocks."""
    bits = [number >> bit & 1 for bit in range(8)]
    blocks = np.array(bits + [1 - bit for bit in bits], np.uint8).reshape(4, 4)
    rows, columns = (np.arange(length) * 4 // length for length in reversed(size))
    return np.repeat(blocks[rows][:, columns, None] * 219 + 16, 3, axis=2)


def number_on(picture):
    """The number (0 to 255) that `paint` has put on `picture`; fails if it is not legible."""
    grey = np.asarray(picture.convert("L"), float)
    height, width = grey.shape
    levels = grey[np.ix_(*((np.arange(4) * 2 + 1) * length // 8 for length in (height, width)))].ravel()
    bits = (levels > 128).astype(int)
    assert (np.abs(levels - 128) > 60).all() and (bits[:8] + bits[8:] == 1).all(), f"illegible: {levels}"
    return sum(bit << place for place, bit in enumerate(bits[:8]))


def write_video(
    path, count=24, codec="libx264", options=X264, fps=24, times=None, size=SIZE, pix_fmt="yuv420p", frame=None, setup=None,
    index_first=False,
):  # fmt: skip
    """A video with the numbers 0, 1, ... on its frames.

    times: seconds of each frame, instead of `fps`.
    frame: makes a frame's pixels from its number, as an array (height, width, 3 or 4) or av.VideoFrame.
    setup: is called with the stream before anything is encoded.
    index_first: an MP4 begins with its index, so that a part of it can be read.
    """
    frame = frame or (lambda number: paint(number % 256, size))
    time_base = Fraction(1, 1000) if times else 1 / Fraction(fps)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options if codec == "libx264" else options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if setup:
            setup(stream)
        for number in range(len(times) if times else count):
            picture = frame(number)
            if isinstance(picture, np.ndarray):
                picture = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
                picture = picture.reformat(format=pix_fmt)
            picture.pts = round(times[number] * 1000) if times else number
            picture.time_base = time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_images(path, count=24, fps=10, alpha=False):
    """A numbered GIF, WebP or APNG (by the suffix), or PNG folder."""
    format = path.suffix[1:] or "png"
    frames = [paint(number) for number in range(count)]
    return write_clip(frames, path.with_suffix(""), format, fps)


KINDS = {
    "mp4": lambda folder: write_video(folder / "a.mp4"),
    "mov": lambda folder: write_video(folder / "a.mov"),
    "mkv": lambda folder: write_video(folder / "a.mkv"),
    "ts": lambda folder: write_video(folder / "a.ts"),
    "webm": lambda folder: write_video(folder / "a.webm", codec="libvpx-vp9", options={"deadline": "realtime"}),
    "vp8": lambda folder: write_video(folder / "a8.webm", codec="libvpx", options={"deadline": "realtime"}),
    "mpeg4": lambda folder: write_video(folder / "a4.mp4", codec="mpeg4", options={"bf": "2", "q": "2"}),
    "gif": lambda folder: write_images(folder / "a.gif", fps=25),
    "webp": lambda folder: write_images(folder / "a.webp"),
    "apng": lambda folder: write_images(folder / "a.apng"),
    "folder": lambda folder: write_images(folder / "a"),
}
RATES = {"gif": 25, "webp": 10, "apng": 10, "folder": 8}


def numbers(source, selection=EVERYTHING):
    """The numbers on the frames, after checking that there are as many as promised."""
    found = [number_on(picture) for _, picture in source.frames(selection)]
    assert len(found) == source.count(selection)
    return found


def on_screen(times, moment):
    """The number of the frame that is on the screen: the last that has appeared."""
    return max(number for number, time in enumerate(times) if time <= moment + 1e-9)


def grainy(number):
    """A number under so much noise that compressing it does not make it small."""
    return paint(number) // 2 + np.random.default_rng(number).integers(0, 32, (48, 64, 3), dtype=np.uint8)


def cut_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def quarters(size=SIZE):
    """red | green over blue | white. (height, width, 3)"""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = size[1] // 2, size[0] // 2
    picture[:top, :left], picture[:top, left:] = (220, 30, 30), (30, 200, 30)
    picture[top:, :left], picture[top:, left:] = (30, 30, 220), (230, 230, 230)
    return picture


def close(picture, expected, tolerance=12):
    """Whether the middles of the quarters are of the expected colours."""
    picture, expected = np.asarray(picture, int), np.asarray(expected, int)
    assert picture.shape == expected.shape
    spots = np.ix_(*((length // 4, length * 3 // 4) for length in picture.shape[:2]))
    return np.abs(picture[spots] - expected[spots]).max() <= tolerance


def transparent(number, red=200):
    """Red; opaque on the left, half transparent top right, and clear bottom right. (48, 64, 4)"""
    picture = np.full((48, 64, 4), (red, 0, 0, 255), np.uint8)
    picture[:24, 32:, 3], picture[24:, 32:, 3] = 128, 0
    return picture


def on_white(half, red=200):
    """What that looks like on white, if half transparent pixels are `half`."""
    picture = np.full((48, 64, 3), (red, 0, 0), np.uint8)
    picture[:24, 32:], picture[24:, 32:] = half, 255
    return picture
