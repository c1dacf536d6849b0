"""Interpolators: functions that make the picture between two others, offered by packages and by other extensions.

A package offers one as an entry point of the group `zs2.interpolators`, here in its pyproject.toml:

    [project.entry-points."zs2.interpolators"]
    RIFE = "my_package:between"

An extension of the WebUI, which is no package, calls `register("RIFE", between)` when the host's UI or app is ready.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from PIL import Image

from .pictures import by

GROUP = "zs2.interpolators"
MINTERPOLATE = "minterpolate"
"""FFmpeg's, which is always there; it is no function of two pictures, since it looks at more of them."""

Interpolator = Callable[[Image.Image, Image.Image, float], Image.Image]
"""From the RGB picture before, the one after, both of one size, and a time between them, 0 to 1 exclusive, to the RGB
picture of that size at that time."""

_registered: dict[str, Interpolator] = {}


class InterpolatorError(RuntimeError):
    """An interpolator cannot be loaded, failed, or gave something else than a picture of the size."""


def register(name: str, function: Interpolator) -> None:
    """Offers `function` under `name`, in the place of what was registered under it before.

    Raises ValueError for an empty name or that of FFmpeg's, TypeError for what cannot be called.
    """
    if not name or name == MINTERPOLATE:
        raise ValueError(f"an interpolator cannot be registered as {name!r}: give it a name of its own")
    if not callable(function):
        raise TypeError(f"the interpolator {name!r} is a {type(function).__name__}: register a function")
    _registered[name] = function


def names() -> list[str]:
    """What can be chosen: FFmpeg's first. None is loaded for that."""
    return list(dict.fromkeys([MINTERPOLATE, *sorted({*_registered, *_offered()})]))


def loaded(name: str) -> Interpolator:
    """The interpolator, other than FFmpeg's, of that name; what it gives is checked, which raises InterpolatorError.

    Raises ValueError if there is none of that name, InterpolatorError if it cannot be loaded.
    """
    function = _registered.get(name) or _load(name)

    def checked(before: Image.Image, after: Image.Image, time: float) -> Image.Image:
        try:
            picture = function(before.copy(), after.copy(), time)
        except Exception as error:
            raise InterpolatorError(
                f"the interpolator {name!r} failed ({type(error).__name__}: {error}): choose another one, such as "
                f"{MINTERPOLATE}"
            ) from error
        is_picture = isinstance(picture, Image.Image)
        if not is_picture or picture.mode != "RGB" or picture.size != before.size:
            given = f"one of {by(picture.size)} in the mode {picture.mode}" if is_picture else type(picture).__name__
            raise InterpolatorError(
                f"the interpolator {name!r} has to give a PIL image of {by(before.size)} in the mode RGB, and gave "
                f"{given}: choose another one, such as {MINTERPOLATE}"
            )
        return picture

    return checked


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(name: str) -> Interpolator:
    point = _offered().get(name)
    if point is None:
        raise ValueError(f"there is no interpolator {name!r}: choose one of {', '.join(names())}")
    package = f" of the package {point.dist.name}" if point.dist else ""
    try:
        function = point.load()
    except Exception as error:
        raise InterpolatorError(
            f"the interpolator {name!r}{package} cannot be loaded ({type(error).__name__}: {error}): repair or remove "
            f"the package, or choose another one, such as {MINTERPOLATE}"
        ) from error
    if not callable(function):
        raise InterpolatorError(
            f"the interpolator {name!r}{package} is a {type(function).__name__} and no function: choose another one, "
            f"such as {MINTERPOLATE}"
        )
    return function
