"""Code of other extensions on a model's attention: what it does with the batch nobody can know."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from modules import paths_internal

ATTENTION = ("attn1", "attn2")
OURS = Path(__file__).resolve().parents[2]
HOST = tuple(
    Path(paths_internal.script_path).resolve() / name
    for name in ("modules", "extensions-builtin", "backend", "modules_forge", "ldm_patched", "packages_3rdparty")
)
"""The folders of the host's own code, of which A1111 has the first two."""
PACKAGES = ("torch", "ldm", "sgm", "xformers")
"""Whose code a model's attention consists of, beside the host's."""


def on_attention(
    unet: torch.nn.Module, but_for: Path | None = None, patches: Iterable[tuple[Callable, bool]] = ()
) -> Path | None:
    """The file of code that takes part in the attention of `unet` and may count on all rows; None if there is none.

    It is other extensions', lies over `forward`, of one instance or of its class, is a hook, or one of the `patches`
    that came with a call; of these, the host's own as well if they may keep what they see. The code in the folder
    `but_for` may.
    """
    for function, keeps in chain(((function, False) for function in _attention(unet)), patches):
        file = _file_of(function)
        if file and (keeps or not is_known(file)) and not (but_for and file.is_relative_to(but_for)):
            return file
    return None


@functools.cache
def is_known(file: Path) -> bool:
    """Whether a file of code is the host's, of the packages that attention is made of, or ZS²'s own."""
    packages = (Path(path) for name in PACKAGES for path in getattr(sys.modules.get(name), "__path__", ()))
    return any(file.is_relative_to(folder) for folder in (OURS, *HOST, *(path.resolve() for path in packages)))


def _attention(unet: torch.nn.Module) -> Iterator[Callable]:
    """The functions that make up the self- and cross-attention of `unet`, hooks among them."""
    for name, module in unet.named_modules():
        parts = name.split(".")
        if any(part in ATTENTION for part in parts) or any(hasattr(module, part) for part in ATTENTION):
            yield module.forward
            yield getattr(module, "_forward", module.forward)
            yield from module._forward_hooks.values()
            yield from module._forward_pre_hooks.values()


def _file_of(function: Callable) -> Path | None:
    """Where a function's code lies, also under a partial, a method or an object that is called."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    if not inspect.isfunction(function):
        function = vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    return None if code is None or code.co_filename.startswith("<") else _resolved(code.co_filename)


@functools.cache
def _resolved(file: str) -> Path:
    return Path(file).resolve()
