"""Temporal momentum attention (paper, section 4.1, equation 2).

In every self-attention layer the keys and values of frame i become running averages over frames,

    K̈¹ = K¹,    K̈ⁱ = μᵢ K̈ⁱ⁻¹ + (1 - μᵢ) Kⁱ        (V likewise, Q stays).

The projections `attn1.to_k` and `attn1.to_v` are affine and the weights of the average sum to 1, so what they return
for the average of their input is the average of K and of V: one average serves both where both have the same input, and
each has its own behind a hypernetwork. LoRA and attention kernels are left to the host. A projection that may not be
affine has its output averaged. The average is causal: carrying that of the last frame from one UNet call to the next
makes it stream, so a clip of any length runs in passes of a few frames with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch.utils.hooks import RemovableHandle

from .carried import Last, places_with, together
from .constants import Constants, product
from .hooks import Hooks, Pass, another_extension
from .rows import Rows
from .timeline import Timeline

PROJECTIONS = ("attn1.to_k", "attn1.to_v")
"""Self-attention's key and value projections, as `ldm`, `sgm` and `diffusers` name them."""


# --- the average, in two forms ---------------------------------------------------------------------------------------


def momentum_scan(x: torch.Tensor, rows: Rows, momentum: Sequence[float], carried: dict) -> tuple[torch.Tensor, dict]:
    """Each row of `x` as its running average over frames (paper, equation 2), one after the other.

    `x` has the shape (rows, …); `momentum[i]` is μ of frame i (that of frame 0 is not used); `carried` maps a guidance
    group to its `Last` before this call. Returns the averages, shaped like `x`, and the same map after this call's last
    frames; `carried` itself is left as it was. Where `rows` leave frames out, a frame that comes g frames after the one
    before keeps the product of the g momenta of it. The sum is kept in float32 whatever the precision of `x`. Gives the
    same bits however a clip is cut into calls.

    Raises RuntimeError if a group's frames do not follow on each other.
    """
    result, averages = torch.empty_like(x), {}
    for row, out, frame, group, kept in zip(x, result, rows.frames, rows.groups, _kept(rows, momentum, carried)):
        average = row.float()  # (…), in float32 the row itself
        if frame:
            before = averages[group] if group in averages else carried[group].value.float()
            average = torch.lerp(average, before, kept, out=out if out.dtype == average.dtype else None)
        if average is not out:
            out.copy_(average)
        averages[group] = average
    frames = dict(zip(rows.groups, rows.frames))
    return result, carried | {group: Last(frames[group], each[None].clone(), 0) for group, each in averages.items()}


class Weights(NamedTuple):
    """The weights of equation 2 for the rows of a call: `own` (rows, rows) says what each row takes of each row, and
    `before` (rows, groups) what it takes of the averages before the call of the groups `known`; None where no row takes
    anything. `ends` (groups,) are the rows of the last frames of the groups, which `last` has; None at the clip's end,
    where nothing is carried.
    """

    own: torch.Tensor
    before: torch.Tensor | None
    known: tuple
    ends: torch.Tensor | None
    last: dict

    @classmethod
    def of(
        cls, rows: Rows, momentum: Sequence[float], carried: dict, like: torch.Tensor, constants: Constants
    ) -> Weights:
        """Those for a tensor `like`, in its precision: what a row takes of others is rounded first, and it takes the
        rest to 1 of itself, so that frames that are alike stay so.

        Raises RuntimeError if a group's frames do not follow on each other.
        """
        known = tuple(dict.fromkeys(group for group in rows.groups if group in carried))
        weights = torch.zeros(len(rows), len(known) + len(rows), dtype=torch.float64)
        ends: dict = {}
        for row, (frame, group, kept) in enumerate(zip(rows.frames, rows.groups, _kept(rows, momentum, carried))):
            if group in ends:
                weights[row] = kept * weights[ends[group]]
            elif frame:
                weights[row, known.index(group)] = kept
            weights[row, len(known) + row] = 1 - kept
            ends[group] = row
        weights = weights.to(like.dtype).double()
        own, before = weights[:, len(known) :], weights[:, : len(known)]
        own.diagonal().add_(1 - weights.sum(dim=1))
        last = {group: rows.frames[row] for group, row in ends.items()}
        at_end = all(frame == len(momentum) - 1 for frame in last.values())
        return cls(
            constants.on(own.to(like.dtype), like.device),
            constants.on(before.to(like.dtype), like.device) if before.any() else None,
            known,
            None if at_end else constants.index(tuple(ends.values()), like.device),
            last,
        )


