"""Write a clip to a file: MP4, WebM, GIF, animated WebP, APNG, or a folder of PNG files.

`write_clip` is the whole of it. In every format

- no frame is lost, also where frames are equal (a clip with motion 0 is a still that lasts);
- the clip lasts `frames / fps` seconds, to within one tick of the format's clock (a WebP or APNG of a single frame is a
  still: readers report no duration);
- the generation parameters travel in the place where the WebUI's PNG Info, or a video player, looks for them;
- the target is either the complete new clip or whatever was there before, never a torso.

Videos (MP4, WebM) and PNG folders are written frame by frame, so a generator of any length costs the memory of one
frame. The animated images (GIF, WebP, APNG) store only the rectangle that changed from the frame before. GIF and APNG
hold all frames in memory: GIF because its palette is made from all of them, APNG because Pillow does. APNG stores a
frame that equals the one before it whole, so a long still is large.
"""

from __future__ import annotations

import difflib
import io
import itertools
import os
import re
import secrets
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin, Image, ImageChops, PngImagePlugin

FORMATS = ("mp4", "gif", "webp", "apng", "webm", "png")

MIN_FPS = 0.1
# Browsers show an image that asks for less than 20 ms (GIF) or 11 ms (WebP, APNG) for 100 ms instead.
MAX_FPS = {"mp4": 240, "webm": 240, "gif": 50, "webp": 90, "apng": 90, "png": 240}


def write_clip(
    frames: Iterable[Image.Image | np.ndarray],
    path: str | os.PathLike,
    format: str,
    fps: float | Fraction,
    text: str | None = None,
    loop: bool = True,
) -> Path:
    """Write `frames` as one clip and return where it is.

    frames: PIL images or uint8 arrays (height, width, 3 or 4), all of one size; a generator will do. Transparent
        pixels are laid on white.
    path: the target without a suffix: `clip` becomes `clip.mp4`, `clip.apng`, ..., or for "png" the folder `clip`
        with `00001.png`, `00002.png`, ... Missing folders are made. An existing clip is replaced once the new one is
        complete; a failure or an interrupt leaves it as it was and removes what had been written.
    format: one of `FORMATS`.
    fps: frames per second, see `check_clip`. A PNG folder does not record it.
    text: generation parameters, kept as
        mp4, webm: the `comment` tag; gif: the comment block (UTF-8); webp: the EXIF UserComment;
        apng, png: the text chunk `parameters`, in a PNG folder in each file.
    loop: whether gif, webp and apng play without end or once. A player decides for the other formats.

    Raises ValueError for no frames, unequal sizes, a wrong `format` or `fps`; TypeError for a frame that is no
    picture; FileExistsError where replacing the target would delete something else than a clip; RuntimeError if PyAV
    or its encoder is missing (mp4, webm); and whatever `frames` or the disk raises.
    """
    rate = check_clip(format, fps)
    target = clip_path(path, format)
    _check_replaceable(target, format)

    pictures = _as_pictures(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("a clip needs at least 1 frame, got 0")
    with _all_or_nothing(target) as unfinished:
        _WRITERS[format](itertools.chain([first], pictures), unfinished, rate, text, loop)
    return target


def check_clip(format: str, fps: float | Fraction) -> Fraction:
    """Return the frame rate that a clip will have, or raise ValueError if `write_clip` would refuse these two.

    The rate is `fps` as a fraction with a denominator up to 1001 (29.97 is 2997/100). The range is 0.1 to 240 for mp4,
    webm and png, to 90 for webp and apng, to 50 for gif.
    """
    if format not in FORMATS:
        nearest = difflib.get_close_matches(str(format).lower(), FORMATS, n=1, cutoff=0.5)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
        raise ValueError(f"unknown clip format {format!r}: choose one of {', '.join(FORMATS)}{hint}")
    limit = MAX_FPS[format]
    if not MIN_FPS <= fps <= limit:  # also catches NaN
        too_fast_here = limit < fps <= MAX_FPS["mp4"]
        remedy = " (browsers play it slower, not faster, beyond that: use mp4)" if too_fast_here else ""
        raise ValueError(f"fps is {fps}, but {format} takes {MIN_FPS} to {limit} frames per second{remedy}")
    return Fraction(float(fps)).limit_denominator(1001)


def clip_path(path: str | os.PathLike, format: str) -> Path:
    """The file (or for "png" the folder) that `write_clip(..., path, format)` writes.

    The suffix is appended, so dots in the name stay: `motion_0.05` becomes `motion_0.05.mp4`.
    """
    path = Path(path)
    return path if format == "png" else path.with_name(f"{path.name}.{format}")


def split_clip_name(name: str | os.PathLike) -> tuple[Path, str]:
    """Turn a file name as a user types it into `path` and `format` for `write_clip`.

    `out/clip.mp4` gives (`out/clip`, "mp4"); `frames.png` gives (`frames`, "png"), a PNG sequence in that folder.
    Raises ValueError for a suffix that is not in `FORMATS`.
    """
    path = Path(name)
    format = path.suffix[1:].lower()
    if format not in FORMATS:
        problem = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
        suffixes = ", ".join(f".{format}" for format in FORMATS)
        raise ValueError(f"cannot tell the clip format of {str(name)!r} ({problem}): end it with one of {suffixes}")
    return path.with_suffix(""), format


def clip_bytes(path: str | os.PathLike) -> bytes:
    """A written clip as bytes, for an API response: the file's own, or for a PNG folder an uncompressed ZIP of it."""
    path = Path(path)
    if not path.is_dir():
        return path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path.iterdir()):
            archive.write(file, file.name)
    return buffer.getvalue()


