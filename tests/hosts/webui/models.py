"""Checkpoints and additional networks for the host tests, made from the tiny trained checkpoint.

All checkpoints but the v-prediction one still draw what their prompt says: what a variant adds is
zero or small. All share a VAE whose posterior has no spread: the host samples it from an unseeded
generator, so that its own img2img would not repeat itself.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
import yaml
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "zs2_lib" / "tiny-sd"
"""The project's tiny checkpoint: `tiny-sd.safetensors`, its `.yaml` and `diffusers-config/`."""

CANNY = Path(__file__).with_name("control-canny.safetensors")
"""A Control-LoRA for the tiny checkpoint, trained on the edges of shapes like those the checkpoint learned from."""

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."
OPEN_CLIP = {"arch": "zs2-tiny", "layer": "last", "freeze": True}  # the probe extension registers this architecture


OPEN_CLIP_NAMES = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
OPEN_CLIP_NAMES |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def make(folder: Path) -> Path:
    """Writes everything into `folder`, laid out as a WebUI's data directory."""
    checkpoints, networks = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    hypernetworks, embeddings = folder / "models" / "hypernetworks", folder / "embeddings"
    control = folder / "models" / "ControlNet"
    for directory in (checkpoints, networks, hypernetworks, embeddings, control):
        directory.mkdir(parents=True, exist_ok=True)
    weights, config = tiny()
    for name, (variant, variant_config) in {
        "tiny": (weights, config),
        "second": (second(weights), config),
        "inpainting": inpainting(weights, config),
        "pix2pix": pix2pix(weights, config),
        "sd2-v": sd2_v(weights, config),
        "sdxl": sdxl(weights, config),
        "sd15": sd15(weights, config),
    }.items():
        _save(variant, checkpoints / f"{name}.safetensors")
        (checkpoints / f"{name}.yaml").write_text(yaml.safe_dump(variant_config))
    # The same config file for two checkpoints: the host loads the one into the modules of the other.
    _save_pickle({"state_dict": second(weights)}, checkpoints / "tiny.ckpt")
    blocks = sd15(weights, config)[0]
    for name, unit in {
        "control_sd15_zs2": controlnet(blocks),
        "control_tiny_zs2": controlnet(weights),
        "controllora_sd15_zs2": control_lora(blocks),
        "t2iadapter_sd15_zs2": t2i_adapter(blocks),
        "ip-adapter_sd15_zs2": ip_adapter(blocks),
    }.items():
        _save(unit, control / f"{name}.safetensors")
    shutil.copyfile(CANNY, control / "canny_tiny_zs2.safetensors")
    save_file(lora(weights), networks / "zs2_lora.safetensors")
    save_file(loha(weights), networks / "zs2_loha.safetensors")
    save_file(lokr(weights), networks / "zs2_lokr.safetensors")
    save_file({"emb_params": embedding(weights)}, embeddings / "zs2_embedding.safetensors")
    _save_pickle(hypernetwork(), hypernetworks / "zs2_hypernetwork.pt")
    return folder


def tiny() -> tuple[dict, dict]:
    weights = load_file(TINY / "tiny-sd.safetensors")
    config = yaml.safe_load((TINY / "tiny-sd.yaml").read_text())
    config["model"]["params"]["cond_stage_config"]["params"]["version"] = str(TINY / "diffusers-config" / "tokenizer")
    mean, log_variance = weights[VAE + "quant_conv.weight"].chunk(2)
    weights[VAE + "quant_conv.weight"] = torch.cat([mean, torch.zeros_like(log_variance)])
    mean, log_variance = weights[VAE + "quant_conv.bias"].chunk(2)
    weights[VAE + "quant_conv.bias"] = torch.cat([mean, torch.full_like(log_variance, -30)])
    return weights, config


