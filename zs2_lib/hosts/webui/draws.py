"""What is drawn in a WebUI without asking `p.rng`: made alike for, or correlated over, the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import k_diffusion.sampling
import torch

from zs2_lib.core.clip import Clip
from zs2_lib.hosts.undo import wrap


def share_first_image(p, undo: ExitStack) -> None:
    """Gives all frames the init image and the image condition of the first, which the VAE draws noise for."""
    if len(getattr(p, "init_images", None) or []) == 1:
        for latents in (p.init_latent, p.image_conditioning):
            if latents is not None:
                latents[1:] = latents[:1]

    def of_first_frame(image_conditioning, x, *args, **kwargs):
        first = image_conditioning(x[:1], *args, **kwargs)
        return None if first is None else first.expand(x.shape[0], *first.shape[1:]).clone()

    wrap(undo, p, "txt2img_image_conditioning", of_first_frame)


def brownian(clip: Clip, create_noise_sampler: Callable, x: torch.Tensor, sigmas: torch.Tensor, p) -> Callable:
    """The host's noise sampler for SDE samplers with each frame's own Brownian motion, correlated."""
    seeds = list(clip.noise.seeds)
    batch = SimpleNamespace(all_seeds=seeds, iteration=0, batch_size=len(seeds))
    brownian = create_noise_sampler(x, sigmas, batch)
    if brownian is None:  # the option "Do not make DPM++ SDE deterministic": k-diffusion draws the still's seed
        still = torch.randint(0, 2**63 - 1, []).item()
        seeds[:1] = seeds[:1] if clip.first else [still]
        lowest, highest = sigmas[sigmas > 0].min(), sigmas.max()
        brownian = k_diffusion.sampling.BrownianTreeNoiseSampler(x, lowest, highest, seed=seeds)
    return lambda sigma, sigma_next: clip.noise.mix(brownian(sigma, sigma_next))


def steps_for_first_frame(sample_dpm_adaptive: Callable, model, x: torch.Tensor, *args, **kwargs):
    """DPM adaptive with its step sizes chosen by frame 1, as for the still, not by the error of the whole batch."""
    hijacked_torch = k_diffusion.sampling.torch  # the host's, made anew for each sampling
    frames = x.shape[0]
    hijacked_torch.linalg = SimpleNamespace(norm=lambda error: torch.linalg.norm(error[:1]) * frames**0.5)
    try:
        return sample_dpm_adaptive(model, x, *args, **kwargs)
    finally:
        del hijacked_torch.linalg
