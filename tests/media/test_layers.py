"""GIF and APNG are put together as their standards say, in sequence and alone, and what is whole of a cut file is kept.

The files are made here byte by byte, and what they should show is computed here in floats, without Pillow.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from zs2_lib.media.read import open_source
from zs2_lib.media.source import Selection
from zs2_lib.media.write import write_clip

KEEP, CLEAR, RESTORE = range(3)
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
WIDTH, HEIGHT = 24, 16
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#2060a0": (32, 96, 160)}


@dataclass
class Part:
    """A layer as the file stores it: levels (height, width, channels), and the same as floats of RGBA from 0 to 1."""

    left: int
    top: int
    levels: np.ndarray
    rgba: np.ndarray
    dispose: int
    over: bool


def put_together(parts, background):
    """What is seen after each part, (height, width, 3) of floats from 0 to 255. Colours are multiplied with alpha."""
    canvas, background = np.zeros((HEIGHT, WIDTH, 4)), np.array(BACKGROUNDS[background])
    for part in parts:
        width, height = min(part.rgba.shape[1], WIDTH - part.left), min(part.rgba.shape[0], HEIGHT - part.top)
        place = np.s_[part.top : part.top + height, part.left : part.left + width]
        rgba = part.rgba[:height, :width]
        alpha = rgba[..., 3:]
        before = canvas.copy()
        canvas[place] = np.dstack([rgba[..., :3] * alpha, alpha]) + (canvas[place] * (1 - alpha) if part.over else 0)
        yield canvas[..., :3] * 255 + (1 - canvas[..., 3:]) * background
        if part.dispose == CLEAR:
            canvas[place] = 0
        elif part.dispose == RESTORE:
            canvas = before


def check(path, parts, background, tolerance):
    source = open_source(path, background=background)
    expected = list(put_together(parts, background))
    assert (source.info.frames, source.info.broken) == (len(parts), False)
    pictures = [np.asarray(picture, float) for _, picture in source.frames()]
    assert len(pictures) == len(parts)
    for number, (picture, pixels) in enumerate(zip(pictures, expected)):
        assert np.abs(picture - pixels).max() <= tolerance, number
        ((_, alone),) = source.read(np.array([number]))
        np.testing.assert_array_equal(np.asarray(alone), picture)
    several = np.array([0, 2, 5, len(parts) - 1])
    for number, (_, picture) in zip(several, source.read(several)):
        np.testing.assert_array_equal(np.asarray(picture), pictures[number])


# --- APNG ------------------------------------------------------------------------------------------------------


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(levels, bits):
    """The rows of a PNG, unfiltered and compressed."""
    rows = levels.reshape(len(levels), -1).astype(np.uint16)
    if bits == 16:
        data = rows.astype(">u2").view(np.uint8)
    else:
        places = rows[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
        data = np.packbits(places.reshape(len(rows), -1).astype(np.uint8), axis=1)
    return zlib.compress(np.pad(data, ((0, 0), (1, 0))).tobytes())


def write_apng(path, parts, colour_type, bits, shared=b"", still=None, pieces=1, ends=b""):
    """still: the levels of a picture that is not part of the animation. pieces: chunks for each layer's data."""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", WIDTH, HEIGHT, bits, colour_type, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">2I", len(parts), 0)) + shared
    if still is not None:
        data += chunk(b"IDAT", packed(still, bits))
    sequence = 0
    for number, part in enumerate(parts):
        size = part.levels.shape[1::-1]
        control = (sequence, *size, part.left, part.top, 100 + number, 1000, part.dispose, part.over)
        data += chunk(b"fcTL", struct.pack(">5I2H2B", *control))
        sequence += 1
        content = packed(part.levels, bits)
        step = -(-len(content) // pieces)
        for start in range(0, len(content), step):
            piece = content[start : start + step]
            if number == 0 and still is None:
                data += chunk(b"IDAT", piece)
            else:
                data += chunk(b"fdAT", struct.pack(">I", sequence) + piece)
                sequence += 1
    path.write_bytes(data + chunk(b"IEND", b"") + ends)
    return path


def to_rgba(levels, colour_type, bits, palette=None, clear=None):
    """What the PNG standard says that levels mean. clear: the levels of the transparent colour (tRNS)."""
    values = levels / (2**bits - 1)
    if colour_type == PALETTE:
        return palette[levels[..., 0]] / 255
    alpha = values[..., -1:] if colour_type in (GREY_ALPHA, RGB_ALPHA) else np.ones(values.shape[:2] + (1,))
    if clear is not None:
        alpha = np.where((levels == clear).all(axis=2, keepdims=True), 0, alpha)
    colours = values[..., :3] if values.shape[2] >= 3 else np.repeat(values[..., :1], 3, axis=2)
    return np.dstack([colours, alpha])


KINDS_OF_PNG = [
    (RGB_ALPHA, 8, False), (RGB_ALPHA, 16, False), (RGB, 8, False), (RGB, 16, False), (RGB, 8, True), (RGB, 16, True),
    (GREY, 1, True), (GREY, 2, True), (GREY, 4, True), (GREY, 8, True), (GREY, 16, True), (GREY, 8, False),
    (GREY, 16, False), (GREY_ALPHA, 8, False), (GREY_ALPHA, 16, False), (PALETTE, 1, True), (PALETTE, 2, True),
    (PALETTE, 4, True), (PALETTE, 8, True), (PALETTE, 8, False),
]  # fmt: skip


def random_apng(generator, colour_type, bits, transparent, count=12):
    """(parts, the chunks PLTE and tRNS): layers of all kinds of places, disposal and blending."""
    largest, channels = 2**bits - 1, CHANNELS[colour_type]
    palette, clear, shared = None, None, b""
    if colour_type == PALETTE:
        palette = generator.integers(0, 256, (2**bits, 4))
        palette[:, 3] = palette[:, 3] if transparent else 255
        shared = chunk(b"PLTE", palette[:, :3].astype(np.uint8).tobytes())
        if transparent:
            shared += chunk(b"tRNS", palette[:, 3].astype(np.uint8).tobytes())
    elif transparent:
        clear = generator.integers(0, largest + 1, channels)
        shared = chunk(b"tRNS", clear.astype(">u2").tobytes())
    parts = []
    for number in range(count):
        left, top = generator.integers(0, (WIDTH - 1, HEIGHT - 1)) if number else (0, 0)
        width = generator.integers(1, WIDTH - left + 1) if number else WIDTH
        height = generator.integers(1, HEIGHT - top + 1) if number else HEIGHT
        if number in (5, 8):  # these cover the canvas
            left, top, width, height = 0, 0, WIDTH, HEIGHT
        levels = generator.integers(0, largest + 1, (height, width, channels))
        if colour_type in (GREY_ALPHA, RGB_ALPHA):
            extremes = generator.integers(0, 3, (height, width))  # as often nothing, all, and between
            levels[..., -1] = np.where(extremes == 2, levels[..., -1], extremes * largest)
        if clear is not None:
            levels[generator.random((height, width)) < 0.3] = clear
        rgba = to_rgba(levels, colour_type, bits, palette, clear)
        parts.append(Part(int(left), int(top), levels, rgba, number % 3 if number else RESTORE, number // 3 % 2 == 1))
    return parts, shared


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour_type, bits, transparent", KINDS_OF_PNG)
def test_apng(tmp_path, colour_type, bits, transparent, background):
    generator = np.random.default_rng(colour_type * 100 + bits)
    parts, shared = random_apng(generator, colour_type, bits, transparent)
    if parts[0].dispose == RESTORE:  # of the first layer it means that it is cleared, which is the same
        path = write_apng(tmp_path / "a.png", parts, colour_type, bits, shared, pieces=2)
    check(path, parts, background, tolerance=2 if bits == 16 else 1.5)


def test_an_apngs_still_comes_before_the_animation(tmp_path):
    parts, _ = random_apng(np.random.default_rng(1), RGB_ALPHA, 8, False)
    path = write_apng(tmp_path / "a.png", parts, RGB_ALPHA, 8, still=np.zeros((HEIGHT, WIDTH, 4), int))
    check(path, parts, "white", tolerance=1.5)


def test_what_follows_an_apng_is_ignored(tmp_path):
    parts, _ = random_apng(np.random.default_rng(2), RGB_ALPHA, 8, False)
    check(write_apng(tmp_path / "a.png", parts, RGB_ALPHA, 8, ends=b"more"), parts, "white", tolerance=1.5)


@pytest.mark.parametrize("kind", ["cut", "a wrong byte", "a layer beyond the canvas"])
def test_damaged_apng(tmp_path, kind):
    """Whole frames come, no half one, wherever it ends; and the clip is known to be broken."""
    parts, _ = random_apng(np.random.default_rng(3), RGB_ALPHA, 8, False, count=6)
    path = write_apng(tmp_path / "a.png", parts, RGB_ALPHA, 8, pieces=3)
    data = path.read_bytes()
    whole = [np.asarray(picture) for _, picture in open_source(path).frames()]
    third = [place for place in range(len(data)) if data[place : place + 4] == b"fcTL"][2]
    if kind == "a layer beyond the canvas":
        control = bytearray(data[third + 4 : third + 30])
        control[7] = WIDTH + 1
        changed = [data[: third - 4] + chunk(b"fcTL", bytes(control)) + data[third + 34 :]]
    elif kind == "a wrong byte":
        places = range(third, len(data) - 12, 97)
        changed = [data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :] for place in places]
    else:
        changed = [data[:place] for place in range(third, len(data) - 12, 41)]
    for each in changed:
        path.write_bytes(each)
        source = open_source(path)
        assert source.info.broken
        found = [np.asarray(picture) for _, picture in source.frames(Selection(frames=source.info.frames))]
        assert 2 <= len(found) == source.info.frames < 6
        for picture, expected in zip(found, whole):
            np.testing.assert_array_equal(picture, expected)


# --- GIF -------------------------------------------------------------------------------------------------------

GIF_DISPOSALS = {0: KEEP, 1: KEEP, 2: CLEAR, 3: RESTORE}


def blocks(data):
    return b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)) + b"\0"


