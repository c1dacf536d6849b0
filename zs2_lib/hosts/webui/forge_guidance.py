"""What extensions of the Forge family make of the guidance, after the UNet's call: for each frame as for its still."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack

import torch

from zs2_lib.hosts.undo import override

AFTER = "sampler_post_cfg_function"
"""Where the host lists the functions."""


def frame_by_frame(patcher, frames: int, undo: ExitStack) -> None:
    """Has the functions which the host's `patcher` of the UNet lists, and which know nothing but their arguments,
    called for each of the `frames` alone, until `undo` is closed: some take a mean over the whole batch.

    What others keep from call to call would be of another frame, and noise is drawn for all frames at once.
    """
    listed = patcher.model_options.get(AFTER, [])
    if any(_is_alike(function) for function in listed):
        single = [functools.partial(_for_each, frames, f) if _is_alike(f) else f for f in listed]
        override(undo, patcher, "model_options", {**patcher.model_options, AFTER: single})


def is_plain(function: Callable) -> bool:
    """Whether a function keeps nothing from call to call."""
    return inspect.isfunction(function) and not function.__closure__


def _is_alike(function: Callable) -> bool:
    """Whether a function does the same with a frame alone whatever it was called with before."""
    return is_plain(function) and not any("rand" in name for name in function.__code__.co_names)


def _for_each(frames: int, function: Callable, args: dict) -> torch.Tensor:
    """function(args), whose tensors have a row per frame, one frame after the other."""

    def of(value, frame: int):
        by_frame = isinstance(value, torch.Tensor) and value.shape[:1] == (frames,)
        return value[frame : frame + 1] if by_frame else value

    return torch.cat([function({name: of(value, frame) for name, value in args.items()}) for frame in range(frames)])
