"""Prompts that change over the frames of a clip: keyframes of text, blended between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class Blend(NamedTuple):
    """What one frame shows: the prompt `before`, changed by `weight` (0 <= weight < 1) towards the prompt `after`."""

    before: str
    after: str
    weight: float


@dataclass(frozen=True)
class PromptKeyframes:
    """A prompt for every frame of a clip.

    `keyframes` are (frame, prompt) pairs in rising order of frame; frames count from 0. Between two keyframes the
    one changes into the other linearly, before the first and after the last it is held.
    """

    keyframes: tuple[tuple[int, str], ...]

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
        keyframes: dict[int, str] = {}
        for line in filter(None, map(str.strip, value.splitlines())):
            match = re.fullmatch(r"([0-9]{1,9})\s*:\s*(.*)", line)
            if not match:
                raise ValueError(
                    f"cannot read the line {line!r}: it needs a frame and a colon first, such as '0: a red circle'"
                )
            frame = int(match[1])
            if frame in keyframes:
                raise ValueError(f"frame {frame} has two prompts; give each frame once")
            keyframes[frame] = match[2]
        if not keyframes:
            raise ValueError("no prompt given; write lines such as '0: a red circle'")
        return cls(tuple(sorted(keyframes.items())))

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts of the keyframes, each once."""
        return tuple(dict.fromkeys(text for _, text in self.keyframes))

    def frame_of(self, text: str) -> int:
        """The first frame whose prompt is `text`, one of `texts`."""
        return next(frame for frame, prompt in self.keyframes if prompt == text)

    def at(self, frame: int) -> Blend:
        """What `frame` (counted from 0) shows; at a keyframe, and where one is held, `after` is `before` and the weight 0."""
        before = [key for key in self.keyframes if key[0] <= frame] or [self.keyframes[0]]
        after = [key for key in self.keyframes if key[0] > frame]
        start, text = before[-1]
        if not after or start >= frame:
            return Blend(text, text, 0.0)
        end, next_text = after[0]
        return Blend(text, next_text, (frame - start) / (end - start))

    def beyond(self, frames: int) -> list[int]:
        """The keyframes that a clip of `frames` frames does not reach."""
        return [frame for frame, _ in self.keyframes if frame >= frames]

    def __str__(self) -> str:
        return "\n".join(f"{frame}: {text}".rstrip() for frame, text in self.keyframes)


def join(common: str, text: str) -> str:
    """The whole prompt of a keyframe: what all of them have in `common`, then the keyframe's own `text`."""
    return ", ".join(filter(None, (common.strip().removesuffix(",").rstrip(), text.strip())))
