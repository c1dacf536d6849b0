"""The frames of a clip: those that are kept, and in-betweens; where it ended before it was extended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """A clip of `kept_frames`, with `in_betweens` n of n - 1 frames between two of them, and, if it is `closed` (a
    loop), as many after the last. `extended` says how many kept frames it had before each time that it was extended.

    A kept frame is the same without in-betweens: it never sees them; and what was a clip's end stays one for what is
    computed at once. Frames are counted from 0, in-betweens among them; kept frames are each n-th.
    """

    kept_frames: int
    in_betweens: int = 1
    closed: bool = False
    extended: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        """How many there are in all."""
        return self.kept_frames * self.in_betweens - (0 if self.closed else self.in_betweens - 1)

    @property
    def ends(self) -> tuple[int, ...]:
        """The last kept frames of the clip, and of what it was before it was extended, rising."""
        counts = [count for count in self.extended if count < self.kept_frames]
        return tuple((count - 1) * self.in_betweens for count in (*counts, self.kept_frames))

    def is_kept(self, frame: int) -> bool:
        return frame % self.in_betweens == 0

    def kept_before(self, frame: int) -> int:
        """The last kept frame up to `frame`."""
        return frame - frame % self.in_betweens

    def kept_number(self, frame: int) -> int:
        """How many kept frames there are before `frame`."""
        return -(-frame // self.in_betweens)

    def in_between_number(self, frame: int) -> int:
        """How many in-betweens there are before `frame`."""
        return frame - self.kept_number(frame)

    def together(self, frames: Iterable[int]) -> list[int]:
        """Those of `frames`, rising, that can be computed at once, without those that other frames wait for: kept
        frames up to an end, or the in-betweens before the next of them.
        """
        rising = sorted(set(frames))
        kept = [frame for frame in rising if self.is_kept(frame)]
        if not self.is_kept(rising[0]):
            return [frame for frame in rising if not kept or frame < kept[0]]
        end = next(end for end in self.ends if end >= kept[0])
        return [frame for frame in kept if frame <= end]

    def steps(self, of_kept: Sequence[float]) -> tuple[float, ...]:
        """`of_kept` (kept frames,) for all frames, such that its product from frame to frame is that of kept frames."""
        return tuple(of_kept[frame // self.in_betweens] if self.is_kept(frame) else 1.0 for frame in range(self.frames))

    def distances(self, of_kept: Sequence[float]) -> tuple[float, ...]:
        """For each frame what there would be of one of these steps, `of_kept` (kept frames,), as far as it is from the
        kept frame before: the next one's to the power of the distance.
        """
        steps = (divmod(frame, self.in_betweens) for frame in range(self.frames))
        last = self.kept_frames - 1
        return tuple(of_kept[min(kept + 1, last)] ** (part / self.in_betweens) for kept, part in steps)

    def sources(self, first: int, frames: int) -> list[int]:
        """For each of `frames` frames from `first` on the number of a kept frame: its own, and that of the kept one
        before for an in-between; but where the last ones are in-betweens, the first of them has that of the kept
        frame behind them, unless that is the first of a loop.
        """
        numbers = [frame // self.in_betweens for frame in range(first, first + frames)]
        last = numbers.index(numbers[-1])
        if last + 1 < frames and numbers[-1] + 1 < self.kept_frames:
            numbers[last + 1] += 1
        return numbers

    @staticmethod
    def kept(sources: Sequence[int]) -> range:
        """The numbers of the kept frames that `sources` has."""
        return range(sources[0], max(sources) + 1)
