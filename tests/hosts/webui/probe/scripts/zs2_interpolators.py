"""Test-only extension: offers interpolators to ZS², as an extension that is no package does."""

import logging

from modules import script_callbacks
from PIL import Image


def blend(before, after, time):
    return Image.blend(before, after, time)


def fail(before, after, time):
    raise RuntimeError("it fails as asked")


def offer():
    try:
        from zs2_lib.media import interpolators
    except ImportError as error:
        logging.info("the host runs without ZS²: %s", error)
        return
    interpolators.register("probe blend", blend)
    interpolators.register("probe fail", fail)


script_callbacks.on_before_ui(offer)
