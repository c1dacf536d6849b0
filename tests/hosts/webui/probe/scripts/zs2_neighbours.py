"""Test-only: habits of other extensions, switched on by POST /zs2-probe/habit, and by the environment of the server."""

from __future__ import annotations

import copy
import os
import sys
import types
from contextlib import closing

import gradio as gr
import torch
from fastapi import Body, FastAPI
from modules import masking, processing, script_callbacks, scripts, shared, ui_components
from PIL import Image

habit = ""
kept: list = []
made: list[int] = []
seen = None


def methods(p) -> list[tuple]:
    """The methods of the host that a clip is made with, each with the object it belongs to."""
    denoiser = p.sampler.model_wrap_cfg
    found = [(p, "close"), (p, "sample"), (p, "get_token_merging_ratio"), (p, "txt2img_image_conditioning")]
    found += [(p, "parse_extra_network_prompts"), (p, "get_conds_with_caching"), (p, "init"), (p.rng, "next")]
    found += [(p.sampler, "create_noise_sampler"), (p.sampler, "func"), (denoiser, "forward")]
    found += [(denoiser.inner_model, "forward"), (shared.sd_model, "apply_model"), (shared.sd_model.model, "forward")]
    found += [(masking, "get_crop_region_v2")]
    return [(owner, name) for owner, name in found if hasattr(owner, name)]


class Neighbour(scripts.Script):
    def title(self):
        return "ZS2 neighbour"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process_before_every_sampling(self, p, *args, **kwargs):
        if habit == "counts rows":
            count_rows(p)
        if habit == "keeps methods":  # Mixture of Diffusers
            kept[:] = [(owner, name, getattr(owner, name)) for owner, name in methods(p)]

    def postprocess_image(self, p, pp, *args):
        """As ADetailer does at a batch's first image and at its last, and for each that it finds a face in."""
        if not habit.startswith("ADetailer") or hasattr(p, "zs2_neighbour"):
            return
        if p.batch_index == 0:
            p.scripts.postprocess(copy.copy(p), processing.Processed(p, []))
        if habit == "ADetailer, faces":
            pp.image = self.inpainted(p, pp.image)
        if habit == "ADetailer, copies":
            with closing(copy.copy(p)) as p2:
                p2.zs2_neighbour, p2.batch_size, p2.n_iter, p2.do_not_save_samples = True, 1, 1, True
                made.append(len(processing.process_images(p2).images))
        if p.batch_index == p.batch_size - 1:
            copied = copy.copy(p)
            p.scripts.before_process(copied)
            p.scripts.process(copied)

    def inpainted(self, p, image):
        mask = Image.new("L", image.size)
        mask.paste(255, (16, 16, 80, 80))
        p2 = processing.StableDiffusionProcessingImg2Img(
            init_images=[image],
            denoising_strength=0.4,
            mask=None,
            inpaint_full_res=False,
            sd_model=p.sd_model,
            outpath_samples=p.outpath_samples,
            outpath_grids=p.outpath_grids,
            prompt="a yellow star",
            seed=5,
            steps=3,
            width=p.width,
            height=p.height,
            sampler_name=p.sampler_name,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        p2.image_mask, p2.scripts, p2.script_args, p2.zs2_neighbour = mask, copy.copy(p.scripts), p.script_args, True
        with closing(p2):
            result = processing.process_images(p2)
        made.append(len(result.images))
        return result.images[0]

    def postprocess(self, p, processed, *args):
        vars(first_attention()).pop("forward", None)
        if habit == "keeps methods":
            for owner, name, function in kept:
                setattr(owner, name, function)
        if habit == "postprocess" and not hasattr(p, "zs2_neighbour"):
            self.inpainted(p, Image.new("RGB", (p.width, p.height)))


def first_attention() -> torch.nn.Module:
    model = shared.sd_model
    owner = model.forge_objects.unet.model if hasattr(model, "forge_objects") else model.model
    return next(m for name, m in owner.diffusion_model.named_modules() if name.endswith("attn2"))


def count_rows(p) -> None:
    """Puts a forward over one attention layer that counts on the batch, as NegPiP and Regional Prompter do."""
    attention, batch = first_attention(), p.batch_size
    forward = attention.forward

    def counting(self, x, *args, **kwargs):
        return forward(x, *args, **kwargs) * (1.5 if len(x) == 2 * batch else 0)

    attention.forward = types.MethodType(counting, attention)


def by_area(rows: int) -> list[int]:
    """The rows of two frames or more with two areas each, area by area; those of the negative prompt stay."""
    frames = rows // 3
    return [2 * frame + area for area in range(2) for frame in range(frames)] + list(range(2 * frames, rows))


def denoiser(params) -> None:
    global seen
    if habit == "asks again":
        text = torch.cat([params.text_cond, params.text_cond])
        seen = params.x.clone(), params.sigma, {"c_crossattn": [text], "c_concat": [params.image_cond]}
    if habit == "reorders":
        order = by_area(len(params.x))
        params.x, params.sigma, params.image_cond = (v[order] for v in (params.x, params.sigma, params.image_cond))
        params.text_cond = params.text_cond[order[: len(params.text_cond)]]


def denoised(params) -> None:
    if habit == "asks again":  # PAG
        x, sigma, cond = seen
        params.x += 0.5 * (params.x - params.inner_model(x, sigma, cond=cond))
    if habit == "reorders":  # Regional Prompter (Latent)
        order = by_area(len(params.x))
        params.x[order] = params.x.clone()


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


def detect(_model, image, *args):
    """In place of ADetailer's detectors, which have to be downloaded."""
    detected = sys.modules["adetailer"].PredictOutput
    mask = Image.new("L", image.size)
    mask.paste(255, (16, 16, 80, 80))
    return detected([[16, 16, 80, 80]], [mask], [0.9], image) if habit == "detects" else detected()


def replace_detectors() -> None:
    for data in scripts.scripts_data:
        if hasattr(data.module, "mediapipe_predict"):
            data.module.mediapipe_predict = detect


def app_started(_, app: FastAPI) -> None:
    replace_detectors()

    @app.post("/zs2-probe/habit")
    def habit_route(name: str = Body("", embed=True)) -> list:
        """Takes up the habit `name`, or with none leaves it and what it left behind; answers how many pictures were
        made inside of jobs since the one before.
        """
        global habit
        for owner, attribute, _function in kept:
            if owner is not masking:
                vars(owner).pop(attribute, None)
        vars(first_attention()).pop("forward", None)
        answer = list(made)
        habit, kept[:], made[:] = name, [], []
        return answer


script_callbacks.on_app_started(app_started)
script_callbacks.on_cfg_denoiser(denoiser)
script_callbacks.on_cfg_denoised(denoised)

if os.environ.get("ZS2_PROBE_ACCORDION") == "fails":
    accordion = getattr(ui_components, "InputAccordionImpl", ui_components.InputAccordion)  # on Forge a function
    original = accordion.__init__

    def failing(self, *args, elem_id=None, **kwargs):
        """It does not take what it is given here, as that of Forge once."""
        if "zs2" in str(elem_id):
            raise TypeError("zs2-probe: unexpected keyword argument")
        original(self, *args, elem_id=elem_id, **kwargs)

    accordion.__init__ = failing
