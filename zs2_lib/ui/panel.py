"""The panel in txt2img and img2img: a control for each setting, and how its values are read and pasted."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import fields

import gradio as gr

from zs2_lib.core.anchors import PRESETS
from zs2_lib.media.source import Selection
from zs2_lib.settings.schedule import Schedule
from zs2_lib.settings.table import FROM_SOURCE, Settings, SettingsError, infotext_key

OPTIONS = {option.name: option for option in fields(Settings)}
TITLE = OPTIONS["enabled"].metadata["label"]

ROWS = (("frames", "fps"), ("motion", "inertia", "momentum"), ("loop",), ("prompts",))
ADVANCED_ROWS = (
    ("noise_model", "alpha"),
    ("candidates", "solver"),
    ("frames_per_pass", "formats"),
    ("anchor_stride", "anchor_depth", "anchor_start"),
)
SOURCE_ROWS = (("source_start", "source_end"), ("source_fps", "source_every"), ("source_audio",))
CONTROL_ROWS = (("control_fit", "control_momentum"),)
SETTINGS = tuple(name for row in ROWS + ADVANCED_ROWS + SOURCE_ROWS + CONTROL_ROWS for name in row)
FILES = ("source", "mask")
FILE = "_file"
"""Ending of the name of the upload that takes the place of a path's text field."""
SCHEDULES = ("motion", "inertia", "momentum")
KEYFRAMES = "_keyframes"
"""Ending of the name of the text field that takes the place of a schedule's slider."""

KEYFRAMES_TOOLTIP = (
    "{label} over the clip, as frame:value pairs with straight lines between, for instance 0:{low}, 8:{high}. "
    "Frames count from 0. Takes the slider's place; leave it empty to use the slider."
)


OWN_IMAGE, SOURCE, OTHER = "Its image (without one, the source video)", "Source video", "Another video or folder"
"""What a ControlNet unit can take the images of the frames from."""
NO_CONTROLNET = (
    "Control images for every frame need the extension <b>sd-webui-controlnet</b>, which is not installed. It is on the tab "
    "Extensions, under Available; everything else here works without it."
)


def unit_controls(number: int) -> tuple[str, str, str]:
    """The names of the three controls of a ControlNet unit: where its images come from, an upload, a path."""
    return f"control_{number}", f"control_{number}{FILE}", f"control_{number}_path"


ARGUMENTS = (
    SETTINGS
    + tuple(name + KEYFRAMES for name in SCHEDULES)
    + tuple(name for file in FILES for name in (file, file + FILE))
)
"""The names of the controls behind the enabling checkbox, in the order of the script's arguments; those of each ControlNet
unit follow."""


def build(
    elem_id: Callable[[str], str], is_img2img: bool, preview: Callable, units: int
) -> dict[str, gr.components.Component]:
    """Makes the controls; `elem_id` names them. Call it inside the accordion. Returns them by name, in the order `read` takes.

    `preview(path, selection, fps)` gives a strip of the frames of the source and a line about them, or raises SettingsError.
    `units` is the number of ControlNet units, 0 if the extension is not installed.
    """
    controls = {}
    for row in ROWS:
        with gr.Row():
            controls.update({name: _control(name, elem_id) for name in row})
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
        for row in ADVANCED_ROWS:
            with gr.Row():
                controls.update({name: _control(name, elem_id) for name in row})
        with gr.Row():
            _speed_buttons(controls, elem_id)
        with gr.Row():
            controls.update({name + KEYFRAMES: _keyframes_control(name, elem_id) for name in SCHEDULES})
    with gr.Accordion(OPTIONS["source"].metadata["label"], open=False, elem_id=elem_id("source_part")):
        controls.update(_source_controls(elem_id, is_img2img))
        strip = gr.Image(
            label="Frames that will be used", interactive=False, visible=False, elem_id=elem_id("source_strip")
        )
        about = gr.HTML(elem_id=elem_id("source_about"))
    with gr.Accordion("ControlNet", open=False, elem_id=elem_id("control_part")):
        controls.update(_unit_controls(elem_id, units))
        if not units:
            gr.HTML(NO_CONTROLNET, elem_id=elem_id("no_controlnet"))
        for row in CONTROL_ROWS:
            with gr.Row(visible=units > 0):
                controls.update({name: _control(name, elem_id) for name in row})
    _show_source(controls, strip, about, preview)
    unit_names = tuple(name for number in range(units) for name in unit_controls(number))
    return {name: controls[name] for name in ARGUMENTS + unit_names}


