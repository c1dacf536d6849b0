"""What a clip costs, before it is made: how many rows its UNet computes in full, and how many between anchors."""

from __future__ import annotations

from typing import NamedTuple

from zs2_lib.cli_edit import DEFAULT_STRENGTH
from zs2_lib.cli_job import Job
from zs2_lib.hosts.diffusers import hires
from zs2_lib.settings.table import Settings

BETWEEN_OF_FULL = 0.6
"""What a row between anchors takes of one in full, where it was not measured: of SD 1.5, as in the WebUI."""
OWN_SIZE = (512, 512)
"""Pixels that a clip's frames are taken to have where nothing says it."""


class Cost(NamedTuple):
    """Rows of the UNet."""

    full: int
    between: int

    @property
    def rows(self) -> int:
        return self.full + self.between

    @property
    def work(self) -> float:
        """In rows in full."""
        return self.full + BETWEEN_OF_FULL * self.between


def cost(job: Job) -> Cost:
    """That of all steps; of hires. fix the second pass counts as many rows of the first one's size."""
    rows, strength = rows_of_step(job), strength_of(job)
    steps = max(1, int(job.steps * strength))
    full, between = (part * rows for part in _parts(job.settings, steps, strength))
    if job.hires:
        size = job.size if job.size[0] else OWN_SIZE
        second = hires.Hires(job.hires.scale or 1.0, job.hires.resize, steps=job.hires.steps)
        again = steps / second.share(steps, size) - steps
        more = _parts(job.settings, job.hires.steps or steps, job.hires.denoising)
        full, between = (int(now + again * rows * part / sum(more)) for now, part in zip((full, between), more))
    return Cost(full, between)


def _parts(settings: Settings, steps: int, strength: float) -> tuple[int, int]:
    """How many steps are in full, and how many between anchors: the first one is in full, and so are those up to a part
    of the diffusion's time (`core.anchors`), which is taken to go on evenly.
    """
    times = (1 - strength * (1 - step / steps) for step in range(steps))
    full = max(1, sum(time < settings.anchor_start for time in times)) if settings.anchor_stride > 1 else steps
    return full, steps - full


def rows_of_step(job: Job) -> int:
    """Frames × 2 with guidance, 3 with that of Instruct-Pix2Pix."""
    guided = 3 if job.edit and job.edit.image_guidance is not None else 2
    return job.settings.length * (guided if job.cfg > 1 else 1)


def strength_of(job: Job) -> float:
    """Which part of the steps is sampled."""
    if job.edit is None or job.edit.image_guidance is not None:
        return 1.0
    return DEFAULT_STRENGTH if job.edit.strength is None else job.edit.strength