def lzw(indices):
    """GIF's compression of numbers up to 15, without compressing: a code that clears the table before each."""
    codes = [code for index in indices.ravel().tolist() for code in (16, index)] + [17]
    bits = "".join(format(code, "05b")[::-1] for code in codes)
    bits += "0" * (-len(bits) % 8)
    return b"\4" + blocks(bytes(int(bits[place : place + 8][::-1], 2) for place in range(0, len(bits), 8)))


def write_gif(path, parts, palette, extras, background=3):
    """extras: for each part (disposal, transparent index or None, local palette or None, interlaced)."""
    data = b"GIF89a" + struct.pack("<2H3B", WIDTH, HEIGHT, 0xF3, background, 0) + palette.astype(np.uint8).tobytes()
    heads = []
    for number, (part, (disposal, clear, local, interlaced)) in enumerate(zip(parts, extras)):
        heads.append(len(data))
        flags = disposal << 2 | (clear is not None)
        data += b"!\xf9\4" + struct.pack("<BHB", flags, 10 + number, clear or 0) + b"\0"
        if number == 2:
            data += b"!\xfe" + blocks(b"a comment")
        height, width = part.levels.shape[:2]
        flags = (0x83 if local is not None else 0) | (0x40 if interlaced else 0)
        data += b"," + struct.pack("<4HB", part.left, part.top, width, height, flags)
        data += local.astype(np.uint8).tobytes() if local is not None else b""
        rows = np.arange(height)
        passes = [rows[0::8], rows[4::8], rows[2::4], rows[1::2]]
        data += lzw(part.levels[np.concatenate(passes)] if interlaced else part.levels)
    path.write_bytes(data + b";")
    return path, heads


