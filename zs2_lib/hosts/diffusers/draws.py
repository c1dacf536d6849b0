"""What pipelines and schedulers of `diffusers` draw for the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from zs2_lib.core.noise import ClipNoise


class CorrelatedDraws(TorchFunctionMode):
    """Scope in which `torch.randn` for a batch of frames draws the first frame's noise, and `noise` gives the others.

    Every noise that `diffusers` draws goes through `torch.randn` or `torch.randn_like`, whatever the scheduler, so
    nothing of it needs to be replaced. Raises RuntimeError for other random numbers, which could not be correlated.
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

    def __init__(self, noise: ClipNoise):
        super().__init__()
        self.noise = noise
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
        if function in (torch.randn, torch.randn_like):
            if function is torch.randn:
                shape = tuple(kwargs.pop("size", None) or (args if isinstance(args[0], int) else args[0]))
                still = ((1, *shape[1:]),)
            else:
                shape, still = tuple(args[0].shape), (args[0][:1],)
            if len(shape) != 4 or shape[0] != self.noise.frames:
                raise RuntimeError(
                    f"ZS²: noise of shape {shape} is drawn where a clip of {self.noise.frames} frames needs "
                    f"({self.noise.frames}, channels, height, width); use another scheduler, such as DDIMScheduler"
                )
            return self.noise.draw(function(*still, **kwargs))
        if function in self.OTHERS:
            raise RuntimeError(
                f"ZS²: random numbers are drawn by torch's {function.__name__}, which cannot be correlated over "
                "frames; use another scheduler, such as DDIMScheduler"
            )
        return function(*args, **kwargs)
