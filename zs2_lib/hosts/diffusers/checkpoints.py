"""The checkpoints that clips are sampled from by `diffusers`: what a file is, opening it, and what cannot make clips.

Nothing is downloaded, and nothing unpickled.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

TINY_SD = Path(__file__).parents[2] / "tiny-sd"
"""The project's own checkpoint."""
CONFIGS = Path(__file__).parent / "configs"
"""The components of SD 1.x, SD 2.x and SDXL: what `diffusers` has to know of a single file, and would download."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_PICKLED = (
    "model: {file!r} is no .safetensors file (others, such as .ckpt and .bin, can run code when they are opened); "
    "convert it to .safetensors"
)
PIPELINES = {cls.__name__: cls for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
WITH_CONTROL = {
    StableDiffusionPipeline: StableDiffusionControlNetPipeline,
    StableDiffusionXLPipeline: StableDiffusionXLControlNetPipeline,
}
"""The class of pipeline that has ControlNets as well, for each that has none."""


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message names it, the reason and a remedy."""


def load_pipeline(
    model: str | Path | None = None,
    config: str | Path | None = None,
    device: str | torch.device | None = None,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Opens a checkpoint; nothing is downloaded, and nothing unpickled.

    model: None for the project's own tiny checkpoint; a `.safetensors` file of SD 1.x, SD 2.x or SDXL, which is
        sampled with DDIM; or a folder in the format of `diffusers`, which is sampled with the scheduler it names.
    config: a folder with the configuration of a single file's components in the format of `diffusers`, for a model
        of a shape of its own. Without it they have the shapes of SD 1.x, SD 2.x or SDXL, whichever the file is, and
        whether it predicts ε or v is found out by one call of the UNet.
    device: default is "cuda" if there is one, else "cpu". On CUDA the model runs in float16, elsewhere in float32.

    Raises ModelError for what cannot be loaded.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if model is None:
        model, config = TINY_SD / "tiny-sd.safetensors", config or TINY_SD / "diffusers-config"
    model = Path(model)
    _check_paths(model, config)
    try:
        pipe = _load_folder(model, dtype) if model.is_dir() else _load_file(model, config, dtype)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"model: {str(model)!r} cannot be loaded ({reason}); {_remedy(model, config)}") from error
    pipe.to(device)
    if model.is_file() and config is None:
        find_prediction_type(pipe, model)
    return pipe


def check_model(model: str | Path | None, config: str | Path | None = None) -> None:
    """Raises ModelError for a checkpoint that is not there, or is of a kind that cannot be used; loads no weights."""
    if model is None:
        return
    _check_paths(Path(model), config)
    if Path(model).is_dir():
        _pipeline_class(Path(model))
    elif Path(model).suffix != ".safetensors":
        raise ModelError(_PICKLED.format(file=str(model)))
    elif config is None:
        try:
            model_kind(Path(model))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model: {str(model)!r} cannot be loaded ({error}); copy it again") from error


def _check_paths(model: Path, config: str | Path | None) -> None:
    if not model.exists():
        raise ModelError(
            f"model: there is no {str(model)!r}; give a .safetensors file or a folder in the format of diffusers "
            "that is on this machine (nothing is downloaded)"
        )
    if config is None:
        return
    purpose = "it is for single .safetensors files and names a folder with a model_index.json"
    if model.is_dir():
        raise ModelError(f"config: {str(model)!r} is a folder with a configuration of its own; {purpose}")
    if not Path(config).is_dir():
        raise ModelError(f"config: {str(config)!r} is no folder; {purpose}")


def _remedy(model: Path, config: str | Path | None) -> str:
    """What may help where a checkpoint cannot be loaded."""
    if model.is_dir():
        return "all its weights have to be complete .safetensors files"
    if config is not None:
        return f"its shape may not be that of the configuration {str(config)!r}"
    return (
        "if its shape is not that of SD 1.x, SD 2.x or SDXL, give a folder in the format of diffusers with its "
        "configuration (--config)"
    )


def _load_folder(folder: Path, dtype: torch.dtype):
    """A folder in the format of `diffusers`."""
    cls = _pipeline_class(folder)
    for component in filter(Path.is_dir, folder.iterdir()):
        pickled = [file for file in component.iterdir() if file.suffix in PICKLED]
        if pickled and not any(component.glob("*.safetensors")):
            raise ModelError(
                f"model: {str(pickled[0])!r} can run code when it is opened; get the folder with .safetensors files, "
                "or convert it to them"
            )
    whole = (folder / "unet/diffusion_pytorch_model.safetensors").exists()
    variant = "fp16" if not whole and any(folder.glob("unet/*.fp16*.safetensors")) else None
    return cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, variant=variant, local_files_only=True)


def _load_file(file: Path, config: str | Path | None, dtype: torch.dtype):
    """A single file in the format of the original releases, as the WebUI reads it."""
    if file.suffix != ".safetensors":
        raise ModelError(_PICKLED.format(file=str(file)))
    tokenizers = {}
    if config is None:
        config = CONFIGS / model_kind(file)
        # all of them use CLIP's vocabulary; they differ in what pads a prompt
        vocabulary = TINY_SD / "diffusers-config" / "tokenizer"
        padding = {"pad_token": "!"} if config.name == "sd2" else {}
        tokenizers["tokenizer"] = CLIPTokenizer.from_pretrained(vocabulary, **padding)
        if config.name == "sdxl":
            tokenizers["tokenizer_2"] = CLIPTokenizer.from_pretrained(vocabulary, pad_token="!")
    return _pipeline_class(Path(config)).from_single_file(
        str(file), config=str(config), torch_dtype=dtype, local_files_only=True, **tokenizers
    )


