"""Where a pipeline computes, in which precision, what of it waits in main memory, and what of it is compiled."""

from __future__ import annotations

import re

import torch

from zs2_lib.settings.kinds import Choice, SettingsError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OFFLOADS = ("model", "sequential")
_COMPILED = ("ResnetBlock2D", "FeedForward")
"""Classes of modules inside of which ZS² hooks nothing: most of a UNet's and a VAE's work beside self-attention."""
_SHAPES = 4
"""How many shapes of its rows a module is compiled for at most: passes of several sizes, with anchors, the decoding."""


def read_device(key: str, text: str) -> str | None:
    """The device of that name; None for "auto", which leaves it to `load_pipeline`. Raises SettingsError."""
    if text == "auto":
        return None
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    device = {"cuda": "cuda:0"}.get(text, text)
    if device not in there:
        is_device = re.fullmatch(r"cuda:[0-9]+|mps", device)
        reason = "this machine does not have it, or its torch cannot use it" if is_device else "there is no such device"
        raise SettingsError(f"{key}: {text!r} is not allowed: {reason}; give auto or one of {', '.join(there)}")
    return device


def read_precision(device: str | None, dtype: str | None, offload: str | None, compiled: bool) -> None:
    """Raises SettingsError for values that are not allowed, or not together."""
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    if dtype is not None:
        Choice(tuple(DTYPES)).read("--dtype", dtype)
    if offload is not None:
        Choice(OFFLOADS).read("--offload", offload)
    if dtype == "float16" and on_cpu:
        raise SettingsError(
            "--dtype: float16 is not allowed on a CPU, which has not all of it; give bfloat16 or float32"
        )
    if offload and on_cpu:
        raise SettingsError("--offload: it keeps weights off a GPU, and the clip is sampled on the CPU; leave it out")
    if offload == "sequential" and compiled:
        raise SettingsError("--compile is not allowed with --offload sequential, whose weights come and go; choose one")


def first(device: str | None, dtype: str | None, offload: str | None) -> tuple[str | None, torch.dtype | None]:
    """(device, dtype) that a checkpoint is opened with: in main memory where it is offloaded from a GPU."""
    if not offload:
        return device, DTYPES.get(dtype)
    return "cpu", DTYPES[dtype or "float16"]


def offload(pipe, device: str | None, what: str) -> None:
    """Keeps all but what computes on the device in main memory: all but one model, or all but one layer."""
    if what == "model":
        pipe.enable_model_cpu_offload(device=device or "cuda")
    else:
        pipe.enable_sequential_cpu_offload(device=device or "cuda")


def compile_parts(pipe) -> None:
    """Compiles those modules of UNet and VAE inside of which ZS² hooks nothing; the UNet as a whole cannot be, as the
    keys and values of self-attention change from frame to frame there. Raises ModelError where torch cannot compile.
    """
    from .checkpoints import ModelError  # it imports diffusers, which wrong values need not wait for

    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=pipe.device))
    except Exception as error:  # of whatever kind: a compiler is missing, or does not work
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"--compile: torch.compile does not work on this machine ({reason}); leave it out") from error
    modules = [
        module
        for model in (pipe.unet, pipe.vae)
        for name, module in model.named_modules()
        if type(module).__name__ in _COMPILED or (model is pipe.unet and name.endswith("attn2"))
    ]
    config = torch._dynamo.config
    for limit in ("cache_size_limit", "accumulated_cache_size_limit"):  # the latter not in torch 2.1
        # torch counts all modules of a class as one, and would leave the ninth in another shape as it is
        if hasattr(config, limit):
            setattr(config, limit, max(getattr(config, limit), _SHAPES * len(modules)))
    for module in modules:
        module.forward = torch.compile(module.forward)
