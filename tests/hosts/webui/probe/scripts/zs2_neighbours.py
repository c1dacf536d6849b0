"""Test-only: habits of other extensions, switched on by POST /zs2-probe/habit, and by the environment of the server."""

from __future__ import annotations

import copy
import os

import gradio as gr
from fastapi import Body, FastAPI
from modules import processing, script_callbacks, scripts, shared, ui_components

habit = ""
kept = None


class Neighbour(scripts.Script):
    def title(self):
        return "ZS2 neighbour"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process_before_every_sampling(self, p, *args, **kwargs):
        global kept
        if habit == "keeps apply_model":  # Mixture of Diffusers
            kept = shared.sd_model.apply_model

    def postprocess_image(self, p, pp, *args):
        global habit
        if habit == "copies p":  # ADetailer, at the first image
            habit = ""
            p.scripts.postprocess(copy.copy(p), processing.Processed(p, []))

    def postprocess(self, p, processed, *args):
        if habit == "keeps apply_model" and kept is not None:
            shared.sd_model.apply_model = kept


class Tiles(scripts.Script):
    """Samples the halves of the init image and puts them together, as scripts do that ZS² has never heard of."""

    def title(self):
        return "ZS2 tiles"

    def show(self, is_img2img):
        return is_img2img

    def ui(self, is_img2img):
        return [gr.Checkbox(label="Goes on after an error", elem_id=self.elem_id("goes_on"))]

    def run(self, p, goes_on):
        picture, results = p.init_images[0], []
        width, height = picture.size
        for left in (0, width // 2):
            p.init_images = [picture.crop((left, 0, left + width // 2, height))]
            try:
                results += processing.process_images(p).images
            except Exception:
                if not goes_on:
                    raise
        return processing.Processed(p, results, p.seed)


def app_started(_, app: FastAPI) -> None:
    @app.post("/zs2-probe/habit")
    def habit_route(name: str = Body("", embed=True)):
        """Takes up the habit `name`, or with none leaves it and what it left behind."""
        global habit, kept
        habit, kept = name, None
        if not name:
            vars(shared.sd_model).pop("apply_model", None)


script_callbacks.on_app_started(app_started)

if os.environ.get("ZS2_PROBE_ACCORDION") == "fails":
    original = ui_components.InputAccordion.__init__

    def failing(self, *args, elem_id=None, **kwargs):
        """It does not take what it is given here, as that of Forge once."""
        if "zs2" in str(elem_id):
            raise TypeError("zs2-probe: unexpected keyword argument")
        original(self, *args, elem_id=elem_id, **kwargs)

    ui_components.InputAccordion.__init__ = failing