def _pipeline_class(folder: Path):
    """The class of pipeline that a folder's `model_index.json` names."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model: the folder {str(folder)!r} has no model_index.json; give a folder in the format of diffusers"
        )
    name = StableDiffusionPipeline.load_config(folder).get("_class_name")
    if name not in PIPELINES:
        raise ModelError(f"model: {str(folder)!r} is a {name}; ZS² works with {' and '.join(PIPELINES)}")
    return PIPELINES[name]


def model_kind(file: Path) -> str:
    """Returns whose shape a single file has by its header: "sd1", "sd2" or "sdxl". Raises ModelError for another."""
    with safe_open(file, framework="pt") as tensors:
        names = set(tensors.keys())
        first = "model.diffusion_model.input_blocks.0.0.weight"
        channels = tensors.get_slice(first).get_shape()[1] if first in names else None
    if channels in (8, 9):
        what = "a checkpoint for inpainting" if channels == 9 else "an Instruct-Pix2Pix checkpoint"
        raise ModelError(f"model: {str(file)!r} is {what}; choose one that makes images from text")
    if channels is not None:
        for kind, prefix in (
            ("sdxl", "conditioner.embedders.1.model.transformer."),
            ("sd2", "cond_stage_model.model.transformer."),
            ("sd1", "cond_stage_model.transformer."),
        ):
            if any(name.startswith(prefix) for name in names):
                return kind
    raise ModelError(
        f"model: {str(file)!r} is not a whole SD 1.x, SD 2.x or SDXL checkpoint (a LoRA, VAE, refiner or other "
        "architecture?); choose a checkpoint that has UNet, VAE and text encoder in one file"
    )


def find_prediction_type(pipe, file: Path) -> None:
    """Sets what the UNet of a single file predicts, which the file does not say."""
    if predicts_noise(pipe):
        return
    with safe_open(file, framework="pt") as tensors:
        zero_snr = "ztsnr" in set(tensors.keys())  # SDXL's v-prediction models carry this mark
    spacing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction", **spacing)
    if not isinstance(pipe, StableDiffusionXLPipeline) and pipe.unet.config.cross_attention_dim == 1024:
        pipe.unet.register_to_config(sample_size=96)  # SD 2.x with v-prediction makes images of 768×768 pixels


@torch.no_grad()
def predicts_noise(pipe) -> bool:
    """Whether the UNet predicts the noise ε in its input, rather than v = √ᾱ ε - √(1 - ᾱ) x₀.

    At the last time step the input is almost noise alone: ε correlates with it by about 1, v by about 0.
    """
    unet = pipe.unet
    size = unet.config.sample_size // 2
    x = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    x = x.to(unet.device, unet.dtype)
    kwargs = {"encoder_hidden_states": x.new_zeros(1, 77, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":  # SDXL: pooled text, and the size of the image
        pixels = float(size * pipe.vae_scale_factor)
        kwargs["added_cond_kwargs"] = {
            "text_embeds": x.new_zeros(1, pipe.text_encoder_2.config.projection_dim),
            "time_ids": x.new_tensor([[pixels, pixels, 0, 0, pixels, pixels]]),
        }
    output = unet(x, pipe.scheduler.config.num_train_timesteps - 1, **kwargs).sample
    return torch.corrcoef(torch.stack([x.flatten(), output.flatten()]).float())[0, 1].item() > 0.5


def check_pipeline(pipe) -> None:
    """Raises ValueError, which names the remedy, if `pipe`, as it is set up, cannot make a clip."""
    if not isinstance(pipe, (*PIPELINES.values(), *WITH_CONTROL.values())):
        raise ValueError(
            f"ZS² cannot make clips with {type(pipe).__name__}; give a StableDiffusionPipeline or "
            "StableDiffusionXLPipeline"
        )
    unet, scheduler = pipe.unet, pipe.scheduler
    if hasattr(unet, "_orig_mod"):
        raise ValueError("ZS² cannot hook a compiled UNet; set pipe.unet = pipe.unet._orig_mod")
    if unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"ZS²: the UNet takes {unet.config.in_channels} channels, not the {pipe.vae.config.latent_channels} of the "
            "latents: it is a checkpoint for inpainting or editing; choose one that makes images from text"
        )
    if any(getattr(module, "fused_projections", False) for module in unet.modules()):
        raise ValueError("ZS² needs separate projections for keys and values; call pipe.unfuse_qkv_projections()")
    if hasattr(unet, "_tome_info"):
        raise ValueError("ZS²: token merging merges other tokens in each frame; call tomesd.remove_patch(pipe)")
    if isinstance(scheduler, CosineDPMSolverMultistepScheduler):  # one Brownian motion for the whole batch
        raise ValueError(
            f"ZS² cannot correlate the noise of {type(scheduler).__name__}; use another scheduler, such as "
            "DDIMScheduler"
        )
