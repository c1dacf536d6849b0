"""The control models of Forge, reForge and Forge Neo in the passes of a clip.

These hosts run ControlNets and T2I-Adapters on all rows of a UNet call before it, and hand over what comes of them.
In a clip the UNet call gets the question in place of the answer, and each pass asks it for its own rows: a long clip
needs no more memory than a pass, and what hooks do to a control model they do in the right pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import override, wrap

QUESTION = "zs2_get_control"
"""The key of a control that is a question: the host's `get_control`, its arguments beside."""


def chain(unet) -> Iterator:
    """The control models of the host's `unet` patcher, from the one that was added last."""
    control = unet.controlnet_linked_list
    while control is not None:
        yield control
        control = control.previous_controlnet


def in_passes(unet) -> bool:
    """Whether the control models run in passes: not where another extension calls the UNet, and them, in its own way
    (tiles of the picture).
    """
    return "model_function_wrapper" not in unet.model_options


def postpone(unet, undo: ExitStack) -> None:
    """Makes the host's `unet` patcher ask its control models in the passes of a UNet call, until `undo` is closed."""
    if unet.controlnet_linked_list is not None and in_passes(unet):
        wrap(undo, unet.controlnet_linked_list, "get_control", _question)


def _question(get_control: Callable, x: torch.Tensor, t: torch.Tensor, cond: dict, groups: int, *options) -> dict:
    """What the host's `get_control` is asked for a call with so many guidance groups: tensors that are cut along."""
    cond = {name: value for name, value in cond.items() if name != "transformer_options"}
    return {QUESTION: get_control, "x": x, "t": t, "cond": cond, "groups": groups, "is_given_options": bool(options)}


def answered(unet, control: dict | None, options: dict, part: Rows, is_cut: bool) -> dict | None:
    """The host's `control` of a pass with the rows `part`, and the `transformer_options` of that pass."""
    if control is None:
        return None
    if QUESTION not in control:  # the host takes them off its lists
        return {name: list(value) for name, value in control.items()}
    with ExitStack() as undo:
        if is_cut:
            frames = list(dict.fromkeys(part.frames))
            for model in chain(unet):
                _show_frames(model, frames, options, undo)
        cond = {**control["cond"], "transformer_options": options}
        arguments = (control["x"], control["t"], cond, control["groups"])
        return control[QUESTION](*arguments, *([options] if control["is_given_options"] else []))


def _show_frames(model, frames: list[int], options: dict, undo: ExitStack) -> None:
    """Makes a control `model` show the pictures of `frames` alone, as if they were the host's batch."""
    kept = {"transformer_options": options, "cond_hint": None, "control_input": None}  # made of other frames
    for name in ("cond_hint_original", "advanced_mask_weighting", "advanced_frame_weighting"):
        pictures = getattr(model, name, None)
        if pictures is not None and len(pictures) > 1:
            index = [frame % len(pictures) for frame in frames]
            kept[name] = pictures[index] if isinstance(pictures, torch.Tensor) else [pictures[n] for n in index]
    for name, value in kept.items():
        if hasattr(model, name):
            override(undo, model, name, value)
