"""The units of the extension sd-webui-controlnet (v1.1.455): where a job has them, and each with its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zs2_lib.hosts.undo import override
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from .controlnet import InitImages, Pictures, short
from .edit import Masks


@dataclass
class Unit:
    """An enabled unit: its number in the tab, the pictures it takes per frame (None: its one image), and what the
    extension made of them, one after the other: hints (pictures, channels, height, width) on the CPU, or values of
    another kind.
    """

    number: int
    pictures: Pictures | InitImages | None
    hints: list | torch.Tensor | None = None
    hires_hints: torch.Tensor | None = None
    latents: dict[bool, torch.Tensor] = field(default_factory=dict)
    embeds: list | None = None


def names_of(script) -> dict:
    """The names of the module that the extension's script is defined in."""
    return getattr(type(script), "controlnet_main_entry", lambda: None).__globals__


@contextmanager
def shown(pictures: Pictures | InitImages, p, unit) -> Iterator[Iterator]:
    """The unit with each of its pictures in turn."""
    with ExitStack() as undo:
        if isinstance(pictures, Pictures):
            yield _with_pictures(pictures, unit)
        else:
            for name in ("init_images", "image_mask"):
                override(undo, p, name, getattr(p, name))
            yield _with_init_images(p.init_images, pictures.masks, p, unit)


def _with_pictures(pictures: Pictures, unit) -> Iterator:
    """The unit with each picture as its image; a mask that it has stays."""
    mask = _mask_of(unit)
    for picture in pictures:
        image = {"image": picture, "mask": mask if mask is None else _resized(mask, picture)}
        yield unit.copy(update={"image": image, "mask": None})


def _with_init_images(images: Sequence, masks: Masks | None, p, unit) -> Iterator:
    """The unit itself, each time with another init image (and mask) on `p`."""
    masks = iter(masks) if masks else None
    for image in images:
        p.init_images = [image]
        if masks:
            p.image_mask = next(masks)
        yield unit.copy()


def _mask_of(unit):
    """The mask that a unit has beside its image, in any of the forms that the extension takes; or None."""
    image = unit.image[0] if isinstance(unit.image, (list, tuple)) and unit.image else unit.image
    mask = image.get("mask") if isinstance(image, dict) else unit.mask
    return None if mask is None else type(unit).parse_image(mask)


def _resized(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST))


def units_of(p, script, settings: Settings) -> list[tuple]:
    """The units of `p`, each with its entry in `control`; the folder of a unit's Batch tab is taken as its entry.

    By itself the extension would make one job of each file there.
    """
    names = names_of(script)
    external_code, mode = names["external_code"], names["InputMode"]
    given = external_code.get_all_units_in_processing(p)
    entries = list(settings.control) + [""] * (len(given) - len(settings.control))
    units = []
    for number, unit in enumerate(given):
        if unit.enabled and unit.input_mode == mode.BATCH:
            folder = unit.batch_images
            if not isinstance(folder, (str, Path)) or not str(folder).strip():
                raise SettingsError(f"ControlNet unit {number}: its Batch tab is {short(folder)}; give it a folder")
            entries[number] = entries[number] or str(folder)
            unit = unit.copy(update={"input_mode": mode.SIMPLE, "image": None})
        units.append(unit)
    if any(unit is not before for unit, before in zip(units, given)):
        external_code.update_cn_script_in_processing(p, units)
    return list(zip(units, entries))


def count_of(unit) -> int:
    """How many units the extension makes of this one: with several images, one for each."""
    several = unit.input_mode.value == "merge" and not unit.accepts_multiple_inputs
    return len(unit.image) if several else 1
