"""The panel's part on presets: one is chosen and applied; what the panel holds is saved as one of the user's own."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import NamedTuple

import gradio as gr
from modules.ui_common import create_refresh_button

from zs2_lib.hosts.webui import presets
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.presets import KEPT, SHIPPED, Preset
from zs2_lib.settings.table import ROWS

from .controls import KEYFRAMES, Controls, ElemId, shown, shown_as_keyframes
from .host_controls import HostControls

TOOLTIP = (
    "Settings that make one look. Apply sets the controls below; what a preset says nothing of stays as it is. Yours "
    "are in the file zs2-presets.json of the WebUI's data folder, which can be shared."
)
WITH_HOST = "With the tab's steps and denoising strength"
ACTIONS = {"save": "Save as…", "rename": "Rename…", "delete": "Delete…"}


class Part(NamedTuple):
    """The part's controls."""

    chosen: gr.Dropdown
    apply: gr.Button
    about: gr.HTML
    actions: dict[str, gr.Button]
    row: gr.Column
    action: gr.State
    name: gr.Textbox
    with_host: gr.Checkbox
    do: gr.Button
    cancel: gr.Button
    refresh: gr.Button


def build(elem_id: ElemId, is_img2img: bool) -> Part:
    """Makes the controls, none of which is an argument of the script."""
    with gr.Row():
        chosen = gr.Dropdown(
            label="Preset",
            choices=presets.names(),
            value=next(iter(SHIPPED)),
            elem_id=elem_id("preset"),
            tooltip=TOOLTIP,
            scale=4,
        )
        refresh = create_refresh_button(
            chosen, lambda: None, lambda: {"choices": presets.names()}, elem_id("preset_refresh")
        )
    about = gr.HTML(_about(next(iter(SHIPPED))), elem_id=elem_id("preset_about"))
    with gr.Row(elem_classes="zs2-buttons"):
        apply = gr.Button("Apply", elem_id=elem_id("preset_apply"), size="sm", min_width=70)
        actions = {
            name: gr.Button(label, elem_id=elem_id(f"preset_{name}"), size="sm", min_width=70)
            for name, label in ACTIONS.items()
        }
    action = gr.State("")
    with gr.Column(visible=False, elem_id=elem_id("preset_change")) as row:
        name = gr.Textbox(label="Name", elem_id=elem_id("preset_name"), tooltip="The name of a preset of your own.")
        with_host = gr.Checkbox(
            is_img2img,
            label=WITH_HOST,
            elem_id=elem_id("preset_with_host"),
            tooltip="Whether the preset sets the tab's sampling steps as well, and in img2img the denoising strength.",
        )
        with gr.Row(elem_classes="zs2-buttons"):
            do = gr.Button("Save", elem_id=elem_id("preset_do"), size="sm", min_width=70)
            cancel = gr.Button("Cancel", elem_id=elem_id("preset_cancel"), size="sm", min_width=70)
    return Part(chosen, apply, about, actions, row, action, name, with_host, do, cancel, refresh)


def connect(part: Part, controls: Controls, host: HostControls, is_img2img: bool) -> None:
    """What the buttons do with the panel's `controls` and those of the host."""
    part.chosen.input(_about, [part.chosen], [part.about], show_progress=False)
    asked = [part.row, part.action, part.name, part.with_host, part.do, part.about]
    for action, button in part.actions.items():
        button.click(lambda chosen, action=action: _ask(action, chosen), [part.chosen], asked, show_progress=False)
    part.cancel.click(lambda: gr.update(visible=False), [], [part.row], show_progress=False)
    names = [row.name for row in KEPT.values() if row.name in controls]
    names += [name + KEYFRAMES for name in names if name + KEYFRAMES in controls]

    def complete(of_host: Mapping) -> None:
        """The host's steps are there, and in img2img its denoising strength, as far as it has them."""
        here = [name for name in ("steps", "denoising_strength")[: 1 + is_img2img] if name in of_host]
        panel = [controls[name] for name in names]
        tab = [of_host[name] for name in here]
        outputs = [part.about, *panel, *tab]
        applied = part.apply.click(
            lambda chosen: _applied(chosen, names, here), [part.chosen], outputs, show_progress=False
        )
        of_tab = "img2img" if is_img2img else "txt2img"
        applied.then(fn=None, inputs=[], outputs=[], _js=f"() => window.zs2ForecastSoon?.('{of_tab}')")

        def done(action, chosen, name, with_host, *values):
            by_name = dict(zip(names, values))
            own = dict(zip(here, values[len(names) :])) if with_host else {}
            return _done(action, chosen, name, by_name, own)

        inputs = [part.action, part.chosen, part.name, part.with_host, *panel, *tab]
        saved = part.do.click(done, inputs, [part.chosen, part.row, part.about], show_progress=False)
        saved.then(fn=None, inputs=[], outputs=[], _js="() => window.zs2PresetsChanged?.()")

    host.then(complete)


