"""What a source of frames is, whatever its kind: which frames a selection takes, when they are shown, at what rate.

- Frames come as a player shows them: at their own times, upright, with square pixels, deinterlaced, in the right
  colours, HDR tone-mapped, transparent parts on white, or the background asked for.
- Time 0 is when the first frame appears, wherever the file's own clock starts.
- `frames` yields exactly `count` frames or raises ValueError, also where a file is damaged.
- Frames are read one by one, from the keyframe before the first that is wanted. What stays in memory of a whole file
  is a few bytes for the time of each frame.
- A source holds no open file. Each iterator has its own and closes it when it ends or is dropped.

Everything that can be said against a file or a selection is said in words: FileNotFoundError where nothing is there,
otherwise ValueError, and RuntimeError if PyAV, which reads the videos, is missing.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from .formats import MAX_FPS, MIN_FPS, exact_rate
from .pictures import by, contact_sheet

MAX_PIXELS = 2**26
"""Of one frame, unless `open_source` is given another limit: 8192x8192."""


@dataclass(frozen=True)
class Selection:
    """Which frames of a source to take. Raises ValueError for values that no source could serve.

    start, end: seconds; `end` itself is not part of it, None or a later one than the source's means the source's end.
    fps: None takes every frame that appears from `start` on. A rate takes what is on the screen at start,
        start + 1/fps, start + 2/fps, ...: a frame comes twice where the source is slower, and is left out where it is
        faster.
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
                f"fps is {self.fps}, but a selection takes {MIN_FPS} to {MAX_FPS} frames per second "
                "(empty: every frame)"
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
        """`fps` as a fraction, as a clip has it."""
        return None if self.fps is None else exact_rate(self.fps)


EVERYTHING = Selection()
_WIDEST = 8  # a frame in a contact strip, as a multiple of its height


@dataclass(frozen=True)
class SourceInfo:
    """size: (width, height) in pixels as shown, that is turned upright and with square pixels.
    duration: seconds from the first frame's appearance to the last one's end; of a damaged file, what can be read.
    fps: frames per second; the average where the rate is variable.
    frames: how many there are.
    variable: whether the frames last unequally long.
    has_audio: whether `add_audio` finds something.
    hdr: the file's colours are meant for an HDR screen (PQ or HLG); the frames are tone-mapped, see `tone`.
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


class Source:
    """The frames of one file or folder: see `open_source`. Its kinds add `info`, `clock` and `_pictures`.

    background: the colour that transparent parts are laid on.
    max_pixels: that one frame may have.
    """

    info: SourceInfo
    clock: Clock

    def __init__(self, path: Path, background: str, max_pixels: int) -> None:
        self.path = path
        self.background = background
        self.max_pixels = max_pixels

    def frames(self, selection: Selection = EVERYTHING) -> Iterator[tuple[float, Image.Image]]:
        """Yields (time, picture) for each selected frame, in order.

        time: when the source shows this frame, in seconds. With `selection.fps` that is at or before the moment it is
            taken for, and the same frame may come again.
        picture: an RGB image of `info.size`; yours to change.

        A selection that cannot be served raises ValueError here, before the first frame.
        """
        return self.read(self.picks(selection))

    def count(self, selection: Selection = EVERYTHING) -> int:
        """How many frames `frames(selection)` yields. Raises ValueError where that would."""
        return len(self.picks(selection))

    def clip_fps(self, selection: Selection = EVERYTHING) -> Fraction:
        """The frame rate at which a clip of these frames plays as fast as the source.

        Exact where `selection.fps` is given or the source's rate is constant, otherwise the average over the selection.
        For a single frame it is a rate that a clip may have.
        Raises ValueError where `frames` would.
        """
        picks = self.picks(selection)
        rate = selection.rate or self.clock.rate
        if len(picks) == 1:
            return min(max((rate or self.info.fps) / selection.every, exact_rate(MIN_FPS)), Fraction(MAX_FPS))
        if rate:
            return rate / selection.every
        seconds = self.clock.times[picks[-1]] - self.clock.times[picks[0]]
        return Fraction((len(picks) - 1) / seconds).limit_denominator(1001)

    def contact_strip(self, selection: Selection = EVERYTHING, most: int = 8, height: int = 96) -> Image.Image:
        """The selected frames side by side, `height` pixels high; if there are more than `most`, so many of them, from
        the first to the last at equal steps. What is more than 8 times as wide as high lies on white.
        """
        if most < 1 or height < 1:
            raise ValueError(f"a contact strip takes at least 1 frame of 1 pixel, got most={most}, height={height}")
        picks = self.picks(selection)
        chosen = picks[np.linspace(0, len(picks) - 1, min(most, len(picks))).round().astype(int)]
        shape = max(1, round(self.info.size[0] * height / self.info.size[1])), height
        small = shape
        if shape[0] > _WIDEST * height:
            shape = _WIDEST * height, height
            small = shape[0], max(1, round(self.info.size[1] * shape[0] / self.info.size[0]))
        pictures = [Image.new("RGB", shape, "white") for _ in chosen]
        for picture, (_, shown) in zip(pictures, self.read(chosen)):
            picture.paste(shown.resize(small, Image.Resampling.LANCZOS), (0, (height - small[1]) // 2))
        return contact_sheet(pictures, columns=len(pictures))

    def picks(self, selection: Selection = EVERYTHING) -> np.ndarray:
        """The number (from 0) of the source's frame for each frame that `selection` gives, (frames,): ascending, some
        more than once. Raises ValueError where `frames` would.
        """
        return self.clock.picks(selection, self.path.name)

    def read(self, picks: np.ndarray) -> Iterator[tuple[float, Image.Image]]:
        """Yields (time, picture), as `frames` does, of the source's frames with these ascending numbers."""
        numbers, repeats = np.unique(picks, return_counts=True)
        with closing(self._pictures(numbers.tolist())) as pictures:
            for number, repeat, picture in zip(numbers, repeats, pictures):
                time = float(self.clock.times[number])
                for _ in range(repeat - 1):
                    yield time, picture.copy()
                yield time, picture

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        """The source's frames with these numbers, which ascend."""
        raise NotImplementedError


