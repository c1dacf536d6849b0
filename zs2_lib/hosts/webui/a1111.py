"""What AUTOMATIC1111's WebUI (v1.10) answers at the seam."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack

import torch
from modules import prompt_parser, sd_unet, shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import wrap

from .a1111_rows import CallRows, StepRows, text_of
from .draws import brownian, share_first_image, steps_for_first_frame
from .seam import Adapter, Call, Model

UNCONDITIONAL = -1
"""The guidance group of the negative prompt; prompts joined by AND are groups 0, 1, …"""


class A1111(Adapter):
    """For a job `p` of AUTOMATIC1111's WebUI."""

    @classmethod
    def fits(cls, p) -> bool:
        return hasattr(p.sd_model, "alphas_cumprod") and hasattr(p.sd_model, "apply_model")

    def __init__(self, p):
        super().__init__(p)
        self._latents: torch.Tensor | None = None
        self._step: StepRows | None = None
        self._call: CallRows | None = None
        self._tiles = 1  # of the call of the denoiser before

    # --- the UNet ----------------------------------------------------------------------------------------------------

    def refusal(self) -> str | None:
        option = sd_unet.get_unet_option()  # which the host puts in the UNet's place before it samples
        if option is None:
            return None
        return (
            f"ZS² needs the checkpoint's own UNet, but SD Unet is set to {option.label!r}: "
            "set it to None in Settings > Stable Diffusion"
        )

    def model(self) -> Model:
        """The seam lies under `apply_model`, over which other extensions cut what they are given into tiles."""
        wrapper = shared.sd_model.model
        return Model(wrapper, "forward", wrapper.diffusion_model)

    def begin_sampling(self, undo: ExitStack) -> None:
        wrap(undo, self.p.sampler.model_wrap_cfg, "forward", self._denoise)

    def _denoise(self, forward: Callable, x: torch.Tensor, *args, **kwargs):
        """The host's `CFGDenoiser.forward`, a step of the sampler with the frames' latents `x`."""
        self._latents = x
        try:
            return forward(x, *args, **kwargs)
        finally:
            self._latents = self._step = self._call = None

    def begin_step(self, denoiser, undo: ExitStack) -> None:
        self._step = _rows_of_step(denoiser, self._latents)
        wrap(undo, denoiser.inner_model, "forward", self._host_call)

    def _host_call(self, forward: Callable, x: torch.Tensor, sigma: torch.Tensor, *args, **kwargs):
        """The denoiser's call for some rows of the step; it calls the UNet, or other extensions do, tile by tile."""
        if self._step is None:
            return forward(x, sigma, *args, **kwargs)
        before, self._call = self._call, self._step.call(len(x), x, text_of(kwargs.get("cond")))
        try:
            return forward(x, sigma, *args, **kwargs)
        finally:
            self._tiles = max(self._call.tiles, 1)
            self._call = before

    def call(self, x: torch.Tensor, *args, **kwargs) -> Call | None:
        if self._step is None:
            return None
        first = not self._step.begun
        self._step.begun = True
        # without one, another extension has gone past the denoiser, and given the UNet scaled latents
        call = self._call or self._step.call(len(x), None, text_of(kwargs or args[0]))
        start, rows, stop = call.done(self._tiles), call.take(len(x)), call.done(self._tiles)
        tile = self._latents is not None and x.shape[-2:] != self._latents.shape[-2:]
        return Call(rows, start, stop, first, call.again, tile)

    def time(self, t: torch.Tensor) -> float:
        return 1 - float(t[0]) / len(shared.sd_model.alphas_cumprod)

    def same_tiles(self) -> Callable[[], None]:
        """HyperTile chooses tile sizes at random."""
        hypertile = sys.modules.get("hypertile")
        if hypertile is None:
            return lambda: None
        return functools.partial(hypertile.RNG_INSTANCE.setstate, hypertile.RNG_INSTANCE.getstate())

    # --- the noise ---------------------------------------------------------------------------------------------------

    def share_first_image(self, undo: ExitStack) -> None:
        share_first_image(self.p, undo)

    def correlate_own_draws(self, clip: Clip, undo: ExitStack) -> None:
        sampler = self.p.sampler
        wrap(undo, sampler, "create_noise_sampler", functools.partial(brownian, clip))
        if sampler.funcname == "sample_dpm_adaptive":
            wrap(undo, sampler, "func", steps_for_first_frame)


def _rows_of_step(denoiser, latents: torch.Tensor | None) -> StepRows:
    """The rows of one step in order, as the host's CFGDenoiser.forward lays them out, with the frames' `latents`.

    Each frame's prompts joined by AND one after the other, frame by frame, then the negative prompt's rows; for
    Instruct-Pix2Pix three blocks: prompt, image, neither. The calls may stop before the last block.
    """
    conditions = denoiser.sampler.sampler_extra_args
    prompts = [len(frame) for frame in conditions["cond"].batch]
    frames = range(len(prompts))
    positive = _texts(prompt_parser.reconstruct_multicond_batch(conditions["cond"], denoiser.step)[1])
    negative = _texts(prompt_parser.reconstruct_cond_batch(conditions["uncond"], denoiser.step))
    if shared.sd_model.cond_stage_key == "edit" and denoiser.image_cfg_scale not in (None, 1.0):
        return StepRows(Rows.blocks(len(prompts), 3), latents, [*positive, *negative, *negative])
    conditional = [(frame, group) for frame in frames for group in range(prompts[frame])]
    rows = conditional + [(frame, UNCONDITIONAL) for frame in frames]
    return StepRows(Rows(*(tuple(column) for column in zip(*rows))), latents, [*positive, *negative])


def _texts(conditions) -> torch.Tensor:
    """The rows' texts (rows, tokens, channels)."""
    return conditions["crossattn"] if isinstance(conditions, dict) else conditions