# --- what is shown of one --------------------------------------------------------------------------------------------


def _about(chosen: str | None) -> str:
    """What is said of a preset, and of the user's file."""
    try:
        preset = presets.users.get(chosen or "")
    except SettingsError as error:
        return _lines([], error)
    about = [preset.about] if preset.about else []
    if preset.denoising_strength is not None:
        about.append(f"Denoising strength {preset.denoising_strength:g}.")
    if preset.steps is not None:
        about.append(f"{preset.steps} steps.")
    return _lines([" ".join(about)])


def _lines(lines: list[str], error: Exception | None = None) -> str:
    red = f'<p role="alert" class="zs2-error">{html.escape(str(error))}</p>' if error else ""
    return red + "".join(f"<p>{html.escape(line)}</p>" for line in [*filter(None, lines), *presets.users.notes])


def _applied(chosen: str, names: list[str], of_host: list[str]) -> list:
    """The line about a preset, then the values of the panel's controls `names` and of the host's."""
    try:
        preset = presets.users.get(chosen)
    except SettingsError as error:
        return [_lines([], error), *[gr.update()] * (len(names) + len(of_host))]
    values = {}
    for key, plain in preset.settings.items():
        row = KEPT[key]
        value = row.kind.check(key, plain)
        values[row.name] = shown(row.name, value)
        if row.name + KEYFRAMES in names:
            values[row.name + KEYFRAMES] = shown_as_keyframes(value)
    host = {name: value for name in of_host if (value := getattr(preset, name)) is not None}
    return [
        _about(chosen),
        *(values.get(name, gr.update()) for name in names),
        *(host.get(n, gr.update()) for n in of_host),
    ]


# --- the user's own --------------------------------------------------------------------------------------------------


def _ask(action: str, chosen: str) -> list:
    """Shows what the action needs to know: a name, or a second click."""
    own = chosen not in SHIPPED
    if action != "save" and not own:
        error = SettingsError(f"preset: {chosen!r} is shipped and stays; save it under another name to change it")
        return [gr.update(visible=False), "", gr.update(), gr.update(), gr.update(), _lines([], error)]
    words = {"save": "Save", "rename": "Rename", "delete": f"Delete {chosen}"}
    return [
        gr.update(visible=True),
        action,
        gr.update(visible=action != "delete", value=chosen if own else ""),
        gr.update(visible=action == "save"),
        gr.update(value=words[action]),
        gr.update(),
    ]


def _done(action: str, chosen: str, name: str, values: Mapping, of_host: Mapping) -> list:
    """The list of presets after a change, whether the row stays, and what is said."""
    users = presets.users
    try:
        if action == "save":
            now = users.save(name, _of_panel(values, of_host), replaces=chosen)
            text = f"Saved: {now}"
        elif action == "rename":
            now = users.rename(chosen, name)
            text = f"Renamed: {now}"
        else:
            users.delete(chosen)
            now, text = next(iter(SHIPPED)), f"Deleted: {chosen}"
    except SettingsError as error:
        return [gr.update(), gr.update(), _lines([], error)]
    return [gr.update(choices=presets.names(), value=now), gr.update(visible=False), _lines([text])]


def _of_panel(values: Mapping, of_host: Mapping) -> Preset:
    """What the panel's controls hold. Raises SettingsError."""
    settings = {}
    for key, row in KEPT.items():
        if row.name not in values or values[row.name] is None:
            continue
        keyframes = values.get(row.name + KEYFRAMES) or ""
        value = keyframes if keyframes.strip() else values[row.name]
        if row.kind_with_source and value == 0:
            continue  # left to the source, which is of one clip
        settings[key] = row.kind.plain(ROWS[row.name].kind.check(key, value))
    return Preset.from_mapping({"settings": settings, **{name: value for name, value in of_host.items()}})
