"""What AUTOMATIC1111's WebUI (v1.10) answers at the seam."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack

import torch
from modules import sd_unet, shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import another_extension
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import wrap

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
        self._rows: Rows | None = None
        self._next_row = 0

    # --- the UNet ----------------------------------------------------------------------------------------------------

    def refusal(self) -> str | None:
        if sd_unet.current_unet is None:
            return None
        return (
            f"ZS² needs the checkpoint's own UNet, but SD Unet is set to {sd_unet.current_unet.option.label!r}: "
            "set it to None in Settings > Stable Diffusion"
        )

    def model(self) -> Model:
        return Model(shared.sd_model, shared.sd_model.model.diffusion_model)

    def begin_step(self, denoiser) -> None:
        self._rows, self._next_row = _rows_of_step(denoiser), 0

    def call(self, x: torch.Tensor, kwargs: dict) -> Call:
        """The host cuts the rows of a step into calls, in order; a call may end in the middle of a guidance group."""
        start, stop, total = self._next_row, self._next_row + len(x), len(self._rows)
        if stop > total:
            raise RuntimeError(
                f"ZS²: a step of {total} rows calls the UNet for {stop}; "
                + another_extension("changes the UNet's batch")
            )
        self._next_row = stop
        return Call(self._rows.take(range(start, stop)), start / total, stop / total)

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


def _rows_of_step(denoiser) -> Rows:
    """The rows of all UNet calls of one step, in order, as the host's CFGDenoiser.forward lays them out.

    Each frame's prompts joined by AND one after the other, frame by frame, then the negative prompt's rows; for
    Instruct-Pix2Pix three blocks: prompt, image, neither. The calls may stop before the last block.
    """
    prompts = [len(frame) for frame in denoiser.sampler.sampler_extra_args["cond"].batch]
    frames = range(len(prompts))
    edits = shared.sd_model.cond_stage_key == "edit" and denoiser.image_cfg_scale not in (None, 1.0)
    if edits:
        return Rows.blocks(len(prompts), 3)
    conditional = [(frame, group) for frame in frames for group in range(prompts[frame])]
    rows = conditional + [(frame, UNCONDITIONAL) for frame in frames]
    return Rows(*(tuple(column) for column in zip(*rows)))
