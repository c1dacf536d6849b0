"""Read the frames of a source: a video file, an animated image (GIF, WebP, APNG) or a folder of images.

    source = open_source("holiday.mov")
    selection = Selection(start=2, end=6, fps=12)
    for time, picture in source.frames(selection):
        ...
    clip = write_clip(edited, "holiday", "mp4", source.clip_fps(selection))
    add_audio(clip, source, selection)

What a source promises:

- Frames come as a player shows them: at their own times, upright, with square pixels, deinterlaced, in the right
  colours, transparent parts on white, or the background asked for. HDR is the exception: it is not tone-mapped (`SourceInfo.hdr`).
- Time 0 is when the first frame appears, wherever the file's own clock starts.
- `frames` yields exactly `count` frames or raises ValueError, also where a file is damaged.
- Frames are read one by one, from the keyframe before the first that is wanted. What stays in memory of a whole file
  is a few bytes for the time of each frame.
- A source holds no open file. Each iterator has its own and closes it when it ends or is dropped.

Everything that can be said against a file or a selection is said in words: FileNotFoundError where nothing is there,
otherwise ValueError, and RuntimeError if PyAV, which reads the videos, is missing.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import re
import stat
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import write as video

MIN_FPS, MAX_FPS = video.MIN_FPS, video.MAX_FPS["mp4"]
MAX_PIXELS = 2**26  # of one frame: 8192x8192
FOLDER_FPS = 8


@dataclass(frozen=True)
class Selection:
    """Which frames of a source to take. Raises ValueError for values that no source could serve.

    start, end: seconds; `end` itself is not part of it, None or a later one than the source's means the source's end.
    fps: None takes every frame that appears from `start` on. A rate takes what is on the screen at start, start + 1/fps,
        start + 2/fps, ...: a frame comes twice where the source is slower, and is left out where it is faster.
    every: take every n-th of these.
    frames: take at most so many.
    """

    start: float = 0
    end: float | None = None
    fps: float | Fraction | None = None
    every: int = 1
    frames: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:  # also catches NaN
            raise ValueError(f"start is {self.start}, but a source begins at 0 s: give a time from 0 s on")
        if self.end is not None and not self.end > self.start:
            raise ValueError(f"end is {self.end}, but has to come after the start, {self.start} s (empty: to the end)")
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise ValueError(
                f"fps is {self.fps}, but a selection takes {MIN_FPS} to {MAX_FPS} frames per second (empty: every frame)"
            )
        for name, least in (("every", "1 takes every frame"), ("frames", "empty takes all frames")):
            value = getattr(self, name)
            if value is None and name == "frames":
                continue
            if not (value >= 1 and value % 1 == 0):
                raise ValueError(f"{name} is {value}, but has to be a whole number from 1 on ({least})")
            object.__setattr__(self, name, int(value))  # 2.0 is 2

    @property
    def rate(self) -> Fraction | None:
        """`fps` as a fraction, in the same way as `video.check_clip`."""
        return None if self.fps is None else Fraction(float(self.fps)).limit_denominator(1001)


@dataclass(frozen=True)
class SourceInfo:
    """size: (width, height) in pixels as shown, that is turned upright and with square pixels.
    duration: seconds from the first frame's appearance to the last one's end; of a damaged file, what can be read.
    fps: frames per second; the average where the rate is variable.
    frames: how many there are.
    variable: whether the frames last unequally long.
    has_audio: whether `add_audio` finds something.
    hdr: the colours are meant for an HDR screen (PQ or HLG) and look pale, because they are not tone-mapped.
    broken: the file breaks off at `duration`, though it says that it is longer.
    """

    size: tuple[int, int]
    duration: float
    fps: Fraction
    frames: int
    variable: bool
    has_audio: bool = False
    hdr: bool = False
    broken: bool = False


def open_source(path: str | os.PathLike, folder_fps: float = FOLDER_FPS, background: str = "white") -> Source:
    """Open a video (MP4, MOV, MKV, WebM, ...), an animated image (GIF, WebP, APNG), a picture, or a folder of pictures.

    What a file is, is told from its content, not from its name. The file's times are read here, once; for a long video
    that takes as long as reading the file.

    folder_fps: frames per second of a folder, which has no clock of its own.
    background: the colour that transparent parts are laid on.
    """
    if not os.fspath(path):
        raise FileNotFoundError("no source is given: name a video, an animated image or a folder of images")
    source = _opened(Path(path), folder_fps)
    source.background = background
    return source


def _opened(path: Path, folder_fps: float) -> Source:
    if not MIN_FPS <= folder_fps <= MAX_FPS:
        raise ValueError(f"folder_fps is {folder_fps}, but a folder plays at {MIN_FPS} to {MAX_FPS} frames per second")
    with _in_words(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return _Folder(path, Fraction(float(folder_fps)).limit_denominator(1001))
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is a device or a pipe: give a video file, an animated image or a folder")
        if os.stat(path).st_size == 0:
            raise ValueError(f"{path.name} is empty (0 bytes): it was not copied or downloaded completely")
        with open(path, "rb") as file:
            is_picture = _is_picture(file.read(12))
        return _Animation(path) if is_picture else _Video(path)


class Source:
    """The frames of one file or folder: see `open_source`."""

    path: Path
    info: SourceInfo
    background = "white"
    _clock: _Clock

    def frames(self, selection: Selection = Selection()) -> Iterator[tuple[float, Image.Image]]:
        """Yield (time, picture) for each selected frame, in order.

        time: when the source shows this frame, in seconds. With `selection.fps` that is at or before the moment it is
            taken for, and the same frame may come again.
        picture: an RGB image of `info.size`; yours to change.

        A selection that cannot be served raises ValueError here, before the first frame.
        """
        return self.read(self.picks(selection))

    def count(self, selection: Selection = Selection()) -> int:
        """How many frames `frames(selection)` yields. Raises ValueError where that would."""
        return len(self.picks(selection))

    def clip_fps(self, selection: Selection = Selection()) -> Fraction:
        """The frame rate at which a clip of these frames plays as fast as the source.

        Exact where `selection.fps` is given or the source's rate is constant, otherwise the average over the selection.
        Raises ValueError where `frames` would.
        """
        picks = self.picks(selection)
        rate = selection.rate or self._clock.rate
        if rate:
            return rate / selection.every
        if len(picks) == 1:
            return self.info.fps / selection.every
        seconds = self._clock.times[picks[-1]] - self._clock.times[picks[0]]
        return Fraction((len(picks) - 1) / seconds).limit_denominator(1001)

    def contact_strip(self, selection: Selection = Selection(), most: int = 8, height: int = 96) -> Image.Image:
        """The selected frames side by side, `height` pixels high; if there are more than `most`, so many of them, from
        the first to the last at equal steps.
        """
        if most < 1 or height < 1:
            raise ValueError(f"a contact strip takes at least 1 frame of 1 pixel, got most={most}, height={height}")
        picks = self.picks(selection)
        chosen = picks[np.linspace(0, len(picks) - 1, min(most, len(picks))).round().astype(int)]
        width = max(1, round(self.info.size[0] * height / self.info.size[1]))
        small = [picture.resize((width, height), Image.Resampling.LANCZOS) for _, picture in self.read(chosen)]
        return video.contact_sheet(small, columns=len(small))

    def picks(self, selection: Selection = Selection()) -> np.ndarray:
        """The number (from 0) of the source's frame for each frame that `selection` gives, (frames,): ascending, some more
        than once. Raises ValueError where `frames` would.
        """
        return self._clock.picks(selection, self.path.name)

    def read(self, picks: np.ndarray) -> Iterator[tuple[float, Image.Image]]:
        """Yield (time, picture), as `frames` does, of the source's frames with these ascending numbers."""
        numbers, repeats = np.unique(picks, return_counts=True)
        with closing(self._pictures(numbers.tolist())) as pictures:
            for number, repeat, picture in zip(numbers, repeats, pictures):
                time = float(self._clock.times[number])
                for _ in range(repeat - 1):
                    yield time, picture.copy()
                yield time, picture

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        """The source's frames with these numbers, which ascend."""
        raise NotImplementedError


