"""Changes to a host's objects that undo themselves."""

from __future__ import annotations

from contextlib import ExitStack


def override(undo: ExitStack, owner, name: str, value) -> None:
    """Sets an attribute of the instance `owner` until `undo` is closed."""
    restore_afterwards(undo, owner, name)
    setattr(owner, name, value)


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
