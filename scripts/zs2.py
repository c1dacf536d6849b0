"""ZS²: videos from the image checkpoint that is loaded. This script is the table of contents of a generation."""

import html
import logging

import gradio as gr
from modules import script_callbacks, scripts
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

from zs2_lib.hosts.webui import a1111
from zs2_lib.hosts.webui import a1111_controlnet as controlnet
from zs2_lib.hosts.webui import edit as source
from zs2_lib.hosts.webui import job as webui
from zs2_lib.ui import panel

log = logging.getLogger("zs2")


def with_job(p, step, *args):
    """Calls a step of the job that `before_process` has put on `p`, if any; a copy of `p` (as ADetailer makes one) has none."""
    job = vars(p).get("zs2_job")
    if job is not None and job.p is p:
        step(job, *args)


class Script(scripts.Script):
    create_group = False

    def title(self):
        return "ZS2"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        try:
            with InputAccordion(False, label=panel.TITLE, elem_id=self.elem_id("enabled")) as enabled:
                controls = {
                    "enabled": enabled,
                    **panel.build(self.elem_id, is_img2img, source.preview, controlnet.unit_count()),
                }
        except Exception as error:  # the host would print it and leave a panel whose controls do nothing
            log.exception("the panel of ZS² could not be built; the extension is off")
            gr.HTML(
                f"{panel.TITLE}: the panel could not be built in this WebUI ({html.escape(str(error))}). It is off."
            )
            return []
        self.infotext_fields = [
            PasteField(control, panel.PASTE[name]) for name, control in controls.items() if name in panel.PASTE
        ]
        self.paste_field_names = list(panel.PASTE.values())
        return list(controls.values())

    def before_process(self, p, *args):
        webui.end_jobs_of_before()
        with_job(p, webui.Job.end)  # of an earlier run of the same p
        p.zs2_job = None
        with webui.errors_stop(p):
            settings = panel.read(args)
            if settings.enabled and webui.applies_to(p):
                p.zs2_job = webui.Job(p, settings)
                p.zs2_job.before_process()

    def process(self, p, *args):
        with webui.errors_stop(p):
            with_job(p, webui.Job.process)

    def before_process_batch(self, p, *args, **kwargs):
        with_job(p, webui.Job.before_process_batch)

    def process_before_every_sampling(self, p, *args, noise, **kwargs):
        a1111.before_every_sampling(p, noise)

    def postprocess_maskoverlay(self, p, ppmo, *args):
        with_job(p, webui.Job.mask_frame, ppmo)

    def postprocess_image_after_composite(self, p, pp, *args):
        with_job(p, webui.Job.add_frame, pp.image)

    def postprocess(self, p, processed, *args):
        with_job(p, webui.Job.postprocess, processed)


script_callbacks.on_cfg_denoiser(a1111.on_cfg_denoiser)
