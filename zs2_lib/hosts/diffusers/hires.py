"""The WebUI's hires. fix: the frames of a clip made larger, and sampled a second time from a part of their noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

from .pictures import decode_frames, encode

LATENT = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (nearest-exact)": {"mode": "nearest-exact"},
}
"""The WebUI's upscalers that need no pictures: how torch's `interpolate` makes latents larger."""
DENOISING = 0.7
"""The WebUI's default."""
STEP = 8
"""Pixels that widths and heights are multiples of."""
Size = tuple[int, int]
"""Width and height in pixels."""
Upscale = Callable[[Image.Image, Size], Image.Image]
"""Makes a picture of that size."""


@dataclass(frozen=True)
class Hires:
    """How the frames of a clip are made larger, and what of the first pass is not the same in the second one.

    scale: how many times as wide and high they become, down to multiples of 8 pixels.
    resize: in its place the size, of which one side may be 0, which leaves it to the other; with both the frames fill
        it, and what is beyond is cut off.
    upscaler: one of `LATENT`, or a function that makes pictures larger: then frames are decoded and encoded again.
    steps: of the second pass, all of which are sampled; 0: as many as in the first.
    denoising: how much of the way from noise to picture they go, more than 0 and up to 1.
    guidance, prompt, negative: None for those of the first pass.
    scheduler: an object of `diffusers`; None for the pipeline's.
    """

    scale: float = 2.0
    resize: Size | None = None
    upscaler: str | Upscale = "Latent"
    steps: int = 0
    denoising: float = DENOISING
    guidance: float | None = None
    prompt: str | None = None
    negative: str | None = None
    scheduler: object | None = None

    def sizes(self, first: Size) -> tuple[Size, Size]:
        """(the size that frames of the size `first` are made larger to, the size that they are cut to then)."""
        if self.resize is None:
            large = tuple(int(side * self.scale) for side in first)
            return _down(large), _down(large)
        width, height = self.resize
        by_width = width, width * first[1] // first[0]
        by_height = height * first[0] // first[1], height
        if not width or not height:
            large = by_width if width else by_height
            return _down(large), _down(large)
        large = by_width if first[0] / first[1] < width / height else by_height
        return _down(large), _down(self.resize)

    def pipeline(self, pipe):
        """The pipeline of the second pass, with the components of `pipe`."""
        second = AutoPipelineForImage2Image.from_pipe(pipe)
        second.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
        if self.scheduler is not None:
            second.scheduler = self.scheduler
        return second

    def arguments(self, steps: int, guidance: float) -> dict:
        """Those of the second pass's pipeline, after a first pass of so many `steps` with that `guidance`."""
        count, strength = schedule(self.steps or steps, self.denoising)
        guidance = guidance if self.guidance is None else self.guidance
        arguments = {"num_inference_steps": count, "strength": strength, "guidance_scale": guidance}
        return arguments | ({} if self.negative is None else {"negative_prompt": self.negative})

    def share(self, steps: int, first: Size) -> float:
        """About which part of all work the first pass is."""
        (width, height), _ = self.sizes(first)
        return steps / (steps + (self.steps or steps) * width * height / (first[0] * first[1]))

    def enlarged(self, pipe, latents: torch.Tensor) -> torch.Tensor:
        """The latents (frames, channels, height, width) of the first pass in the size of the second."""
        pixels = pipe.vae_scale_factor
        large, size = self.sizes((latents.shape[3] * pixels, latents.shape[2] * pixels))
        if callable(self.upscaler):
            pictures = (self.upscaler(picture, large) for picture in decode_frames(pipe, latents))
            latents = torch.cat([encode(pipe, picture) for picture in pictures])
        else:
            to = large[1] // pixels, large[0] // pixels
            exact = latents.float()  # torch has not all modes in other types of numbers
            latents = torch.nn.functional.interpolate(exact, size=to, **LATENT[self.upscaler]).to(latents.dtype)
        across, down = ((whole - part) // pixels for whole, part in zip(large, size))
        height, width = latents.shape[2:]
        return latents[:, :, down // 2 : height - (down + 1) // 2, across // 2 : width - (across + 1) // 2]


def schedule(steps: int, denoising: float) -> tuple[int, float]:
    """(`num_inference_steps`, `strength`) with which a pipeline samples so many steps, all of them, over that part of
    the way: as the WebUI counts them.
    """
    count = int(steps / min(denoising, 0.999))
    return count, min((steps + 0.5) / count, 1.0)


def first_size(pipe, width: int | None, height: int | None) -> Size:
    """The size of a first pass that is asked for by these arguments of the pipeline."""
    if width and height:
        return width, height
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return width or own, height or own


def _down(size: Size) -> Size:
    return tuple(side - side % STEP for side in size)
