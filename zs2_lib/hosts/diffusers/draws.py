"""What the sampling of a clip draws in `diffusers`: noise that is correlated over its frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from zs2_lib.core.noise import ClipNoise

from .nvidia_noise import NvidiaNoise

CPU, NVIDIA = SOURCES = ("CPU", "NV")
"""Where the noise of frame 1 can come from, by the WebUI's names. That of the others comes from the CPU everywhere."""


class CorrelatedDraws(TorchFunctionMode):
    """Scope in which `torch.randn` for a batch of frames draws the first frame's noise, and `noise` gives the others.

    Every noise that `diffusers` draws goes through `torch.randn` or `torch.randn_like`, whatever the scheduler, so
    nothing of it needs to be replaced. It is drawn in float32 and rounded to half precision, as the WebUI does: torch
    draws other numbers in half precision, and so a seed would give another picture on a GPU than on a CPU. With
    `nvidia` the first frame's noise is what that draws.

    Raises RuntimeError for other random numbers, which could not be correlated.
    """

    OTHERS = frozenset(
        {
            torch.normal,
            torch.rand,
            torch.rand_like,
            torch.randint,
            torch.randint_like,
            torch.randperm,
            torch.bernoulli,
            torch.multinomial,
            torch.poisson,
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
            torch.Tensor.bernoulli_,
            torch.Tensor.exponential_,
            torch.Tensor.random_,
        }
    )

    def __init__(self, noise: ClipNoise, nvidia: NvidiaNoise | None = None):
        super().__init__()
        self.noise = noise
        self.nvidia = nvidia
        self._apart = False

    def apart(self, function: Callable):
        """`function()`, where what it draws in this scope, which may be left, is no frames' noise."""
        self._apart = True
        try:
            return function()
        finally:
            self._apart = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if self._apart:
            return function(*args, **kwargs)
        if function is torch.randn:
            shape = tuple(kwargs.pop("size", None) or (args if isinstance(args[0], int) else args[0]))
            return self._draw(shape, **kwargs)
        if function is torch.randn_like:
            like = {"dtype": args[0].dtype, "device": args[0].device}
            return self._draw(tuple(args[0].shape), **{**like, **kwargs})
        if function in self.OTHERS:
            raise RuntimeError(
                f"ZS²: random numbers are drawn by torch's {function.__name__}, which cannot be correlated over "
                "frames; use another scheduler, such as DDIMScheduler"
            )
        return function(*args, **kwargs)

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype | None = None, device=None, **kwargs) -> torch.Tensor:
        if len(shape) != 4 or shape[0] != self.noise.frames:
            raise RuntimeError(
                f"ZS²: noise of shape {shape} is drawn where a clip of {self.noise.frames} frames needs "
                f"({self.noise.frames}, channels, height, width); use another scheduler, such as DDIMScheduler"
            )
        dtype = dtype or torch.get_default_dtype()
        drawn = torch.promote_types(dtype, torch.float32)
        if self.nvidia:
            still = self.nvidia.draw((1, *shape[1:])).to(device, drawn)
        else:
            still = torch.randn((1, *shape[1:]), dtype=drawn, device=device, **kwargs)
        return self.noise.draw(still).to(dtype)
