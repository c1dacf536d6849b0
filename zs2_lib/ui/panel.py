"""The panel in txt2img and img2img: a control for each setting, and how its values are read and pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import gradio as gr

from zs2_lib.hosts.webui import options
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import NumberSchedule, SettingsError
from zs2_lib.settings.speeds import SPEEDS
from zs2_lib.settings.table import ROWS, Settings

from . import (
    control_part,
    forecast_part,
    going_on_part,
    player_part,
    postprocess_part,
    presets_part,
    recipe_part,
    source_part,
)
from .controls import (
    FILE,
    KEYFRAMES,
    Controls,
    ElemId,
    keyframes_control,
    path_of,
    rows_of_controls,
    shown,
    shown_as_keyframes,
)
from .host_controls import HostControls

TITLE = ROWS["enabled"].label

MAIN_ROWS = (("frames", "fps", "in_betweens"), ("motion", "inertia"), ("momentum", "loop"), ("prompts",))
ADVANCED_ROWS = (
    ("noise_model", "alpha"),
    ("candidates", "solver"),
    ("frames_per_pass", "formats", "sidecar"),
    ("anchor_stride", "anchor_depth", "anchor_start"),
    ("retakes", "extended"),
)
ALL_ROWS = MAIN_ROWS + ADVANCED_ROWS + source_part.SOURCE_ROWS + control_part.CONTROL_ROWS
SETTINGS = tuple(name for row in ALL_ROWS for name in row)
SCHEDULES = tuple(name for name in SETTINGS if isinstance(ROWS[name].kind, NumberSchedule))

ARGUMENTS = (
    SETTINGS
    + tuple(name + KEYFRAMES for name in SCHEDULES)
    + tuple(name for file in source_part.FILES for name in (file, file + FILE))
    + ("preflight",)
)
"""The names of the controls behind the enabling checkbox, in the order of the script's arguments; those of each
ControlNet unit follow."""


def build(elem_id: ElemId, is_img2img: bool, preview: Callable, units: int, host: HostControls) -> Controls:
    """Makes the controls, inside the accordion in which it is called. Returns them by name, in the order `read` takes.

    `elem_id` makes their ids from their names. `preview(path, selection, fps)` gives a strip of the frames of the
    source and a line about them, or raises SettingsError. `units` is the number of ControlNet units, 0 if the extension
    is not installed. `host` has the host's own controls.
    """
    tab = "img2img" if is_img2img else "txt2img"
    presets = presets_part.build(elem_id, is_img2img)
    forecast = forecast_part.build(elem_id, tab)
    controls = {"preflight": forecast.preflight, **rows_of_controls(MAIN_ROWS, elem_id)}
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
        controls.update(rows_of_controls(ADVANCED_ROWS, elem_id))
        _begin_with_formats(controls["formats"])
        with gr.Row():
            _speed_buttons(controls, elem_id, host)
        with gr.Row():
            controls.update({name + KEYFRAMES: keyframes_control(name, elem_id) for name in SCHEDULES})
    controls.update(source_part.build(elem_id, is_img2img, preview, controls["frames"], controls["fps"]))
    controls.update(control_part.build(elem_id, units))
    recipe_part.build(elem_id, is_img2img)
    going_on_part.build(elem_id)
    postprocess_part.build(elem_id)
    player_part.build(elem_id)
    presets_part.connect(presets, controls, host, is_img2img)
    of_units = tuple(name for number in range(units) for name in control_part.unit_controls(number))
    arguments = {name: controls[name] for name in ARGUMENTS + of_units}
    forecast_part.connect(forecast, arguments, host, read, is_img2img)
    return arguments


def _begin_with_formats(control: gr.components.Component) -> None:
    """The control begins with what the host's settings say, and not with what the host kept of it."""
    control.value = list(options.value("zs2_formats"))
    control.do_not_save_to_config = True


def _speed_buttons(controls: Controls, elem_id: ElemId, host: HostControls) -> None:
    """A button for each speed, which sets the controls of its settings, and brings the host's steps down to its own."""
    for name, speed in SPEEDS.items():
        label = f"Speed: {name}" + (f", {speed.steps} steps" if speed.steps else "")
        button = gr.Button(label, elem_id=elem_id(f"speed_{name}"), size="sm", min_width=100)
        outputs = [controls[setting] for setting in speed.settings]
        button.click(lambda speed=speed: tuple(speed.settings.values()), [], outputs, show_progress=False)
        if speed.steps:
            host.then(partial(_lowers, button, speed.steps))


def _lowers(button: gr.Button, most: int, of_host: Mapping) -> None:
    """A click on the `button` brings the host's steps down to `most`."""
    if steps := of_host.get("steps"):
        button.click(lambda value: min(value, most), [steps], [steps], show_progress=False)


def read(args: tuple) -> Settings:
    """The settings from the script's arguments: the controls' values, or the mapping of an API request.

    They are off where there are no arguments, as of a panel that could not be built. Raises SettingsError.
    """
    if not args:
        return Settings()
    enabled, *values = args
    if isinstance(enabled, Mapping):
        return Settings.from_mapping({"enabled": True, **enabled})
    if not isinstance(enabled, bool):
        raise SettingsError(
            f"args: {enabled!r} is not allowed; give one object with the settings, such as "
            '{"enabled": true, "frames": 8}'
        )
    if not enabled:
        return Settings()
    by_name = {name: value for name, value in zip(ARGUMENTS, values) if value is not None}
    settings = {name: by_name[name] for name in SETTINGS if name in by_name}
    for name in SCHEDULES:
        keyframes = by_name.get(name + KEYFRAMES, "")
        if keyframes.strip():
            settings[name] = keyframes
    for name in source_part.FILES:
        settings[name] = path_of(by_name.get(name + FILE), by_name.get(name))
    settings["preflight"] = bool(by_name.get("preflight"))
    settings["control"] = control_part.read(values[len(ARGUMENTS) :])
    return Settings(enabled=True, **settings)


# --- pasting: for each control a function from a parsed infotext to its value, None to leave it alone ------


def _pasted(name: str, shown: Callable) -> Callable:
    """The paste function of a control that shows `shown(value)` of the setting `name`."""

    def value(infotext: Mapping):
        values = recipe.read(infotext, (name,))
        return shown(values[name]) if name in values else None

    return value


PASTE = {"enabled": recipe.is_of_clip}
"""The paste function of each control. "Send to" finds the same control in the other tab by the function's identity."""
PASTE.update({name: _pasted(name, partial(shown, name)) for name in SETTINGS if name in recipe.CARRIED})
PASTE.update({name + KEYFRAMES: _pasted(name, shown_as_keyframes) for name in SCHEDULES})
