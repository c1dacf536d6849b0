"""What is kept of every frame of a clip from one step to the next: on the device while it is small, else beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .constants import Constants
from .rows import Rows

SHARE = 1 / 4
"""Of what is free on a GPU, the most that is kept there."""


class Kept:
    """A tensor (…) for each guidance group and frame of a range, of those that `number` counts: it says how many of
    them come before a frame.

    In main memory it is pinned, so that a GPU copies without anyone waiting; where it cannot be, it is not.
    """

    def __init__(self, number: Callable[[int], int], constants: Constants):
        self._number = number
        self._first, self.frames = 0, 0
        self._constants = constants
        self._groups: dict = {}
        """Of each group the tensors of all frames (frames, …)."""
        self.known: dict = {}
        """Of each group, how many frames from the first on have been put."""

    def __bool__(self) -> bool:
        return bool(self.known)

    def clear(self) -> None:
        self._groups, self.known = {}, {}

    def begin(self, frames: range) -> None:
        """Forgets all, and is for these frames from here on."""
        self._first = self._number(frames.start)
        self.frames = self._number(frames.stop) - self._first
        self.clear()

    def put(self, rows: Rows, values: torch.Tensor) -> None:
        """Keeps `values` (rows, …). A group's frames are put in their order."""
        places = self._places(rows)
        for group, (index, frames) in places.items():
            if not self._fits(group, values):
                self._groups[group] = self._room(values, len(places))
                self.known.pop(group, None)
            self._constants.put(self._groups[group], frames, self._constants.take(values, index))
            self.known[group] = max(self.known.get(group, 0), frames[-1] + 1)

    def get(self, rows: Rows, like: torch.Tensor) -> torch.Tensor:
        """A copy of what is kept of each row, as a tensor (rows, …) where `like` is, which is shaped so; zeros where
        nothing is, or of another shape or precision.
        """
        places = self._places(rows)
        parts: list[torch.Tensor] = []
        for group, (index, frames) in places.items():
            if frames[-1] < self.known.get(group, 0) and self._fits(group, like):
                part = self._constants.take(self._groups[group], frames).to(like.device, non_blocking=True)
            else:
                part = like.new_zeros((len(index), *like.shape[1:]))
            parts.append(part)
        order = [row for index, _ in places.values() for row in index]
        return self._constants.take(torch.cat(parts), sorted(range(len(order)), key=order.__getitem__))

    def restore(self, rows: Rows, values: torch.Tensor, known: dict) -> None:
        """Puts `values` (rows, …) back, what `get` gave of `rows` when so much was `known`."""
        here = [row for row, group in enumerate(rows.groups) if group in known]
        if here:
            self.put(rows.take(here), values[here])
        self._groups = {group: kept for group, kept in self._groups.items() if group in known}
        self.known = known

    def _fits(self, group, like: torch.Tensor) -> bool:
        """Whether there is room for a group's tensors, shaped as `like` (rows, …) has them."""
        kept = self._groups.get(group)
        return kept is not None and kept.shape[1:] == like.shape[1:] and kept.dtype == like.dtype

    def _room(self, like: torch.Tensor, groups: int) -> torch.Tensor:
        """Room for a group of `groups`, tensors as `like` (rows, …) has."""
        shape, device = (self.frames, *like.shape[1:]), like.device
        if device.type in ("cpu", "meta"):
            return like.new_empty(shape)
        if device.type == "cuda":
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + cached
            if groups * self.frames * like[0].nbytes <= SHARE * free:
                return like.new_empty(shape)
            try:
                return torch.empty(shape, dtype=like.dtype, pin_memory=True)
            except RuntimeError:  # there is less of this memory than of the other
                pass
        return torch.empty(shape, dtype=like.dtype)

    def _places(self, rows: Rows) -> dict:
        """For each guidance group its row numbers and their frames, counted from the first that is kept."""
        places: dict = {}
        for row, (frame, group) in enumerate(zip(rows.frames, rows.groups)):
            index, frames = places.setdefault(group, ([], []))
            index.append(row)
            frames.append(self._number(frame) - self._first)
        return places