def add_audio(clip: str | os.PathLike, source: Source, selection: Selection = Selection()) -> None:
    """Give the MP4 or WebM file `clip`, made of `source.frames(selection)`, the sound of the same time.

    The pictures and the text of the clip stay as they are; sound that it has is replaced. The source's sound is copied
    if it fits into the file (AAC, MP3, Opus, FLAC into MP4; Opus, Vorbis into WebM), which cuts it at packets of about
    20 ms, though it stays in time; otherwise it is encoded anew, in mono or stereo, and cut exactly. A failure leaves
    the clip as it was.

    Raises ValueError if the source has no sound (`info.has_audio`), none in that time, or the clip does not last as
    long as the selection (as it does at `clip_fps`), since the sound would drift away from it.
    """
    clip = Path(clip)
    format = clip.suffix[1:].lower()
    if format not in _AUDIO:
        raise ValueError(f"cannot add sound to {clip.name}: only .mp4 and .webm clips hold sound")
    if not source.info.has_audio:
        raise ValueError(f"{source.path.name} has no sound to add to {clip.name}")
    picks = source.picks(selection)
    begin = selection.start if selection.fps else float(source._clock.times[picks[0]])
    seconds = float(len(picks) / source.clip_fps(selection))
    av = video._import_av(format, _AUDIO[format][0])
    try:
        _mux_audio(clip, format, source, begin, seconds, tolerance=seconds / len(picks))
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # the disk is full, for example
        raise ValueError(
            f"the sound of {source.path.name} cannot be added to {clip.name} ({error.strerror}): it is damaged or of an "
            "unusual kind, convert it to AAC"
        ) from error


# Time ---------------------------------------------------------------------------------------------------------------

# Seconds. A time that Matroska, or who typed in a selection, rounded to milliseconds is meant half of one earlier.
_SLACK = 0.0005