def contact_sheet(frames: Iterable[Image.Image | np.ndarray], columns: int) -> Image.Image:
    """All frames of a clip in one picture, left to right and top to bottom, `columns` in a row."""
    if columns < 1:
        raise ValueError(f"a contact sheet needs at least 1 column, got {columns}")
    pictures = list(_as_pictures(frames))
    if not pictures:
        raise ValueError("a contact sheet needs at least 1 frame, got 0")
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), height * rows), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (width * (number % columns), height * (number // columns)))
    return sheet


# Frames -----------------------------------------------------------------------------------------------------------


def _as_pictures(frames: Iterable[Image.Image | np.ndarray]) -> Iterator[Image.Image]:
    """Yield each frame as an RGB image of its own (never the caller's object), all of the first one's size."""
    size = None
    for number, frame in enumerate(frames, start=1):
        picture = _as_picture(frame, number)
        size = size or picture.size
        if picture.size != size:
            raise ValueError(
                f"frame {number} is {_by(picture.size)}, but frame 1 is {_by(size)}: resize the frames to one size"
            )
        yield picture


def _as_picture(frame: Image.Image | np.ndarray, number: int, background: str = "white") -> Image.Image:
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4) or 0 in frame.shape:
            raise ValueError(
                f"frame {number} is an array {frame.shape} of {frame.dtype}, expected (height, width, 3) of uint8, "
                "with values from 0 to 255"
            )
        frame = Image.fromarray(frame)
    if not isinstance(frame, Image.Image):
        raise TypeError(f"frame {number} is a {type(frame).__name__}, expected a PIL image or a uint8 array")
    if 0 in frame.size:
        raise ValueError(f"frame {number} is {_by(frame.size)}: it has no pixels")
    if frame.mode.startswith(("I", "F")):
        raise ValueError(f"frame {number} has the mode {frame.mode}, which does not fit 8 bits: scale it to 0..255")
    if frame.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in frame.info:
        frame = frame.convert("RGBA")
        frame = Image.alpha_composite(Image.new("RGBA", frame.size, background), frame)
    picture = frame.convert("RGB")
    picture.info = {}  # a frame's own text, EXIF and colour profile must not leak into the clip
    return picture


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _ticks(number: int, rate: Fraction, ticks_per_second: int) -> int:
    """How many ticks the frame `number` (0, 1, ...) lasts, such that no sum of them is off by a whole tick.

    8 fps in hundredths of a second: 12, 13, 12, 13, ...
    """
    return int((number + 1) * ticks_per_second / rate) - int(number * ticks_per_second / rate)


def _changed_box(picture: Image.Image, previous: Image.Image | None, grid: int = 1) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around what changed; one corner if nothing did, since a frame needs a pixel.

    left and top are multiples of `grid`.
    """
    if previous is None:
        return (0, 0, *picture.size)
    left, top, right, bottom = ImageChops.difference(picture, previous).getbbox() or (0, 0, 1, 1)
    return left - left % grid, top - top % grid, right, bottom


# Files ------------------------------------------------------------------------------------------------------------


def _check_replaceable(target: Path, format: str) -> None:
    """A file may replace a file; a PNG folder may replace a folder that holds nothing but numbered PNG files."""
    if not target.exists():
        return
    if format != "png" and target.is_dir():
        raise FileExistsError(f"cannot write the clip {target}: a folder has this name, choose another one")
    if format == "png" and not target.is_dir():
        raise FileExistsError(f"cannot write the PNG folder {target}: a file has this name, choose another one")
    if format == "png":
        for entry in target.iterdir():
            if not re.fullmatch(r"\d{5,}\.png", entry.name):
                raise FileExistsError(
                    f"cannot replace the folder {target}: it also holds {entry.name}, which is no frame of a clip; "
                    "choose another name or empty the folder"
                )


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a hidden name beside `target`; what is written there becomes `target` on success and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield unfinished
        _replace(unfinished, target)
    finally:
        _remove(unfinished)


def _replace(source: Path, target: Path) -> None:
    if not source.is_dir() or not target.exists():
        os.replace(source, target)
        return
    old = source.with_suffix(".old")  # os.replace does not replace a folder that has content
    os.replace(target, old)
    try:
        os.replace(source, target)
    except BaseException:
        os.replace(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Videos -----------------------------------------------------------------------------------------------------------

_BT709 = 1  # of the codes in ITU-T H.273, which FFmpeg uses for primaries, transfer and matrix alike
_LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG

# container: (encoder, the encoder's options, the container's options). Constant quality, close to transparent.
_VIDEO = {
    "mp4": ("libx264", {"crf": "17", "preset": "medium"}, {"movflags": "+faststart"}),
    "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"}, {}),
}


def _write_video(container_format: str, pictures, file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    """8-bit 4:2:0 in BT.709, which every player knows. An odd width or height grows by one pixel."""
    encoder, encoder_options, container_options = _VIDEO[container_format]
    av = _import_av(container_format, encoder)
    # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
    with av.open(os.path.abspath(file), "w", format=container_format, options=container_options) as container:
        if text:
            container.metadata["comment"] = text
        stream = container.add_stream(encoder, rate=rate, options=encoder_options)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / rate
        stream.codec_context.colorspace = _BT709
        stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc = _BT709
        stream.codec_context.color_range = _LIMITED_RANGE

        for number, picture in enumerate(pictures):
            pixels = _pad_to_even(np.asarray(picture))  # (height, width, 3)
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range=_LIMITED_RANGE, interpolation="AREA"
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _import_av(container_format: str, encoder: str):
    """PyAV, imported only here: without it the image formats still work."""
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f'cannot write {container_format} without PyAV ({error}): install it ("pip install av") '
            "or choose webp, gif, apng or png"
        ) from error
    if encoder not in av.codecs_available:
        raise RuntimeError(
            f"cannot write {container_format}: this build of PyAV lacks the encoder {encoder}; install PyAV's own "
            'wheel ("pip install --force-reinstall av") or choose webp, gif, apng or png'
        )
    return av


def _pad_to_even(pixels: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where 4:2:0 needs an even size. (height, width, 3)"""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


# GIF --------------------------------------------------------------------------------------------------------------

_PALETTE_SAMPLES = 65536
_MAX_DITHER = 32  # levels of 255
# Pillow looks up the nearest palette colour in steps of 4 levels, each taken at its lower end: centre them.
_LOOKUP_BIAS = 1.5


def _write_gif(pictures, file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    """One palette for all frames and ordered dithering: equal pixels stay equal, so nothing flickers or crawls.

    Pillow compresses each frame; the file around the frames is put together here, because Pillow's own writer merges
    equal frames into one. https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    """
    pictures = list(pictures)
    width, height = pictures[0].size
    colours = _shared_palette(pictures)
    table = np.pad(colours, ((0, 256 - len(colours)), (0, 0)), mode="edge").tobytes()  # repeats the last colour
    palette = Image.new("P", (1, 1))
    palette.putpalette(table)
    offsets = _dither_offsets(width, height, colours) + _LOOKUP_BIAS

    with open(file, "wb") as out:
        out.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0))  # 0xF7: 256 colours of 8 bits follow
        out.write(table)
        if loop:
            out.write(b"\x21\xff\x0bNETSCAPE2.0" + _gif_blocks(b"\x01\x00\x00"))
        if text:
            out.write(b"\x21\xfe" + _gif_blocks(text.encode("utf-8")))
        previous = None
        for number, picture in enumerate(pictures):
            pixels = np.clip(np.rint(np.asarray(picture) + offsets), 0, 255).astype(np.uint8)
            indexed = Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)
            box = _changed_box(indexed, previous)
            milliseconds = 10 * _ticks(number, rate, 100)
            out.write(b"".join(GifImagePlugin.getdata(indexed.crop(box), offset=box[:2], duration=milliseconds)))
            previous = indexed
        out.write(b"\x3b")


