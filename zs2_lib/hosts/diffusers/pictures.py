"""From latents to pictures and back, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image

from .checkpoints import is_sdxl


def decode_frames(pipe, latents: torch.Tensor) -> Iterator[Image.Image]:
    """The images of `latents` (frames, channels, height, width), each decoded by itself, as the pipeline would."""
    try:
        for frame in latents.split(1):
            yield decode(pipe, frame)
    finally:
        pipe.maybe_free_model_hooks()


@torch.no_grad()
def decode(pipe, latents: torch.Tensor) -> Image.Image:
    """One image of `latents` (1, channels, height, width): the last part of the pipelines' `__call__`."""
    vae, denormalize = pipe.vae, None
    if not is_sdxl(pipe):
        image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        image, unsafe = pipe.run_safety_checker(image, image.device, latents.dtype)
        denormalize = [not found for found in unsafe] if unsafe is not None else None
        return pipe.image_processor.postprocess(image, output_type="pil", do_denormalize=denormalize)[0]

    with _without_overflow(vae):
        latents = latents.to(vae.dtype)
        if (of_vae := _mean_and_std(vae, latents)) is not None:
            mean, std = of_vae
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        image = vae.decode(latents, return_dict=False)[0]
    if pipe.watermark is not None:
        image = pipe.watermark.apply_watermark(image)
    return pipe.image_processor.postprocess(image, output_type="pil")[0]


@torch.no_grad()
def encode(pipe, picture: Image.Image) -> torch.Tensor:
    """The latents (1, channels, height / 8, width / 8) of a picture: the mean of what the VAE would draw."""
    vae, dtype = pipe.vae, pipe.unet.dtype
    image = pipe.image_processor.preprocess(picture)
    with _without_overflow(vae, is_sdxl(pipe)):
        latents = retrieve_latents(vae.encode(image.to(pipe._execution_device, vae.dtype)), sample_mode="argmax")
        if is_sdxl(pipe) and (of_vae := _mean_and_std(vae, latents)) is not None:
            mean, std = of_vae
            latents = (latents - mean) / std
        return (latents * vae.config.scaling_factor).to(dtype)


@contextmanager
def _without_overflow(vae, of_sdxl: bool = True) -> Iterator[None]:
    """Scope in which SDXL's own VAE, which overflows in float16, computes in float32."""
    if not (of_sdxl and vae.dtype == torch.float16 and vae.config.force_upcast):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)


def _mean_and_std(vae, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Those of the latents (1, channels, 1, 1), of a VAE that says them."""
    if vae.config.latents_mean is None or vae.config.latents_std is None:
        return None
    mean, std = (torch.tensor(each) for each in (vae.config.latents_mean, vae.config.latents_std))
    return mean.view(1, -1, 1, 1).to(latents), std.view(1, -1, 1, 1).to(latents)
