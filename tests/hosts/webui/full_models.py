"""Checkpoints of SD's own widths with random weights, for hosts that know a model by its shape.

Most tests use one of SD 1.5's widths and half its levels, which those hosts take as SD 1.5 as well, at a fifth of the
cost. The weights are random but for a path that carries the input to the output (UNet: the prediction of the noise
is mostly the noisy latents; VAE: pictures are scaled down and up by 8), so that sampling stays in bounds. The VAE's
posterior has no spread: the host samples it from an unseeded generator.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import torch
import yaml
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.model import Decoder, Downsample, Encoder, ResnetBlock, Upsample
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import models

RECIPE = 2
"""Counts changes of what this module makes: older files are not used again."""
WIDTH, CARRIED = 320, 4
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": False,
    "legacy": False,
}
FULL = {"attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4]}
SHALLOW = {"attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2]}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
TEXT_2 = {**TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
TEXT_2 |= {"hidden_act": "gelu", "projection_dim": 1024}
"""SD 2.x's."""
NETWORKS = (models.lora, models.loha, models.lokr)
UNITS = (models.controlnet, models.control_lora, models.t2i_adapter, models.ip_adapter)
SCALE = 0.18215
"""Of the latents."""
FEATURES = 0.35
"""The share of the prediction that is the network's own."""


def folder() -> Path:
    """Where the files are kept from run to run: $ZS2_TEST_MODELS, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ZS2_TEST_MODELS") or cache / "zs2-test-models") / str(RECIPE)


def make() -> Path:
    """Writes what has not been written before, laid out as a WebUI's data directory."""
    shallow, sd15 = (functools.cache(lambda shape=shape: checkpoint(shape, seed=1)) for shape in (SHALLOW, FULL))
    recipes = {
        "shallow": shallow,
        "second": lambda: models.second(shallow()),
        "inpainting": lambda: models.with_input_channels(shallow(), 5),
        "pix2pix": lambda: models.with_input_channels(shallow(), 4),
        "sd2": lambda: sd2(SHALLOW, seed=1),
        "sd15": sd15,
        "lumina2": without_unet,
    }
    files = {f"models/Stable-diffusion/{name}": recipe for name, recipe in recipes.items()}
    files |= {f"models/Lora/zs2_{make.__name__}": lambda make=make: make(shallow()) for make in NETWORKS}
    files["embeddings/zs2_embedding"] = lambda: {"emb_params": models.embedding(shallow())}
    files |= {f"models/ControlNet/{make.__name__}_zs2": lambda make=make: make(shallow()) for make in UNITS}
    for name, recipe in files.items():
        path = folder() / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save(recipe(), path)
    # reForge reads what kind of SD 2.x it is from a file beside it, or needs all levels of the UNet to find out
    config = folder() / "models" / "Stable-diffusion" / "sd2.yaml"
    config.write_text(yaml.safe_dump(models.sd2_v(*models.tiny(), parameterization="eps")[1]), encoding="utf-8")
    return folder()


def save(weights: dict, path: Path) -> None:
    """Half precision, as checkpoints are given away."""
    half = path.with_suffix(".unfinished")
    save_file({key: value.half().contiguous().clone() for key, value in weights.items()}, half)
    half.rename(path)


def weights_of(name: str) -> dict:
    """The weights of the checkpoint `name`, which `make` has written."""
    return load_file(folder() / "models" / "Stable-diffusion" / f"{name}.safetensors")


