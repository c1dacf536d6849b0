"""Which blocks of a UNet are deep."""

from __future__ import annotations

import itertools
import sys

import torch

DEPTHS = ("gentle", "medium", "strong")
"""Where the deep blocks begin: at the second downsampling, at the first, or a block before the first."""


def deep_modules(unet: torch.nn.Module, depth: str) -> list[torch.nn.Module]:
    """The modules of `unet` that are deep, in the order in which it calls them.

    The skip connections of deep blocks end at deep blocks. Works with the UNets of `ldm`, `sgm` and `diffusers`.
    Raises ValueError for a model that is none of them.
    """
    down, middle, up = _blocks(unet)
    cut = _cut(down, depth)
    return [module for block in down[cut:] + middle + up[: len(up) - cut] for module in block]


def deep_control_modules(control: torch.nn.Module, depth: str) -> list[torch.nn.Module]:
    """The same of a ControlNet model (of `sd-webui-controlnet` or `diffusers`), which has the UNet's way down: the deep
    blocks, and the convolutions that make their residuals.
    """
    down, middle, _ = _blocks(control)
    cut = _cut(down, depth)
    if hasattr(control, "input_blocks"):
        residuals, last = control.zero_convs, control.middle_block_out
    else:
        residuals, last = control.controlnet_down_blocks, control.controlnet_mid_block
    return [module for block in down[cut:] + middle for module in block] + list(residuals[cut:]) + [last]


def attention_inputs(unet: torch.nn.Module) -> float:
    """How many values go into the self-attention layers of `unet` for each row and latent position, all layers
    together: what temporal momentum carries from one frame to the next.

    Raises ValueError for a model that is no UNet.
    """
    down, middle, up = _blocks(unet)
    levels = list(itertools.accumulate(_downsamples(block[0]) for block in down))
    values = 0.0
    for level, block in zip([*levels, levels[-1], *reversed(levels)], [*down, *middle, *up]):
        named = (pair for part in block for pair in part.named_modules())
        values += sum(module.to_k.in_features for name, module in named if name.endswith("attn1")) / 4**level
    return values


def _blocks(model: torch.nn.Module) -> tuple[list, list, list]:
    """A model's blocks going down, in the middle and going up: each a list of the modules that it consists of.

    The blocks are those of `ldm`, with one skip connection each: in `diffusers`, a resnet with its attention, or a
    downsampler. ComfyUI's UNet, which reForge has, calls the layers of a block by a function, past the block.
    """
    if hasattr(model, "input_blocks"):
        up = getattr(model, "output_blocks", ())
        parts = list(model.input_blocks), [model.middle_block], list(up)
        past = hasattr(sys.modules[type(model).__module__], "forward_timestep_embed")
        return tuple([list(block) if past else [block] for block in part] for part in parts)
    if not hasattr(model, "down_blocks"):
        raise ValueError(
            f"{type(model).__name__} has no blocks going down and up: anchors work with the UNets of SD 1.x, SD 2.x "
            "and SDXL; choose such a checkpoint, or the anchor stride 1"
        )
    down, up = [[model.conv_in]], []
    for level in model.down_blocks:
        down += _resnets(level) + [[sampler] for sampler in level.downsamplers or ()]
    for level in getattr(model, "up_blocks", ()):
        up += _resnets(level)
        up[-1] += level.upsamplers or ()
    return down, [[model.mid_block]], up


def _resnets(level: torch.nn.Module) -> list[list[torch.nn.Module]]:
    attentions = getattr(level, "attentions", None)
    return (
        [list(block) for block in zip(level.resnets, attentions)]
        if attentions
        else [[resnet] for resnet in level.resnets]
    )


def _cut(down: list, depth: str) -> int:
    """How many blocks going down are shallow; with a single downsampling, gentle is the same as medium."""
    samplings = [number for number, block in enumerate(down) if _downsamples(block[0])]
    if not samplings:
        raise ValueError("the UNet has no downsampling where its deep blocks could begin; choose the anchor stride 1")
    return {"gentle": samplings[:2][-1], "medium": samplings[0], "strong": samplings[0] - 1}[depth]


def _downsamples(block: torch.nn.Module) -> bool:
    module = block[0] if isinstance(block, torch.nn.Sequential) else block
    return type(module).__name__ in ("Downsample", "Downsample2D") or getattr(module, "updown", False)
