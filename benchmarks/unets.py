"""The UNets of SD 1.5 and SDXL in their real widths and depths, with random weights, which times do not depend on."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers import Transformer2DModel

from zs2_lib.hosts.diffusers.checkpoints import CONFIGS

NAMES = {"sd1": "SD 1.5", "sdxl": "SDXL"}


def unet(kind: str) -> UNet2DConditionModel:
    """The UNet of the kind "sd1" or "sdxl".

    The transformer blocks of one layer of SDXL (up to 10) share their weights, each with modules of its own: the same
    work in a third of the memory.
    """
    config = UNet2DConditionModel.load_config(CONFIGS / kind / "unet")
    depths = config["transformer_layers_per_block"] if kind == "sdxl" else 1
    if kind == "sdxl":
        config["transformer_layers_per_block"] = 1
    model = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    if kind == "sdxl":
        for module in model.modules():
            if isinstance(module, Transformer2DModel):
                _deepen(module, depths[config["block_out_channels"].index(module.inner_dim)])
    return model


def _deepen(transformer: Transformer2DModel, depth: int) -> None:
    block = transformer.transformer_blocks[0]
    weights = {id(weight): weight for weight in block.parameters()}
    transformer.transformer_blocks.extend(copy.deepcopy(block, dict(weights)) for _ in range(depth - 1))


def inputs(model: UNet2DConditionModel, rows: int, side: int) -> tuple[tuple, dict]:
    """The arguments of a call of so many rows with latents of side × side, random, as and where the weights are."""
    config, like = model.config, {"dtype": model.dtype, "device": model.device}
    arguments = (
        torch.randn(rows, 4, side, side, **like),
        torch.full((rows,), 500, device=model.device),
        torch.randn(rows, 77, config.cross_attention_dim, **like),
    )
    if config.addition_embed_type != "text_time":
        return arguments, {}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text, size = torch.randn(rows, pooled, **like), torch.full((rows, 6), 8.0 * side, **like)
    return arguments, {"added_cond_kwargs": {"text_embeds": text, "time_ids": size}}
