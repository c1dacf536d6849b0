"""A clip at a glance: a filmstrip of its frames, how much changes from one to the next, how far they are from the
first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .pictures import contact_sheet
from .source import EVERYTHING, Source

MOST_MEASURED = 2000
"""Frames; of a longer clip every n-th is looked at."""
_SIDE = 256  # of a frame when it is measured, at most


@dataclass(frozen=True)
class Overview:
    """every: how far the frames lie apart that were measured, 1 for all of them.
    change: mean |difference| of each to the next, of 255.
    drift: mean |difference| of each to the first, of 255.
    frames: which frame each column of `strip` shows, counted from 0.
    """

    every: int
    change: list[float]
    drift: list[float]
    frames: list[int]
    strip: Image.Image


def overview(source: Source, columns: int = 24, height: int = 72) -> Overview:
    """The overview of all frames of `source`, with a strip of up to `columns` of them, `height` pixels high.

    Frames are read one by one, and measured at 256 pixels at most. Raises what `Source.frames` does.
    """
    count = source.count()
    every = -(-count // MOST_MEASURED)
    picks = np.arange(0, count, every)
    shown = set(picks[np.linspace(0, len(picks) - 1, min(columns, len(picks))).round().astype(int)].tolist())
    width, full = source.info.size
    small = max(1, round(width * height / full)), height
    change, drift, strip, first, last = [], [], [], None, None
    for number, (_, picture) in zip(picks.tolist(), source.read(source.picks(EVERYTHING)[picks])):
        if number in shown:
            strip.append(picture.resize(small, Image.Resampling.LANCZOS))
        values = _measured(picture)
        first = values if first is None else first
        drift.append(_difference(values, first))
        if last is not None:
            change.append(_difference(values, last))
        last = values
    return Overview(every, change, drift, sorted(shown), contact_sheet(strip, len(strip)))


def _measured(picture: Image.Image) -> np.ndarray:
    scale = min(1, _SIDE / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture if scale == 1 else picture.resize(size, Image.Resampling.BOX)
    return np.asarray(picture.convert("RGB")).astype(np.int16)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(np.abs(one - other).mean()), 2)
