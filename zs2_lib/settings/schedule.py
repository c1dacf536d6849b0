"""Settings that change over the frames of a clip: a number, or keyframes with linear steps between."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A value for every frame of a clip.

    `keyframes` are (frame, value) pairs in rising order of frame; frames count from 0. Between two
    keyframes the value is linear, before the first and after the last it is held.
    """

    keyframes: tuple[tuple[int, float], ...]

    @classmethod
    def parse(cls, value: Schedule | float | str) -> Schedule:
        """Reads a number (`0.05`, `"0.05"`) or keyframes (`"0:0.01, 8:0.05"`).

        Raises ValueError that says what could not be read.
        """
        if isinstance(value, Schedule):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"{value!r} is neither a number nor keyframes such as '0:0.01, 8:0.05'")
        if isinstance(value, (int, float)):
            return cls(((0, _finite(value)),))

        parts = [part.strip() for part in value.split(",") if part.strip()]
        if len(parts) == 1 and ":" not in parts[0]:
            return cls(((0, _finite(parts[0])),))

        keyframes: dict[int, float] = {}
        for part in parts:
            frame_text, colon, value_text = part.partition(":")
            if not colon or not frame_text.strip().isdecimal():
                raise ValueError(f"cannot read {part!r}: keyframes are 'frame:value' pairs such as '0:0.01, 8:0.05'")
            frame = int(frame_text)
            if frame in keyframes:
                raise ValueError(f"frame {frame} has two values; give each frame once")
            keyframes[frame] = _finite(value_text)
        if not keyframes:
            raise ValueError("no value given; write a number, or keyframes such as '0:0.01, 8:0.05'")
        return cls(tuple(sorted(keyframes.items())))

    @property
    def is_constant(self) -> bool:
        """Whether every frame has the same value."""
        return len({value for _, value in self.keyframes}) == 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of any frame."""
        values = [value for _, value in self.keyframes]
        return min(values), max(values)

    def at(self, frame: int) -> float:
        """The value of `frame` (counted from 0)."""
        before = [key for key in self.keyframes if key[0] <= frame]
        after = [key for key in self.keyframes if key[0] > frame]
        if not before:
            return after[0][1]
        if not after:
            return before[-1][1]
        (start, low), (end, high) = before[-1], after[0]
        return low + (high - low) * (frame - start) / (end - start)

    def values(self, frames: int) -> list[float]:
        """The values of frames 0 .. frames - 1."""
        return [self.at(frame) for frame in range(frames)]

    def __str__(self) -> str:
        if len(self.keyframes) == 1:
            return number_text(self.keyframes[0][1])
        return ", ".join(f"{frame}:{number_text(value)}" for frame, value in self.keyframes)


def number_text(value: float) -> str:
    """The shortest text that reads back as `value`: "0.05", "8"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _finite(value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
