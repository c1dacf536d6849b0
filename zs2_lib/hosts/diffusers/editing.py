"""Clips made of pictures by the pipelines of `diffusers`: img2img, inpainting and Instruct-Pix2Pix.

The pipelines prepare the pictures of a segment's frames as they do those of a batch of stills. What the VAE draws for
them is the same for each frame, as if each were alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from zs2_lib.settings.table import Settings

from .checkpoints import follows_picture, takes_masks

STRENGTH, IMAGE_GUIDANCE = 0.75, 1.5
"""The WebUI's defaults."""
MOST_PIXELS = 128 * 512 * 512
"""Of the pictures of one segment, which the pipelines hold several times, 12 bytes for each pixel."""


@dataclass(frozen=True)
class Editing:
    """What the frames of a clip are made of.

    pictures: gives those of some frames (counted from 0), RGB, all of `size`: width and height in pixels, multiples
        of 8.
    masks: the same, grey, white where the picture is made anew; None: all of it is.
    strength: how much of the way from noise to picture is sampled, from 0 to 1; None for `STRENGTH`.
    image_guidance: how closely Instruct-Pix2Pix follows the picture, 1 or more; None for `IMAGE_GUIDANCE`.
    """

    pictures: Callable[[range], list[Image.Image]]
    size: tuple[int, int]
    masks: Callable[[range], list[Image.Image]] | None = None
    strength: float | None = None
    image_guidance: float | None = None

    def pipeline(self, pipe):
        """The pipeline that makes such frames, with the components of `pipe`, which may make images from text or be
        one for inpainting or Instruct-Pix2Pix. Raises ValueError for what that cannot do.
        """
        self.check(pipe)
        if follows_picture(pipe):
            return pipe
        if self.masks is not None or takes_masks(pipe):
            return _as_it_was(AutoPipelineForInpainting.from_pipe(pipe), pipe)
        return _as_it_was(AutoPipelineForImage2Image.from_pipe(pipe), pipe)

    def check(self, pipe) -> None:
        """Raises ValueError for a pipeline, or one that it becomes, whose checkpoint cannot do what is asked for."""
        if not follows_picture(pipe):
            if self.image_guidance is not None:
                raise ValueError(
                    "image cfg: it is for Instruct-Pix2Pix checkpoints, and this is none; leave it out, or choose one"
                )
            return
        for name, value in (("mask", self.masks), ("strength", self.strength)):
            if value is not None:
                raise ValueError(
                    f"{name}: an Instruct-Pix2Pix checkpoint takes none, it begins with noise alone and changes "
                    "what the prompt says; leave it out, or choose another checkpoint"
                )

    def arguments(self, pipe, frames: range) -> dict:
        """The arguments with which `pipe`, of `pipeline`, makes these frames."""
        arguments = {"image": self.pictures(frames)}
        if follows_picture(pipe):
            return arguments | {"image_guidance_scale": self.image_guidance or IMAGE_GUIDANCE}
        arguments["strength"] = STRENGTH if self.strength is None else self.strength
        if takes_masks(pipe):
            white = [Image.new("L", self.size, 255)] * len(frames)
            arguments |= {"mask_image": self.masks(frames) if self.masks else white}
            arguments |= dict(zip(("width", "height"), self.size))
        return arguments

    def texts(self, pipe) -> dict[str, str]:
        """What is said of them in an infotext, by the WebUI's keys."""
        if follows_picture(pipe):
            return {"Image CFG scale": f"{self.image_guidance or IMAGE_GUIDANCE:g}"}
        return {"Denoising strength": f"{STRENGTH if self.strength is None else self.strength:g}"}

    def segment(self, settings: Settings) -> int | None:
        """The most frames to sample at once, a multiple of the in-betweens; None: all of them, as a loop needs it."""
        if settings.segment is None:
            return None
        kept = max(1, MOST_PIXELS // (self.size[0] * self.size[1] * settings.in_betweens))
        return min(settings.segment, kept * settings.in_betweens)


def check_without_pictures(pipe) -> None:
    """Raises ValueError for a pipeline whose checkpoint makes nothing of text alone."""
    channels, of_latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels != of_latents:
        what = "an Instruct-Pix2Pix checkpoint" if follows_picture(pipe) else "a checkpoint for inpainting"
        raise ValueError(
            f"model: it is {what}, whose UNet takes {channels} channels, not the {of_latents} of the latents alone; "
            "give a source video or an image to edit, or choose a checkpoint that makes images from text"
        )


def _as_it_was(made, pipe):
    """`made` of `pipe`, with what `diffusers` leaves behind."""
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


# --- what the VAE draws --------------------------------------------------------------------------------


class Alike(DiagonalGaussianDistribution):
    """What the VAE makes of a batch of pictures: a sample is drawn once for all of them, so that none flickers.

    drawing(function): calls a function that draws, whose noise is not one of the clip's.
    """

    def __init__(self, parameters: torch.Tensor, drawing: Callable):
        super().__init__(parameters)
        self.drawing = drawing

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """(pictures, channels, height / 8, width / 8); with the numbers that a still has of this generator."""
        like = {"device": self.parameters.device, "dtype": torch.float32}  # see CorrelatedDraws
        noise = self.drawing(lambda: randn_tensor(self.mean[:1].shape, generator=generator, **like))
        return self.mean + self.std * noise.to(self.mean.dtype)


def encode_one_by_one(encode: Callable, drawing: Callable) -> Callable:
    """The VAE's `encode` for pictures (pictures, 3, height, width) in the memory of one, and its draws alike."""

    @functools.wraps(encode)
    def encode_each(pictures: torch.Tensor):
        parts = [encode(picture) for picture in pictures.split(1)]
        if "latent_dist" not in parts[0]:  # a VAE that draws nothing
            return type(parts[0])(torch.cat([part.latents for part in parts]))
        parameters = torch.cat([part.latent_dist.parameters for part in parts])
        return AutoencoderKLOutput(latent_dist=Alike(parameters, drawing))

    return encode_each
