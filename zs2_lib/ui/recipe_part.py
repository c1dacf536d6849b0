"""The panel's part on recipes: the text of a clip that is dropped there, and a button that fills the tab with it."""

from __future__ import annotations

import html

import gradio as gr
from modules.infotext_utils import ParamBinding, register_paste_params_button

from zs2_lib.media.text import read_text

from .controls import ElemId, path_of


def build(elem_id: ElemId, is_img2img: bool) -> None:
    """Makes the controls, none of which has a setting."""
    with gr.Accordion("Recipe of a clip", open=False, elem_id=elem_id("recipe_part")):
        clip = gr.File(
            label="Clip",
            elem_id=elem_id("recipe_file"),
            tooltip="An MP4, WebM, GIF, WebP or APNG of ZS²: how it was made is in the file.",
        )
        text = gr.Textbox(
            label="How it was made",
            lines=4,
            visible=False,
            elem_id=elem_id("recipe_text"),
            tooltip="The text that the file carries: prompts, the tab's settings, and those of ZS².",
        )
        about = gr.HTML(elem_id=elem_id("recipe_about"))
        button = gr.Button("Use this recipe", visible=False, elem_id=elem_id("recipe_use"), size="sm")
    clip.change(_read, [clip], [text, about, button], show_progress=False)
    tab = "img2img" if is_img2img else "txt2img"
    register_paste_params_button(ParamBinding(paste_button=button, tabname=tab, source_text_component=text))


def _read(upload) -> tuple:
    path, text, error = path_of(upload, ""), None, ""
    if path:
        try:
            text = read_text(path)
            error = "" if text else "The file carries no generation parameters."
        except (ValueError, OSError, RuntimeError) as problem:
            error = str(problem)
    shown = gr.update(visible=bool(text))
    return gr.update(value=text or "", visible=bool(text)), html.escape(error), shown
