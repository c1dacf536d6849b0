"""The panel's part on the source video: its controls, and the strip of the frames that will be used."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping

import gradio as gr

from zs2_lib.media.source import Selection
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import ROWS

from .controls import FILE, Controls, ElemId, file_controls, path_of, rows_of_controls

FILES = ("source", "mask")
SOURCE_ROWS = (("source_start", "source_end"), ("source_fps", "source_every"), ("source_audio",))


def build(elem_id: ElemId, is_img2img: bool, preview: Callable, frames: gr.Slider, fps: gr.Slider) -> Controls:
    """Makes the controls, and the strip, which `preview` gives (see `panel.build`).

    With a source the controls `frames` and `fps` are left to it.
    """
    controls = {}
    with gr.Accordion(ROWS["source"].label, open=False, elem_id=elem_id("source_part")):
        for name in FILES:
            row, visible = ROWS[name], is_img2img or name == "source"
            with gr.Row():
                controls[name + FILE], controls[name] = file_controls(
                    (name + FILE, name), row.label, row.tooltip, elem_id, visible
                )
        controls.update(rows_of_controls(SOURCE_ROWS, elem_id))
        strip = gr.Image(
            label="Frames that will be used", interactive=False, visible=False, elem_id=elem_id("source_strip")
        )
        about = gr.HTML(elem_id=elem_id("source_about"))
    _show_source({**controls, "frames": frames, "fps": fps}, strip, about, preview)
    return controls


def _show_source(controls: Mapping, strip: gr.Image, about: gr.HTML, preview: Callable) -> None:
    """Shows which frames will be used whenever that changes."""
    selection = ("frames", "fps", "source_start", "source_end", "source_fps", "source_every")

    def show(file, path, *values):
        source = path_of(file, path)
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
        return (0, 0) if path_of(file, path) else (ROWS["frames"].default, ROWS["fps"].default)

    files = [controls["source" + FILE], controls["source"]]
    inputs = files + [controls[name] for name in selection]
    for control in files:
        left = control.change(leave_to_source, files, [controls["frames"], controls["fps"]], show_progress=False)
        left.then(show, inputs, [strip, about], show_progress=False)
    for control in (controls[name] for name in selection):
        changed = getattr(control, "release", control.change)  # of a slider, which says so at each place on its way
        changed(show, inputs, [strip, about], show_progress=False)
