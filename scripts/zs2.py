"""ZS²: videos from the image checkpoint that is loaded. This script is the table of contents of a generation."""

import html
import logging
from functools import partial

import gradio as gr
from modules import script_callbacks, scripts
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

from zs2_lib.hosts.webui import axes, edit, errors, host, job, options, routes, selected
from zs2_lib.ui import panel
from zs2_lib.ui.host_controls import HostControls

log = logging.getLogger("zs2")


class Script(scripts.Script):
    create_group = False

    def __init__(self):
        self.host = HostControls()
        if hasattr(self, "on_after_component"):  # an old host has none
            self.host.follow(self.on_after_component)

    def title(self):
        return "ZS2"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        try:
            with InputAccordion(False, label=panel.TITLE, elem_id=self.elem_id("enabled")) as enabled:
                units = host.control_unit_count()
                controls = {
                    "enabled": enabled,
                    **panel.build(self.elem_id, is_img2img, edit.preview, units, self.host),
                }
        except Exception as error:  # the host would print it and leave a panel whose controls do nothing
            log.exception("the panel of ZS² could not be built; the extension is off")
            gr.HTML(
                f"{panel.TITLE}: the panel could not be built in this WebUI ({html.escape(str(error))}). It is off."
            )
            return []
        pasted = [(control, panel.PASTE[name]) for name, control in controls.items() if name in panel.PASTE]
        self.infotext_fields = [PasteField(control, paste) for control, paste in pasted]
        self.paste_field_names = list(panel.PASTE.values())
        return list(controls.values())

    def setup(self, p, *args):
        selected.begin(p, partial(panel.read, args))

    def before_process(self, p, *args):
        with errors.kept(p):
            job.begin(p, axes.applied(p, panel.read(args)))

    def process(self, p, *args):
        if ours := job.of(p):
            with errors.kept(p):
                ours.process()

    def before_process_batch(self, p, *args, **kwargs):
        if ours := job.of(p):
            with errors.kept(p):
                ours.before_process_batch()

    def process_before_every_sampling(self, p, *args, noise, **kwargs):
        if (ours := job.of(p)) and ours.sampling:
            with errors.kept(p):
                ours.sampling.correlate(noise)

    def postprocess_maskoverlay(self, p, ppmo, *args):
        if ours := job.of(p):
            with errors.kept(p):
                ours.mask_frame(ppmo)

    def postprocess_image_after_composite(self, p, pp, *args):
        if ours := job.of(p):
            with errors.kept(p):
                ours.add_frame(pp.image)

    def postprocess(self, p, processed, *args):
        if ours := job.of(p):
            with errors.kept(p):
                ours.postprocess(processed)


def on_cfg_denoiser(params):
    p = getattr(params.denoiser, "p", None)  # a host that ZS² does not know may have none
    if p is not None and (ours := job.of(p)) and ours.sampling:
        with errors.kept(p):
            ours.sampling.begin_step(params.denoiser)


def on_before_image_saved(params):
    if params.p is not None and (ours := job.of(params.p)):
        ours.name_frame(params)


def on_app_started(demo, app):
    routes.add(app)


script_callbacks.on_before_ui(axes.add)
script_callbacks.on_before_ui(options.add)  # not when the page's settings are built: a server may have no page
script_callbacks.on_app_started(on_app_started)
script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_before_image_saved(on_before_image_saved)