def random_gif(generator, transparent, count=12, beyond=True):
    palette = generator.integers(0, 256, (16, 3))
    parts, extras = [], []
    for number in range(count):
        left, top = (int(place) for place in generator.integers(0, (WIDTH - 4, HEIGHT - 4)))
        width, height = (int(length) for length in generator.integers(2, (WIDTH - left + 1, HEIGHT - top + 1)))
        if number in (4, 7):
            left, top, width, height = 0, 0, WIDTH, HEIGHT
        if number == 9 and beyond:
            width, height = WIDTH, HEIGHT + 5
        local = generator.integers(0, 256, (16, 3)) if number % 3 == 1 else None
        clear = int(generator.integers(0, 16)) if transparent and number % 4 else None
        levels = generator.integers(0, 16, (height, width, 1))
        if clear is not None:
            levels[generator.random((height, width)) < 0.4] = clear
        colours = (palette if local is None else local)[levels[..., 0]] / 255
        alpha = levels != clear if clear is not None else np.ones(levels.shape)
        disposal = number % 4
        parts.append(Part(left, top, levels, np.dstack([colours, alpha]), GIF_DISPOSALS[disposal], True))
        extras.append((disposal, clear, local, number % 5 == 3))
    return parts, palette, extras


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("transparent", [False, True])
def test_gif(tmp_path, transparent, background):
    """What was never painted, or is disposed of, is transparent, as in browsers, whatever the background's number."""
    for seed in range(4):
        parts, palette, extras = random_gif(np.random.default_rng(seed), transparent)
        path, _ = write_gif(tmp_path / "a.gif", parts, palette, extras)
        check(path, parts, background, tolerance=0.5)


