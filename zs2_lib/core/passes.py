"""A clip's UNet calls as passes over a few frames each: any number of frames in constant memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .anchors import Anchors, take
from .momentum import TemporalMomentum
from .rows import Rows

log = logging.getLogger(__name__)

LATENTS_PER_PASS = 8 * 64 * 64
"""Latent positions of a pass when its size is chosen automatically: 8 frames of 512×512 pixels."""
MOST_FRAMES_PER_PASS = 64
"""Kernels limit a batch's first dimension (65535 / attention heads); larger passes are no faster."""


def automatic_frames_per_pass(height: int, width: int) -> int:
    """Frames per pass for latents of `height` × `width` positions: about the memory of 8 frames of 512×512 pixels."""
    return min(max(LATENTS_PER_PASS // (height * width), 1), MOST_FRAMES_PER_PASS)


@dataclass(frozen=True)
class Progress:
    """Where a UNet call is: the `rows` of the next pass, and the part of the call that is done."""

    rows: Rows
    done: float

    @property
    def frames(self) -> tuple[int, int]:
        """The first and the last frame of the pass, counted from 1."""
        return min(self.rows.frames) + 1, max(self.rows.frames) + 1


class Passes:
    """Runs UNet calls of one clip in passes of a few frames, with temporal momentum carried between them.

    `frames_per_pass` 0 chooses by the latents' size. When memory runs out, the frames per pass are halved for
    the rest of the clip, and the call goes on from the pass that failed with the state it began with. With `anchors`
    a pass ends on an anchor, and holds more frames than that if the next one is further off.
    """

    def __init__(self, attention: TemporalMomentum, frames_per_pass: int = 0, anchors: Anchors | None = None):
        self.attention = attention
        self.anchors = anchors or Anchors(attention)
        self.frames_per_pass = frames_per_pass
        self.reduced_to: int | None = None
        """The frames per pass that memory allowed, if fewer than asked for."""

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """The sampler's `step` (counted from 0) begins: forgets what was carried, the next call begins with frame 0.

        `time` says where on the way from noise (0) to the picture (1) the diffusion is: 1 - t / T.
        """
        self.attention.restart()
        self.anchors.restart(step, time)

    def run(
        self,
        unet: Callable,
        rows: Rows,
        x: torch.Tensor,
        *args,
        before_pass: Callable[[Progress], None] = lambda progress: None,
        **kwargs,
    ) -> torch.Tensor:
        """unet(x, *args, **kwargs) of a call with these `rows`, in one or more passes.

        `x` is (rows, channels, height, width). `before_pass(progress)` is called before each pass and may raise to
        stop the clip. Every tensor among the arguments, in lists and dicts as well,
        whose first size is the number of rows is cut along with it. Returns what one call would return.
        """
        if x.shape[0] != len(rows):
            raise RuntimeError(
                f"a UNet call has {x.shape[0]} rows where {len(rows)} were expected; another extension changes "
                "the UNet's batch: switch it off for this clip"
            )
        remaining = list(range(len(rows)))
        result = None
        while remaining:
            limit = self.reduced_to or self.frames_per_pass or automatic_frames_per_pass(*x.shape[-2:])
            rest = rows.take(remaining)
            frames = self.anchors.frames_that_fit(rest, limit)
            index = [remaining[row] for row in rest.of_first_frames(frames)]
            part = rows.take(index)
            before_pass(Progress(part, 1 - len(remaining) / len(rows)))

            carried = dict(self.attention.carried), dict(self.anchors.carried), dict(self.anchors.kept)
            self.anchors.begin(part)
            try:
                if len(index) == len(rows):
                    return unet(x, *args, **kwargs)
                select = torch.tensor(index, device=x.device)
                output = unet(x[select], *take(args, select, len(rows)), **take(kwargs, select, len(rows)))
            except RuntimeError as error:
                if not _is_out_of_memory(error) or frames == 1:
                    raise
                if self.anchors.frames_that_fit(rest, frames // 2) == frames:
                    raise type(error)(
                        f"{error}; {frames} frames are computed at once, as anchors are {self.anchors.stride} apart: "
                        "set a lower anchor_stride, or 1"
                    ) from error
                self.reduced_to = frames // 2
            else:
                if result is None:
                    result = output.new_empty((len(rows), *output.shape[1:]))
                result[select] = output
                done = set(index)
                remaining = [row for row in remaining if row not in done]
                continue
            finally:
                self.anchors.begin(None)
            # outside the handler, so that the traceback no longer holds the failed pass's tensors
            self.attention.carried, self.anchors.carried, self.anchors.kept = carried
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("Out of memory with %d frames per UNet pass; going on with %d.", frames, self.reduced_to)
        return result


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()
