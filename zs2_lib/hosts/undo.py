"""Changes to a host's objects that undo themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack


def override(undo: ExitStack, owner, name: str, value) -> None:
    """Sets an attribute of the instance `owner` until `undo` is closed."""
    restore_afterwards(undo, owner, name)
    setattr(owner, name, value)


def wrap(undo: ExitStack, owner, name: str, replacement: Callable) -> None:
    """Puts `replacement(original, *args, **kwargs)` over a method of the instance `owner` until `undo` is closed.

    Another extension may keep what it finds there, and call it or put it back later: from then on that is the original.
    What another has put over it since stays.
    """
    before, original, within = vars(owner).get(name), getattr(owner, name), True

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return replacement(original, *args, **kwargs) if within else original(*args, **kwargs)

    def unwrap() -> None:
        nonlocal within
        within = False
        if vars(owner).get(name) is not wrapped:
            return
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, wrapped)
    undo.callback(unwrap)


def restore_afterwards(undo: ExitStack, owner, name: str) -> None:
    """Makes `undo` put the attribute `name` of the instance `owner` back to what it is now, also if it has none yet."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(vars(owner).pop, name, None)


def override_item(undo: ExitStack, mapping: dict, key: str, value) -> None:
    """Sets an item, which is there already, of `mapping` until `undo` is closed."""
    undo.callback(mapping.__setitem__, key, mapping[key])
    mapping[key] = value