def second(weights: dict, strength: float = 0.15) -> dict:
    """Another SD 1.x checkpoint: the UNet's weights with noise on them."""
    noise = _noise(2)

    def moved(value: torch.Tensor) -> torch.Tensor:
        return value + strength * value.float().std().to(value.dtype) * noise(value)

    return {key: moved(value) if _is_unet_matrix(key, value) else value for key, value in weights.items()}


def inpainting(weights: dict, config: dict) -> tuple[dict, dict]:
    """SD 1.x inpainting: latents, mask and masked image, 9 channels."""
    config = copy.deepcopy(config)
    config["model"]["target"] = "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"
    config["model"]["params"] |= {"conditioning_key": "hybrid", "finetune_keys": None}
    config["model"]["params"]["unet_config"]["params"]["in_channels"] += 5
    return with_input_channels(weights, 5), config


def pix2pix(weights: dict, config: dict) -> tuple[dict, dict]:
    """Instruct-Pix2Pix: latents and the image to edit, 8 channels."""
    config = copy.deepcopy(config)
    config["model"]["target"] = "modules.models.diffusion.ddpm_edit.LatentDiffusion"
    config["model"]["params"] |= {"conditioning_key": "hybrid", "first_stage_key": "edited", "cond_stage_key": "edit"}
    config["model"]["params"]["unet_config"]["params"]["in_channels"] += 4
    return with_input_channels(weights, 4), config


def sd2_v(weights: dict, config: dict, parameterization: str = "v") -> tuple[dict, dict]:
    """SD 2.x: OpenCLIP text encoder, linear projections, v-prediction (unknown to the weights: it draws no shapes)."""
    config = copy.deepcopy(config)
    params = config["model"]["params"]
    params["parameterization"] = parameterization
    params["unet_config"]["params"]["use_linear_in_transformer"] = True
    params["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": OPEN_CLIP}
    weights = _with_linear_projections(weights)
    return _without_text(weights) | open_clip(weights, "cond_stage_model.model."), config


def sdxl(weights: dict, config: dict) -> tuple[dict, dict]:
    """SDXL: two text encoders side by side, and a vector of the pooled text and three sizes."""
    size_channels = 32
    unet = config["model"]["params"]["unet_config"]["params"]
    time_channels, context = 4 * unet["model_channels"], unet["context_dim"]
    vector = context + 3 * 2 * size_channels
    clip = config["model"]["params"]["cond_stage_config"]["params"]["version"]
    sgm, unused = "sgm.modules.diffusionmodules.", {"target": "torch.nn.Identity"}

    def embedder(key: str, target: str, **params) -> dict:
        target = f"sgm.modules.encoders.modules.{target}"
        return {"is_trainable": False, "input_key": key, "target": target, "params": params}

    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    params = {
        "scale_factor": config["model"]["params"]["scale_factor"],
        "disable_first_stage_autocast": True,
        "denoiser_config": {
            "target": sgm + "denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "weighting_config": {"target": sgm + "denoiser_weighting.EpsWeighting"},
                "scaling_config": {"target": sgm + "denoiser_scaling.EpsScaling"},
                "discretization_config": {"target": sgm + "discretizer.LegacyDDPMDiscretization"},
            },
        },
        "network_config": {
            "target": sgm + "openaimodel.UNetModel",
            "params": {
                **{key: value for key, value in unet.items() if key != "image_size"},
                "use_linear_in_transformer": True,
                "num_classes": "sequential",
                "adm_in_channels": vector,
                "context_dim": 2 * context,
                "spatial_transformer_attn_type": "softmax",
            },
        },
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {
                "emb_models": [
                    embedder("txt", "FrozenCLIPEmbedder", version=clip, layer="last"),
                    embedder("txt", "FrozenOpenCLIPEmbedder2", **OPEN_CLIP, always_return_pooled=True, legacy=False),
                    *(embedder(size, "ConcatTimestepEmbedderND", outdim=size_channels) for size in sizes),
                ]
            },
        },
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": {**config["model"]["params"]["first_stage_config"]["params"], "lossconfig": unused},
        },
    }
    noise = _noise(3)
    result = _without_text(_with_linear_projections(weights))
    for key, value in result.items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            result[key] = torch.cat([value, torch.zeros_like(value)], dim=1)
    text = {key: value for key, value in weights.items() if key.startswith(TEXT)}
    result |= {key.replace("cond_stage_model.", "conditioner.embedders.0."): value for key, value in text.items()}
    result |= open_clip(weights, "conditioner.embedders.1.model.")
    label = UNET + "label_emb.0."
    for layer, shape in (("0", (time_channels, vector)), ("2", (time_channels, time_channels))):
        result[f"{label}{layer}.weight"] = 0.02 * noise(torch.empty(shape))
        result[f"{label}{layer}.bias"] = torch.zeros(shape[0])
    return result, {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}


