"""Temporal momentum attention (paper, section 4.1, equation 2).

In every self-attention layer the keys and values of frame i become running averages over frames,

    K̈¹ = K¹,    K̈ⁱ = μᵢ K̈ⁱ⁻¹ + (1 - μᵢ) Kⁱ        (V likewise, Q stays).

K and V are affine in the layer's input and the weights of the average sum to 1, so averaging what the
projections `attn1.to_k` and `attn1.to_v` return is exact, whatever attention kernel, LoRA or
hypernetwork is at work. The average is causal: carrying K̈ and V̈ of the last frame from one UNet call to
the next makes it stream, so a clip of any length runs in passes of a few frames with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch.utils.hooks import RemovableHandle

from .hooks import Hooks, Pass, another_extension
from .rows import Rows

PROJECTIONS = ("attn1.to_k", "attn1.to_v")
"""Self-attention's key and value projections, as `ldm`, `sgm` and `diffusers` name them."""


def momentum_scan_(x: torch.Tensor, rows: Rows, momentum: Sequence[float], carried: dict) -> dict:
    """Replaces each row of `x` by its running average over frames, in place (paper, equation 2).

    `x` has the shape (rows, …); `momentum[i]` is μ of frame i (that of frame 0 is not used); `carried`
    maps a guidance group to its last frame before this call and the average after it, in float32. Returns
    the same after this call's last frames; `carried` itself is left as it was. Where `rows` leave frames out, a
    frame that comes g frames after the one before keeps the product of the g momenta of it. The sum is kept in
    float32 whatever the precision of `x`. One in-place pass over each row is the cheapest exact form
    (`python -m benchmarks --only attention` compares), and gives the same bits however a clip is cut into calls.

    Raises RuntimeError if a group's frames do not follow on each other.
    """
    state = dict(carried)  # group: (frame, average (…))
    for row, frame, group, previous in zip(x.unbind(), rows.frames, rows.groups, rows.previous):  # row: (…)
        average = row.float()  # (…), in float32 the row itself
        if frame:
            last, before = state.get(group, (None, None))
            if last != previous:
                raise RuntimeError(
                    f"temporal momentum attention: frame {frame} of guidance group {group} did not come right after "
                    f"frame {previous}; " + another_extension("reorders the UNet's batch")
                )
            average.lerp_(before, math.prod(momentum[previous + 1 : frame + 1]))
            if average is not row:
                row.copy_(average)
        state[group] = frame, average
    return {
        group: (frame, average.clone() if group in rows.groups else average)
        for group, (frame, average) in state.items()
    }


class TemporalMomentum(Hooks):
    """Temporal momentum attention over one clip: the hooks on a UNet's self-attention and the averages they carry.

    `momentum` has μ of every frame.
    """

    NAME = "temporal momentum attention"
    CARRIED = ("carried",)

    def __init__(self, momentum: Sequence[float]):
        super().__init__()
        self.momentum = tuple(momentum)
        self.carried: dict[tuple[torch.nn.Module, int], dict] = {}
        """For each projection, and each time that a pass uses it, the last frames' averages by guidance group."""

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
        if not self.is_identity:
            for module in dict.fromkeys(module for each in projections for module in each):
                yield module.register_forward_hook(self._average)

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """Forgets what was carried: the next call begins with frame 0."""
        self.carried = {}

    def saw(self, now: Pass) -> bool:
        return bool(now.uses)

    def _average(self, projection: torch.nn.Module, inputs, output: torch.Tensor) -> None:
        """Averages what a projection returns, (row·tile, token, channel), in place."""
        if not self.act:
            return
        rows = self.now.seen
        if self.now.repeated and output.shape[0] < len(rows):
            rows = self.now.repeated()
        if output.shape[0] % len(rows) or not len(output):
            raise RuntimeError(
                f"temporal momentum attention: a projection saw {output.shape[0]} rows in a UNet call of {len(rows)}; "
                + another_extension("changes the batch inside attention")
            )
        use = projection, self.now.uses[projection]
        self.now.uses[projection] += 1
        # HyperTile splits each row into tiles: the average runs per tile
        by_row = rearrange(output, "(row tile) ... -> row tile ...", row=len(rows))  # a view: changed in place
        self.carried[use] = momentum_scan_(by_row, rows, self.momentum, self.carried.get(use, {}))


def _projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The key and value projections of a model's self-attention layers."""
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(PROJECTIONS) and _is_self_attention(model, name)
    ]


def _is_self_attention(unet: torch.nn.Module, projection: str) -> bool:
    """Some checkpoints make `attn1` of a block a cross-attention to the text; its keys are no frame's."""
    block = unet.get_submodule(projection.rpartition("attn1.")[0].rstrip("."))
    return not (getattr(block, "disable_self_attn", False) or getattr(block, "only_cross_attention", False))
