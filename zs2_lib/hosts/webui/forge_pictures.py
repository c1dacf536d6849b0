"""The pictures of a ControlNet unit of Forge, reForge and Forge Neo on their way through what the host makes of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import torch
from modules import shared

from zs2_lib.hosts.undo import override

from .controlnet import InitImages, Pictures
from .edit import same_draws
from .forge_units import GLOBAL_FOLDER, group_of, mode_of

ENCODED_AT_ONCE = 8
"""Images of an IP-Adapter that are encoded together."""


def shown(script, pictures: Pictures | InitImages, p, unit, undo: ExitStack) -> Iterator:
    """The unit with each of its pictures in turn; a mask that it has stays."""
    if hasattr(group_of(script), GLOBAL_FOLDER):
        override(undo, group_of(script), GLOBAL_FOLDER, "")
    if isinstance(pictures, Pictures):
        for picture in pictures:
            yield _with_picture(unit, picture)
        return
    for name in ("init_images", "image_mask"):
        override(undo, p, name, getattr(p, name))
    images, masks = iter(p.init_images), iter(pictures.masks) if pictures.masks else None
    for image in images:
        p.init_images = [image]
        if masks:
            p.image_mask = next(masks)
        yield _simple(unit)


def _simple(unit):
    """A copy of a unit that takes one image."""
    one = copy.copy(unit)
    if mode_of(unit):
        one.input_mode = type(unit).input_mode  # as a unit has it that nobody has set
    one.use_preview_as_input = False
    return one


def _with_picture(unit, picture: np.ndarray):
    """A copy of a unit with an image (height, width, rgb) of its own.

    What is drawn on the image of the unit, its mask, becomes a mask beside it: on a black picture the host would take
    it for a drawing that is the image.
    """
    one, blank = _simple(unit), np.zeros_like(picture)
    if hasattr(unit, "image_fg"):
        one.image, one.image_fg = picture, np.zeros((*picture.shape[:2], 4), picture.dtype)
        if unit.mask_image is None and unit.mask_image_fg is None:
            one.mask_image_fg = unit.image_fg
    else:
        one.image = {"image": picture, "mask": blank}
        if unit.mask_image is None and unit.image is not None:
            one.mask_image = {"image": unit.image["mask"], "mask": np.zeros_like(unit.image["mask"])}
    return one


class Inputs(list):
    """The images of a unit, which the host preprocesses one by one, and says so; not after an interruption."""

    def __init__(self, images, number: int):
        super().__init__(images)
        self.number = number

    def __iter__(self) -> Iterator:
        for count, image in enumerate(super().__iter__(), 1):
            shared.state.textinfo = f"ControlNet unit {self.number}: picture {count} of {len(self)}"
            yield image
            if shared.state.interrupted:
                return


class InParts:
    """The host's CLIP vision model, which encodes a few of many images at once."""

    def __init__(self, clip_vision):
        self._clip_vision = clip_vision

    def __getattr__(self, name: str):
        return getattr(self._clip_vision, name)

    def encode_image(self, image: torch.Tensor):
        outputs = [self._clip_vision.encode_image(part) for part in image.split(ENCODED_AT_ONCE)]
        for name, value in vars(outputs[0]).items():
            if isinstance(value, torch.Tensor):
                setattr(outputs[0], name, torch.cat([getattr(output, name) for output in outputs]))
        return outputs[0]


def encoded_alike(encode: Callable, images: torch.Tensor) -> torch.Tensor:
    """The host's VAE's `encode` (images, height, width, channels), with the same random draws for each image, and the
    generator as after one.
    """
    latents = []
    for number in reversed(range(len(images))):
        with same_draws() if number else ExitStack():
            latents.insert(0, encode(images[number : number + 1]))
    return torch.cat(latents)
