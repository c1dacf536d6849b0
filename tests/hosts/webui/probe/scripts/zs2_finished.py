"""Test-only extension: offers interpolators to ZS², as an extension that is no package does; makes the host list an
upscaler whose model cannot be loaded, and the two that need no model, which Forge Neo has and does not list.
"""

import logging

from modules import script_callbacks, shared
from modules.upscaler import Upscaler, UpscalerData, UpscalerLanczos, UpscalerNearest
from PIL import Image


def blend(before, after, time):
    return Image.blend(before, after, time)


def fail(before, after, time):
    raise RuntimeError("it fails as asked")


class Idle(Upscaler):
    """Gives back what it gets, as the host's do when a model cannot be loaded."""

    def __init__(self, dirname=None):
        super().__init__(False)
        self.name = "probe idle"
        self.scalers = [UpscalerData("probe idle", "a model that is damaged", self)]

    def load_model(self, path):
        pass

    def do_upscale(self, img, *args, **kwargs):
        return img


def offer():
    for upscaler in (Idle(), UpscalerLanczos(), UpscalerNearest()):
        if upscaler.scalers[0].name not in [listed.name for listed in shared.sd_upscalers]:
            shared.sd_upscalers += upscaler.scalers
    try:
        from zs2_lib.media import interpolators
    except ImportError as error:
        logging.info("the host runs without ZS²: %s", error)
        return
    interpolators.register("probe blend", blend)
    interpolators.register("probe fail", fail)


script_callbacks.on_before_ui(offer)
