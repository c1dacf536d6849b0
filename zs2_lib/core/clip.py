"""One clip while it is sampled: what every host enters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch

from . import hooks
from .anchors import Anchors
from .carried import moved
from .momentum import TemporalMomentum
from .noise import ClipNoise, SegmentNoise
from .passes import Passes
from .rows import Rows
from .timeline import Timeline

SEGMENT = 128
"""The most frames that are sampled at once: a longer clip is a chain of segments."""


class Clip:
    """The frames of one clip: their noise, the hooks on the UNet that samples them, and its calls in passes.

    `noise` is all noise that is drawn for them (None where the UNet is used alone), `momentum` has μ of every kept
    frame, and `in_betweens`, `closed` and `extended` say what other frames there are (`Timeline`); the others are the
    settings of `Anchors` and `Passes`. Use it as a scope: leaving it takes all hooks off, however it is left. In it
    `attach` hooks a UNet, `begin_step` says that a step of the sampler begins, and every UNet call of the step goes
    through `call`.

    A clip of more than `segment` frames (None: any number; a multiple of `in_betweens`) is sampled segment by segment,
    each to its end: `segments` has them, and `begin_segment` is called before each. A frame at a step sees only the
    frames before it at that same step, so a segment goes on from what the last frame before it left in main memory at
    each step as if all were one batch. All are sampled with the same steps.
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
        segment: int | None = None,
        in_betweens: int = 1,
        closed: bool = False,
        extended: Sequence[int] = (),
    ):
        timeline = Timeline(len(momentum), in_betweens, closed, tuple(extended))
        self.frames = timeline.frames
        self.segment = segment
        self.noise: ClipNoise | SegmentNoise | None = noise
        """All noise that the segment draws."""
        self.momentum = TemporalMomentum(momentum, timeline)
        self.anchors = Anchors(timeline, anchor_stride, anchor_depth, anchor_start, segment)
        self._hooks = (self.momentum, self.anchors)
        self.passes = Passes(self._hooks, self.anchors, timeline, frames_per_pass)
        self._clip_noise = noise
        self.frames_now = range(self.frames)
        """The frames of the segment, counted from 0."""
        self._before: list[tuple] = []
        """What the hooks carried at the end of each step of the segment before, of the steps that are left."""
        self._after: list[tuple] = []
        """The same of this segment, as far as it is."""
        self._carried: tuple | None = None
        """What they carry in this step."""
        self._step_begins = False

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *exception) -> None:
        self._before, self._after, self._carried = [], [], None
        self.detach()

    @property
    def segments(self) -> Iterator[range]:
        """The frames of each segment, counted from 0."""
        count = self.segment or self.frames
        return (range(first, min(first + count, self.frames)) for first in range(0, self.frames, count))

    def begin_segment(self, frames: range) -> None:
        """The sampling of `frames`, one of `segments`, begins."""
        self._keep_carried()
        self._before, self._after = self._after if frames.start else [], []
        self.frames_now = frames
        self.anchors.begin_segment(frames)
        if self._clip_noise is not None:
            self.noise = self._clip_noise.segment(frames.start, len(frames))

    @property
    def first(self) -> int:
        """The first frame of the segment."""
        return self.frames_now.start

    def attach(
        self, unet: torch.nn.Module, controls: Sequence[torch.nn.Module] = (), control_momentum: bool = False
    ) -> None:
        """Hooks `unet`, and takes the hooks off the one before, if it was another.

        `controls` are ControlNet models that run inside its calls on the same rows; with `control_momentum` they have
        temporal momentum as well. Raises ValueError for a model that has no UNet's blocks or self-attention.
        """
        self.momentum.attach(unet, *(controls if control_momentum else ()))
        self.anchors.attach(unet, *controls)

    def detach(self) -> None:
        """Takes all hooks off, between two segments as well."""
        self._keep_carried()
        for each in self._hooks:
            each.detach()

    def keep_calls_whole(self) -> None:
        """From the next step on every call is one pass with all frames in full: for what others do inside of the UNet,
        and count on its rows.
        """
        self.passes.undivided = self.anchors.suspended = True

    def begin_step(self, step: int = 0, time: float = 0.0) -> None:
        """The sampler's `step` (counted from 0) begins: its next UNet call begins with the segment's first frame.

        `time` says where on the way from noise (0) to the picture (1) the diffusion is: 1 - t / T.
        """
        self._keep_carried()
        for each in self._hooks:
            each.restart(step, time)
        self._step_begins = True

    def call(self, unet: Callable, rows: Rows, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """unet(x, *args, **kwargs) for the `rows` of the segment, whose first frame counts as 0 there, in passes: see
        `Passes.run`. Raises RuntimeError where the segment before had fewer steps as well.
        """
        if self._step_begins and self.first:
            if not self._before:
                raise RuntimeError(
                    f"ZS²: frames {self.first + 1} to {self.frames_now.stop} take more steps than those before; "
                    "choose a sampler that takes the same steps each time"
                )
            for each, state in zip(self._hooks, moved(self._before.pop(0), x.device)):
                each.restore(state)
        self._step_begins = False
        result = self.passes.run(unet, rows.shifted(self.first), x, *args, **kwargs)
        if self.frames_now.stop < self.frames:
            self._carried = tuple(each.snapshot() for each in self._hooks)
        return result

    def _keep_carried(self) -> None:
        """What the step before carried goes to main memory."""
        if self._carried:
            self._after.append(moved(self._carried, "cpu"))
        self._carried = None

    def suspended(self) -> AbstractContextManager[None]:
        """Scope in which the hooks do nothing: for calls of the UNet inside of its call whose rows are no frames."""
        return hooks.suspended(self.momentum.now)
