"""Where each place of a frame is found in two others, by what the features there are like."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .constants import Constants, product

SIDE = 16
"""At most so many places lie along the longer side of a frame: what they cost grows with the fourth power."""
TEMPERATURE = 0.1
"""Of the softmax over the cosines of features."""
ALIKE = 0.05
"""How far from each other (half the squared distance of unit vectors) features may be and still be of one thing."""


class Grid(NamedTuple):
    """The places of tensors (…, height, width): squares of `side` × `side`, the last ones padded."""

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, x: torch.Tensor) -> Grid:
        height, width = x.shape[-2:]
        return cls(height, width, math.ceil(max(height, width) / SIDE))

    @property
    def places(self) -> tuple[int, int]:
        return math.ceil(self.height / self.side), math.ceil(self.width / self.side)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """A unit vector of each place (rows, places, channels) for `x` (rows, channels, height, width): what is there,
        less what the whole frame has.
        """
        mean = F.avg_pool2d(x, self.side, ceil_mode=True)  # of less than a whole square at the ends
        return F.normalize((mean - mean.mean((2, 3), keepdim=True)).flatten(2), dim=1, eps=1e-5).transpose(1, 2)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, channels, height, width) by place: (rows, places, channels · side²)."""
        down, right = (self.side * places - size for places, size in zip(self.places, (self.height, self.width)))
        padded = F.pad(x, (0, right, 0, down)) if down or right else x
        return F.pixel_unshuffle(padded, self.side).flatten(2).transpose(1, 2)

    def joined(self, x: torch.Tensor) -> torch.Tensor:
        """The reverse of `split`."""
        squares = x.transpose(1, 2).unflatten(2, self.places)
        return F.pixel_shuffle(squares, self.side)[..., : self.height, : self.width]


def spread(
    change: torch.Tensor, features: torch.Tensor, of_ends: torch.Tensor, weights: torch.Tensor, constants: Constants
) -> torch.Tensor:
    """What each place of some frames takes of the `change` of one or two others, their ends: (frames, places, values).

    change: (ends, places, values), by `Grid.split`; features: (frames, places, channels) of the frames and `of_ends`
        (ends, places, channels), by `Grid.features`.
    weights: (frames, ends), in main memory: how much each end is to have; a frame's sum to 1.

    Where a frame has the features that lie on the line between the ends, it takes of the same place of the ends by
    their weights; where it has others, of those places of the ends whose features are like its own.
    """
    frames, ends = weights.shape
    places = features.shape[1]
    share = constants.on(weights.to(features.dtype), features.device)
    prior = constants.on(weights.log().to(features.dtype).repeat_interleave(places, 1)[:, None], features.device)
    like = torch.baddbmm(
        prior, features, of_ends.flatten(0, 1).T.expand(frames, -1, -1), alpha=1 / TEMPERATURE
    )  # (frames, places, ends · places)
    off = (features - product(share, of_ends)).square().sum(2, keepdim=True) / (2 * ALIKE)
    moved = 1 - torch.exp(-off)
    taken = like.softmax(2) * moved
    same = taken.unflatten(2, (ends, places)).diagonal(dim1=1, dim2=3)  # (frames, ends, places)
    same.add_(share[:, :, None] * (1 - moved).transpose(1, 2))
    return taken @ change.flatten(0, 1)
