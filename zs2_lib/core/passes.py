"""A clip's UNet calls as passes over a few frames each: any number of frames in constant memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from .anchors import Anchors
from .constants import Constants
from .hooks import SWITCH_OFF, Hooks, Pass, another_extension
from .rows import Rows, cut
from .timeline import Timeline

log = logging.getLogger(__name__)

LATENTS_PER_PASS = 8 * 64 * 64
"""Latent positions of a pass when its size is chosen automatically: 8 frames of 512×512 pixels."""
MOST_FRAMES_PER_PASS = 64
"""Kernels limit a batch's first dimension (65535 / attention heads); larger passes are no faster."""


def automatic_frames_per_pass(height: int, width: int, latents_per_pass: int = LATENTS_PER_PASS) -> int:
    """Frames per pass for latents of `height` × `width` positions: about the memory of 8 frames of 512×512 pixels,
    unless told otherwise.
    """
    return min(max(latents_per_pass // (height * width), 1), MOST_FRAMES_PER_PASS)


class Passes:
    """Runs UNet calls of one clip in passes of a few frames, with the state of its `hooks` carried between them.

    `frames_per_pass` 0 chooses by the latents' size. A pass ends where `anchors` allow it, and may hold more frames
    for that. In-betweens have passes of their own, after that of the kept frames before them, so that those are
    computed as they would be without. When memory runs out, the frames per pass are halved for the rest of the clip,
    and the call goes on from the pass that failed with the state it began with.
    """

    def __init__(self, hooks: tuple[Hooks, ...], anchors: Anchors, timeline: Timeline, frames_per_pass: int = 0):
        self.hooks = hooks
        self.anchors = anchors
        self.timeline = timeline
        self.frames_per_pass = frames_per_pass
        self.latents_per_pass = LATENTS_PER_PASS
        """Latent positions of a pass whose size is chosen by the latents'."""
        self.reduced_to: int | None = None
        """The frames per pass that memory allowed, if fewer than asked for."""
        self.undivided = False
        """Whether every call is one pass, whatever its size: others inside of the UNet count on its rows."""
        self.exceeded: int | None = None
        """The frames per pass that were asked for, where an undivided call had more."""
        self._constants = Constants()

    def run(
        self,
        unet: Callable,
        rows: Rows,
        x: torch.Tensor,
        *args,
        before_pass: Callable[[Pass], None] = lambda now: None,
        **kwargs,
    ) -> torch.Tensor:
        """unet(x, *args, **kwargs) of a call with these `rows`, in one or more passes.

        `x` is (rows, channels, height, width). `before_pass(now)` is called before each pass and may raise to stop the
        clip. Every tensor among the arguments, in lists and dicts as well, whose first size is the number of rows is
        cut along with it. Returns what one call would return.

        Raises RuntimeError where `x` has another number of rows, and what `unet` raises, out of memory only where
        passes cannot be smaller.
        """
        if x.shape[0] != len(rows):
            raise RuntimeError(
                f"a UNet call has {x.shape[0]} rows where {len(rows)} were expected; "
                + another_extension("changes the UNet's batch")
            )
        remaining, result = list(range(len(rows))), None
        while remaining:
            limit = self.reduced_to or self.frames_per_pass or self.automatic(*x.shape[-2:])
            rest, index = rows.take(remaining), remaining
            if not self.undivided:
                part = rest.of_frames(self.timeline.together(rest.frames))
                rest, index = rest.take(part), [remaining[row] for row in part]
            frames = self._undivided(rest, limit) if self.undivided else self._fitting(rest, limit)
            index = [index[row] for row in rest.of_first_frames(frames)]
            now = Pass(rows.take(index).apart(self.timeline.in_betweens), 1 - len(remaining) / len(rows))
            before_pass(now)
            output = self._one_pass(unet, now, index, len(rows), x, args, kwargs, rest)
            if output is None:
                continue  # with fewer frames
            for hooks in self.hooks:
                hooks.end(now)
            if len(index) == len(rows):
                return output
            if result is None:
                result = output.new_empty((len(rows), *output.shape[1:]))
            self._constants.put(result, index, output)
            done = set(index)
            remaining = [row for row in remaining if row not in done]
        return result

    def automatic(self, height: int, width: int) -> int:
        """Frames of a pass over latents of `height` × `width` positions, where it is chosen by that."""
        return automatic_frames_per_pass(height, width, self.latents_per_pass)

    def _fitting(self, rows: Rows, limit: int) -> int:
        """Of how many frames the next pass over `rows`, which can be computed at once, is."""
        if self.timeline.is_kept(rows.frames[0]):
            return self.anchors.frames_that_fit(rows, limit)
        return min(limit, len(set(rows.frames)))

    def _undivided(self, rows: Rows, limit: int) -> int:
        frames = len(set(rows.frames))
        if frames > limit:
            self.exceeded = limit
        return frames

    def _one_pass(
        self, unet: Callable, now: Pass, index: list[int], rows: int, x: torch.Tensor, args, kwargs, rest: Rows
    ) -> torch.Tensor | None:
        """The UNet's output for the rows `index` of a call of `rows` rows; None, and smaller passes from here on, where
        memory runs out. `rest` are the rows of the call that are not done.
        """
        states = [hooks.snapshot() for hooks in self.hooks]
        for hooks in self.hooks:
            hooks.begin(now)
        try:
            if len(index) == rows:
                return unet(x, *args, **kwargs)
            part = (cut(value, rows, lambda each: self._constants.take(each, index)) for value in (x, args, kwargs))
            x, args, kwargs = part
            return unet(x, *args, **kwargs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._reduce(rest, len(set(now.rows.frames)), error)
        finally:
            for hooks in self.hooks:
                hooks.begin(None)
        # outside the handler, so that the traceback no longer holds the failed pass's tensors
        for hooks, state in zip(self.hooks, states):
            hooks.restore(state)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _reduce(self, rest: Rows, frames: int, error: RuntimeError) -> None:
        """Halves the passes after one of `frames` frames; raises the error where they cannot be smaller."""
        if frames == 1:
            raise error
        if self.undivided:
            raise type(error)(
                f"{error}; {frames} frames are computed at once, as "
                + another_extension(
                    "works inside the UNet and may count on them", f"give fewer frames, or {SWITCH_OFF}"
                )
            ) from error
        if self._fitting(rest, frames // 2) == frames:
            raise type(error)(
                f"{error}; {frames} frames are computed at once, as anchors are {self.anchors.stride} apart: "
                "set a lower anchor_stride, or 1"
            ) from error
        self.reduced_to = frames // 2
        log.warning("Out of memory with %d frames per UNet pass; going on with %d.", frames, self.reduced_to)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()