@torch.no_grad()
def checkpoint(shape: dict, seed: int) -> dict:
    """The weights of an SD 1.x checkpoint: UNet of `shape`, text encoder, VAE."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {models.UNET: _unet(shape), models.VAE: _vae(), models.TEXT: _text_encoder(TEXT)}
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}


@torch.no_grad()
def sd2(shape: dict, seed: int) -> dict:
    """The weights of an SD 2.x checkpoint, with OpenCLIP's text encoder."""
    heads = {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {models.UNET: _unet({**shape, **heads}), models.VAE: _vae()}
        text = _text_encoder(TEXT_2).state_dict()
    weights = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    text = {models.TEXT + key: value for key, value in text.items()}
    return weights | models.open_clip(text, "cond_stage_model.model.")


def without_unet() -> dict:
    """What a host knows a Lumina 2 checkpoint by, a transformer in place of a UNet: enough to load it, and no more."""
    known = {
        "model.diffusion_model.cap_embedder.1.weight": (2304, 2304),
        "model.diffusion_model.noise_refiner.0.attention.k_norm.weight": (96,),
        "model.diffusion_model.layers.0.ffn_norm1.weight": (2304,),
        "model.diffusion_model.layers.1.ffn_norm1.weight": (2304,),
        "text_encoders.gemma2_2b.model.norm.weight": (2304,),
    }
    parts = ("model.diffusion_model", "text_encoders.gemma2_2b", "vae")
    unused = {f"{part}.unused.{number}": (1,) for part in parts for number in range(20)}  # fewer count as none
    return {key: torch.zeros(shape) for key, shape in {**known, **unused}.items()}


def _text_encoder(config: dict) -> nn.Module:
    text = CLIPTextModel(CLIPTextConfig(**config))
    text = getattr(text, "text_model", text)  # transformers 5 has no such layer
    # a mean of zero makes the hosts' emphasis divide zero by zero
    text.final_layer_norm.bias.copy_(torch.randn(config["hidden_size"]) * 0.3 + 0.1)
    return text


def _unet(shape: dict) -> nn.Module:
    unet = UNetModel(**{**UNET, **shape})
    for module in unet.modules():
        if isinstance(module, ResBlock):
            _randomize(module.out_layers[3], 1 / 0.6)
        if isinstance(module, SpatialTransformer):
            _randomize(module.proj_out, 1)
        if type(module).__name__.endswith("CrossAttention"):
            for layer, gain in ((module.to_q, 2.5), (module.to_k, 2.5), (module.to_v, 2.0), (module.to_out[0], 2.0)):
                layer.weight.mul_(gain)
    _carry_through(unet)
    return unet


def _carry_through(unet: nn.Module) -> None:
    """Latent channel i goes to features i and, negated, 4 + i, and by the last skip connection to output i."""
    block, transformer, first, last = (*unet.output_blocks[-1][:2], unet.input_blocks[0][0], unet.out[2])
    skip, own = block.skip_connection, slice(0, 2 * CARRIED)
    before = skip.weight.shape[1] - WIDTH
    for layer in (first, skip, block.out_layers[3], transformer.proj_out):
        layer.weight[own].zero_()
        layer.bias[own].zero_()
    _randomize(last, FEATURES / 0.6)
    last.weight[:, own].zero_()
    for channel in range(CARRIED):
        for feature, sign in ((channel, 1), (CARRIED + channel, -1)):
            first.weight[feature, channel, 1, 1] = sign
            last.weight[channel, feature, 1, 1] = sign * math.sqrt(1 - FEATURES**2)
    for feature in range(2 * CARRIED):
        skip.weight[feature, before + feature, 0, 0] = 1


def _vae() -> nn.Module:
    vae = nn.Module()
    vae.encoder, vae.decoder = Encoder(**VAE), Decoder(**VAE)
    vae.quant_conv, vae.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
    own = slice(0, 2 * CARRIED)
    smooth = torch.tensor([1.0, 2.0, 1.0])
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            _randomize(module.conv2, 0.5 / 0.6)
            module.conv2.weight[own].zero_()
            if hasattr(module, "nin_shortcut"):
                _only(module.nin_shortcut, own, torch.ones(1, 1))
        if isinstance(module, Downsample):  # pads to the right and below
            _only(module.conv, own, nn.functional.pad(torch.full((2, 2), 0.25), (0, 1, 0, 1)))
        if isinstance(module, Upsample):
            _only(module.conv, own, torch.outer(smooth, smooth) / 16)
        if type(module).__name__ == "AttnBlock":
            module.proj_out.weight[own].zero_()
    _carry_pictures(vae, own)
    return vae


def _carry_pictures(vae: nn.Module, own: slice) -> None:
    """Red, green, blue and their mean are the four latent channels, and come back from the first three."""
    encoder, decoder = vae.encoder, vae.decoder
    for layer in (encoder.conv_in, decoder.conv_in):
        layer.weight[own].zero_()
        layer.bias[own].zero_()
    for layer, gain in ((encoder.conv_out, 0.1), (decoder.conv_out, 0.12)):
        _randomize(layer, gain / 0.6)
        layer.weight[:, own].zero_()
    encoder.conv_out.weight[CARRIED:].zero_()
    encoder.conv_out.bias[CARRIED:] = -20  # log variance
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.zero_()
        layer.bias.zero_()
    for channel in range(CARRIED):
        for feature, sign in ((channel, 1), (CARRIED + channel, -1)):
            colours = [channel] if channel < 3 else [0, 1, 2]
            for colour in colours:
                encoder.conv_in.weight[feature, colour, 1, 1] = sign / len(colours)
            encoder.conv_out.weight[channel, feature, 1, 1] = sign
            decoder.conv_in.weight[feature, channel, 1, 1] = sign
            if channel < 3:
                decoder.conv_out.weight[channel, feature, 1, 1] = sign * 0.45
        vae.quant_conv.weight[channel, channel] = 1 / SCALE
        vae.quant_conv.weight[CARRIED + channel, CARRIED + channel] = 1
        vae.post_quant_conv.weight[channel, channel] = SCALE


def _only(layer: nn.Module, own: slice, kernel: torch.Tensor) -> None:
    """The features `own` are the same features of the input, each under `kernel`."""
    layer.weight[own].zero_()
    layer.bias[own].zero_()
    for feature in range(own.stop):
        layer.weight[feature, feature] = kernel


def _randomize(layer: nn.Module, gain: float) -> None:
    """Normal weights that make of inputs of variance 1 outputs of deviation `gain`."""
    layer.weight.normal_(0, gain / math.sqrt(layer.weight[0].numel()))
    layer.bias.zero_()
