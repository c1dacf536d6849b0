"""The panel in txt2img and img2img: a control for each setting, and how its values are read and pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

import gradio as gr

from .schedule import Schedule
from .settings import Settings, SettingsError, infotext_key

OPTIONS = {option.name: option for option in fields(Settings)}
TITLE = OPTIONS["enabled"].metadata["label"]
TOOLTIP = OPTIONS["enabled"].metadata["tooltip"]

ROWS = (("frames", "fps"), ("motion", "inertia", "momentum"), ("loop",), ("prompts",))
ADVANCED_ROWS = (("noise_model", "alpha"), ("candidates", "solver"), ("frames_per_pass", "formats"))
SETTINGS = tuple(name for row in ROWS + ADVANCED_ROWS for name in row)
SCHEDULES = ("motion", "inertia", "momentum")
KEYFRAMES = "_keyframes"
"""Ending of the name of the text field that takes the place of a schedule's slider."""

KEYFRAMES_TOOLTIP = (
    "{label} over the clip, as frame:value pairs with straight lines between, for instance 0:{low}, 8:{high}. "
    "Frames count from 0. Takes the slider's place; leave it empty to use the slider."
)


def build(elem_id: Callable[[str], str]) -> dict[str, gr.components.Component]:
    """Makes the controls; `elem_id` names them. Call it inside the accordion. Returns them by name, in the order `read` takes."""
    controls = {}
    for row in ROWS:
        with gr.Row():
            controls.update({name: _control(name, elem_id) for name in row})
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
        for row in ADVANCED_ROWS:
            with gr.Row():
                controls.update({name: _control(name, elem_id) for name in row})
        with gr.Row():
            controls.update({name + KEYFRAMES: _keyframes_control(name, elem_id) for name in SCHEDULES})
    return controls


def read(args: tuple) -> Settings:
    """The settings from the script's arguments: the controls' values, or the mapping of an API request.

    Raises SettingsError.
    """
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
    names = SETTINGS + tuple(name + KEYFRAMES for name in SCHEDULES)
    by_name = dict(zip(names, values))
    for name in SCHEDULES:
        keyframes = by_name.pop(name + KEYFRAMES, "")
        if keyframes and keyframes.strip():
            by_name[name] = keyframes
    return Settings(enabled=True, **by_name)


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
    return gr.Textbox(label=f"{label} keyframes", value="", placeholder=f"0:{low}, 8:{high}", elem_id=elem_id(name + KEYFRAMES), tooltip=tooltip)
