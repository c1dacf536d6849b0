"""The panel in txt2img and img2img: a control for each setting, and how its values are read and pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

import gradio as gr

from .schedule import Schedule
from .settings import INFOTEXT_OPTIONS, Settings, SettingsError, infotext_key, key_of

OPTIONS = {option.name: option for option in fields(Settings)}
TITLE = OPTIONS["enabled"].metadata["label"]
TOOLTIP = OPTIONS["enabled"].metadata["tooltip"]

MAIN = ("frames", "fps", "motion", "inertia", "momentum", "loop")
ADVANCED = ("noise_model", "alpha", "candidates", "solver", "frames_per_pass", "formats")
SCHEDULES = ("motion", "inertia", "momentum")
PASTE_FIELD_NAMES = [infotext_key(option) for option in INFOTEXT_OPTIONS]

KEYFRAMES_TOOLTIP = (
    "{label} over the clip, as frame:value pairs with straight lines between, for instance 0:{low}, 8:{high}. "
    "Frames count from 0. Takes the slider's place; leave it empty to use the slider."
)


def build(elem_id: Callable[[str], str]) -> dict[str, gr.components.Component]:
    """Makes the controls; `elem_id` names them. Call it inside the accordion. Returns them by name, in the order `read` takes."""
    controls = {}
    for row in (("frames", "fps"), ("motion", "inertia", "momentum"), ("loop",)):
        with gr.Row():
            controls.update({name: _control(name, elem_id) for name in row})
    with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
        for row in (("noise_model", "alpha"), ("candidates", "solver"), ("frames_per_pass", "formats")):
            with gr.Row():
                controls.update({name: _control(name, elem_id) for name in row})
        with gr.Row():
            controls.update({_keyframes(name): _keyframes_control(name, elem_id) for name in SCHEDULES})
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
    names = MAIN + ADVANCED + tuple(_keyframes(name) for name in SCHEDULES)
    by_name = dict(zip(names, values))
    for name in SCHEDULES:
        keyframes = by_name.pop(_keyframes(name), "")
        if keyframes and keyframes.strip():
            by_name[name] = keyframes
    return Settings(enabled=True, **by_name)


def paste_fields(enabled, controls: Mapping) -> list[tuple]:
    """(control, function of the parsed infotext) pairs; an infotext without a clip leaves the panel as it is but closed."""
    pairs = [(enabled, lambda infotext: "ZS2 frames" in infotext)]
    for option in INFOTEXT_OPTIONS:
        key = infotext_key(option)
        if option.name in SCHEDULES:
            pairs.append((controls[option.name], _slider_value(key)))
            pairs.append((controls[_keyframes(option.name)], _keyframes_text(key)))
        elif option.name == "formats":
            pairs.append((controls[option.name], lambda infotext, key=key: infotext[key].split() if key in infotext else None))
        else:
            pairs.append((controls[option.name], key))
    return pairs


def _slider_value(key: str) -> Callable:
    def value(infotext):
        return Schedule.parse(infotext[key]).keyframes[0][1] if key in infotext else None
    return value


def _keyframes_text(key: str) -> Callable:
    def value(infotext):
        if key not in infotext:
            return None
        return infotext[key] if ":" in infotext[key] else ""
    return value


def _keyframes(name: str) -> str:
    return name + "_keyframes"


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
    choices = list(option.metadata["choices"])
    if isinstance(default, tuple):
        return gr.Dropdown(choices=choices, value=list(default), multiselect=True, **common)
    return gr.Dropdown(choices=choices, value=default, **common)


def _keyframes_control(name: str, elem_id: Callable[[str], str]) -> gr.components.Component:
    label = OPTIONS[name].metadata["label"]
    low, high, _ = OPTIONS[name].metadata["slider"]
    tooltip = KEYFRAMES_TOOLTIP.format(label=label, low=low, high=high)
    return gr.Textbox(label=f"{label} keyframes", value="", placeholder=f"0:{low}, 8:{high}", elem_id=elem_id(_keyframes(name)), tooltip=tooltip)
