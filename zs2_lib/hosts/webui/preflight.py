"""A preflight: a clip made small and in few steps, with all its other settings and the same seed, for a look at it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from modules import processing, sd_models

from zs2_lib.hosts.undo import override
from zs2_lib.settings.table import Settings

from . import options

LARGER = 2
"""How many times as large the pictures of an SDXL checkpoint are."""
STEP_OF_SIZE = 8
"""Pixels; a host may round further."""
NOTE = (
    "Preflight: {steps} steps, {width}x{height}, seed {seed}; nothing was saved. It shows how the clip moves: at its "
    "own size the same seed gives another picture."
)


def begin(p, settings: Settings, undo: ExitStack, note: Callable[[str], None]) -> Settings:
    """Makes of the job `p` a preflight, until `undo` is closed. Returns the settings for it."""
    width, height = _smaller(p.width, p.height)
    changes = {"steps": min(p.steps, options.value("zs2_preflight_steps"))}
    changes |= {"width": width, "height": height, "n_iter": 1, "do_not_save_samples": True}
    if getattr(p, "enable_hr", False):
        changes["enable_hr"] = False
    if not isinstance(p.seed, list):
        changes["seed"] = int(processing.get_fixed_seed(p.seed))
    for name, value in changes.items():
        override(undo, p, name, value)
    seed = p.seed[0] if isinstance(p.seed, list) else p.seed
    note(NOTE.format(steps=p.steps, width=width, height=height, seed=seed))
    return replace(settings, formats=("mp4",), sidecar=False)


def _smaller(width: int, height: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is short."""
    most = options.value("zs2_preflight_size")
    if getattr(sd_models.model_data.sd_model, "is_sdxl", False):
        most *= LARGER
    factor = min(most / max(width, height), 1)
    return tuple(max(round(side * factor / STEP_OF_SIZE), 1) * STEP_OF_SIZE for side in (width, height))