def test_gif_cut_anywhere(tmp_path):
    parts, palette, extras = random_gif(np.random.default_rng(7), True, count=5)
    path, heads = write_gif(tmp_path / "a.gif", parts, palette, extras)
    data = path.read_bytes()
    whole = [np.asarray(picture) for _, picture in open_source(path).frames()]
    for end in range(heads[2] - 12, len(data) - 1):
        path.write_bytes(data[:end])
        source = open_source(path)
        complete = sum(head <= end for head in heads[1:])
        assert source.info.frames - complete in (0, 1)  # 1: only what comes after its pixels is missing
        assert source.info.broken == (end not in heads)  # what ends between frames lacks nothing that it announces
        found = [np.asarray(picture) for _, picture in source.frames(Selection(frames=source.info.frames))]
        assert len(found) == source.info.frames
        for picture, expected in zip(found, whole):
            np.testing.assert_array_equal(picture, expected)


def test_webp_cut_anywhere(tmp_path):
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(4)]
    path = write_clip(frames, tmp_path / "a", "webp", 10)
    data = path.read_bytes()
    whole = [np.asarray(picture) for _, picture in open_source(path).frames()]
    heads = [place for place in range(len(data)) if data[place : place + 4] == b"ANMF"]
    for end in range(heads[1], len(data), 37):
        path.write_bytes(data[:end])
        source = open_source(path)
        assert source.info.broken
        found = [np.asarray(picture) for _, picture in source.frames(Selection(frames=source.info.frames))]
        assert len(found) == source.info.frames == sum(head <= end for head in heads[1:])
        for picture, expected in zip(found, whole):
            np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("kind", ["gif", "apng"])
def test_frames_alone_do_not_read_what_they_cover(tmp_path, kind, monkeypatch):
    """Of opaque frames of full size, the one that is asked for is the only one to be decoded."""
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(20)]
    source = open_source(write_clip(frames, tmp_path / "a", kind, 10))
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or original(*args, **options))
    assert len(list(source.read(np.array([15])))) == 1
    assert len(opened) <= 2  # the file itself, and the frame
