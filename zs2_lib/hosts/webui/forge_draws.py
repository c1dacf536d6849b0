"""What samplers and guidance of the Forge family draw without asking `p.rng`: correlated over the frames of a clip."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace

import torch
from modules import sd_samplers_cfg_denoiser

from zs2_lib.core.clip import Clip
from zs2_lib.hosts.undo import override, wrap

from .draws import brownian

GUIDANCE = (
    "conditioning_modifiers", "sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function"
)  # fmt: skip
"""Where a model's options have functions, each alone or in a list, that change what the denoiser gives."""


def correlate_own_draws(sampler, clip: Clip, undo: ExitStack) -> None:
    """Correlates the noise of a host's `sampler`, and that of what a mask keeps, which the denoiser draws in each step.

    The host gives some of the modules of samplers, not all, a `torch` that asks `p.rng`, in `initialize`.
    """

    def initialize(original: Callable, *args, **kwargs):
        result = original(*args, **kwargs)
        for module in dict.fromkeys(_modules(sampler.func)):
            _correlate_module(module, clip, undo)
        if sampler.funcname == "sample_dpm_adaptive":  # step sizes by the error of frame 1, not by that of the batch
            norm = SimpleNamespace(norm=lambda error: torch.linalg.norm(error[:1]) * len(error) ** 0.5)
            next(_modules(sampler.func)).torch.linalg = norm
        return result

    wrap(undo, sampler, "create_noise_sampler", functools.partial(brownian, clip))
    wrap(undo, sampler, "initialize", initialize)
    _correlate_module(sd_samplers_cfg_denoiser, clip, undo)


def correlate_guidance(options: dict, clip: Clip, undo: ExitStack) -> None:
    """Correlates what functions in a model's `options` draw, which extensions put there."""
    for name in GUIDANCE:
        functions = options.get(name) or ()
        for function in functions if isinstance(functions, (list, tuple)) else (functions,):
            names = getattr(inspect.unwrap(function), "__globals__", {})  # of a script, which is no module to import
            if names.get("torch") is torch:
                names["torch"] = ClipTorch(clip)
                undo.callback(names.update, torch=torch)


def _modules(sample: Callable) -> Iterator[ModuleType]:
    """The modules whose `torch` the function of a sampler draws with: its own, and that of its default noise."""
    module = sys.modules[inspect.unwrap(sample).__module__]
    yield module
    if default := vars(module).get("default_noise_sampler"):
        yield sys.modules[default.__module__]


def _correlate_module(module: ModuleType, clip: Clip, undo: ExitStack) -> None:
    drawn_with = vars(module).get("torch")
    if drawn_with is not None and not isinstance(drawn_with, ClipTorch):
        override(undo, module, "torch", ClipTorch(clip, drawn_with))
    if "BrownianTreeNoiseSampler" in vars(module) and drawn_with is not vars(module)["torch"]:
        wrap(undo, module, "BrownianTreeNoiseSampler", functools.partial(_brownian_tree, clip))


class ClipTorch:
    """A sampler's `torch`, the module or what the host has put in its place, for the frames of a clip.

    The noise of frame 1 is drawn as for a still, that of the others is correlated with it.
    """

    def __init__(self, clip: Clip, host=torch):
        self._clip, self._host = clip, host

    def __getattr__(self, name: str):
        return getattr(self._host, name)

    def randn_like(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self._host is not torch or len(x) != len(self._clip.frames_now):
            return self._host.randn_like(x, *args, **kwargs)
        return self._clip.noise.draw(torch.randn_like(x[:1], *args, **kwargs))

    def randn(self, *size, **kwargs) -> torch.Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        if len(shape) != 4 or shape[0] != len(self._clip.frames_now):
            return torch.randn(*size, **kwargs)
        return self._clip.noise.draw(torch.randn(1, *shape[1:], **kwargs))


def _brownian_tree(clip: Clip, tree: Callable, x: torch.Tensor, *args, seed=None, **kwargs) -> Callable:
    """The noise sampler that a sampler makes for itself, with a single seed, as one of correlated frames."""
    if isinstance(seed, (list, tuple)):  # the host's, for each frame its own: see `brownian`
        return tree(x, *args, seed=seed, **kwargs)
    first = torch.randint(0, 2**63 - 1, []).item() if seed is None else seed
    seeds = clip.noise.seeds if clip.first else [first, *clip.noise.seeds[1:]]
    own = tree(x, *args, seed=seeds, **kwargs)
    return lambda sigma, sigma_next: clip.noise.mix(own(sigma, sigma_next))