def _unit_controls(elem_id: Callable[[str], str], units: int) -> dict[str, gr.components.Component]:
    """For each ControlNet unit where its images come from, and, where that is another video, which."""
    controls, tooltip = {}, OPTIONS["control"].metadata["tooltip"]
    for number in range(units):
        origin, file, path = unit_controls(number)
        label = f"Images of ControlNet unit {number}"
        with gr.Row():
            controls[origin] = gr.Dropdown(
                label=label,
                choices=[OWN_IMAGE, SOURCE, OTHER],
                value=OWN_IMAGE,
                elem_id=elem_id(origin),
                tooltip=tooltip,
            )
            controls[file] = gr.File(label=label, elem_id=elem_id(file), tooltip=tooltip, visible=False)
            controls[path] = gr.Textbox(
                label=f"{label}: file or folder on the machine of the WebUI",
                placeholder="/path/to/video.mp4 or a folder of frames",
                elem_id=elem_id(path),
                tooltip=tooltip,
                visible=False,
            )
        controls[origin].change(
            lambda origin: (gr.update(visible=origin == OTHER), gr.update(visible=origin == OTHER)),
            controls[origin],
            [controls[file], controls[path]],
            show_progress=False,
        )
    return controls


def _speed_buttons(controls: Mapping, elem_id: Callable[[str], str]) -> None:
    """A button for each preset, which sets the anchor stride, depth and start."""
    for name, preset in PRESETS.items():
        button = gr.Button(f"Speed: {name}", elem_id=elem_id(f"speed_{name}"))
        outputs = [controls[f"anchor_{part}"] for part in ("stride", "depth", "start")]
        button.click(lambda preset=preset: preset, [], outputs, show_progress=False)


def _source_controls(elem_id: Callable[[str], str], is_img2img: bool) -> dict[str, gr.components.Component]:
    controls = {}
    for name in FILES:
        shown = is_img2img or name == "source"
        label, tooltip = (OPTIONS[name].metadata[key] for key in ("label", "tooltip"))
        with gr.Row():
            controls[name + FILE] = gr.File(label=label, elem_id=elem_id(name + FILE), tooltip=tooltip, visible=shown)
            controls[name] = gr.Textbox(
                label=f"{label}: file or folder on the machine of the WebUI",
                placeholder="/path/to/video.mp4 or a folder of frames",
                elem_id=elem_id(name),
                tooltip=tooltip,
                visible=shown,
            )
    for row in SOURCE_ROWS:
        with gr.Row():
            controls.update({name: _control(name, elem_id) for name in row})
    return controls


def _show_source(controls: Mapping, strip: gr.Image, about: gr.HTML, preview: Callable) -> None:
    """Shows which frames will be used whenever that changes; with a source the frames and their rate are left to it."""
    selection = ("frames", "fps", "source_start", "source_end", "source_fps", "source_every")

    def show(file, path, *values):
        source = _path(file) or path.strip()
        if not source:
            return gr.update(visible=False), ""
        try:
            frames, clip_fps, start, end, fps, every = values
            picture, text = preview(
                source, Selection(start or 0, end or None, fps or None, every or 1, frames or None), clip_fps or 0
            )
        except (SettingsError, ValueError, TypeError) as error:
            return gr.update(visible=False), html.escape(str(error))
        return gr.update(value=picture, visible=True), html.escape(text)

    def leave_to_source(file, path):
        return (0, 0) if file or path.strip() else (OPTIONS["frames"].default, OPTIONS["fps"].default)

    files = [controls["source" + FILE], controls["source"]]
    inputs = files + [controls[name] for name in selection]
    for control in files:
        left = control.change(leave_to_source, files, [controls["frames"], controls["fps"]], show_progress=False)
        left.then(show, inputs, [strip, about], show_progress=False)
    for name in selection[:2]:
        controls[name].release(show, inputs, [strip, about], show_progress=False)
    for name in selection[2:]:
        controls[name].change(show, inputs, [strip, about], show_progress=False)


