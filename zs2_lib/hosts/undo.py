"""Changes to a host's objects that undo themselves."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from contextlib import ExitStack

_wrapped: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""The functions that `wrap` made, each with whether it is still at work; then calls pass through to the original."""


def override(undo: ExitStack, owner, name: str, value) -> None:
    """Sets an attribute of the instance `owner`, which holds no function, until `undo` is closed."""
    restore_afterwards(undo, owner, name)
    setattr(owner, name, value)


def wrap(undo: ExitStack, owner, name: str, replacement: Callable) -> None:
    """Puts `replacement(original, *args, **kwargs)` over a method of the instance `owner`, or a function of the module
    or class `owner` or of the dict `owner`, until `undo` is closed.

    Another extension may keep what it finds there, and call it or put it back later: from then on that is the original.
    What another has put over it since stays.
    """
    names = owner if isinstance(owner, dict) else vars(owner)
    before = names.get(name)
    while before in _wrapped and not _wrapped[before]:  # put back by another extension
        before = before.__wrapped__
    original = getattr(owner, name) if before is None else before

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return replacement(original, *args, **kwargs) if _wrapped[wrapped] else original(*args, **kwargs)

    def unwrap() -> None:
        _wrapped[wrapped] = False
        if names.get(name) is not wrapped:
            return
        if before is None or _is_the_class_own(before, owner, name):
            delattr(owner, name)
        elif names is owner:
            owner[name] = before
        else:
            setattr(owner, name, before)

    _wrapped[wrapped] = True
    if names is owner:
        owner[name] = wrapped
    else:
        setattr(owner, name, wrapped)
    undo.callback(unwrap)


def _is_the_class_own(method, owner, name: str) -> bool:
    """Whether what lies on `owner` as `name` is the method that its class has, which another put there."""
    of_class = getattr(type(owner), name, None)
    return inspect.ismethod(method) and inspect.isfunction(of_class) and method == of_class.__get__(owner)


def unwrapped_copy(copy) -> None:
    """Takes what `wrap` put over methods of an instance off its `copy`, where it would act for that instance."""
    for name in [name for name, value in vars(copy).items() if inspect.isfunction(value) and value in _wrapped]:
        delattr(copy, name)


def restore_afterwards(undo: ExitStack, owner, name: str) -> None:
    """Makes `undo` put the attribute `name` of the instance `owner` back to what it is now, also if it has none yet."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(vars(owner).pop, name, None)
