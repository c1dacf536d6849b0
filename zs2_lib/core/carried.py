"""What hooks carry of a guidance group's last frame from one UNet call to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .rows import Rows


class Last(NamedTuple):
    """A guidance group's last `frame` so far, counted from 0, and what is carried of it: `block[place]`, of shape (…).

    The groups of a call share a block.
    """

    frame: int
    block: torch.Tensor
    place: int

    @property
    def value(self) -> torch.Tensor:
        return self.block[self.place]


def together(lasts: Sequence[Last]) -> torch.Tensor:
    """What is carried of some groups as one tensor (groups, …): as a rule the block that a call left, as it is."""
    block = lasts[0].block
    whole = len(block) == len(lasts) and all(
        last.block is block and last.place == place for place, last in enumerate(lasts)
    )
    return block if whole else torch.stack([last.value for last in lasts])


def places_with(rows: Rows, carried: dict, first: int) -> tuple[dict, list[Last]]:
    """For each guidance group the row of each of its frames in a call of `rows`, whose first frame is `first`; and what
    is `carried` of the groups that begin later there, or are of another call, whose frames have the rows behind.
    """
    places: dict = {}
    for place, (frame, group) in enumerate(zip(rows.frames, rows.groups)):
        places.setdefault(group, {})[frame] = place
    before = [group for group in carried if group not in places or min(places[group]) > first]
    for place, group in enumerate(before, len(rows)):
        places.setdefault(group, {})[carried[group].frame] = place
    return places, [carried[group] for group in before]


def moved(state, device: torch.device | str):
    """`state`, which holds `Last`s in dicts and tuples, with their blocks on another device; they share them as before.

    To main memory the blocks are copied without anyone waiting, where it can be: they are not to be looked at, but only
    to be brought back.
    """
    blocks: dict[int, torch.Tensor] = {}

    def block_on_device(block: torch.Tensor) -> torch.Tensor:
        if id(block) not in blocks:
            blocks[id(block)] = _copied(block, torch.device(device))
        return blocks[id(block)]

    def move(value):
        if isinstance(value, Last):
            return value._replace(block=block_on_device(value.block))
        if isinstance(value, dict):
            return {key: move(each) for key, each in value.items()}
        return tuple(move(each) for each in value)

    return move(state)


def _copied(block: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cpu" and block.device.type == "cuda":
        try:
            return torch.empty_like(block, device=device, pin_memory=True).copy_(block, non_blocking=True)
        except RuntimeError:  # there is less of such memory than of other
            pass
    return block.to(device, non_blocking=block.is_pinned() if device.type == "cuda" else False)
