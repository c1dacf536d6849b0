"""Several clips as one: each in its place on a picture, all from the beginning, shorter ones again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image

MOST_FPS = 60
"""Frames per second up to which clips of different rates get one that is a multiple of each."""


@dataclass
class Cell:
    """A clip of `frames` frames, `rate` of them in a second, each time read anew by `pictures()`; `place` is its left
    and upper corner, `size` (width, height) the room there, in whose middle it is, made smaller if it is too large.
    """

    pictures: Callable[[], Iterator[Image.Image]]
    frames: int
    rate: Fraction
    place: tuple[int, int]
    size: tuple[int, int]


def common_rate(rates: Sequence[Fraction]) -> Fraction:
    """The lowest rate in which every frame of all clips lasts a whole number of frames, if it is at most `MOST_FPS`;
    otherwise the highest of them.
    """
    exact = Fraction(math.lcm(*(rate.numerator for rate in rates)), math.gcd(*(rate.denominator for rate in rates)))
    return exact if exact <= MOST_FPS else max(rates)


def frames_of_longest(cells: Sequence[Cell], rate: Fraction) -> int:
    """How many frames at `rate` last as long as the longest clip."""
    return max(1, round(max(cell.frames / cell.rate for cell in cells) * rate))


def side_by_side(ground: Image.Image, cells: Sequence[Cell], rate: Fraction, frames: int) -> Iterator[Image.Image]:
    """The frames of the whole, `rate` of them in a second: the picture `ground` with a frame of each clip on it.

    All clips are read in step, one picture of each is in memory. Raises ValueError for a clip without pictures, and
    what `pictures` raises.
    """
    shown, at = [_again(cell) for cell in cells], [-1] * len(cells)
    picture = ground
    for number in range(frames):
        picture = picture.copy()
        for place, cell in enumerate(cells):
            wanted, current = int(number * cell.rate / rate), None
            while at[place] < wanted:
                current, at[place] = next(shown[place]), at[place] + 1
            if current is not None:
                _put(picture, current, cell)
        yield picture


def _again(cell: Cell) -> Iterator[Image.Image]:
    while True:
        picture = None
        for picture in cell.pictures():
            yield picture
        if picture is None:
            raise ValueError("a clip that is to be shown has no pictures")
        while cell.frames == 1:
            yield picture


def _put(ground: Image.Image, picture: Image.Image, cell: Cell) -> None:
    (left, top), (width, height) = cell.place, cell.size
    scale = min(width / picture.width, height / picture.height, 1)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    ground.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