def momentum_product(x: torch.Tensor, weights: Weights, carried: dict) -> tuple[torch.Tensor, dict]:
    """The same as `momentum_scan` in two or three operations, whatever the number of rows: on a GPU each costs its
    launch. The averages that are carried have the precision of `x`; after the clip's last frame none are.
    """
    result = product(weights.own, x)
    if weights.before is not None:
        result.flatten(1).addmm_(weights.before, together([carried[group] for group in weights.known]).flatten(1))
    if weights.ends is None:
        return result, carried
    block = result.index_select(0, weights.ends)  # (groups, …)
    return result, carried | {
        group: Last(frame, block, place) for place, (group, frame) in enumerate(weights.last.items())
    }


def _kept(rows: Rows, momentum: Sequence[float], carried: dict) -> Iterator[float]:
    """How much each row keeps of the row before it in its group: the product of the momenta between the two.

    Raises RuntimeError if a group's frames do not follow on each other.
    """
    last = {group: before.frame for group, before in carried.items()}
    for frame, group, previous in zip(rows.frames, rows.groups, rows.previous):
        if frame and last.get(group) != previous:
            raise RuntimeError(
                f"temporal momentum attention: frame {frame} of guidance group {group} did not come right after "
                f"frame {previous}; " + another_extension("reorders the UNet's batch")
            )
        last[group] = frame
        yield math.prod(momentum[previous + 1 : frame + 1]) if frame else 0.0


# --- the hooks -------------------------------------------------------------------------------------------------------


