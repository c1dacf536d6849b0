"""The real UNet classes, small and with random weights: `ldm`'s (the WebUI's, for SD 1.x and 2.x) and diffusers'."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn


def ldm_unet(**options) -> nn.Module:
    """Three levels with two resnets each, the last without attention, unless `options` say otherwise."""
    reason = "needs ldm: pip install --no-deps stable-diffusion-sdkit, or a WebUI's own copy on PYTHONPATH"
    UNetModel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason=reason).UNetModel
    blocks = {"model_channels": 32, "channel_mult": (1, 1, 2), "num_res_blocks": 2, "attention_resolutions": (1, 2)}
    attention = {"num_heads": 4, "use_spatial_transformer": True, "context_dim": 24, "legacy": False}
    shape = {"image_size": 8, "in_channels": 4, "out_channels": 4, **blocks, **attention}
    return random_weights(UNetModel(**{**shape, **options}))


def diffusers_unet(**options) -> nn.Module:
    """The same of diffusers."""
    UNet = pytest.importorskip("diffusers", reason="needs diffusers").UNet2DConditionModel
    shape = {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": 24, "attention_head_dim": 4}
    shape |= {"block_out_channels": (32, 32, 64), "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)}
    shape |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2}
    return random_weights(UNet(**{**shape, **options}))


def random_weights(unet: nn.Module) -> nn.Module:
    """Weights under which every block matters: fresh UNets have zeros where its output is added."""
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=generator) / math.sqrt(weight[0].numel())
    return unet.eval().requires_grad_(False)


def hooked(model: nn.Module) -> list[str]:
    """The names of the modules that have hooks."""
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows, frames: int, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, timesteps and text of a call with `rows`: each frame has a noise of its own, each guidance group a prompt."""
    groups = list(dict.fromkeys(rows.groups))
    noise = normals(frames, 4, 8, 8) if noise is None else noise
    text = normals(len(groups), 7, 24, seed=1)
    return (
        noise[list(rows.frames)],
        torch.full((len(rows),), 500),
        text[[groups.index(group) for group in rows.groups]],
    )


def call(unet: nn.Module, *args) -> torch.Tensor:
    """The output of either UNet."""
    output = unet(*args)
    return getattr(output, "sample", output)
