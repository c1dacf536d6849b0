"""What a sampling with anchors costs, in operations counted at the real shapes of SD 1.5 and SDXL."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zs2_lib.core.anchor_rows import AnchorRows, Rule, phase_of
from zs2_lib.core.blocks import DEPTHS
from zs2_lib.core.clip import Clip
from zs2_lib.core.rows import Rows

from . import unets

STRIDES = (2, 4, 8)
SHAPES = {"sd1": 64, "sdxl": 128}
"""Sides of the latents, for 512×512 and 1024×1024 pixels."""
FRAMES = 8
MOMENTUM = 0.98
SAMPLERS = {
    "DDIM": (DDIMScheduler, {}),
    "DPM++ 2M Karras": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
"""Stable Diffusion's."""


def scheduler(sampler: str, config: Mapping = NOISE):
    """A sampler of `diffusers`, for a checkpoint whose scheduler has the `config`."""
    made, options = SAMPLERS[sampler]
    return made.from_config(dict(config), **options)


def operations(model: str, side: int | None = None, frames: int = FRAMES) -> list[dict]:
    """Multiplications and additions of a UNet call with guidance after the steps in full; `ratio`: to the plain batch.

    Nothing is computed: torch's fake tensors have shapes alone.
    """
    side = side or SHAPES[model]
    with FakeTensorMode():
        unet = unets.unet(model)
        arguments = unets.inputs(unet, 2 * frames, side)
        plain = _count(unet, arguments, frames, 1, "medium")
        variants = [(stride, depth) for depth in DEPTHS for stride in STRIDES]
        counted = [(stride, depth, _count(unet, arguments, frames, stride, depth)) for stride, depth in variants]
    shape = {"model": model, "pixels": 8 * side, "frames": frames}
    return [
        {**shape, "stride": stride, "depth": depth, "operations": count, "ratio": count / plain}
        for stride, depth, count in counted
    ]


def _count(unet, arguments, frames: int, stride: int, depth: str) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the CPU's own kernel is not counted
        step(unet, arguments, frames, stride, depth)
    return counter.get_total_flops()


@torch.no_grad()
def step(unet, arguments: tuple[tuple, dict], frames: int, stride: int, depth: str) -> torch.Tensor:
    """One UNet call of a clip, with guidance; with stride 1, the plain batch without momentum."""
    args, kwargs = arguments
    rows = Rows.blocks(frames, 2)
    momentum = [MOMENTUM if stride > 1 else 0.0] * frames
    with Clip(momentum, anchor_stride=stride, anchor_depth=depth, frames_per_pass=frames) as clip:
        clip.attach(unet)
        clip.anchors.kept.known[None] = 0  # a step after the first, which computes all frames
        clip.begin_step(1)
        return clip.call(lambda *args, **kwargs: unet(*args, **kwargs).sample, rows, *args, **kwargs)


def cost(
    counted: Sequence[dict],
    steps: int,
    stride: int,
    depth: str,
    start: float = 0.0,
    every: int = 1,
    sampler: str = "DDIM",
    model: str = "sd1",
    frames: int = FRAMES,
) -> float:
    """The operations of a sampling, in steps of the plain batch, from the rows of `operations`; the deep output serves
    for `every` steps.
    """

    def share(stride: int, phase: int) -> float:  # of the frames that are anchors
        return len(AnchorRows.of(Rows.blocks(frames, 1), Rule(stride, phase, ends=(frames - 1,))).index) / frames

    row = next(row for row in counted if (row["model"], row["frames"], row["depth"]) == (model, frames, depth))
    deep = (1 - row["ratio"]) / (1 - share(row["stride"], phase_of(1, row["stride"])))
    full = steps_in_full(start, steps, sampler) if stride > 1 else 0
    total = float(full)
    for number in range(full, steps):
        computed = share(stride, phase_of(number, stride)) if stride > 1 else 1.0
        total += 1 - deep + deep * computed * (number % every == 0)
    return total


@functools.cache
def steps_in_full(start: float, steps: int, sampler: str = "DDIM") -> int:
    """How many of a sampler's steps, as Stable Diffusion spaces them, compute all frames in full."""
    sampling = scheduler(sampler)
    sampling.set_timesteps(steps)
    return sum(step == 0 or 1 - float(t) / 1000 < start for step, t in enumerate(sampling.timesteps))