class TemporalMomentum(Hooks):
    """Temporal momentum attention over one clip: the hooks on a UNet's self-attention and the averages they carry.

    `momentum` has μ of every kept frame. Beyond the paper, an in-between so far behind a kept frame sees that frame's
    average to the part μ to the power of its distance, and itself; no other frame sees it.
    """

    NAME = "temporal momentum attention"
    CARRIED = ("carried",)

    def __init__(self, momentum: Sequence[float], timeline: Timeline | None = None):
        super().__init__()
        self._timeline = timeline = timeline or Timeline(len(momentum))
        self.momentum = timeline.steps(momentum)
        self._between = timeline.distances(momentum)
        self.carried: dict[tuple[str, int], dict] = {}
        """For each projection, and each time that a pass uses it, the `Last` of each guidance group."""
        self._averages: dict[tuple[str, int], tuple[torch.Tensor, dict]] = {}
        """Where there are in-betweens: for each of these the averages (rows, …) of the kept frames before them, and for
        each group the row of each frame.
        """
        self._names: dict[torch.nn.Module, str] = {}
        self._constants = Constants()
        self._weights: dict = {}
        self._shared: tuple = (None, None)
        """The input of the last projection, and its average: the other projection of the layer has the same."""

    @property
    def is_identity(self) -> bool:
        """Whether the averages change nothing: one frame, or μ = 0 throughout. No hook is needed then."""
        return not any(self.momentum[1:])

    def hook(self, unet: torch.nn.Module, *controls: torch.nn.Module) -> Iterator[RemovableHandle]:
        """Hooks every self-attention layer of `unet` and of `controls`.

        Raises ValueError if `unet` has no such layer (Flux, SD3 and other transformers).
        """
        projections = [_projections(model) for model in (unet, *controls)]
        if not projections[0]:
            raise ValueError(
                f"{type(unet).__name__} has no self-attention layers named attn1: temporal momentum attention works "
                "with the UNets of SD 1.x, SD 2.x and SDXL; choose such a checkpoint"
            )
        self._names = {
            module: f"{number} {name}" for number, each in enumerate(projections) for name, module in each.items()
        }
        if not self.is_identity:
            for module in self._names:
                if _is_affine(module):
                    yield module.register_forward_pre_hook(self._average_input)
                else:
                    yield module.register_forward_hook(self._average_output)

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """Forgets what was carried: the next call begins with frame 0."""
        self.carried, self._averages = {}, {}

    def begin(self, now: Pass | None) -> None:
        super().begin(now)
        self._weights, self._shared = {}, (None, None)

    def saw(self, now: Pass) -> bool:
        return bool(now.uses)

    def _average_input(self, projection: torch.nn.Module, inputs: tuple) -> tuple | None:
        if not self.act:
            return None
        x, *others = inputs
        shared, average = self._shared
        if x is shared:
            self._shared = None, None
        else:
            average = self._average(projection, x)
            self._shared = x, average
        return average, *others

    def _average_output(self, projection: torch.nn.Module, inputs, output: torch.Tensor) -> torch.Tensor | None:
        return self._average(projection, output) if self.act else None

    def _average(self, projection: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The averages of what a projection is given, or returns, (row·tile, token, channel)."""
        rows = self.now.seen
        if self.now.repeated and x.shape[0] < len(rows):
            rows = self.now.repeated()
        if x.shape[0] % len(rows) or not len(x):
            raise RuntimeError(
                f"temporal momentum attention: a projection saw {x.shape[0]} rows in a UNet call of {len(rows)}; "
                + another_extension("changes the batch inside attention")
            )
        use = self._names[projection], self.now.uses[projection]
        self.now.uses[projection] += 1
        # HyperTile splits each row into tiles: the average runs per tile
        by_row = rearrange(x, "(row tile) ... -> row tile ...", row=len(rows))
        if self._timeline.in_betweens == 1:
            return self._average_of_kept(use, by_row, rows).view_as(x)
        kept = [row for row, frame in enumerate(rows.frames) if self._timeline.is_kept(frame)]
        others = [row for row, frame in enumerate(rows.frames) if not self._timeline.is_kept(frame)]
        constants, parts = self._constants, []
        if kept:
            of, carried = rows.take(kept), self.carried.get(use, {})
            average = self._average_of_kept(use, constants.take(by_row, kept), of)
            self._keep_for_in_betweens(use, of, average, carried)
            parts.append((kept, average))
        if others:
            parts.append((others, self._average_between(use, constants.take(by_row, others), rows.take(others))))
        if len(parts) == 1:
            return parts[0][1].view_as(x)
        result = torch.empty_like(by_row)
        for index, average in parts:
            constants.put(result, index, average)
        return result.view_as(x)

    def _average_of_kept(self, use: tuple[str, int], x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The averages of `x` (rows, tile, token, channel)."""
        carried = self.carried.get(use, {})
        if _scans_on(x.device):
            average, self.carried[use] = momentum_scan(x, rows, self.momentum, carried)
        else:
            weights = self._weights_for(rows, carried, x)
            average, self.carried[use] = momentum_product(x, weights, carried)
        return average

    def _average_between(self, use: tuple[str, int], x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The same of in-betweens: each has the average of the last frame before that has one here, as a rule the kept
        frame before, and itself.
        """
        averages, places = self._averages.get(use, (x, {}))
        index, kept = [], []
        for frame, group in zip(rows.frames, rows.groups):
            before = max((of for of in places.get(group, ()) if of < frame), default=None)
            if before is None:
                raise RuntimeError(
                    f"temporal momentum attention: frame {frame} of guidance group {group} is an in-between, and no "
                    "frame came before it; " + another_extension("reorders the UNet's batch")
                )
            index.append(places[group][before])
            steps = self.momentum[before + 1 : self._timeline.kept_before(frame) + 1]
            kept.append(math.prod(steps) * self._between[frame])
        of_frames = torch.tensor(kept).to(x.dtype)
        of_frames = self._constants.on(of_frames, x.device).view(-1, *[1] * (x.ndim - 1))
        return torch.lerp(x, self._constants.take(averages, index), of_frames)

    def _keep_for_in_betweens(self, use: tuple[str, int], rows: Rows, averages: torch.Tensor, carried: dict) -> None:
        """`averages` (rows, …) of kept frames, and those `carried` to them where they begin after the pass does (inside
        the deep blocks are anchors alone) or belong to another call, whose last in-betweens may be yet to come.
        """
        places, before = places_with(rows, carried, min(self.now.rows.frames))
        if before:
            averages = torch.cat((averages, together(before).to(averages.dtype)))
        self._averages[use] = averages, places

    def _weights_for(self, rows: Rows, carried: dict, like: torch.Tensor) -> Weights:
        """Made once for the layers of a pass."""
        before = tuple((group, last.frame) for group, last in carried.items())
        key = rows, before, like.dtype, like.device
        if key not in self._weights:
            self._weights[key] = Weights.of(rows, self.momentum, carried, like, self._constants)
        return self._weights[key]


def _scans_on(device: torch.device) -> bool:
    """Whether the scan is the cheaper form: a CPU takes twice as long for the product."""
    return device.type == "cpu"


def _is_affine(projection: torch.nn.Module) -> bool:
    """Whether what a projection returns for an average is the average of what it returns: it is a matrix, perhaps one
    that is kept in fewer bits or has LoRA added, and nobody has put something over it.
    """
    replaced = "forward" in vars(projection) or projection._forward_hooks or projection._forward_pre_hooks
    return isinstance(projection, torch.nn.Linear) and not replaced


def _projections(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The key and value projections of a model's self-attention layers, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith(PROJECTIONS) and _is_self_attention(model, name)
    }


def _is_self_attention(unet: torch.nn.Module, projection: str) -> bool:
    """Some checkpoints make `attn1` of a block a cross-attention to the text; its keys are no frame's."""
    block = unet.get_submodule(projection.rpartition("attn1.")[0].rstrip("."))
    return not (getattr(block, "disable_self_attn", False) or getattr(block, "only_cross_attention", False))
