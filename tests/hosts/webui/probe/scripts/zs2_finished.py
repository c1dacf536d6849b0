"""Test-only extension: offers interpolators to ZS², as an extension that is no package does, and an upscaler of which
the model cannot be loaded.
"""

import logging

from modules import script_callbacks
from modules.upscaler import Upscaler, UpscalerData
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
    try:
        from zs2_lib.media import interpolators
    except ImportError as error:
        logging.info("the host runs without ZS²: %s", error)
        return
    interpolators.register("probe blend", blend)
    interpolators.register("probe fail", fail)


script_callbacks.on_before_ui(offer)
