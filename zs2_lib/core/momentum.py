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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from .rows import Rows

PROJECTIONS = ("attn1.to_k", "attn1.to_v")
"""Self-attention's key and value projections, as `ldm`, `sgm` and `diffusers` name them."""


def momentum_scan_(x: torch.Tensor, rows: Rows, momentum: Sequence[float], carried: dict) -> dict:
    """Replaces each row of `x` by its running average over frames, in place (paper, equation 2).

    `x` has the shape (rows, …); `momentum[i]` is μ of frame i (that of frame 0 is not used); `carried`
    maps a guidance group to its last frame before this call and the average after it, in float32. Returns
    the same after this call's last frames; `carried` itself is left as it was. Where `rows` leave frames out, a frame that
    comes g frames after the one before keeps the product of the g momenta of it. The sum is kept in
    float32 whatever the precision of `x`. One in-place pass over each row is the cheapest exact form
    (`python -m benchmarks --only attention` compares), and gives the same bits however a clip is cut into calls.

    Raises RuntimeError if a group's frames do not follow on each other.
    """
    state = dict(carried)
    for row, frame, group, previous in zip(x.unbind(), rows.frames, rows.groups, rows.previous):
        average = row.float()  # in float32 the row itself
        if frame:
            last, before = state.get(group, (None, None))
            if last != previous:
                raise RuntimeError(
                    f"temporal momentum attention: frame {frame} of guidance group {group} did not come right after "
                    f"frame {previous}; another extension reorders the UNet's batch: switch it off for this clip"
                )
            average.lerp_(before, math.prod(momentum[previous + 1 : frame + 1]))
            if average is not row:
                row.copy_(average)
        state[group] = frame, average
    return {
        group: (frame, average.clone() if group in rows.groups else average)
        for group, (frame, average) in state.items()
    }


class TemporalMomentum:
    """Temporal momentum attention over one clip: the hooks on a UNet and the state they carry.

    `momentum` has μ of every frame. Use it as a scope: `attach` puts the hooks on a UNet (again, if
    the UNet is another one than before), leaving the scope takes them off. Between, set `rows` before every
    UNet call and call `restart` where a new step of the sampler begins.
    """

    def __init__(self, momentum: Sequence[float]):
        self.momentum = tuple(momentum)
        self.carried: dict[tuple[torch.nn.Module, int], dict] = {}
        """For each projection, and each time that one UNet call uses it, the last frames' averages by guidance group."""
        self.fewer_rows: Callable[[], Rows] | None = None
        """The rows of a projection that sees fewer than the UNet call has: some extensions repeat attention for a part of them."""
        self._rows: Rows | None = None
        self._uses: Counter = Counter()
        self._models: tuple[torch.nn.Module, ...] = ()
        self._handles: list = []

    @property
    def rows(self) -> Rows | None:
        """The rows of the UNet call that comes next; with None nothing is averaged."""
        return self._rows

    @rows.setter
    def rows(self, rows: Rows | None) -> None:
        self._rows = rows
        self._uses.clear()

    def switch_rows(self, rows: Rows) -> None:
        """Other rows for the layers that follow in the same UNet call."""
        self._rows = rows

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Scope in which nothing is averaged: for calls of the UNet inside of its call whose rows are no frames."""
        rows, self._rows = self._rows, None
        try:
            yield
        finally:
            self._rows = rows

    @property
    def is_identity(self) -> bool:
        """Whether the averages change nothing: one frame, or μ = 0 throughout. No hook is needed then."""
        return not any(self.momentum[1:])

    def attach(self, unet: torch.nn.Module, *others: torch.nn.Module) -> None:
        """Hooks every self-attention layer of `unet`, and of `others`, which run inside its calls on the same rows; takes
        the hooks off the models before, if they were others.

        Raises ValueError if `unet` has no such layer (Flux, SD3 and other transformers).
        """
        models = (unet, *others)
        if len(models) == len(self._models) and all(new is old for new, old in zip(models, self._models)):
            return
        self.detach()
        projections = [_projections(model) for model in models]
        if not projections[0]:
            raise ValueError(
                f"{type(unet).__name__} has no self-attention layers named attn1: temporal momentum attention works "
                "with the UNets of SD 1.x, SD 2.x and SDXL; choose such a checkpoint"
            )
        self._models = models
        if not self.is_identity:
            hooked = {module: None for each in projections for module in each}  # control units may share a model
            self._handles = [module.register_forward_hook(self._average) for module in hooked]

    def detach(self) -> None:
        """Takes all hooks off and forgets what was carried."""
        while self._handles:
            self._handles.pop().remove()
        self._models = ()
        self.restart()

    def restart(self) -> None:
        """Forgets what was carried: the next call begins with frame 0."""
        self.carried = {}

    def __enter__(self) -> TemporalMomentum:
        return self

    def __exit__(self, *exception) -> None:
        self.detach()

    def _average(self, projection: torch.nn.Module, inputs, output: torch.Tensor) -> None:
        rows = self._rows
        if rows is None:
            return
        if self.fewer_rows and output.shape[0] < len(rows):
            rows = self.fewer_rows()
        tiles, rest = divmod(output.shape[0], len(rows))
        if rest or not tiles:
            raise RuntimeError(
                f"temporal momentum attention: a projection saw {output.shape[0]} rows in a UNet call of {len(rows)}; "
                "another extension changes the batch inside attention: switch it off for this clip"
            )
        use = projection, self._uses[projection]
        self._uses[projection] += 1
        # HyperTile splits each row into tiles, "(row tile) token channel": the average runs per tile
        self.carried[use] = momentum_scan_(
            output.unflatten(0, (len(rows), tiles)), rows, self.momentum, self.carried.get(use, {})
        )


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