def _gif_blocks(data: bytes) -> bytes:
    """`data` in GIF's sub-blocks of at most 255 bytes, with the empty block that ends them."""
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _shared_palette(pictures: list[Image.Image]) -> np.ndarray:
    """Up to 256 colours (colours, 3) that serve all frames, from a sample of their pixels: median cut, then k-means."""
    random = np.random.default_rng(0)
    share = max(1, _PALETTE_SAMPLES // len(pictures))
    samples = []
    for picture in pictures:
        pixels = np.asarray(picture).reshape(-1, 3)
        samples.append(pixels if len(pixels) <= share else pixels[random.integers(len(pixels), size=share)])
    sample = Image.fromarray(np.concatenate(samples)[None])
    indexed = sample.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    used = indexed.getextrema()[1] + 1
    return np.array(indexed.getpalette()[: 3 * used], dtype=np.uint8).reshape(-1, 3)


def _dither_offsets(width: int, height: int, colours: np.ndarray) -> np.ndarray:
    """What to add to a frame before its nearest colours are looked up: an 8x8 Bayer pattern. (height, width, 3)

    Each channel has it mirrored in another way, so that hues are dithered too. It spans the typical distance between
    neighbours in the palette, and is nothing where the palette has room to spare: there it holds every colour.
    """
    if len(colours) < 256:
        return np.zeros((height, width, 3))
    distances = np.linalg.norm(colours[:, None].astype(float) - colours, axis=2)  # (256, 256)
    np.fill_diagonal(distances, np.inf)
    span = min(np.median(distances.min(axis=1)) / 3**0.5, _MAX_DITHER)
    bayer = np.zeros((1, 1))
    for _ in range(3):
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    pattern = span * ((bayer + 0.5) / 64 - 0.5)
    pattern = np.stack([pattern, pattern[:, ::-1], pattern[::-1]], axis=2)  # (8, 8, 3)
    return np.tile(pattern, (-(-height // 8), -(-width // 8), 1))[:height, :width]


# WebP -------------------------------------------------------------------------------------------------------------


def _write_webp(pictures, file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    """Pillow compresses each frame; the file around the frames is put together here, because libwebp's animation
    encoder merges equal frames into one. https://developers.google.com/speed/webp/docs/riff_container
    """
    with open(file, "wb") as out:
        out.write(b"RIFF\0\0\0\0WEBP")
        previous = None
        for number, picture in enumerate(pictures):
            if number == 0:
                flags = 0x02 | (0x08 if text else 0)  # animation, EXIF
                out.write(_riff(b"VP8X", struct.pack("<I", flags) + _uint24(picture.width - 1, picture.height - 1)))
                out.write(_riff(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0 if loop else 1)))  # white ground, plays
            left, top, right, bottom = _changed_box(picture, previous, grid=2)
            compressed = io.BytesIO()
            picture.crop((left, top, right, bottom)).save(compressed, "WEBP", quality=90, method=4)
            place = _uint24(left // 2, top // 2, right - left - 1, bottom - top - 1, _ticks(number, rate, 1000))
            # 0x02: put the frame's pixels in place of the ones there. The compressed file's own header is 12 bytes.
            out.write(_riff(b"ANMF", place + b"\x02" + compressed.getvalue()[12:]))
            previous = picture
        if text:
            out.write(_riff(b"EXIF", _exif(text)))
        size = out.tell()
        out.seek(4)
        out.write(struct.pack("<I", size - 8))


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _uint24(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(3, "little") for number in numbers)


def _exif(text: str) -> bytes:
    """EXIF data that holds `text` as its UserComment, as the WebUI writes and reads it.

    By hand, since Pillow stores the comment as the type BYTE, where the standard and piexif want UNDEFINED.
    """
    exif_ifd, user_comment, long, undefined = 0x8769, 0x9286, 4, 7
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    return (
        struct.pack(">2sHI", b"MM", 42, 8)  # big-endian TIFF, its directory is at 8
        + struct.pack(">HHHIII", 1, exif_ifd, long, 1, 26, 0)  # 1 entry: the EXIF directory is at 26; no next one
        + struct.pack(">HHHIII", 1, user_comment, undefined, len(comment), 44, 0)  # 1 entry: the comment is at 44
        + comment
    )


# PNG --------------------------------------------------------------------------------------------------------------


def _write_apng(pictures, file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    first, *others = pictures
    numbers = range(1 + len(others))
    first.save(
        file,
        "PNG",
        save_all=True,
        append_images=others,
        duration=[_ticks(number, rate, 1000) for number in numbers],
        # Pillow merges equal frames, but only if they are blended in the same way. For opaque frames both ways are one.
        blend=[number % 2 for number in numbers],
        loop=0 if loop else 1,
        pnginfo=_png_text(text),
    )


def _write_png_folder(pictures, folder: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    folder.mkdir()
    for number, picture in enumerate(pictures, start=1):
        picture.save(folder / f"{number:05d}.png", pnginfo=_png_text(text))


def _png_text(text: str | None) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text("parameters", text)
    return info


_WRITERS = {
    "mp4": partial(_write_video, "mp4"),
    "webm": partial(_write_video, "webm"),
    "gif": _write_gif,
    "webp": _write_webp,
    "apng": _write_apng,
    "png": _write_png_folder,
}