def sd15(weights: dict, config: dict, channels: int = 32) -> tuple[dict, dict]:
    """A UNet of SD 1.5's structure, a tenth as wide, with random weights: extensions count its blocks."""
    config = copy.deepcopy(config)
    params = config["model"]["params"]["unet_config"]["params"]
    params |= {"model_channels": channels, "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_heads": 8}
    with torch.random.fork_rng():
        torch.manual_seed(9)
        unet = UNetModel(**params)
    noise = _noise(10)
    random = unet.state_dict()
    random |= {key: noise(value) / value[0].numel() ** 0.5 for key, value in random.items() if value.ndim > 1}
    others = {key: value for key, value in weights.items() if not key.startswith(UNET)}
    return others | {UNET + key: value for key, value in random.items()}, config


def lora(weights: dict, rank: int = 4, strength: float = 0.7) -> dict:
    """A LoRA on every attention projection of the UNet and on the text encoder's."""
    noise, result = _noise(4), {}
    for name, (rows, columns), scale in _attention_layers(weights, text=True):
        result[f"{name}.lora_up.weight"] = noise(torch.empty(rows, rank)) * strength * scale / rank**0.5
        result[f"{name}.lora_down.weight"] = noise(torch.empty(rank, columns))
        result[f"{name}.alpha"] = torch.tensor(float(rank))
    return result


def loha(weights: dict, rank: int = 4, strength: float = 0.5) -> dict:
    """A LyCORIS of the LoHa kind: the elementwise product of two low-rank matrices."""
    noise, result = _noise(5), {}
    for name, (rows, columns), scale in _attention_layers(weights):
        for part, factor in (("w1", strength * scale / rank), ("w2", 1)):
            result[f"{name}.hada_{part}_a"] = noise(torch.empty(rows, rank)) * factor
            result[f"{name}.hada_{part}_b"] = noise(torch.empty(rank, columns))
        result[f"{name}.alpha"] = torch.tensor(float(rank))
    return result