# Frames per second that a short file is taken for, where its few times allow several.
_USUAL_RATES = [Fraction(rate) for rate in (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 40, 48, 50, 60)]


def _rates(ends: np.ndarray, tick: float) -> Iterator[Fraction]:
    """Constant rates that frames may have which end at these times (seconds), told in ticks; the likeliest first."""
    numbers = np.arange(1, len(ends) + 1)

    def lateness(rate: Fraction) -> np.ndarray:
        """By how many ticks the file has each frame end too early."""
        return (numbers / float(rate) - ends) / tick

    down = [rate for rate in _USUAL_RATES if lateness(rate).min() > -0.01 and lateness(rate).max() < 1.01]
    nearest = [rate for rate in _USUAL_RATES if np.abs(lateness(rate)).max() < 0.51]
    for rounded in (down, nearest):
        yield from sorted(rounded, key=lambda rate: np.abs(lateness(rate)).max())
    fastest, slowest = 1 / (ends / numbers).max(), 1 / ((ends + tick) / numbers).min()  # if they are rounded down
    if math.floor(fastest + 1e-6) > slowest:
        yield Fraction(math.floor(fastest + 1e-6))
    average = (len(ends) - 1) / ends[-2] if len(ends) > 1 else 1 / ends[-1]  # the last one may stay longer
    for largest in (1, 2, 1001):
        yield Fraction(average).limit_denominator(largest)


_ASSUMED_RATE = 25

# Seconds. A time that Matroska, or who typed in a selection, rounded to milliseconds is meant half of one earlier.
_SLACK = 0.0005


@dataclass(frozen=True)
class Clock:
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
    ) -> Clock:
        """rate: what the file says; it counts if the times confirm it.
        tick: how finely the file tells times, in seconds: two frames at 30 fps are 33 or 34 ms apart in Matroska, 30 or
            40 ms in GIF.
        """
        if len(times) == 1 and end * MAX_FPS < 1:  # how long it is shown is not known
            end = float(1 / (rate if rate and rate <= MAX_FPS else _ASSUMED_RATE))
        ends = np.append(times[1:], end)
        for candidate in (rate, *_rates(ends, tick)):
            if candidate:
                grid = np.arange(1, len(times) + 1) / float(candidate)
                if np.abs(grid - ends).max() <= 1.01 * tick:
                    return cls(times, float(grid[-1]), Fraction(candidate), broken)
        return cls(times, end, None, broken)

    def info(self, size: tuple[int, int], has_audio: bool = False, hdr: bool = False) -> SourceInfo:
        fps = self.rate or Fraction(len(self.times) / self.end).limit_denominator(1001)
        return SourceInfo(size, self.end, fps, len(self.times), self.rate is None, has_audio, hdr, self.broken)

    def picks(self, selection: Selection, name: str) -> np.ndarray:
        """The numbers (selected frames,) of the frames that `selection` takes, ascending; at least one."""
        if selection.start >= self.end or selection.start - _SLACK >= max(self.times[-1], self.end - 2 * _SLACK):
            damage = ", where it breaks off (it is damaged or incomplete)" if self.broken else ""
            raise ValueError(
                f"start is {selection.start} s, but {name} ends at {_down(self.end)} s{damage}: choose an earlier start"
            )

        end = self.end if selection.end is None else min(selection.end, self.end)
        if selection.rate:
            count = math.ceil((end - selection.start - _SLACK) * selection.rate)
            steps = np.arange(0, max(count, 1), selection.every)
            moments = selection.start + steps * selection.rate.denominator / selection.rate.numerator
            appear = self.times
            if self.rate:  # regardless of how the file rounds it
                appear = np.minimum(appear, np.arange(len(appear)) / float(self.rate))
            picks = np.searchsorted(appear, moments + _SLACK, side="right") - 1
        else:
            first, stop = np.searchsorted(self.times, [selection.start - _SLACK, end - _SLACK])
            if end == self.end:
                stop = len(self.times)  # also where the last one is shown for less than that
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


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turns what the system says against `path` into FileNotFoundError or ValueError with a remedy."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no file or folder {path}: check its name and folder") from error
    except PermissionError as error:
        raise ValueError(f"{path} may not be read: allow it in its permissions") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): copy it to another place") from error


def check_file(path: Path) -> None:
    """Raises ValueError for what is no file with content, FileNotFoundError where nothing is there."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is a device or a pipe: give a video file, an animated image or a folder")
    if status.st_size == 0:
        raise ValueError(f"{path.name} is empty (0 bytes): it was not copied or downloaded completely")


class TooLarge(ValueError):
    """A frame has more pixels than `max_pixels` allows."""


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises ValueError for a frame of no pixels, TooLarge for one of more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{name} is {by(size)}: it has no pixels")
    if width * height > max_pixels:
        side, millions = math.isqrt(max_pixels), max_pixels / 1e6
        raise TooLarge(
            f"{name} is {by(size)}, but a frame may have {millions:.{0 if millions >= 10 else 2}f} million pixels "
            f"(such as {side}x{side}): scale it down"
        )
