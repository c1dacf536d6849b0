"""The panel's part on going on from a finished clip by its recipe: more frames, another take, in-betweens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from modules import shared

from zs2_lib.hosts.webui import going_on, library

from . import work
from .controls import ElemId, file_controls, path_of

CLIP = "The clip to go on from, made here or elsewhere: its file says how. Without one, the last clip that was made."
ELSE = (
    "What its file does not carry can be given in the tab: drop the clip on Recipe of a clip, use the recipe, give the "
    "image, source or control images again, and set Extended at and Frames, Retakes or In-betweens."
)


class Step(NamedTuple):
    """A button, and the number beside it."""

    button: str
    number: str
    value: int
    least: int
    most: int | None
    tooltip: str


STEPS = {
    "extend": Step("Extend", "More frames", 8, 1, None, "The clip goes on; the frames that are there stay the same."),
    "retake": Step(
        "Retake",
        "From frame",
        4,
        1,
        None,
        "Other frames from this one on, counted from 0; those before stay the same. Each time is another take.",
    ),
    "in-betweens": Step(
        "In-betweens", "In-betweens ×", 2, 2, 4, "So many times as many frames; those that are there stay the same."
    ),
}


def build(elem_id: ElemId) -> None:
    """Makes the controls, none of which is an argument of the script, and what the buttons do."""
    with gr.Accordion("Go on from a clip", open=False, elem_id=elem_id("going_on_part")):
        with gr.Row():
            clip = file_controls(("going_on_clip_file", "going_on_clip"), "Clip", CLIP, elem_id, visible=True)
        buttons = {}
        for name, step in STEPS.items():
            with gr.Row():
                number = gr.Number(
                    label=step.number,
                    value=step.value,
                    precision=0,
                    minimum=step.least,
                    maximum=step.most,
                    elem_id=elem_id(f"going_on_{name}_number"),
                    tooltip=step.tooltip,
                )
                buttons[name] = gr.Button(step.button, elem_id=elem_id(f"going_on_{name}")), number
        stop = gr.Button("Stop", elem_id=elem_id("going_on_stop"), size="sm")
        result = gr.HTML(elem_id=elem_id("going_on_result"))
    for name, (button, number) in buttons.items():
        work.on_click(button, partial(_make, name), [*clip, number], result)
    stop.click(lambda: shared.state.interrupt(), [], [], show_progress=False)


def _make(step: str, upload, path: str, number: float) -> Iterator[str]:
    values = {"clip": path_of(upload, path) or str(library.latest() or "")}
    values |= {going_on.STEPS[step][0]: None if number is None else int(number)}
    for shown in work.followed(partial(_made, step, values), _progress):
        missing = shown.startswith(("source:", "init_images:", "ControlNet:"))
        yield f"{shown}<p>{ELSE}</p>" if missing else shown


def _made(step: str, values: dict) -> str:
    answer = going_on.go_on(step, values, is_api=False)
    clips = answer["clips"]
    lines = [f"{clip['frames']} frames, {clip['fps']:g} per second: {clip['path']}" for clip in clips]
    lines += ["It was stopped before the end."] * any("stopped" in clip for clip in clips)
    return work.shown([Path(clip["path"]) for clip in clips], lines + answer["notes"])


def _progress() -> str:
    """How far the host is with its job."""
    state = shared.state
    jobs, steps = max(state.job_count, 1), max(state.sampling_steps, 1)
    part = (state.job_no + min(state.sampling_step / steps, 1)) / jobs if state.job_count > 0 else 0
    return work.bar(min(part, 1), state.textinfo or "waiting for the WebUI")
