"""A control image for every frame, with the ControlNet that Forge, reForge and Forge Neo have built in.

The host preprocesses a list of images and gives each frame of a batch its own; it runs the control models before the
UNet call, on all of its rows, and what they give is cut into passes like any other argument.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from modules import shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.hosts.undo import override, wrap
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import errors
from .controlnet import InitImages, Pictures, given_units, pictures_of
from .edit import SourceVideo
from .seam import ControlUnits

BATCH = "BATCH"
"""The name of the mode in which a unit takes the images of a folder, where the host has it."""


class Units(ControlUnits):
    """The enabled units of the job `p`; `pictures[i]` are those of the i-th (None: its one image)."""

    def __init__(self, p, script, pictures: list[Pictures | InitImages | None], maps: bool):
        self.p, self.script, self.pictures, self.maps = p, script, pictures, maps
        self._next = 0

    @staticmethod
    def knows(script) -> bool:
        return hasattr(script, "get_input_data") and hasattr(script, "get_enabled_units")

    @classmethod
    def of(cls, p, script, settings: Settings, source: SourceVideo | None, undo: ExitStack, note, maps: bool):
        given = given_units(lambda: _units_of(p, script, settings), settings, note)
        pictures = [
            pictures_of(p, number, entry or _folder_of(unit), _has_image(unit), settings, source, undo, note)
            for number, (unit, entry) in enumerate(given)
            if unit.enabled
        ]
        if not pictures:
            return None
        units = cls(p, script, pictures, maps)
        wrap(undo, script, "process", units._process)
        wrap(undo, script, "get_input_data", units._input_of_frames)
        return units

    @property
    def use_source(self) -> bool:
        return any(isinstance(pictures, Pictures) and pictures.key == "source" for pictures in self.pictures)

    @property
    def need_all_frames(self) -> bool:
        return False

    @property
    def models(self) -> list[torch.nn.Module]:
        return []  # they run before the UNet's calls

    @property
    def folder(self) -> Path:
        return Path(type(self.script).get_input_data.__code__.co_filename).resolve().parents[1]

    def check(self) -> None:
        errors.raise_kept(self.p)

    def begin(self, undo: ExitStack, clip: Clip) -> None:
        self.check()

    def begin_call(self) -> None:
        pass

    def prepare(self, now: Pass) -> None:
        pass

    # --- preprocessing -----------------------------------------------------------------------------------------------

    def _process(self, process: Callable, p, *args, **kwargs) -> None:
        """The host's callback, in which it sets the units up, one after the other."""
        if p is not self.p:
            return process(p, *args, **kwargs)
        self._next = 0
        before = list(getattr(p, "extra_result_images", ()))
        try:
            process(p, *args, **kwargs)
        except Exception as error:
            errors.keep(p, error if isinstance(error, SettingsError) else SettingsError(f"ControlNet: {error}"))
            raise
        if not self.maps:
            p.extra_result_images[:] = before

    def _input_of_frames(self, get_input_data: Callable, p, unit, *args, **kwargs):
        """The host's `get_input_data`, (a list of [image, mask], the resize mode), for each frame of a unit."""
        if p is not self.p or self._next >= len(self.pictures):
            return get_input_data(p, unit, *args, **kwargs)
        pictures, self._next = self.pictures[self._next], self._next + 1
        if pictures is None:
            return get_input_data(p, unit, *args, **kwargs)
        found, mode = [], None
        with ExitStack() as undo:
            for number, one in enumerate(_shown(pictures, p, unit, undo), 1):
                shared.state.textinfo = f"ControlNet unit {self._next - 1}: picture {number} of {len(pictures)}"
                images, mode = get_input_data(p, one, *args, **kwargs)
                found += images
        shared.state.textinfo = None
        return [found[number] for number in pictures.index], mode


def _shown(pictures: Pictures | InitImages, p, unit, undo: ExitStack) -> Iterator:
    """The unit with each of its pictures in turn; a mask that it has stays."""
    if isinstance(pictures, Pictures):
        for picture in pictures:
            yield _changed(unit, image=picture, image_fg=None)
        return
    for name in ("init_images", "image_mask"):
        override(undo, p, name, getattr(p, name))
    images, masks = iter(p.init_images), iter(pictures.masks) if pictures.masks else None
    for image in images:
        p.init_images = [image]
        if masks:
            p.image_mask = next(masks)
        yield _changed(unit)


def _changed(unit, **values):
    """A copy of a unit that shows one image."""
    one = copy.copy(unit)
    mode = getattr(one, "input_mode", None)
    if mode is not None:
        one.input_mode = type(mode)["SIMPLE"]
    for name, value in values.items():
        setattr(one, name, value)
    return one


def _units_of(p, script, settings: Settings) -> list[tuple]:
    """The units of `p`, enabled or not, each with its entry in `control`."""
    args = [arg for arg in p.script_args[script.args_from : script.args_to] if arg is not None]
    parsed = [_parsed(script, arg) for arg in args]
    entries = list(settings.control) + [""] * (len(parsed) - len(settings.control))
    return list(zip(parsed, entries))


def _parsed(script, unit):
    """A unit as an object; in a request it is a dict."""
    if not isinstance(unit, dict):
        return unit
    (parsed,) = script.get_enabled_units([{**unit, "enabled": True}])
    parsed.enabled = unit.get("enabled", True)
    return parsed


def _folder_of(unit) -> str:
    """The folder of a unit's Batch tab, if it is chosen."""
    is_batch = getattr(getattr(unit, "input_mode", None), "name", "") == BATCH
    return str(unit.batch_image_dir or "") if is_batch else ""


def _has_image(unit) -> bool:
    return unit.image is not None or unit.use_preview_as_input