def lokr(weights: dict, factor: int = 8, strength: float = 0.5) -> dict:
    """A LyCORIS of the LoKr kind: a Kronecker product."""
    noise, result = _noise(6), {}
    for name, (rows, columns), scale in _attention_layers(weights):
        result[f"{name}.lokr_w1"] = noise(torch.empty(factor, factor)) * strength * scale
        result[f"{name}.lokr_w2"] = noise(torch.empty(rows // factor, columns // factor))
    return result


# --- ControlNet --------------------------------------------------------------------------------------------

HINT_CHANNELS = (3, 16, 16, 32, 32, 96, 96, 256)
"""Channels before and after the convolutions that read a control image."""


def controlnet(weights: dict, strength: float = 3) -> dict:
    """A ControlNet with the UNet's own encoder and random connections to it."""
    noise = _noise(11)
    unet = {key[len(UNET) :]: value for key, value in weights.items() if key.startswith(UNET)}
    encoder = ("time_embed", "input_blocks", "middle_block")
    result = {key: value.float() for key, value in unet.items() if key.startswith(encoder)}
    channels = _output_channels(unet)
    sizes = [*HINT_CHANNELS, channels[0]]
    for number, (before, after) in enumerate(zip(sizes, sizes[1:])):
        weight = noise(torch.empty(after, before, 3, 3)) * (4 / (9 * before)) ** 0.5
        result[f"input_hint_block.{2 * number}.weight"] = weight
        result[f"input_hint_block.{2 * number}.bias"] = torch.zeros(after)
    outputs = {f"zero_convs.{number}.0": count for number, count in enumerate(channels)}
    for name, count in (*outputs.items(), ("middle_block_out.0", channels[-1])):
        result[f"{name}.weight"] = strength * noise(torch.empty(count, count, 1, 1)) / count**0.5
        result[f"{name}.bias"] = torch.zeros(count)
    return result


def control_lora(weights: dict, rank: int = 4, strength: float = 0.3) -> dict:
    """A Control-LoRA: of the UNet's encoder only the differences, of low rank."""
    noise, result = _noise(12), {"lora_controlnet": torch.tensor(1.0)}
    for key, value in controlnet(weights).items():
        layer, own = key.removesuffix(".weight"), key.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        if own or value.ndim < 2:
            result[key] = value
        else:
            result[f"{layer}.up"] = strength * noise(torch.empty(value.shape[0], rank)) * value.std() / rank**0.5
            result[f"{layer}.down"] = noise(torch.empty(rank, value[0].numel()))
    return result


def t2i_adapter(weights: dict, strength: float = 0.6) -> dict:
    """A T2I-Adapter for images of three channels."""
    noise, result = _noise(13), {}
    width = weights[UNET + "input_blocks.0.0.weight"].shape[0]
    channels = [width, 2 * width, 4 * width, 4 * width]

    def conv(name: str, before: int, after: int, size: int, scale: float = 1.0) -> None:
        result[f"{name}.weight"] = scale * noise(torch.empty(after, before, size, size)) / (before * size * size) ** 0.5
        result[f"{name}.bias"] = torch.zeros(after)

    conv("conv_in", 3 * 64, width, 3, strength * 5)
    for level, count in enumerate(channels):
        for block in range(2):
            name, before = f"body.{2 * level + block}", channels[max(level - 1, 0)] if block == 0 else count
            if before != count:
                conv(f"{name}.in_conv", before, count, 1)
            conv(f"{name}.block1", count, count, 3)
            conv(f"{name}.block2", count, count, 1, strength)
    return result


def ip_adapter(weights: dict, embedding: int = 48, tokens: int = 4, strength: float = 0.3) -> dict:
    """An IP-Adapter for image embeddings of 48 values, which the probe extension makes."""
    noise = _noise(14)
    unet = {key[len(UNET) :]: value for key, value in weights.items() if key.startswith(UNET)}
    context = unet["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    result = {
        "image_proj.proj.weight": noise(torch.empty(tokens * context, embedding)),
        "image_proj.proj.bias": torch.zeros(tokens * context),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    down, up = (f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)), (f"output_blocks.{n}.1" for n in range(3, 12))
    for number, place in enumerate((*down, *up, "middle_block.1")):
        to_k = unet.get(f"{place}.transformer_blocks.0.attn2.to_k.weight")
        inner = context if to_k is None else to_k.shape[0]  # a UNet of fewer levels has no such place
        for part in ("k", "v"):
            weight = strength * noise(torch.empty(inner, context)) / context**0.5
            result[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = weight
    return result


def _output_channels(unet: dict) -> list[int]:
    """The channels that each of a UNet's input blocks gives."""
    count = 1 + max(int(key.split(".")[1]) for key in unet if key.startswith("input_blocks."))
    layers = ("0.out_layers.3.weight", "0.op.weight", "0.weight")
    return [
        next(unet[f"input_blocks.{n}.{layer}"].shape[0] for layer in layers if f"input_blocks.{n}.{layer}" in unet)
        for n in range(count)
    ]


def embedding(weights: dict, vectors: int = 2) -> torch.Tensor:
    tokens = weights[TEXT + "embeddings.token_embedding.weight"].float()
    return _noise(7)(torch.empty(vectors, tokens.shape[1])) * tokens.std()


def hypernetwork(sizes=(64, 128, 192), strength: float = 0.3) -> dict:
    noise = _noise(8)

    def layers(size: int) -> dict:
        return {
            "linear.0.weight": noise(torch.empty(2 * size, size)) * strength / size**0.5,
            "linear.0.bias": torch.zeros(2 * size),
            "linear.1.weight": noise(torch.empty(size, 2 * size)) / size**0.5,
            "linear.1.bias": torch.zeros(size),
        }

    return {
        **{size: (layers(size), layers(size)) for size in sizes},
        "name": "zs2_hypernetwork",
        "step": 1,
        "layer_structure": [1, 2, 1],
        "activation_func": "linear",
        "is_layer_norm": False,
        "weight_initialization": "Normal",
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": [0, 0, 0],
        "last_layer_dropout": False,
        "optional_info": None,
    }


def _noise(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator).to(like.dtype)


def _is_unet_matrix(key: str, value: torch.Tensor) -> bool:
    return key.startswith(UNET) and value.ndim > 1


def with_input_channels(weights: dict, extra: int) -> dict:
    """The first convolution sees `extra` channels more, faintly."""
    key = UNET + "input_blocks.0.0.weight"
    faint = 0.1 * weights[key].mean(dim=1, keepdim=True).expand(-1, extra, -1, -1)
    return {**weights, key: torch.cat([weights[key], faint], dim=1)}


def _with_linear_projections(weights: dict) -> dict:
    """Transformers' proj_in and proj_out as linear layers in place of 1×1 convolutions."""
    return {
        key: value.flatten(1) if key.startswith(UNET) and key.endswith(("proj_in.weight", "proj_out.weight")) else value
        for key, value in weights.items()
    }


def _without_text(weights: dict) -> dict:
    return {key: value for key, value in weights.items() if not key.startswith("cond_stage_model.")}


def open_clip(weights: dict, prefix: str) -> dict:
    """The CLIP text encoder of `weights` under OpenCLIP's names."""
    text = {key[len(TEXT) :]: value for key, value in weights.items() if key.startswith(TEXT)}
    width = text["final_layer_norm.weight"].shape[0]
    result = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": torch.eye(width),
        "logit_scale": torch.tensor(1.0),
    }
    layers = {key.split(".")[2] for key in text if key.startswith("encoder.layers.")}
    for layer in layers:
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [text[f"{ours}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
            for here, there in OPEN_CLIP_NAMES.items():
                result[f"{theirs}{there}.{kind}"] = text[f"{ours}{here}.{kind}"]
    return {prefix + key: value for key, value in result.items()}


def _attention_layers(weights: dict, text: bool = False):
    """(network layer's name, shape, scale of its weights) of the UNet's attention projections."""
    for key, value in weights.items():
        layer = key.removesuffix(".weight")
        if key.startswith(UNET) and layer.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            yield "lora_unet_" + layer[len(UNET) :].replace(".", "_"), value.shape, value.float().std()
        elif text and key.startswith(TEXT) and layer.endswith(("q_proj", "k_proj", "v_proj")):
            yield "lora_te_text_model_" + layer[len(TEXT) :].replace(".", "_"), value.shape, value.float().std()


def _save(weights: dict, path: Path) -> None:
    save_file({key: value.clone().contiguous() for key, value in weights.items()}, path)


def _save_pickle(data: dict, path: Path) -> None:
    """The format of before torch 1.6: the host refuses archive members that newer versions of torch add."""
    torch.save(data, path, _use_new_zipfile_serialization=False)
