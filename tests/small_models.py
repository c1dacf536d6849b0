"""Models in small, with random weights, and the files that they are in."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from zs2_lib.hosts.diffusers import checkpoints

CONFIG = checkpoints.TINY_SD / "diffusers-config"
"""Configuration of `single_file`."""


def sdxl(tiny, channels: int = 4) -> StableDiffusionXLPipeline:
    """SDXL, with the tokenizer and the scheduler of the pipeline `tiny`; its UNet takes so many channels."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
        projection_dim=48,
    )
    vae = AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        in_channels=channels,
        block_out_channels=[32, 64],
        layers_per_block=1,
        sample_size=32,
        attention_head_dim=[2, 4],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2],
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
    )
    encoders = CLIPTextModel(text).eval(), CLIPTextModelWithProjection(text).eval()
    tokenizers = tiny.tokenizer, tiny.tokenizer
    scheduler = DDIMScheduler.from_config(tiny.scheduler.config)
    return StableDiffusionXLPipeline(vae, *encoders, *tokenizers, unet.eval(), scheduler, add_watermarker=False)


def single_file(path: Path, channels: int) -> Path:
    """The tiny checkpoint with a UNet that takes so many channels, random weights for those of a mask and a picture."""
    tensors = load_file(checkpoints.TINY_SD / "tiny-sd.safetensors")
    first = tensors[checkpoints.FIRST]
    more = torch.randn(len(first), channels - 4, *first.shape[2:], generator=torch.Generator().manual_seed(0))
    tensors[checkpoints.FIRST] = torch.cat([first, more.to(first.dtype) * first.std()], dim=1)
    save_file(tensors, path)
    return path


def net_for(unet, seed=1, **more):
    """A ControlNet as it is before training, but with an effect."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, **more)
    for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.1)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=10)
    return net.eval()


def upscaler(path: Path, scale: int = 2, channels: int = 3, features: int = 8) -> Path:
    """The file of a model that makes pictures larger, a "RealESRGAN Compact" with random weights."""
    torch.manual_seed(0)
    conv = functools.partial(torch.nn.Conv2d, kernel_size=3, padding=1)
    body = [conv(channels, features), torch.nn.PReLU(features), conv(features, features), torch.nn.PReLU(features)]
    body = torch.nn.Sequential(*body, conv(features, channels * scale**2))
    save_file({f"body.{name}": tensor for name, tensor in body.state_dict().items()}, path)
    return path