@dataclass(frozen=True)
class _Clock:
    """When the frames of a source are shown.

    times: seconds from the first frame, as the file says, ascending from 0. (frames,) float64
    end: when the last one leaves the screen, in seconds.
    rate: frames per second, or None where it varies.
    broken: the file is damaged from `end` on.
    """

    times: np.ndarray
    end: float
    rate: Fraction | None
    broken: bool = False

    @classmethod
    def of(
        cls, times: np.ndarray, end: float, tick: float, rate: Fraction | None = None, broken: bool = False
    ) -> _Clock:
        """rate: what the file says; it counts if the times confirm it.
        tick: how finely the file tells times, in seconds: two frames at 30 fps are 33 or 34 ms apart in Matroska, 30 or
            40 ms in GIF.
        """
        average = Fraction((len(times) - 1) / times[-1] if len(times) > 1 else 1 / end)
        ends = np.append(times[1:], end)
        for candidate in (rate, *(average.limit_denominator(largest) for largest in (1, 2, 1001))):
            if candidate:
                grid = np.arange(1, len(times) + 1) / float(candidate)
                if np.abs(grid - ends).max() <= 1.01 * tick:
                    return cls(times, float(grid[-1]), candidate, broken)
        return cls(times, end, None, broken)

    def info(self, size: tuple[int, int], has_audio: bool = False, hdr: bool = False) -> SourceInfo:
        fps = self.rate or Fraction(len(self.times) / self.end).limit_denominator(1001)
        return SourceInfo(size, self.end, fps, len(self.times), self.rate is None, has_audio, hdr, self.broken)

    def picks(self, selection: Selection, name: str) -> np.ndarray:
        """The numbers (selected frames,) of the frames that `selection` takes, ascending; at least one."""
        if selection.start >= self.end - _SLACK:
            damage = ", where it breaks off (it is damaged or incomplete)" if self.broken else ""
            raise ValueError(
                f"start is {selection.start} s, but {name} ends at {_down(self.end)} s{damage}: choose an earlier start"
            )

        end = self.end if selection.end is None else min(selection.end, self.end)
        if selection.rate:
            steps = np.arange(0, math.ceil((end - selection.start - _SLACK) * selection.rate), selection.every)
            moments = selection.start + steps * selection.rate.denominator / selection.rate.numerator
            appear = self.times
            if self.rate:  # regardless of how the file rounds it
                appear = np.minimum(appear, np.arange(len(appear)) / float(self.rate))
            picks = np.searchsorted(appear, moments + _SLACK, side="right") - 1
        else:
            first, stop = np.searchsorted(self.times, [selection.start - _SLACK, end - _SLACK])
            picks = np.arange(first, stop, selection.every)
        if not len(picks):
            raise ValueError(
                f"no frame of {name} appears from {selection.start} to {end} s: choose a longer range, or an fps, "
                "which takes what is on the screen"
            )

        picks = picks[: selection.frames]
        complete = len(picks) == selection.frames or (selection.end is not None and selection.end <= self.end + _SLACK)
        if self.broken and not complete:
            raise ValueError(
                f"{name} breaks off at {_down(self.end)} s, the rest is damaged or missing: set the end to "
                f"{_down(self.end)} s or less, or get the complete file"
            )
        return picks


def _down(seconds: float) -> str:
    """`seconds` rounded down, so that who types them in stays before that time."""
    return f"{math.floor(seconds * 100 + 1e-6) / 100:.2f}"


# Files --------------------------------------------------------------------------------------------------------------


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn what the system says against `path` into FileNotFoundError or ValueError with a remedy."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no file or folder {path}: check its name and folder") from error
    except PermissionError as error:
        raise ValueError(f"{path} may not be read: allow it in its permissions") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): copy it to another place") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{name} is {width}x{height}: it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is {width}x{height}, but a frame may have {MAX_PIXELS / 1e6:.0f} million pixels "
            f"(such as 8192x8192): scale it down"
        )


# Images -------------------------------------------------------------------------------------------------------------

_PICTURE_FORMATS = ("GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What Pillow raises for damaged files.
_PICTURE_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def _is_picture(head: bytes) -> bool:
    """Whether Pillow rather than FFmpeg reads a file that begins with these 12 bytes."""
    return head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")) or (
        head[:4] == b"RIFF" and head[8:] == b"WEBP"
    )


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    """The picture in `path`, its size checked. Pixels are read only when used."""
    try:
        image = Image.open(path, formats=_PICTURE_FORMATS)
    except (FileNotFoundError, PermissionError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path.name} has too many pixels: scale it down ({error})") from error
    except (UnidentifiedImageError, *_PICTURE_ERRORS) as error:
        raise ValueError(f"{path.name} is damaged, or no picture in spite of its name: remove or replace it") from error
    with image:
        _check_size(image.size, path.name)
        if image.format == "TIFF":
            _load(image, path.name)  # since Pillow turns it upright then, and only then tells its size
        yield image


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except _PICTURE_ERRORS as error:
        raise ValueError(f"{name} is damaged ({error}): remove or replace it") from error


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How the picture, of which no pixels have been read, has to be turned to be upright."""
    if image.format == "TIFF":
        return None  # Pillow has turned it
    try:
        # The base class's method, since that of PNG reads the whole picture to look behind it.
        return _UPRIGHT.get(Image.Image.getexif(image).get(_EXIF_ORIENTATION))
    except _PICTURE_ERRORS:
        return None  # the EXIF data are damaged, which browsers ignore too


def _picture(image: Image.Image, number: int, turn: Image.Transpose | None, background: str) -> Image.Image:
    """`image`, turned, in RGB, on that background; 16-bit grey, such as a depth map, in 8 bits."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() >= 0 and levels.max() <= 0xFFFF:
            image = Image.fromarray((levels / 257).round().astype(np.uint8))
    image = video._as_picture(image, number, background)
    return image.transpose(turn) if turn is not None else image


