"""Upscaler models, such as ESRGAN, which the package `spandrel` recognises.

Nothing is downloaded, and nothing unpickled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from .checkpoints import ModelError

TILE, MARGIN = 256, 32
"""Pixels: a picture is made larger tile by tile, and what is at most so near to a tile is seen with it."""
ROUNDS = 3
"""How often a model is used at most to reach a size, as in the WebUI."""


@functools.lru_cache(maxsize=1)
def load_upscaler(file: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ModelUpscaler:
    """Opens a `.safetensors` file. By default it computes on a CUDA GPU in float16 if there is one, else on the CPU in
    float32; a model that cannot compute in `dtype` does so in float32. Raises ModelError.
    """
    try:
        import spandrel  # which takes a second
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision that is for another torch
        raise ModelError(
            f"upscaler: spandrel cannot be used ({error}); install it anew, with the torchvision of this torch"
        ) from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    what = f"upscaler: {file!r}"
    if Path(file).suffix != ".safetensors":
        raise ModelError(
            f"{what} is no .safetensors file (others, such as .pth, can run code when they are opened); convert it"
        )
    try:
        model = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(load_file(file)))
    except spandrel.UnsupportedModelError:
        raise ModelError(f"{what} is no model that spandrel knows; choose another upscaler") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"{what} cannot be loaded ({reason}); copy it again, or choose another upscaler") from error
    channels = model.input_channels, model.output_channels
    if not isinstance(model, spandrel.ImageModelDescriptor) or channels != (3, 3):
        raise ModelError(
            f"{what} is a model for {model.purpose} that takes {channels[0]} channels and gives {channels[1]}; choose "
            "an upscaler of RGB pictures"
        )
    able = {torch.float16: model.supports_half, torch.bfloat16: model.supports_bfloat16}
    return ModelUpscaler(model.to(device, dtype if able.get(dtype, True) else torch.float32).eval())


class ModelUpscaler:
    """Makes pictures larger with a `model` of spandrel, in the memory of a tile and of the picture."""

    def __init__(self, model):
        from spandrel import ModelTiling

        self.model = model
        self.tile = TILE if model.tiling == ModelTiling.SUPPORTED else None
        """Pixels; None for a model that needs to see all of the picture."""

    def __call__(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The RGB picture in that size: larger by the model as often as needed, then resized, as in the WebUI."""
        for _ in range(ROUNDS):
            before = picture.size
            picture = self.larger(picture)
            if picture.size == before or all(side >= wanted for side, wanted in zip(picture.size, size)):
                break
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)

    def larger(self, picture: Image.Image) -> Image.Image:
        """The RGB picture, larger by the factor of the model."""
        model, scale = self.model, self.model.scale
        rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        height, width = rgb.shape[2:]
        large = np.empty((height * scale, width * scale, 3), np.uint8)
        for top, bottom, above, below in self._tiles(height):
            for left, right, before, after in self._tiles(width):
                seen = rgb[..., above:below, before:after].to(model.device).to(model.dtype) / 255
                part = model(seen)[0, :, (top - above) * scale :, (left - before) * scale :]
                part = part[:, : (bottom - top) * scale, : (right - left) * scale].float()
                part = (part * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
                large[top * scale : bottom * scale, left * scale : right * scale] = part
        return Image.fromarray(large)

    def _tiles(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """(begin, end, begin of what is seen, its end) of each tile along a side, in pixels."""
        tile = self.tile or length
        for begin in range(0, length, tile):
            end = min(begin + tile, length)
            yield begin, end, max(begin - MARGIN, 0), min(end + MARGIN, length)
