"""What the units of the extension sd-webui-controlnet (v1.1.455) show in each pass of a UNet call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from modules import devices

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.hosts.undo import override, wrap

from .a1111_units import Unit
from .edit import same_draws


class UnitPasses:
    """The `units` that `script` has set up for the job `p`, while a clip is sampled."""

    def __init__(self, p, script, units: list[Unit]):
        self.p, self.script, self.units = p, script, units
        self._now: Pass | None = None
        self._draws: list[torch.Tensor] = []
        self._next_draw = 0

    @property
    def network(self):
        """The extension's hook on the UNet."""
        return self.script.latest_network

    def begin(self, undo: ExitStack, clip: Clip) -> None:
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
