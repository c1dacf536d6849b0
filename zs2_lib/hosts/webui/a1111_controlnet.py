"""A control image for every frame, with the units of the extension sd-webui-controlnet (v1.1.455).

The extension preprocesses one image per unit, and shows it to all rows of a UNet call. Here its own preprocessing runs
once per frame, and before each UNet pass every unit is given the images of that pass's rows. Everything else stays the
extension's: what a unit does to a frame is what it does to the still.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from modules import devices, shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.hosts.undo import override, wrap
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import errors
from .a1111_units import count_of, names_of, script_of, shown, units_of
from .controlnet import InitImages, Pictures, pictures_of, short
from .edit import SourceVideo, same_draws
from .seam import ControlUnits

NETWORKS = ("ControlNet", "ControlLoRA", "ControlNetUnion", "InstantID")
"""The extension's kinds of unit (its ControlModelType) with a model like the UNet's way down."""
PER_FRAME = (*NETWORKS, "T2I_Adapter", "IPAdapter", "AttentionInjection")
"""Those that can have an image for each frame."""


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


class Units(ControlUnits):
    """The enabled units of the job `p`, which makes clips."""

    def __init__(self, p, script, units: list[Unit], with_maps: bool):
        self.p, self.script, self.units, self.with_maps = p, script, units, with_maps
        self._now: Pass | None = None
        self._draws: list[torch.Tensor] = []
        self._next_draw = 0

    @classmethod
    def of(cls, p, settings: Settings, source: SourceVideo | None, undo: ExitStack, note, with_maps: bool):
        """The units of `p`, or None if it has none: see `Adapter.control_units`."""
        script = script_of(p)
        asked = [number for number, value in enumerate(settings.control) if value]
        if script is None:
            if asked:
                raise SettingsError(
                    f"control: {short(settings.control)} is not allowed: the extension sd-webui-controlnet is not "
                    "installed; install it from Extensions > Available, or leave control out"
                )
            return None
        try:
            given = units_of(p, script, settings)
        except (ValueError, AssertionError) as error:
            raise SettingsError(f"ControlNet: {error}") from error
        if len(settings.control) > len(given):
            raise SettingsError(
                f"control: {len(settings.control)} entries for {len(given)} ControlNet units; give one for each"
            )
        for number in asked:
            if not given[number][0].enabled:
                note(f"control: ControlNet unit {number} is not enabled: its frames are not used.")

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
        control = cls(p, script, units, with_maps)
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
        network = self.network
        wrap(undo, network, "original_forward", functools.partial(_without_momentum, clip))
        wrap(undo, sys.modules[type(network).__module__], "predict_q_sample", self._same_reference_noise)
        for param, unit in zip(network.control_params, self.units):
            if param.control_model_type.name == "IPAdapter":
                override(undo, param.control_model, "image_emb", param.control_model.image_emb)
                undo.callback(setattr, param.control_model, "cache", {})
            if param.control_model_type.name == "T2I_Adapter" and unit.pictures is not None:
                wrap(undo, param.control_model, "forward", self._adapted(param, unit))
                # the extension would repeat the control of one image for all rows first
                override(undo, param, "cfg_injection", False)

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
        self._draws = []

    def prepare(self, now: Pass) -> None:
        self._now, self._next_draw = now, 0
        now.repeated = lambda: now.rows.take(self.network.current_uc_indices)
        for param, unit in zip(self.network.control_params, self.units):
            if param.control_model_type.name == "IPAdapter":
                self._set_embeds(param.control_model, unit)
            else:
                self._set_hints(param, unit)

    def _numbers(self, unit: Unit) -> torch.Tensor:
        """Which of the unit's pictures each row of the pass shows (rows,)."""
        frames = self._now.rows.frames
        index = np.zeros(max(frames) + 1, int) if unit.pictures is None else unit.pictures.index
        return torch.from_numpy(index[list(frames)])

    def _set_hints(self, param, unit: Unit) -> None:
        numbers, device = self._numbers(unit), devices.get_device_for("controlnet")
        hires = bool(getattr(self.p, "is_hr_pass", False)) and isinstance(param.hr_hint_cond, torch.Tensor)
        if unit.pictures is not None:
            param.hint_cond = unit.hints[numbers].to(device)  # the extension forgets what it made of those before
            if unit.hires_hints is not None:
                param.hr_hint_cond = unit.hires_hints[numbers].to(device)
        param.used_hint_inpaint_hijack = None
        name = param.preprocessor["name"]
        if param.control_model_type.name == "AttentionInjection" or "colorfix" in name or "inpaint_only" in name:
            if hires not in unit.latents:
                hints = param.hr_hint_cond if hires else param.hint_cond
                kept = unit.hires_hints if hires else unit.hints
                unit.latents[hires] = self._encoded(hints if unit.pictures is None else kept)
            param.used_hint_cond = param.hr_hint_cond if hires else param.hint_cond
            param.used_hint_cond_latent = unit.latents[hires][numbers].to(device)

    def _encoded(self, hints: torch.Tensor) -> torch.Tensor:
        """The latents (pictures, …) of hints, with the same random draws for each, and the generator as after one."""
        latents = []
        for number in reversed(range(len(hints))):
            with same_draws() if number else ExitStack():
                latents.insert(
                    0, self.network.call_vae_using_process(self.p, hints[number : number + 1].to(devices.device)).cpu()
                )
        return torch.cat(latents)

    def _set_embeds(self, model, unit: Unit) -> None:
        model.cache = {}  # of the pass before, which may have had other rows
        if unit.pictures is None:
            return
        if unit.embeds is None:
            unit.embeds = [model.ipadapter.get_image_emb(value) for value in unit.hints]
        rows = [unit.embeds[number] for number in self._numbers(unit)]
        model.image_emb = type(rows[0])(*(torch.cat(embeds) for embeds in zip(*rows)))

    def _same_reference_noise(self, predict_q_sample: Callable, model, latents: torch.Tensor, t, noise=None):
        """The extension's `predict_q_sample`, which puts noise on a reference's `latents` (rows, channels, height,
        width): that of the still, the same for all frames.
        """
        rows = self._now and self._now.rows
        if noise is None and rows is not None and len(latents) == len(rows):
            groups = list(dict.fromkeys(rows.groups))
            if self._next_draw == len(self._draws):
                self._draws.append(torch.randn_like(latents[:1].expand(len(groups), *latents.shape[1:])))
            noise = self._draws[self._next_draw][[groups.index(group) for group in rows.groups]]
            self._next_draw += 1
        return predict_q_sample(model, latents, t, noise)

    def _adapted(self, param, unit: Unit) -> Callable:
        """A T2I-Adapter's `forward`, for the pictures of the rows. As for a still, the control of the first pass serves
        in that of hires.fix too, unless the unit is for the latter only; and with "ControlNet is more important" it is
        the prompt's alone.
        """
        hires_only, prompt_only = param.hr_option.name == "HIGH_RES_ONLY", param.cfg_injection
        hints = unit.hires_hints if hires_only and unit.hires_hints is not None else unit.hints

        def adapted(forward, hint=None, **kwargs):
            param.control_model.reset()  # it keeps what it made of the rows before
            controls = forward(hint=hints[self._numbers(unit)].to(hint), **kwargs)
            return [control * self.network.model.cond_mark for control in controls] if prompt_only else controls

        return adapted


def _without_momentum(clip: Clip, forward: Callable, *args, **kwargs):
    """The UNet's own `forward`, by which a reference unit shows it the reference first: no frames of the clip."""
    with clip.suspended():
        return forward(*args, **kwargs)


def _on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value
