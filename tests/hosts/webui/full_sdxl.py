"""An SDXL checkpoint of full shape with random weights: 7 GB in float16, written tensor by tensor in little memory.

The UNet has the path of `full_models` that carries the input to the output; the VAE and CLIP-L are those of the SD 1.x
checkpoints there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import models
from full_models import CARRIED, FEATURES, SCALE, folder, weights_of

WIDTH, LEVELS, DEPTHS, CONTEXT, VECTOR = 320, (1, 2, 4), (0, 2, 10), 2048, 2816
TIME = 4 * WIDTH
TEXT_WIDTH, TEXT_LAYERS, TOKENS = 1280, 32, 49408
SDXL_SCALE = 0.13025
"""Of the latents."""
PLAIN = 0.58
"""The gain of a layer as torch makes it."""
OWN = 2 * CARRIED

Tensors = Iterator[tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]]
"""Of each tensor its name, its shape and what makes it."""
Change = Callable[[torch.Tensor], None]


def make() -> Path:
    """Writes `sdxl.safetensors` beside the other checkpoints, where it has not been written before."""
    path = folder() / "models" / "Stable-diffusion" / "sdxl.safetensors"
    if not path.exists():
        draw, half = Random(21), path.with_suffix(".unfinished")
        unet = _prefixed(models.UNET, _unet(draw))
        text = _prefixed("conditioner.embedders.1.model.", _open_clip(draw))
        _write(half, [*unet, *_from_sd1(weights_of("shallow")), *text])
        half.rename(path)
    return path


def _write(path: Path, tensors: list) -> None:
    """A safetensors file in float16, with one tensor in memory at a time."""
    header, end = {}, 0
    for name, shape, _ in tensors:
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, draw in tensors:
            value = draw().half().contiguous()
            assert tuple(value.shape) == shape, name
            file.write(value.numpy().tobytes())


class Random:
    """Normal numbers of a pool, from another place of it each time: to draw 3.5 thousand millions takes minutes."""

    def __init__(self, seed: int, size: int = 1 << 24):
        self._generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(size, generator=self._generator)

    def __call__(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        count, size = math.prod(shape), len(self._pool)
        start = int(torch.randint(size, (1,), generator=self._generator))
        return (self._pool.roll(-start).repeat(-(-count // size))[:count] * std).view(shape)


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    for name, shape, draw in tensors:
        yield prefix + name, shape, draw


# --- layers -----------------------------------------------------------------------------------------------------------


def _constant(name: str, value: float, *shape: int) -> Tensors:
    yield name, shape, lambda: torch.full(shape, value)


def _weight(draw: Random, name: str, gain: float, *shape: int, change: Change = lambda weight: None) -> Tensors:
    """A weight that makes of inputs of variance 1 outputs of deviation `gain`, changed in place by `change`."""

    def made() -> torch.Tensor:
        weight = draw(*shape, std=gain / math.prod(shape[1:]) ** 0.5)
        change(weight)
        return weight

    yield name, shape, made


def _layer(draw: Random, name: str, out: int, *inputs: int, gain: float = PLAIN, **options) -> Tensors:
    """A linear layer (out, channels), or a convolution (out, channels, size, size)."""
    yield from _weight(draw, f"{name}.weight", gain, out, *inputs, **options)
    yield from _constant(f"{name}.bias", 0.0, out)


def _norm(name: str, channels: int) -> Tensors:
    yield from _constant(f"{name}.weight", 1.0, channels)
    yield from _constant(f"{name}.bias", 0.0, channels)


def _resnet(draw: Random, name: str, before: int, after: int, last: bool = False) -> Tensors:
    def carried(weight: torch.Tensor) -> None:
        weight[:OWN] = 0
        for feature in range(OWN):
            weight[feature, before - WIDTH + feature] = 1

    def not_carried(weight: torch.Tensor) -> None:
        weight[:OWN] = 0

    yield from _norm(f"{name}.in_layers.0", before)
    yield from _layer(draw, f"{name}.in_layers.2", after, before, 3, 3)
    yield from _layer(draw, f"{name}.emb_layers.1", after, TIME)
    yield from _norm(f"{name}.out_layers.0", after)
    out = {"change": not_carried} if last else {}
    yield from _layer(draw, f"{name}.out_layers.3", after, after, 3, 3, gain=1 / 0.6, **out)
    if before != after:
        skip = {"change": carried} if last else {}
        yield from _layer(draw, f"{name}.skip_connection", after, before, 1, 1, **skip)


def _transformer(draw: Random, name: str, channels: int, depth: int) -> Tensors:
    yield from _norm(f"{name}.norm", channels)
    yield from _layer(draw, f"{name}.proj_in", channels, channels)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, context in (("attn1", channels), ("attn2", CONTEXT)):
            for part, width, gain in (("to_q", channels, 1.45), ("to_k", context, 1.45), ("to_v", context, 1.15)):
                yield from _weight(draw, f"{block}.{attention}.{part}.weight", gain, channels, width)
            yield from _layer(draw, f"{block}.{attention}.to_out.0", channels, channels, gain=1.15)
        yield from _layer(draw, f"{block}.ff.net.0.proj", 8 * channels, channels)
        yield from _layer(draw, f"{block}.ff.net.2", channels, 4 * channels)
        for number in (1, 2, 3):
            yield from _norm(f"{block}.norm{number}", channels)
    yield from _layer(draw, f"{name}.proj_out", channels, channels, gain=1.0)


# --- the models -------------------------------------------------------------------------------------------------------


def _unet(draw: Random) -> Tensors:
    for name, width in (("time_embed.0", WIDTH), ("time_embed.2", TIME), ("label_emb.0.0", VECTOR)):
        yield from _layer(draw, name, TIME, width)
    yield from _layer(draw, "label_emb.0.2", TIME, TIME)
    yield from _layer(draw, "input_blocks.0.0", WIDTH, 4, 3, 3, change=_to_features)
    skips, block, channels = [WIDTH], 0, WIDTH
    for level, (factor, depth) in enumerate(zip(LEVELS, DEPTHS)):
        for _ in range(2):
            block, before, channels = block + 1, channels, factor * WIDTH
            yield from _resnet(draw, f"input_blocks.{block}.0", before, channels)
            if depth:
                yield from _transformer(draw, f"input_blocks.{block}.1", channels, depth)
            skips.append(channels)
        if level < len(LEVELS) - 1:
            block += 1
            yield from _layer(draw, f"input_blocks.{block}.0.op", channels, channels, 3, 3)
            skips.append(channels)
    yield from _resnet(draw, "middle_block.0", channels, channels)
    yield from _transformer(draw, "middle_block.1", channels, DEPTHS[-1])
    yield from _resnet(draw, "middle_block.2", channels, channels)
    block = 0
    for level in reversed(range(len(LEVELS))):
        for number in range(3):
            before, channels = channels + skips.pop(), LEVELS[level] * WIDTH
            yield from _resnet(draw, f"output_blocks.{block}.0", before, channels, last=not skips)
            if DEPTHS[level]:
                yield from _transformer(draw, f"output_blocks.{block}.1", channels, DEPTHS[level])
            if number == 2 and level:
                name = f"output_blocks.{block}.{2 if DEPTHS[level] else 1}.conv"
                yield from _layer(draw, name, channels, channels, 3, 3)
            block += 1
    yield from _norm("out.0", WIDTH)
    yield from _layer(draw, "out.2", 4, WIDTH, 3, 3, gain=FEATURES / 0.6, change=_from_features)


def _to_features(weight: torch.Tensor) -> None:
    weight[:OWN] = 0
    for channel in range(CARRIED):
        weight[channel, channel, 1, 1], weight[CARRIED + channel, channel, 1, 1] = 1, -1


def _from_features(weight: torch.Tensor) -> None:
    weight[:, :OWN] = 0
    share = math.sqrt(1 - FEATURES**2)
    for channel in range(CARRIED):
        weight[channel, channel, 1, 1], weight[channel, CARRIED + channel, 1, 1] = share, -share


def _open_clip(draw: Random) -> Tensors:
    """OpenCLIP's bigG."""
    width = TEXT_WIDTH
    yield from _weight(draw, "token_embedding.weight", 0.02 * width**0.5, TOKENS, width)
    yield from _weight(draw, "positional_embedding", 0.01 * width**0.5, 77, width)
    yield from _weight(draw, "text_projection", 1.0, width, width)
    yield from _constant("logit_scale", 4.6)
    for number in range(TEXT_LAYERS):
        block = f"transformer.resblocks.{number}"
        for name, out, inputs in (("attn.out_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)):
            yield from _layer(draw, f"{block}.{name}", out * width, inputs * width)
        yield from _weight(draw, f"{block}.attn.in_proj_weight", PLAIN, 3 * width, width)
        yield from _constant(f"{block}.attn.in_proj_bias", 0.0, 3 * width)
        for name in ("ln_1", "ln_2"):
            yield from _norm(f"{block}.{name}", width)
    yield from _constant("ln_final.weight", 1.0, width)
    yield "ln_final.bias", (width,), lambda: draw(width, std=0.3) + 0.1


def _from_sd1(weights: dict) -> Tensors:
    """The VAE, scaled for SDXL, and CLIP-L."""
    scales = {"quant_conv.weight": SCALE / SDXL_SCALE, "post_quant_conv.weight": SDXL_SCALE / SCALE}
    scales = {models.VAE + name: scale for name, scale in scales.items()}
    for key, value in weights.items():
        if key in scales:
            value = torch.cat([value[:4].float() * scales[key], value[4:].float()])  # the mean, not its spread
        if key.startswith(models.VAE):
            yield key, tuple(value.shape), lambda value=value: value
        elif key.startswith(models.TEXT):
            name = key.replace("cond_stage_model.", "conditioner.embedders.0.")
            yield name, tuple(value.shape), lambda value=value: value
