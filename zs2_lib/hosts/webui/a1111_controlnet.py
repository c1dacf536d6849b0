"""A control image for every frame, with the units of the extension sd-webui-controlnet (v1.1.455).

The extension preprocesses one image per unit, and shows it to all rows of a UNet call. Here its own preprocessing runs
once per frame, and before each UNet pass every unit is given the images of that pass's rows (`a1111_unit_passes`).
Everything else stays the extension's: what a unit does to a frame is what it does to the still.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from modules import shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.hosts.undo import wrap
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import errors
from .a1111_unit_passes import UnitPasses
from .a1111_units import Unit, count_of, names_of, shown, units_of
from .controlnet import Pictures, given_units, pictures_of, short
from .edit import SourceVideo
from .seam import ControlUnits

NETWORKS = ("ControlNet", "ControlLoRA", "ControlNetUnion", "InstantID")
"""The extension's kinds of unit (its ControlModelType) with a model like the UNet's way down."""
PER_FRAME = (*NETWORKS, "T2I_Adapter", "IPAdapter", "AttentionInjection")
"""Those that can have an image for each frame."""


class Units(ControlUnits):
    """The enabled units of the job `p`, which makes clips."""

    def __init__(self, p, script, units: list[Unit], with_maps: bool):
        self.p, self.script, self.units, self.with_maps = p, script, units, with_maps
        self._passes = UnitPasses(p, script, units)

    @staticmethod
    def knows(script) -> bool:
        return "get_control" in names_of(script)

    @classmethod
    def of(cls, p, script, settings: Settings, source: SourceVideo | None, undo: ExitStack, note, maps: bool):
        given = given_units(lambda: units_of(p, script, settings), settings, note)
        units = []
        for number, (unit, value) in enumerate(given):
            if unit.enabled:
                if value and unit.ipadapter_input is not None:
                    raise SettingsError(
                        f"control: entry {number} is {short(value)}, but ControlNet unit {number} has ipadapter_input; "
                        "give one of both"
                    )
                has_own = unit.image is not None or unit.ipadapter_input is not None
                pictures = pictures_of(p, number, value, has_own, settings, source, undo, note)
                units += [Unit(number, pictures) for _ in range(count_of(unit))]
        if not units:
            return None
        control = cls(p, script, units, maps)
        wrap(undo, names_of(script), "get_control", control._per_frame)
        wrap(undo, script, "controlnet_main_entry", control._set_up)
        return control

    @property
    def use_source(self) -> bool:
        return any(isinstance(unit.pictures, Pictures) and unit.pictures.key == "source" for unit in self.units)

    # --- preprocessing -----------------------------------------------------------------------------------

    def _per_frame(self, get_control: Callable, p, unit, idx, control_model_type, preprocessor):
        """The extension's `get_control`, which preprocesses a unit's image, for each picture of the unit."""
        ours = self.units[idx] if p is self.p and idx < len(self.units) else None
        if ours is not None and "lama" in unit.module:
            raise SettingsError(
                f"ControlNet unit {ours.number}: the preprocessor {unit.module!r} is not allowed, it changes the "
                "noise of the frames; choose 'inpaint_only'"
            )
        if ours is None or ours.pictures is None:
            return get_control(p, unit, idx, control_model_type, preprocessor)
        if control_model_type.name not in PER_FRAME:
            raise SettingsError(
                f"control: ControlNet unit {ours.number} is a {control_model_type.value}, which takes one image "
                "for all frames; give it an image of its own"
            )
        return self._controls_of_frames(ours, get_control, p, unit, idx, control_model_type, preprocessor)

    def _controls_of_frames(self, ours: Unit, get_control: Callable, p, unit, *args):
        """What `get_control` makes of each picture of `ours`, kept there; and what the extension goes on with."""
        controls, hires_controls, maps, pictures = [], [], [], ours.pictures
        with shown(pictures, p, unit) as units:
            for number, one in enumerate(units, 1):
                shared.state.textinfo = f"ControlNet unit {ours.number}: picture {number} of {len(pictures)}"
                (control,), (hires_control,), new = get_control(p, one, *args)
                controls.append(_on_cpu(control))
                hires_controls.append(_on_cpu(hires_control))
                maps += new if number == 1 else []
                if shared.state.interrupted:  # the host looks for it before it samples
                    pictures.index = np.minimum(pictures.index, number - 1)
                    break
        shared.state.textinfo = None
        maps = maps if self.with_maps else []
        if not isinstance(controls[0], torch.Tensor):
            ours.hints = controls
            return controls[:1], hires_controls[:1], maps
        ours.hints = torch.cat(controls)
        ours.hires_hints = torch.cat(hires_controls) if hires_controls[0] is not None else None
        # the extension lays these over the finished frames, by their number
        finished = "inpaint_only" in unit.module or "recolor" in unit.module
        low, high = (
            hints[pictures.index] if finished and hints is not None else hints
            for hints in (ours.hints, ours.hires_hints)
        )
        return [low], [high], maps

    def _set_up(self, main_entry: Callable, p) -> None:
        """The extension's `controlnet_main_entry`, which sets the units up in a callback of the host."""
        try:
            main_entry(p)
        except Exception as error:
            if p is self.p:
                errors.keep(p, error if isinstance(error, SettingsError) else SettingsError(f"ControlNet: {error}"))
            raise

    # --- sampling ------------------------------------------------------------------------------------------

    @property
    def network(self):
        """The extension's hook on the UNet."""
        return self.script.latest_network

    @property
    def folder(self) -> Path:
        return Path(names_of(self.script)["__file__"]).resolve().parents[1]

    def check(self) -> None:
        errors.raise_kept(self.p)
        if self.network is None:
            raise SettingsError("ControlNet: its units could not be set up; see the log of the WebUI")

    def begin(self, undo: ExitStack, clip: Clip) -> None:
        self.check()
        self._passes.begin(undo, clip)

    @property
    def models(self) -> list[torch.nn.Module]:
        params = self.network.control_params
        return [param.control_model.control_model for param in params if param.control_model_type.name in NETWORKS]

    @property
    def need_all_frames(self) -> bool:
        return any(
            param.control_model_type.name in ("AttentionInjection", "IPAdapter")
            for param in self.network.control_params
        )

    def begin_call(self) -> None:
        self._passes.begin_call()

    def prepare(self, now: Pass) -> None:
        self._passes.prepare(now)


def _on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value