class _Animation(Source):
    """A GIF, WebP or APNG file, read by Pillow; FFmpeg cannot decode animated WebP. Also a single picture."""

    # What browsers show for 100 ms instead, in seconds: see `video.MAX_FPS`.
    _TOO_SHORT = {"GIF": 0.02, "WEBP": 0.011, "PNG": 0.011}

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, now, broken = [], 0.0, False
        with _opened_picture(path) as image:
            self._size, self._turn = image.size, _orientation(image)
            # An APNG may hold a picture for programs that do not animate, which comes before the animation.
            self._first = 1 if image.info.get("default_image") else 0
            too_short = self._TOO_SHORT.get(image.format)
            try:
                count = image.n_frames if too_short else 1
                for number in range(self._first, count):
                    image.seek(number)
                    image.load()
                    seconds = image.info.get("duration", 0) / 1000 if too_short else 0
                    starts.append(now)
                    now += seconds if too_short and seconds >= too_short else 0.1
            except _PICTURE_ERRORS as error:
                if not starts:
                    raise ValueError(
                        f"{path.name} is damaged, not even its first frame can be read: replace it"
                    ) from error
                broken = True
            tick = 0.01 if image.format == "GIF" else 0.001
        self._clock = _Clock.of(np.array(starts), now, tick, broken=broken)
        self.info = self._clock.info(_turned(self._size, self._turn))

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        with _in_words(self.path), _opened_picture(self.path) as image:
            for number in numbers:
                try:
                    image.seek(self._first + number)
                    image.load()
                except _PICTURE_ERRORS as error:
                    raise ValueError(f"frame {number + 1} of {self.path.name} is damaged ({error})") from error
                # A GIF's frame may reach beyond the GIF, and then Pillow enlarges it.
                shown = image if image.size == self._size else image.crop((0, 0, *self._size))
                yield _picture(shown, number + 1, self._turn, self.background)


class _Folder(Source):
    """The pictures of a folder in the order of their names, where numbers count as numbers. Other files are ignored."""

    def __init__(self, path: Path, fps: Fraction) -> None:
        self.path = path
        self._files = sorted(
            (file for file in path.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES and file.name[0] != "."),
            key=_natural_order,
        )
        if not self._files:
            suffixes = ", ".join(_PICTURE_SUFFIXES)
            raise ValueError(f"the folder {path} holds no frames: it needs files that end with {suffixes}")
        size = None
        for file in self._files:
            with _in_words(file), _opened_picture(file) as image:
                upright = _turned(image.size, _orientation(image))
            size = size or upright
            if upright != size:
                raise ValueError(
                    f"{file.name} is {video._by(upright)}, but {self._files[0].name} is {video._by(size)}: a folder of "
                    "frames needs one size, resize or remove the others"
                )
        count = len(self._files)
        self._clock = _Clock(np.arange(count) / float(fps), float(count / fps), fps)
        self.info = self._clock.info(size)

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        for number in numbers:
            file = self._files[number]
            with _in_words(file), _opened_picture(file) as image:
                turn = _orientation(image)
                _load(image, file.name)
                picture = _picture(image, number + 1, turn, self.background)
            yield picture


