"""The control that each kind of value has in the panel, and what it shows of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gradio as gr

from zs2_lib.settings.kinds import (
    Choice,
    Choices,
    Counts,
    Number,
    NumberSchedule,
    OldYesNo,
    Prompts,
    Takes,
    WholeNumber,
    YesNo,
)
from zs2_lib.settings.row import Row
from zs2_lib.settings.schedule import PromptKeyframes, Schedule
from zs2_lib.settings.table import ROWS

FILE = "_file"
"""Ending of the name of the upload that takes the place of a path's text field."""
KEYFRAMES = "_keyframes"
"""Ending of the name of the text field that takes the place of a schedule's slider."""
KEYFRAMES_TOOLTIP = (
    "{label} over the clip, as frame:value pairs with straight lines between, for instance 0:{low}, 8:{high}. "
    "Frames count from 0. Takes the slider's place; leave it empty to use the slider."
)

ElemId = Callable[[str], str]
"""Makes the id of a control in its tab from the control's name."""
Controls = dict[str, gr.components.Component]
"""Controls by name."""


def control(name: str, elem_id: ElemId) -> gr.components.Component:
    """The control of a setting."""
    row = ROWS[name]
    value, make = shown(name, row.default), FORMS[type(row.kind)].make
    return make(row, value=value, label=row.label, elem_id=elem_id(name), tooltip=row.tooltip)


def rows_of_controls(rows: tuple[tuple[str, ...], ...], elem_id: ElemId, visible: bool = True) -> Controls:
    """The controls of the settings named in `rows`, laid out like that."""
    controls = {}
    for names in rows:
        with gr.Row(visible=visible):
            controls.update({name: control(name, elem_id) for name in names})
    return controls


def keyframes_control(name: str, elem_id: ElemId) -> gr.components.Component:
    """The text field for a schedule's keyframes."""
    row = ROWS[name]
    low, high, _ = row.slider
    return gr.Textbox(
        label=f"{row.label} keyframes",
        value="",
        placeholder=f"0:{low}, 8:{high}",
        elem_id=elem_id(name + KEYFRAMES),
        tooltip=KEYFRAMES_TOOLTIP.format(label=row.label, low=low, high=high),
    )


def file_controls(
    names: tuple[str, str], label: str, tooltip: str, elem_id: ElemId, visible: bool
) -> tuple[gr.File, gr.Textbox]:
    """An upload and a text field for a path, which have these `names`; `path_of` takes their values."""
    upload, path = names
    return (
        gr.File(label=label, elem_id=elem_id(upload), tooltip=tooltip, visible=visible),
        gr.Textbox(
            label=f"{label}: file or folder on the machine of the WebUI",
            placeholder="/path/to/video.mp4 or a folder of frames",
            elem_id=elem_id(path),
            tooltip=tooltip,
            visible=visible,
        ),
    )


def path_of(upload, path: str | None) -> str:
    """The path of an upload (a string, or an object that has it as its name), else the one that was typed."""
    return getattr(upload, "name", upload) or (path or "").strip()


# --- by kind -------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """How a kind of value appears."""

    make: Callable[..., gr.components.Component]
    """From the setting's row, and what all controls have."""
    shown: Callable = lambda value: value
    """The control's value for a value of this kind."""


def shown(name: str, value):
    """What the control of a setting holds when the setting has this value."""
    return FORMS[type(ROWS[name].kind)].shown(value)


def shown_as_keyframes(value: Schedule) -> str:
    """What the text field for keyframes holds when the schedule is `value`."""
    return str(value) if len(value.keyframes) > 1 else ""


def _checkbox(row: Row, **common) -> gr.Checkbox:
    return gr.Checkbox(**common)


def _number(row: Row, **common) -> gr.Slider | gr.Number:
    if row.slider is None:
        return gr.Number(minimum=0, **common)
    low, high, step = row.slider
    return gr.Slider(minimum=low, maximum=high, step=step, **common)


def _lines(row: Row, **common) -> gr.Textbox:
    return gr.Textbox(lines=3, placeholder=row.placeholder, **common)


def _line(row: Row, **common) -> gr.Textbox:
    return gr.Textbox(placeholder=row.placeholder, **common)


def _dropdown(row: Row, **common) -> gr.Dropdown:
    return gr.Dropdown(choices=list(row.kind.choices), **common)


def _dropdown_of_several(row: Row, **common) -> gr.Dropdown:
    return gr.Dropdown(choices=list(row.kind.choices), multiselect=True, **common)


def _first_value(value: Schedule) -> float:
    return value.keyframes[0][1]


def _prompt_lines(value: PromptKeyframes | None) -> str:
    return Prompts().print(value)


FORMS = {
    YesNo: Form(_checkbox),
    Number: Form(_number),
    WholeNumber: Form(_number),
    NumberSchedule: Form(_number, _first_value),
    Prompts: Form(_lines, _prompt_lines),
    Takes: Form(_line, Takes().print),
    Counts: Form(_line, Counts().print),
    Choice: Form(_dropdown),
    OldYesNo: Form(_dropdown),
    Choices: Form(_dropdown_of_several, list),
}
