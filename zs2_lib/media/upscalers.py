"""Larger pictures: how large, as the WebUI counts it, and the upscalers that need no model."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

STEP = 8
"""Pixels: sizes are cut to multiples of it."""
Size = tuple[int, int]
"""Width and height in pixels."""
Upscale = Callable[[Image.Image, Size], Image.Image]
"""Makes an RGB picture of that size."""


def large_size(size: Size, scale: float) -> Size:
    """`scale` times as wide and high, cut to multiples of `STEP`."""
    width, height = (int(side * scale // STEP) * STEP for side in size)
    return width, height


def _lanczos(picture: Image.Image, size: Size) -> Image.Image:
    return picture.resize(size, Image.Resampling.LANCZOS)


def _nearest(picture: Image.Image, size: Size) -> Image.Image:
    return picture.resize(size, Image.Resampling.NEAREST)


BY_RESIZING: dict[str, Upscale] = {"Lanczos": _lanczos, "Nearest": _nearest}
"""By the WebUI's names."""