def _path(file) -> str:
    """The path of an upload: a string, or an object that has it as its name."""
    return getattr(file, "name", file) or ""


def read(args: tuple) -> Settings:
    """The settings from the script's arguments: the controls' values, or the mapping of an API request; off where there are
    none, as of a panel that could not be built.

    Raises SettingsError.
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
    of_units = values[len(ARGUMENTS) :]
    by_name["control"] = [
        _control_entry(number, *unit) for number, unit in enumerate(zip(of_units[::3], of_units[1::3], of_units[2::3]))
    ]
    for name in FILES:
        by_name[name] = _path(by_name.pop(name + FILE, None)) or (by_name.get(name) or "").strip()
    for name in SCHEDULES:
        keyframes = by_name.pop(name + KEYFRAMES, "")
        if keyframes and keyframes.strip():
            by_name[name] = keyframes
    return Settings(enabled=True, **by_name)


def _control_entry(number: int, origin: str, file, path: str) -> str:
    """A unit's entry in the setting `control`, from the values of its controls."""
    if origin != OTHER:
        return FROM_SOURCE if origin == SOURCE else ""
    entry = _path(file) or (path or "").strip()
    if not entry:
        raise SettingsError(
            f"control: ControlNet unit {number} is to show another video; give a file or folder, or choose {OWN_IMAGE!r}"
        )
    return entry


# --- pasting: for each control a function from a parsed infotext to its value, None to leave it alone ------


def _enabled(infotext: Mapping) -> bool:
    return "ZS2 frames" in infotext


def _from_infotext(name: str) -> Callable:
    key, default = infotext_key(OPTIONS[name]), OPTIONS[name].default

    def value(infotext: Mapping):
        text = infotext.get(key)
        if text is None:
            return "" if default is None and _enabled(infotext) else None
        if default is None:
            return text
        if isinstance(default, Schedule):
            return Schedule.parse(text).keyframes[0][1]
        if isinstance(default, tuple):
            return text.split()
        return text == "True" if isinstance(default, bool) else type(default)(text)

    return value


def _keyframes_from_infotext(name: str) -> Callable:
    key = infotext_key(OPTIONS[name])

    def value(infotext: Mapping):
        text = infotext.get(key)
        return text if text is None or ":" in text else ""

    return value


PASTE = {"enabled": _enabled}
"""The paste function of each control. "Send to" finds the same control in the other tab by the function's identity."""
PASTE.update({name: _from_infotext(name) for name in SETTINGS})
PASTE.update({name + KEYFRAMES: _keyframes_from_infotext(name) for name in SCHEDULES})


def _control(name: str, elem_id: Callable[[str], str]) -> gr.components.Component:
    option = OPTIONS[name]
    common = {"label": option.metadata["label"], "elem_id": elem_id(name), "tooltip": option.metadata["tooltip"]}
    default = option.default
    if "slider" in option.metadata:
        low, high, step = option.metadata["slider"]
        value = default.keyframes[0][1] if isinstance(default, Schedule) else default
        return gr.Slider(minimum=low, maximum=high, step=step, value=value, **common)
    if isinstance(default, bool):
        return gr.Checkbox(value=default, **common)
    if isinstance(default, (int, float)):
        return gr.Number(value=default, minimum=0, **common)
    if "lines" in option.metadata:
        lines, placeholder = option.metadata["lines"], option.metadata["placeholder"]
        return gr.Textbox(value="", lines=lines, placeholder=placeholder, **common)
    choices = list(option.metadata["choices"])
    if isinstance(default, tuple):
        return gr.Dropdown(choices=choices, value=list(default), multiselect=True, **common)
    return gr.Dropdown(choices=choices, value=default, **common)


def _keyframes_control(name: str, elem_id: Callable[[str], str]) -> gr.components.Component:
    label = OPTIONS[name].metadata["label"]
    low, high, _ = OPTIONS[name].metadata["slider"]
    tooltip = KEYFRAMES_TOOLTIP.format(label=label, low=low, high=high)
    return gr.Textbox(
        label=f"{label} keyframes",
        value="",
        placeholder=f"0:{low}, 8:{high}",
        elem_id=elem_id(name + KEYFRAMES),
        tooltip=tooltip,
    )
