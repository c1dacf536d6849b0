"""A clip on a GPU, in the precisions that hosts have there, against the same in float32 on the CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from unet_classes import call, diffusers_unet, inputs, ldm_unet, normals
from zs2_lib.core import kept
from zs2_lib.core.clip import Clip
from zs2_lib.core.noise import ClipNoise
from zs2_lib.core.rows import Rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

FRAMES, STEPS = 12, 4
MOMENTUM = [0.98] * FRAMES
ROWS = Rows.blocks(FRAMES, 2)
HALF, FULL = torch.float16, torch.float32
KINDS = {
    "ldm": (ldm_unet, FULL, None),
    "ldm, autocast": (ldm_unet, FULL, HALF),
    "diffusers": (diffusers_unet, FULL, None),
    "diffusers, float16": (diffusers_unet, HALF, None),
    "diffusers, bfloat16": (diffusers_unet, torch.bfloat16, None),
    "diffusers, autocast": (diffusers_unet, FULL, HALF),
    "diffusers, float16, autocast": (diffusers_unet, HALF, HALF),
}
"""A UNet, the precision of its weights, and that of `torch.autocast`."""
kinds = pytest.mark.parametrize("kind", KINDS)
strides = pytest.mark.parametrize("stride", [1, 4])


def on_cpu(kind: str) -> nn.Module:
    torch.manual_seed(0)  # for what `unet_classes` leaves as it is
    return KINDS[kind][0]()


@contextlib.contextmanager
def on_gpu(kind: str) -> Iterator[nn.Module]:
    """`on_cpu(kind)` in the precision of its kind."""
    _, dtype, autocast = KINDS[kind]
    with torch.autocast("cuda", autocast) if autocast else contextlib.nullcontext():
        yield on_cpu(kind).to("cuda", dtype)


def frames_of(unet: nn.Module, step: int, frames: range, rows: Rows) -> tuple:
    """The arguments of a call."""
    like = next(unet.parameters())
    noise = 0.3 * normals(FRAMES, 4, 8, 8, seed=step).cumsum(0)[list(frames)]
    x, t, text = inputs(rows, len(frames), noise)
    return x.to(like), t.to(like.device), text.to(like)


def steps(unet: nn.Module, stride: int, per_pass: int = FRAMES, segment: int | None = None, waits: bool = True):
    """What the UNet gives for a clip at each step (steps, rows, …), on the CPU in float32.

    Unless it `waits`, it is an error if the CPU waits for the GPU in a step after the first two, in which comes to the
    GPU what all share.
    """
    found: list[list[torch.Tensor]] = [[] for _ in range(STEPS)]
    with Clip(MOMENTUM, anchor_stride=stride, frames_per_pass=per_pass, segment=segment) as clip:
        clip.attach(unet)
        for frames in clip.segments:
            clip.begin_segment(frames)
            rows = Rows.blocks(len(frames), 2)
            for step in range(STEPS):
                arguments = frames_of(unet, step, frames, rows)
                torch.cuda.set_sync_debug_mode("default" if waits or step < 2 else "error")
                try:
                    clip.begin_step(step)
                    result = clip.call(functools.partial(call, unet), rows, *arguments)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                found[step].append(result.float().cpu().unflatten(0, (2, len(frames))))
    return torch.stack([torch.cat(each, 1).flatten(0, 1) for each in found])


def plain(unet: nn.Module) -> torch.Tensor:
    """The same without ZS²."""
    arguments = (frames_of(unet, step, range(FRAMES), ROWS) for step in range(STEPS))
    return torch.stack([call(unet, *each).float().cpu() for each in arguments])


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())


@kinds
@strides
@pytest.mark.parametrize("per_pass", [5, FRAMES])
def test_error_is_that_of_the_precision(kind, stride, per_pass):
    exact = on_cpu(kind)
    with on_gpu(kind) as unet:
        found, of_plain = error(steps(unet, stride, per_pass), steps(exact, stride)), error(plain(unet), plain(exact))
    print(f"error {found:.2e}, of the plain batch {of_plain:.2e}")
    assert found <= 1.5 * of_plain


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("ldm")])  # which waits by itself
@strides
@pytest.mark.parametrize("share", [kept.SHARE, 0], ids=["kept on the GPU", "kept beside it"])
def test_no_step_waits(monkeypatch, kind, stride, share):
    monkeypatch.setattr(kept, "SHARE", share)
    with on_gpu(kind) as unet:
        assert torch.equal(steps(unet, stride, 5, waits=False), steps(unet, stride, 5))


@kinds
def test_segments_are_one_batch(kind):
    with on_gpu(kind) as unet:
        whole, of_plain = steps(unet, 1), error(plain(unet), plain(on_cpu(kind)))
        assert error(steps(unet, 1, segment=5), whole) <= of_plain


@pytest.mark.parametrize("model", ["dependency", "mixed", "progressive", "independent"])
def test_noise_is_that_of_the_cpu(model):
    """All draws after the first are mixed on the device where the host draws."""
    found = {}
    for device in ("cuda", "cpu"):
        noise = ClipNoise(7, [0.9] * FRAMES, [0.5] * FRAMES, model=model)
        drawn = [noise.draw(normals(1, 4, 8, 8, seed=draw).to(device)).cpu() for draw in range(3)]
        drawn.append(noise.mix(normals(FRAMES, 4, 8, 8, seed=9).to(device)).cpu())
        found[device] = drawn
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(*found.values()))