def _natural_order(file: Path) -> tuple:
    """frame2 comes before frame10, whatever is upper case."""
    parts = re.split(r"(\d+)", file.name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, file.name


def _turned(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    return size[::-1] if turn in _SIDEWAYS else size


# Videos -------------------------------------------------------------------------------------------------------------

# Containers with a clock. No playlists or scripts: they make FFmpeg open other files, or addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,dv,ivf,yuv4mpegpipe"
_THREADS = 4  # that decode; each may hold some frames
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones skip the alpha channel

# H.273 codes, as FFmpeg uses them
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6
_HDR_TRANSFERS = (16, 18)  # PQ, HLG
# swscale's flags for its best: luma bicubic and chroma bilinear, interpolated to full size, exact rounding.
_BEST_CONVERSION = 0x40 | 0x2000 | 0x40000
# The first numbers (a, b, c, d) of a display matrix: pixel (x, y) goes to (a·x + c·y, b·x + d·y), y pointing down.
_DISPLAY_MATRICES = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class _Index:
    """What the first pass over a video finds. pts, keys: times in units of `time_base` from the file's own zero.

    pts: of all frames, ascending; keys: of those where decoding can begin. (n,) int64
    last: how long the last frame stays.
    interlaced: whether frames have to be deinterlaced.
    broken: the file ends before its frames do.
    rate (frames per second), pixel_aspect (width by height), has_audio, hdr: what the file says.
    """

    pts: np.ndarray
    keys: np.ndarray
    last: int
    interlaced: bool
    broken: bool
    time_base: Fraction
    rate: Fraction
    pixel_aspect: Fraction
    has_audio: bool
    hdr: bool


class _Damaged(Exception):
    """A part of the file cannot be decoded."""


class _Video(Source):
    """A video file, read by FFmpeg. After the first pass, `_read_index`, a frame is known by its time."""

    _SEEK_GAP = 32  # frames; fewer are decoded rather than jumped over

    def __init__(self, path: Path) -> None:
        self.path = path
        index = _read_index(path)
        self._pts = index.pts
        self._keys = np.searchsorted(index.pts, index.keys)  # as numbers of frames
        self._zero = index.pts[0].item() * index.time_base  # seconds in the file's own time
        times = (index.pts - index.pts[0]) * index.time_base.numerator / index.time_base.denominator
        end = float(times[-1]) + float(index.last * index.time_base)
        self._clock = _Clock.of(times, end, 0.001, index.rate, index.broken)

        self._interlaced = index.interlaced
        run, frame = self._reach(0)
        run.close()
        self._turn = _display_turn(frame)
        self._size = max(1, round(frame.width * index.pixel_aspect)), frame.height
        _check_size(self._size, path.name)
        self.info = self._clock.info(_turned(self._size, self._turn), index.has_audio, index.hdr)

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        run, reached = self._run(0), -math.inf
        try:
            for number in numbers:
                frame = None
                if self._keyframe(number) - reached <= self._SEEK_GAP:
                    frame = _advance(run, number)
                if frame is None:
                    run.close()
                    run, frame = self._reach(number)
                reached = number
                yield self._shown(frame, number)
        finally:
            run.close()

    def _keyframe(self, number: int) -> int:
        """The number of the keyframe that decoding has to begin with for this frame."""
        if self._interlaced:
            number -= 1  # what deinterlacing compares it with
        position = np.searchsorted(self._keys, number, side="right") - 1
        return int(self._keys[position]) if position >= 0 else 0

    def _reach(self, number: int) -> tuple[Iterator, object]:
        """The frame with this number, and the run that leads to it and goes on after it.

        Seeking may land behind the keyframe, or on one that cannot be decoded without what comes before it. Then the
        keyframe before it is tried, and at last the beginning of the file.
        """
        keyframe = self._keyframe(number)
        attempts = [(keyframe, True), (self._keyframe(keyframe - 1), False), (0, False)]
        for start, parallel in dict.fromkeys(attempts):
            run = self._run(start, parallel)
            frame = _advance(run, number)
            if frame is not None:
                return run, frame
            run.close()
        raise ValueError(
            f"{self.path.name} is damaged: the frame at {self._clock.times[number]:.2f} s cannot be decoded; set the end "
            "to that time or the start some seconds after it, or repair the file"
        )

    def _run(self, start: int, parallel: bool = True) -> Iterator[tuple[int, object]]:
        """Yield (number, av.VideoFrame) in order, from around the keyframe `start`. Raises _Damaged."""
        with _opened_video(self.path) as (container, stream):
            packets = container.demux(stream)
            if start > 0:
                try:
                    container.seek(self._pts[start].item(), stream=stream)
                except _import_av().FFmpegError as error:
                    raise _Damaged from error
                packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)
            frames = _decoded(packets, _decoder(stream, parallel))
            for frame in _deinterlaced(frames, stream.time_base):
                number = int(np.searchsorted(self._pts, frame.pts))
                if number < len(self._pts) and self._pts[number] == frame.pts:
                    yield number, frame

    def _shown(self, frame, number: int) -> Image.Image:
        """The frame (av.VideoFrame) as a player shows it."""
        if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
            frame.colorspace = _BT709 if frame.height >= 720 else _BT601
        transparent = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
        width, height = self._size
        pixels = frame.to_ndarray(
            format="rgba" if transparent else "rgb24", width=width, height=height, interpolation=_BEST_CONVERSION
        )
        picture = video._as_picture(pixels, number + 1, self.background)
        return picture.transpose(self._turn) if self._turn is not None else picture


def _advance(run: Iterator[tuple[int, object]], number: int):
    """The frame with this number, or None if the run does not lead to it undamaged."""
    with suppress(_Damaged):
        for reached, frame in run:
            if reached >= number:
                return frame if reached == number and not frame.is_corrupt else None
    return None


# Videos: the first pass


def _read_index(path: Path) -> _Index:
    """Read through the file for the times of its frames: those of its packets, without decoding, where these are the
    same. They are not where pictures are stored that are never shown, or fields in packets of their own.
    """
    broken = _ends_in_pictures(path)
    with _opened_video(path) as (container, stream):
        time_base, rate = stream.time_base, stream.average_rate or 25
        facts = {
            "time_base": time_base,
            "rate": rate,
            "pixel_aspect": stream.sample_aspect_ratio or Fraction(1),
            "has_audio": any(audio.codec_context is not None for audio in container.streams.audio),
            "hdr": stream.codec_context.color_trc in _HDR_TRANSFERS,
        }
        times = _packet_times(container, stream, broken)
    if times is None:
        with _opened_video(path) as (container, stream):
            times = _frame_times(container, stream, broken)
    index = _Index(**times, **facts)

    if not len(index.pts):
        raise ValueError(
            f"{path.name} holds no frame that can be decoded: it is incomplete or protected, or of a kind that this "
            "build of PyAV does not know; convert it to MP4 with H.264"
        )
    if (np.diff(index.pts) < 0).any():
        raise ValueError(f"{path.name} does not say in which order its frames are shown: convert it to MP4")
    pts = np.unique(index.pts)  # of two frames with one time, one is never seen
    last = index.last
    if not last:
        last = int(pts[-1] - pts[0]) // (len(pts) - 1) if len(pts) > 1 else round(1 / (rate * time_base))
    return replace(index, pts=pts, last=last)


_PROBE = 24  # packets that are decoded to see whether packets and frames are the same


def _packet_times(container, stream, broken: bool) -> dict | None:
    """What `_Index` says of the frames, or None if it takes decoding."""
    pts, keys = array("q"), array("q")
    head, head_pts = [], []  # the first packets, and the times of the frames they should give
    final = last_dts = None
    cut = False  # whether the last packet is incomplete
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue  # marks the end
            if packet.pts is None or (last_dts is not None and packet.dts is not None and packet.dts < last_dts):
                return None  # it has no clock, or one that jumps back
            cut = packet.is_corrupt
            if packet.is_keyframe:
                keys.append(packet.pts)
            # Not shown: what the file's edit list cuts away, and what belongs to a keyframe before the file's beginning.
            shown = not packet.is_discard and len(keys) > 0 and packet.pts >= keys[0]
            if shown:
                pts.append(packet.pts)
                final = packet if final is None or packet.pts > final.pts else final
            if not cut:
                last_dts = packet.dts
                if len(head) < _PROBE:
                    head.append(packet)
                    head_pts += [packet.pts] if shown else []
    except _import_av().FFmpegError:
        cut = True

    probed, interlaced = [], False
    with suppress(_Damaged):
        for frame in _decoded(head, _decoder(stream)):
            probed.append(frame.pts)
            interlaced = interlaced or frame.interlaced_frame
    if not probed or probed != sorted(head_pts):
        return None

    times, last = np.sort(np.frombuffer(pts, np.int64)), final.duration or 0
    broken = broken or cut
    if broken:
        if last_dts is None:
            return None
        # Frames are stored in another order than they are shown in. Up to the last time of decoding none is missing.
        times, last = times[times <= last_dts], 0
    keys = np.frombuffer(keys, np.int64)
    return {"pts": times, "keys": keys, "last": last, "interlaced": interlaced, "broken": broken}


def _frame_times(container, stream, broken: bool) -> dict:
    """What `_Index` says of the frames, by decoding all of them."""
    pts, keys, interlaced = array("q"), array("q"), False
    try:
        for frame in _decoded(container.demux(stream), _decoder(stream)):
            pts.append(frame.pts)
            if frame.key_frame:
                keys.append(frame.pts)
            interlaced = interlaced or frame.interlaced_frame
    except _Damaged:
        broken = True
    times, keys = np.frombuffer(pts, np.int64), np.frombuffer(keys, np.int64)
    return {"pts": times, "keys": keys, "last": 0, "interlaced": interlaced, "broken": broken}


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def _ends_in_pictures(path: Path) -> bool:
    """Whether the file ends within a part that holds pictures: "mdat" of an MP4 or MOV, a cluster of an MKV or WebM."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = _ebml_head if file.read(4) == b"\x1a\x45\xdf\xa3" else _mp4_head
        position = 0
        while position < size:
            file.seek(position)
            name, start, length = head(file.read(16))
            if name == _SEGMENT:
                length = 0  # go into it
            if length is None:
                return False
            position += start + length
    return position > size and name in (b"mdat", _CLUSTER)


def _ebml_head(data: bytes) -> tuple[bytes, int, int | None]:
    """(name, where its content begins, how long that is) of the part of a Matroska file that begins with `data`. The
    length is None if the file does not say, as that of a live stream. https://www.rfc-editor.org/rfc/rfc8794
    """
    width = 9 - data[0].bit_length()  # leading zeros tell how many bytes a number has
    name, data = data[:width], data[width:]
    size = 9 - data[0].bit_length() if data else 9
    if size > 8:
        return name, width, None
    unknown = (1 << 7 * size) - 1
    length = int.from_bytes(data[:size], "big") & unknown
    return name, width + size, None if length == unknown else length


def _mp4_head(data: bytes) -> tuple[bytes, int, int | None]:
    """The same of an MP4 or MOV file, where None is a part that goes on to the end."""
    length, name = int.from_bytes(data[:4], "big"), data[4:8]
    if length == 1:
        return name, 16, max(int.from_bytes(data[8:16], "big") - 16, 0)
    return name, 8, length - 8 if length >= 8 else None


# Videos: FFmpeg


def _import_av():
    """PyAV, imported only here: without it folders and animated images still work."""
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f'cannot read videos without PyAV ({error}): install it ("pip install av"), or give a GIF, WebP or APNG '
            "or a folder of images"
        ) from error
    return av


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple]:
    """(container, video stream) of the file, both of PyAV."""
    av = _import_av()
    with _in_words(path):
        try:
            # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
            container = av.open(
                os.path.abspath(path),
                metadata_errors="replace",
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            )
        except (FileNotFoundError, PermissionError):
            raise
        except av.FFmpegError as error:
            raise ValueError(
                f"{path.name} is no video, or it is damaged or incomplete ({error.strerror}): give an MP4, MOV, MKV, "
                "WebM, GIF, WebP, APNG or a folder of images"
            ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kind = "sound but no video" if container.streams.audio else "no video"
            raise ValueError(f"{path.name} holds {kind}: give a file with moving pictures")
        if stream.codec_context is None:
            raise ValueError(
                f"{path.name} is compressed in a way that this build of PyAV cannot decode: convert it to MP4 with H.264"
            )
        size = stream.codec_context.width, stream.codec_context.height
        if 0 in size:
            raise ValueError(f"{path.name} is damaged: how large its frames are cannot be told")
        _check_size(size, path.name)
        yield container, stream


def _decoder(stream, parallel: bool = True):
    """The decoder (av.VideoCodecContext) for a stream's packets.

    parallel: decode several frames at once, which is faster but loses some before a damage.
    """
    av = _import_av()
    has_alpha = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode") == "1"
    alpha_decoder = _ALPHA_DECODERS.get(stream.codec_context.name)
    if has_alpha and alpha_decoder in av.codecs_available:
        return av.CodecContext.create(alpha_decoder, "r")
    stream.codec_context.thread_type = "AUTO" if parallel else "SLICE"
    stream.codec_context.thread_count = _THREADS
    return stream.codec_context


def _decoded(packets: Iterable, decoder) -> Iterator:
    """The frames (av.VideoFrame) that have a time, in order of it. Raises _Damaged after the last before a damage.

    The decoder is left at rest: freed while one of its threads reports an error, which takes Python's lock where PyAV's
    log is on (as torchvision switches it), it would wait for that thread, with the lock, for ever.
    """
    try:
        yield from _decoded_until_damage(packets, decoder)
    finally:
        decoder.flush_buffers()


def _decoded_until_damage(packets: Iterable, decoder) -> Iterator:
    av = _import_av()
    started, damage = False, None
    try:
        for packet in packets:
            if not packet.size:
                continue
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                if not started:
                    continue  # it begins in the middle of something
                damage = error
                break  # what follows builds on what is damaged
            for frame in frames:
                started = started or not frame.is_corrupt
                if started and frame.pts is not None:
                    yield frame
    except av.FFmpegError as error:
        damage = error
    with suppress(av.FFmpegError):
        yield from (frame for frame in decoder.decode(None) if frame.pts is not None)
    if damage is not None:
        raise _Damaged from damage


def _deinterlaced(frames: Iterable, time_base: Fraction) -> Iterator:
    """Each frame as it is, but from the first interlaced one on through a filter, which leaves progressive ones alone."""
    graph = graph_takes = damage = None
    try:
        for frame in frames:
            if graph is None and not frame.interlaced_frame:
                yield frame
                continue
            kind = frame.width, frame.height, frame.format.name
            if kind != graph_takes:
                yield from _filtered(graph, None, time_base)
                graph, graph_takes = _deinterlacer(frame, time_base), kind
            yield from _filtered(graph, frame, time_base)
    except _Damaged as error:
        damage = error
    yield from _filtered(graph, None, time_base)
    if damage is not None:
        raise damage


def _deinterlacer(frame, time_base: Fraction):
    graph = _import_av().filter.Graph()
    buffer = graph.add_buffer(template=frame, time_base=time_base)
    deinterlace = graph.add("bwdif", mode="send_frame", deint="interlaced")
    sink = graph.add("buffersink")
    buffer.link_to(deinterlace)
    deinterlace.link_to(sink)
    graph.configure()
    return graph


def _filtered(graph, frame, time_base: Fraction) -> Iterator:
    for filtered in _pulled(graph, frame):
        filtered.pts = int(filtered.pts * filtered.time_base / time_base)  # the filter counts in halves
        yield filtered


def _pulled(graph, frame) -> Iterator:
    """What comes out of a filter graph, if there is one, when `frame` or the end (None) goes in."""
    av = _import_av()
    if graph is None:
        return
    graph.push(frame)
    with suppress(av.error.BlockingIOError, av.error.EOFError):  # it wants more, or is at its end
        while True:
            yield graph.pull()


def _display_turn(frame) -> Image.Transpose | None:
    """How the frame has to be turned or mirrored to be upright."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 and older stumble over kinds of side data that they do not know
        return _ROTATIONS.get(frame.rotation % 360)
    if matrix is None:
        return None
    a, b, _, c, d = struct.unpack("5i", bytes(matrix)[:20])
    return _DISPLAY_MATRICES.get(tuple(round(number / 65536) for number in (a, b, c, d)))


# Sound --------------------------------------------------------------------------------------------------------------

# By format: the encoder, and the codecs that are copied because the format's players know them.
_AUDIO = {
    "mp4": ("aac", ("aac", "mp3", "opus", "flac")),
    "webm": ("libopus", ("opus", "vorbis")),
}
_AUDIO_RATE = 48000  # of what is encoded, in samples per second
_AUDIO_BIT_RATE = 192000
_OPUS_DELAY = 0.0075  # seconds that an Opus stream begins before its time
_SEEK_MARGIN = 2  # seconds


def _mux_audio(clip: Path, format: str, source: _Video, begin: float, seconds: float, tolerance: float) -> None:
    """Write `clip` anew, with the sound of the source's `seconds` from `begin` on."""
    av = _import_av()
    encoder, copied = _AUDIO[format]
    file_begin = source._zero + Fraction(begin)  # in the source file's own time
    with video._all_or_nothing(clip) as unfinished:
        with _opened_video(clip) as (old, old_pictures), _opened_video(source.path) as (container, _):
            lasts = (old.duration or 0) / av.time_base
            if abs(lasts - seconds) > tolerance + 0.01:
                raise ValueError(
                    f"{clip.name} lasts {lasts:.2f} s, but the selection of {source.path.name} {seconds:.2f} s: the sound "
                    "would drift away, write the clip at the frame rate that clip_fps gives"
                )
            old_sound = container.streams.best("audio")
            with av.open(os.path.abspath(unfinished), "w", format=format, options=video._VIDEO[format][2]) as new:
                for key, value in old.metadata.items():
                    if key.lower() == "comment":
                        new.metadata["comment"] = value
                pictures = _copied_pictures(old, old_pictures, new.add_stream_from_template(old_pictures))
                if file_begin > _SEEK_MARGIN:
                    container.seek(int((file_begin - _SEEK_MARGIN) * av.time_base))
                if old_sound.codec_context.codec.canonical_name in copied:
                    sound = _copied_sound(
                        container, old_sound, new.add_stream_from_template(old_sound), file_begin, seconds
                    )
                else:
                    layout = "mono" if old_sound.layout.nb_channels == 1 else "stereo"
                    new_sound = new.add_stream(encoder, rate=_AUDIO_RATE, layout=layout, bit_rate=_AUDIO_BIT_RATE)
                    sound = _encoded_sound(container, old_sound, new_sound, file_begin, seconds)
                first = next(sound, None)
                if first is None:
                    raise ValueError(
                        f"{source.path.name} has no sound from {begin:.2f} to {begin + seconds:.2f} s to add to {clip.name}"
                    )
                sound = itertools.chain([first], sound)
                for packet in heapq.merge(pictures, sound, key=lambda packet: packet.dts * packet.time_base):
                    new.mux(packet)


def _copied_pictures(container, stream, target) -> Iterator:
    for packet in container.demux(stream):
        if packet.size:
            packet.stream = target
            yield packet


def _copied_sound(container, stream, target, begin: Fraction, seconds: float) -> Iterator:
    """The packets of `stream` from the file's time `begin` on, so many seconds, moved to begin at 0."""
    in_mp4 = target.container.format.name == "mp4"
    early = _OPUS_DELAY if stream.codec_context.name == "opus" else 0
    shift = round(begin / stream.time_base)
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:
            continue
        packet.pts -= shift
        packet.dts = packet.pts
        time = float(packet.pts * stream.time_base)
        lasts = float((packet.duration or 0) * stream.time_base)
        if time + lasts / 2 >= seconds:
            break
        if in_mp4:
            early = 2 * lasts  # two packets to tune in with, which the edit list hides
        if time < -early:
            continue
        packet.stream = target
        yield packet


def _encoded_sound(container, stream, target, begin: Fraction, seconds: float) -> Iterator:
    """The packets of the same, decoded, cut exactly, gaps filled with silence, and encoded for `target`."""
    graph = None
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts * stream.time_base >= begin + Fraction(seconds):
            break
        if graph is None:
            graph = _sound_cutter(frame, stream.time_base, target.layout.name, begin, seconds)
        for cut in _pulled(graph, frame):
            yield from target.encode(cut)
    if graph is not None:
        for cut in _pulled(graph, None):
            yield from target.encode(cut)
        yield from target.encode(None)


def _sound_cutter(frame, time_base: Fraction, layout: str, begin: Fraction, seconds: float):
    """A filter graph from frames like this one (av.AudioFrame) to the range asked for, from 0 on."""
    graph = _import_av().filter.Graph()
    chain = [
        graph.add(
            "abuffer",
            sample_rate=str(frame.sample_rate),
            sample_fmt=frame.format.name,
            channel_layout=frame.layout.name,
            time_base=str(time_base),
        ),
        graph.add("asetpts", f"PTS-{round(begin / time_base)}"),
        graph.add("atrim", start="0", end=str(seconds)),
        graph.add("aresample", **{"async": "1", "first_pts": "0"}),
        graph.add("aformat", sample_rates=str(_AUDIO_RATE), channel_layouts=layout),
        graph.add("abuffersink"),
    ]
    for one, next_one in zip(chain, chain[1:]):
        one.link_to(next_one)
    graph.configure()
    return graph
