"""A control image for every frame, with the ControlNet that Forge, reForge and Forge Neo have built in.

The host preprocesses a list of images and gives each frame of a batch its own; its control models run in the passes of
a UNet call (`forge_control_models`). An IP-Adapter, for which the host takes one image, is given all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
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
from .forge_control_models import chain, in_passes
from .forge_draws import ClipTorch
from .forge_pictures import InParts, Inputs, encoded_alike, shown
from .forge_units import check_names, count_of, folder_of, has_image, units_of
from .seam import ControlUnits

REFUSED = {
    "lama": "changes the noise of the frames; choose 'inpaint_only'",
    "colorfix": "computes one picture at a time in this WebUI, also without ZS²; choose 'tile_resample'",
    "reference": "shows its image to the UNet in calls of its own, of which ZS² cannot tell the frames in this WebUI; "
    "choose an IP-Adapter",
}
"""Preprocessors, by a part of their names, that no frame of a clip can have, and why."""


class Units(ControlUnits):
    """The enabled units of the job `p`; `pictures[i]` are those of the i-th (None: its one image)."""

    def __init__(self, p, script, pictures: list[Pictures | InitImages | None], momentum: bool, maps: bool):
        self.p, self.script, self.pictures, self.momentum, self.maps = p, script, pictures, momentum, maps
        self._next = 0
        self._inputs: Inputs | None = None

    @staticmethod
    def knows(script) -> bool:
        return hasattr(script, "get_input_data") and hasattr(script, "get_enabled_units")

    @classmethod
    def of(cls, p, script, settings: Settings, source: SourceVideo | None, undo: ExitStack, note, maps: bool):
        pictures = []
        for number, (unit, entry) in enumerate(given_units(lambda: units_of(p, script, settings), settings, note)):
            if unit.enabled:
                check_names(script, number, unit)
                value = entry or folder_of(script, unit)
                own = pictures_of(p, number, value, has_image(unit), settings, source, undo, note)
                pictures += [own] * count_of(script, unit)
        if not pictures:
            return None
        units = cls(p, script, pictures, settings.control_momentum, maps)
        for name, ours in {
            "process": units._process,
            "process_unit_after_click_generate": units._set_up,
            "get_input_data": units._input_of_frames,
            "process_before_every_sampling": units._before_sampling,
            "process_unit_after_every_sampling": units._finish,
        }.items():
            wrap(undo, script, name, ours)
        return units

    @property
    def use_source(self) -> bool:
        return any(isinstance(pictures, Pictures) and pictures.key == "source" for pictures in self.pictures)

    @property
    def need_all_frames(self) -> bool:
        return any(isinstance(params.control_cond, dict) for params in self._params)

    @property
    def models(self) -> list[torch.nn.Module]:
        unet = self.p.sd_model.forge_objects.unet
        models = [getattr(control, "control_model", None) for control in chain(unet)]
        if in_passes(unet):
            return [model for model in models if model is not None]
        if self.momentum and models:
            raise SettingsError(
                "control_momentum: it is not possible while another extension calls the UNet for parts of the picture; "
                "switch one of both off"
            )
        return []

    @property
    def folder(self) -> Path:
        return Path(type(self.script).get_input_data.__code__.co_filename).resolve().parents[1]

    @property
    def _params(self) -> list:
        """What the host made of each enabled unit."""
        return list(getattr(self.script, "current_params", {}).values())

    def check(self) -> None:
        errors.raise_kept(self.p)

    def begin(self, undo: ExitStack, clip: Clip) -> None:
        """Inpainting units draw noise in each step for what they keep."""
        self.check()
        for params in self._params:
            names = inspect.unwrap(type(params.preprocessor).process_before_every_sampling).__globals__
            if names.get("torch") is torch:
                names["torch"] = ClipTorch(clip)
                undo.callback(names.update, torch=torch)

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
        finally:
            shared.state.textinfo = None
        if not self.maps:
            p.extra_result_images[:] = before

    def _set_up(self, set_up: Callable, p, unit, params, *args, **kwargs) -> None:
        """The host's `process_unit_after_click_generate`, which preprocesses a unit's images."""
        if p is not self.p or self._next >= len(self.pictures):
            return set_up(p, unit, params, *args, **kwargs)
        number, pictures, self._inputs = self._next, self.pictures[self._next], None
        self._next += 1
        for name, reason in REFUSED.items():
            if name in unit.module:
                raise SettingsError(f"ControlNet unit {number}: the preprocessor {unit.module!r} {reason}")
        set_up(p, unit, params, *args, **kwargs)
        if pictures is None:
            return
        if isinstance(params.control_cond, dict) and hasattr(params.model, "ip_adapter"):
            self._prompt_with_all(number, unit, params)
        elif not hasattr(getattr(params.model, "model_patcher", None), "get_control"):
            raise SettingsError(
                f"control: ControlNet unit {number} ({unit.module}) takes one image for all frames; give it one of "
                "its own"
            )

    def _input_of_frames(self, get_input_data: Callable, p, unit, *args, **kwargs):
        """The host's `get_input_data`, (a list of [image, mask], the resize mode), for each frame of a unit."""
        pictures = self.pictures[self._next - 1] if p is self.p else None
        if pictures is None:
            return get_input_data(p, unit, *args, **kwargs)
        found, mode = [], None
        with ExitStack() as undo:
            for one in shown(self.script, pictures, p, unit, undo):
                images, mode = get_input_data(p, one, *args, **kwargs)
                found += images
                if shared.state.interrupted:  # the host looks for it before it samples
                    break
        index = np.minimum(pictures.index, len(found) - 1)
        self._inputs = Inputs((found[number] for number in index), self._next - 1)
        return self._inputs, mode

    def _prompt_with_all(self, number: int, unit, params) -> None:
        """Gives an IP-Adapter the images of all frames, where the host has preprocessed the first."""
        first = params.control_cond
        if first.get("instant_id"):
            raise SettingsError(
                f"control: ControlNet unit {number} is an InstantID, which takes one image for all frames; give it an "
                "image of its own"
            )
        if isinstance(self.pictures[number], InitImages) and self.pictures[number].masks:
            raise SettingsError(
                f"control: ControlNet unit {number} is an IP-Adapter, which takes one mask for all frames; give it the "
                'frames by control ("source"), and a mask of its own'
            )
        options = {"resolution": unit.processor_res, "slider_1": unit.threshold_a, "slider_2": unit.threshold_b}
        images = [
            params.preprocessor(input_image=image, input_mask=mask, **options)["image"] for image, mask in self._inputs
        ]
        if any(image.shape != images[0].shape for image in images):
            raise SettingsError(
                f"control: the images of ControlNet unit {number}, an IP-Adapter, are of several sizes; give it images "
                "of one size"
            )
        images += images[-1:] * (self.p.batch_size - len(images))  # if it was interrupted
        params.control_cond = params.control_cond_for_hr_fix = {
            **first,
            "image": torch.cat(images),
            "unfold_batch": True,
            "clip_vision": first["clip_vision"] and InParts(first["clip_vision"]),
        }

    # --- sampling ----------------------------------------------------------------------------------------------------

    def _before_sampling(self, before_sampling: Callable, p, *args, **kwargs):
        """The host's callback, in which it adds the units to the UNet; what the VAE encodes for them draws the same
        noise for each frame.
        """
        if p is not self.p:
            return before_sampling(p, *args, **kwargs)
        with errors.kept_and_raised(p), ExitStack() as undo:
            wrap(undo, p.sd_model.forge_objects.vae, "encode", encoded_alike)
            return before_sampling(p, *args, **kwargs)

    def _finish(self, finish: Callable, p, unit, params, batch, *args, **kwargs) -> None:
        """The host's `process_unit_after_every_sampling` for each image of the `batch`: a preprocessor that lays its
        own over them takes the first for all.
        """
        if p is not self.p:
            return finish(p, unit, params, batch, *args, **kwargs)
        images, finished = list(batch.images), []
        try:
            for number, image in enumerate(images):
                with ExitStack() as undo:
                    for name, value in list(vars(params.preprocessor).items()):
                        if isinstance(value, torch.Tensor) and value.ndim and len(value) == len(images):
                            override(undo, params.preprocessor, name, value[number : number + 1])
                    batch.images = [image]
                    finish(p, unit, params, batch, *args, **kwargs)
                    finished += batch.images
            images = finished
        finally:  # an error is the host's own, which prints it and leaves a still as it is
            batch.images = images
