"""Which frame, and which guidance group, each row of a UNet call belongs to; and everything that is cut along rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """The rows of one UNet call.

    A call's batch is not "the frames": under classifier-free guidance every frame comes once per
    guidance group (each prompt joined by AND, the image condition of Instruct-Pix2Pix, the negative
    prompt), in an order that differs by host, sampler and settings. Row r shows frame `frames[r]`
    (counted from 0) under guidance group `groups[r]` (any label; equal labels belong together).
    Frames rise within a group. `previous[r]` is the frame that came before it in its group, in this call or the one
    before: the frame before, if every frame is there.
    """

    frames: tuple[int, ...]
    groups: tuple[int, ...]
    previous: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.previous:
            object.__setattr__(self, "previous", tuple(frame - 1 for frame in self.frames))
        if len(self.frames) != len(self.groups):
            raise ValueError(f"{len(self.frames)} frames for {len(self.groups)} groups: each row needs one of both")

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def blocks(cls, frames: int, groups: int) -> Rows:
        """Whole blocks of `frames` rows, one block per guidance group."""
        return cls(tuple(range(frames)) * groups, tuple(group for group in range(groups) for _ in range(frames)))

    def take(self, index: Iterable[int]) -> Rows:
        """The rows at the positions `index`."""
        index = list(index)
        return Rows(*(tuple(column[i] for i in index) for column in (self.frames, self.groups, self.previous)))

    def shifted(self, first: int) -> Rows:
        """The same rows with their frames counted from `first`."""
        if not first:
            return self
        frames, previous = (tuple(frame + first for frame in column) for column in (self.frames, self.previous))
        return Rows(frames, self.groups, previous)

    def apart(self, step: int) -> Rows:
        """The same rows where the frame before a row's in its group is the one `step` before."""
        if step == 1:
            return self
        return Rows(self.frames, self.groups, tuple(frame - step for frame in self.frames))

    def thinned(self, index: Iterable[int]) -> Rows:
        """The rows at the positions `index` as sequences of their own: a frame follows on the last that was taken of
        its group.

        The first of a group follows on the group's last frame before this call, which must have been taken.
        """
        part, last, previous = self.take(index), {}, []
        for group, before in zip(self.groups, self.previous):
            last.setdefault(group, before)
        for frame, group in zip(part.frames, part.groups):
            previous.append(last[group])
            last[group] = frame
        return Rows(part.frames, part.groups, tuple(previous))

    def of_first_frames(self, count: int) -> list[int]:
        """The row numbers of the first `count` frames of the call, in the order the call has them.

        All guidance groups of those frames: to the UNet they look like the call of a smaller batch.
        """
        return self.of_frames(sorted(set(self.frames))[:count])

    def of_frames(self, frames: Iterable[int]) -> list[int]:
        """The row numbers of these frames, in the order the call has them."""
        wanted = set(frames)
        return [row for row, frame in enumerate(self.frames) if frame in wanted]


def cut(value, rows: int, select: Callable[[torch.Tensor], torch.Tensor]):
    """`value` with `select(tensor)` for every tensor that has a row per row of a call of `rows` rows; in lists, tuples
    and dicts as well.
    """
    if isinstance(value, torch.Tensor):
        return select(value) if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {key: cut(item, rows, select) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cut(item, rows, select) for item in value)
    return value
