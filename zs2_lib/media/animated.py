"""What the writers of animated images share: how long a frame lasts, and which part of it changed."""

from __future__ import annotations

from fractions import Fraction

from PIL import Image, ImageChops


def ticks(number: int, rate: Fraction, ticks_per_second: int) -> int:
    """How many ticks the frame `number` (0, 1, ...) lasts, such that no sum of them is off by a whole tick.

    8 fps in hundredths of a second: 12, 13, 12, 13, ...
    """
    return int((number + 1) * ticks_per_second / rate) - int(number * ticks_per_second / rate)


def changed_box(picture: Image.Image, previous: Image.Image | None, grid: int = 1) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around what changed; one corner if nothing did, since a frame needs a pixel.

    left and top are multiples of `grid`.
    """
    if previous is None:
        return (0, 0, *picture.size)
    left, top, right, bottom = ImageChops.difference(picture, previous).getbbox() or (0, 0, 1, 1)
    return left - left % grid, top - top % grid, right, bottom
