"""One clip while it is sampled: what every host enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from . import hooks
from .anchors import Anchors
from .momentum import TemporalMomentum
from .noise import ClipNoise
from .passes import Passes
from .rows import Rows


class Clip:
    """The frames of one clip: their noise, the hooks on the UNet that samples them, and its calls in passes.

    `noise` is all noise that is drawn for them (None where the UNet is used alone), `momentum` has μ of every frame;
    the others are the settings of `Anchors` and `Passes`. Use it as a scope: leaving it takes all hooks off, however it
    is left. In it `attach` hooks a UNet, `begin_step` says that a step of the sampler begins, and every UNet call of
    the step goes through `call`.
    """

    def __init__(
        self,
        momentum: Sequence[float],
        noise: ClipNoise | None = None,
        *,
        anchor_stride: int = 1,
        anchor_depth: str = "medium",
        anchor_start: float = 0.0,
        frames_per_pass: int = 0,
    ):
        self.frames = len(momentum)
        self.noise = noise
        self.momentum = TemporalMomentum(momentum)
        self.anchors = Anchors(self.frames, anchor_stride, anchor_depth, anchor_start)
        self._hooks = (self.momentum, self.anchors)
        self.passes = Passes(self._hooks, self.anchors, frames_per_pass)

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *exception) -> None:
        for each in self._hooks:
            each.detach()

    def attach(
        self, unet: torch.nn.Module, controls: Sequence[torch.nn.Module] = (), control_momentum: bool = False
    ) -> None:
        """Hooks `unet`, and takes the hooks off the one before, if it was another.

        `controls` are ControlNet models that run inside its calls on the same rows; with `control_momentum` they have
        temporal momentum as well. Raises ValueError for a model that has no UNet's blocks or self-attention.
        """
        self.momentum.attach(unet, *(controls if control_momentum else ()))
        self.anchors.attach(unet, *controls)

    def keep_calls_whole(self) -> None:
        """From the next step on every call is one pass with all frames in full: for what others do inside of the UNet,
        and count on its rows.
        """
        self.passes.undivided = self.anchors.suspended = True

    def begin_step(self, step: int = 0, time: float = 0.0) -> None:
        """The sampler's `step` (counted from 0) begins: its next UNet call begins with frame 0.

        `time` says where on the way from noise (0) to the picture (1) the diffusion is: 1 - t / T.
        """
        for each in self._hooks:
            each.restart(step, time)

    def call(self, unet: Callable, rows: Rows, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """unet(x, *args, **kwargs) for the `rows` of the clip, in passes: see `Passes.run`."""
        return self.passes.run(unet, rows, x, *args, **kwargs)

    def suspended(self) -> AbstractContextManager[None]:
        """Scope in which the hooks do nothing: for calls of the UNet inside of its call whose rows are no frames."""
        return hooks.suspended(self.momentum.now)
