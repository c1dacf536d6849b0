"""What is measured of a clip's frames, (frames, height, width, 3) in 0..255, and how means of clips are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95


def change(frames: np.ndarray) -> list[float]:
    """The mean absolute difference of each frame from the one before, of 255."""
    return _mean_over_frames(np.diff(frames.astype(np.float32), axis=0))


def drift(frames: np.ndarray) -> list[float]:
    """The mean absolute difference of each frame, from the second on, from the first, of 255."""
    x = frames.astype(np.float32)
    return _mean_over_frames(x[1:] - x[0])


def jerk(frames: np.ndarray) -> float | None:
    """The mean second difference over the mean first difference: how much a movement turns at each frame.

    0 is a steady change, 2 a picture that jumps to and fro; independent pictures have about √3. None for a still clip.
    """
    x = frames.astype(np.float32)
    first, second = np.abs(np.diff(x, axis=0)).mean(), np.abs(np.diff(x, n=2, axis=0)).mean()
    return float(second / first) if first else None


def turn(frames: np.ndarray) -> list[float]:
    """The mean absolute second difference at each frame but the first and the last, of 255."""
    return _mean_over_frames(np.diff(frames.astype(np.float32), n=2, axis=0))


def sharpness(frames: np.ndarray) -> list[float]:
    """The variance of the Laplacian of each frame's brightness."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return [float(cv2.Laplacian(frame, cv2.CV_64F).var()) for frame in grey]


def flicker(frames: np.ndarray) -> list[float]:
    """What of each change movement does not explain, of 255.

    Each frame is carried back onto the one before along their optical flow (DIS) and compared with it.
    """
    import cv2

    flow_of = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = frames.shape[1:3]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    rest = []
    for i in range(len(frames) - 1):
        flow = flow_of.calc(grey[i], grey[i + 1], None)
        carried = cv2.remap(
            frames[i + 1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        rest.append(float(np.abs(carried.astype(np.float32) - frames[i].astype(np.float32)).mean()))
    return rest


def right(attributes: np.ndarray, asked: Sequence[int]) -> np.ndarray:
    """Whether shape, colour and background of each frame, (frames, 3), are all as asked: (frames,)."""
    return (np.asarray(attributes) == np.asarray(asked)).all(axis=1)


def kept(attributes: np.ndarray) -> float:
    """The part of the frames after the first that have all attributes of the first."""
    return float(right(attributes[1:], attributes[0]).mean())


def _mean_over_frames(differences: np.ndarray) -> list[float]:
    return [float(value) for value in np.abs(differences).mean(axis=(1, 2, 3))]


# --- means and ratios ------------------------------------------------------------------------------------


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean of one value per clip, and the ends of its 95 % bootstrap interval."""
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("an interval needs at least 1 value, got 0")
    draws = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.quantile(x[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(x.mean()), float(low), float(high)


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over pairs of above / below."""
    return median([a / b for a, b in zip(above, below, strict=True)])


def ratio_quartiles(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third quartile over pairs of above / below."""
    return tuple(float(x) for x in np.quantile(np.divide(above, below), [0.25, 0.5, 0.75]))


def rises(values: Sequence[float]) -> bool:
    """Whether each value is greater than the one before."""
    return all(a < b for a, b in zip(values, values[1:]))


def falls(values: Sequence[float]) -> bool:
    return rises([-value for value in values])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line through the points, by least squares."""
    return float(np.polyfit(x, y, 1)[0])


def rounded(value, digits: int = 4):
    """`value`, or all numbers in a list or dict, with so many significant digits: raw data that stay readable."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
