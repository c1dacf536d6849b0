"""What changes over the frames of a clip: values and prompts, given at keyframes and for the frames between them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")
Keyframes = tuple[tuple[int, Value], ...]
"""(frame, value) pairs in rising order of frame; frames count from 0."""


@dataclass(frozen=True)
class Schedule:
    """A value for every frame of a clip: between two keyframes linear, before the first and after the last held."""

    keyframes: Keyframes[float]

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
        if not parts:
            raise ValueError("no value given; write a number, or keyframes such as '0:0.01, 8:0.05'")
        if len(parts) == 1 and ":" not in parts[0]:
            return cls(((0, _finite(parts[0])),))
        needed = "keyframes are 'frame:value' pairs such as '0:0.01, 8:0.05'"
        pairs = (_split(part, f"cannot read {part!r}: {needed}") for part in parts)
        return cls(_in_order(((frame, _finite(text)) for frame, text in pairs), "values"))

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
        (start, low), (end, high) = _around(self.keyframes, frame)
        return low if start == end else low + (high - low) * (frame - start) / (end - start)

    def values(self, frames: int) -> list[float]:
        """The values of frames 0 .. frames - 1."""
        return [self.at(frame) for frame in range(frames)]

    def __str__(self) -> str:
        if len(self.keyframes) == 1:
            return number_text(self.keyframes[0][1])
        return ", ".join(f"{frame}:{number_text(value)}" for frame, value in self.keyframes)


class Blend(NamedTuple):
    """What one frame shows: the prompt `before`, changed by `weight` (0 <= weight < 1) towards the prompt `after`."""

    before: str
    after: str
    weight: float


@dataclass(frozen=True)
class PromptKeyframes:
    """A prompt for every frame of a clip: between two keyframes the one changes into the other linearly, before the
    first and after the last it is held."""

    keyframes: Keyframes[str]

    @classmethod
    def parse(cls, value: PromptKeyframes | str) -> PromptKeyframes:
        """Reads lines "frame: prompt", such as "0: a red circle" and "12: a blue square".

        The lines may be in any order, empty ones are passed over, and a prompt may be empty. Raises ValueError that
        says what could not be read.
        """
        if isinstance(value, PromptKeyframes):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a text of lines such as '0: a red circle'")
        lines = list(filter(None, map(str.strip, value.splitlines())))
        if not lines:
            raise ValueError("no prompt given; write lines such as '0: a red circle'")
        needed = "it needs a frame and a colon first, such as '0: a red circle'"
        pairs = (_split(line, f"cannot read the line {line!r}: {needed}") for line in lines)
        return cls(_in_order(pairs, "prompts"))

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts of the keyframes, each once."""
        return tuple(dict.fromkeys(text for _, text in self.keyframes))

    def frame_of(self, text: str) -> int:
        """The first frame whose prompt is `text`, one of `texts`."""
        return next(frame for frame, prompt in self.keyframes if prompt == text)

    def at(self, frame: float) -> Blend:
        """What `frame` (counted from 0; a fraction lies between two) shows; at a keyframe, and where one is held,
        `before` alone, with weight 0.
        """
        (start, before), (end, after) = _around(self.keyframes, frame)
        if start in (frame, end):
            return Blend(before, before, 0.0)
        return Blend(before, after, (frame - start) / (end - start))

    def beyond(self, frames: int) -> list[int]:
        """The keyframes that a clip of `frames` frames does not reach."""
        return [frame for frame, _ in self.keyframes if frame >= frames]

    def __str__(self) -> str:
        return "\n".join(f"{frame}: {text}".rstrip() for frame, text in self.keyframes)


def join(common: str, text: str) -> str:
    """The whole prompt of a keyframe: what all of them have in `common`, then the keyframe's own `text`."""
    return ", ".join(filter(None, (common.strip().removesuffix(",").rstrip(), text.strip())))


def number_text(value: float) -> str:
    """The shortest text that reads back as `value`: "0.05", "8"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


# --- keyframes -----------------------------------------------------------------------------------------


def _split(text: str, problem: str) -> tuple[int, str]:
    """The frame of "frame: value" and the value's text. Raises ValueError with `problem` for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})\s*:\s*(.*)", text, re.DOTALL)
    if not match:
        raise ValueError(problem)
    return int(match[1]), match[2]


def _in_order(keyframes: Iterable[tuple[int, Value]], what: str) -> Keyframes[Value]:
    """The keyframes in rising order of frame. Raises ValueError where a frame has two; `what` says two of what."""
    by_frame: dict[int, Value] = {}
    for frame, value in keyframes:
        if frame in by_frame:
            raise ValueError(f"frame {frame} has two {what}; give each frame once")
        by_frame[frame] = value
    return tuple(sorted(by_frame.items()))


def _around(keyframes: Keyframes[Value], frame: float) -> Keyframes[Value]:
    """The last keyframe up to `frame` and the first after it; where there is but one of them, that one twice."""
    after = bisect_right(keyframes, frame, key=lambda keyframe: keyframe[0])
    return keyframes[max(after - 1, 0)], keyframes[min(after, len(keyframes) - 1)]


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
