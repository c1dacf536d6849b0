"""The panel's part on ControlNet: for each unit where it takes the images of the frames from."""

from __future__ import annotations

import gradio as gr

from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import FROM_SOURCE, ROWS

from .controls import FILE, Controls, ElemId, file_controls, path_of, rows_of_controls

CONTROL_ROWS = (("control_fit", "control_momentum"),)
OWN_IMAGE, SOURCE, OTHER = "Its image (without one, the source video)", "Source video", "Another video or folder"
"""What a ControlNet unit can take the images of the frames from."""
NO_CONTROLNET = (
    "Control images for every frame need the extension sd-webui-controlnet, which is not installed. It is on "
    "the tab Extensions, under Available; everything else here works without it."
)


def unit_controls(number: int) -> tuple[str, str, str]:
    """The names of the three controls of a ControlNet unit: where its images come from, an upload, a path."""
    return f"control_{number}", f"control_{number}{FILE}", f"control_{number}_path"


def build(elem_id: ElemId, units: int) -> Controls:
    """Makes the controls of so many units, and of the settings that they share; 0 says that there is no ControlNet."""
    controls = {}
    with gr.Accordion("ControlNet", open=False, elem_id=elem_id("control_part")):
        for number in range(units):
            controls.update(_build_unit(number, elem_id))
        if not units:
            gr.HTML(NO_CONTROLNET, elem_id=elem_id("no_controlnet"))
        controls.update(rows_of_controls(CONTROL_ROWS, elem_id, visible=units > 0))
    return controls


def _build_unit(number: int, elem_id: ElemId) -> Controls:
    """Where a unit's images come from, and, where that is another video, which."""
    names = unit_controls(number)
    label, tooltip = f"Images of ControlNet unit {number}", ROWS["control"].tooltip
    with gr.Row():
        origin = gr.Dropdown(
            label=label,
            choices=[OWN_IMAGE, SOURCE, OTHER],
            value=OWN_IMAGE,
            elem_id=elem_id(names[0]),
            tooltip=tooltip,
        )
        file, path = file_controls(names[1:], label, tooltip, elem_id, visible=False)
    origin.change(
        lambda origin: (gr.update(visible=origin == OTHER), gr.update(visible=origin == OTHER)),
        origin,
        [file, path],
        show_progress=False,
    )
    return dict(zip(names, (origin, file, path)))


def read(values: list) -> list[str]:
    """The setting `control` from the values of all units' controls. Raises SettingsError."""
    units = zip(values[::3], values[1::3], values[2::3])
    return [_entry(number, *unit) for number, unit in enumerate(units)]


def _entry(number: int, origin: str, file, path: str) -> str:
    """A unit's entry in the setting `control`."""
    if origin != OTHER:
        return FROM_SOURCE if origin == SOURCE else ""
    entry = path_of(file, path)
    if not entry:
        raise SettingsError(
            f"control: ControlNet unit {number} is to show another video; give a file or folder, or choose "
            f"{OWN_IMAGE!r}"
        )
    return entry
