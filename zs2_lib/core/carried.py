"""What hooks carry of a guidance group's last frame from one UNet call to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


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
