"""The checkpoints that clips are sampled from by `diffusers`: what a file is, opening it, and what cannot make clips.

Nothing is downloaded, and nothing unpickled.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

TINY_SD = Path(__file__).parents[2] / "tiny-sd"
"""The project's own checkpoint."""
CONFIGS = Path(__file__).parent / "configs"
"""The components of SD 1.x, SD 2.x and SDXL: what `diffusers` has to know of a single file, and would download."""
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""The first layer of the UNet in a single file."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_PICKLED = (
    "model: {file!r} is no .safetensors file (others, such as .ckpt and .bin, can run code when they are opened); "
    "convert it to .safetensors"
)
OF_SD = {
    4: StableDiffusionPipeline,
    8: StableDiffusionInstructPix2PixPipeline,
    9: StableDiffusionInpaintPipeline,
}
OF_SDXL = {4: StableDiffusionXLPipeline, 9: StableDiffusionXLInpaintPipeline}
"""The pipelines of checkpoints by the channels that their UNet takes: latents alone, with a picture's, and those with a
mask."""
PIPELINES = {cls.__name__: kinds for kinds in (OF_SD, OF_SDXL) for cls in kinds.values()}
"""The pipelines of their kind, by the names that a folder may give."""
WITH_CONTROL = {
    StableDiffusionPipeline: StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline: StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionInpaintPipeline: StableDiffusionControlNetInpaintPipeline,
    StableDiffusionXLPipeline: StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline: StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline: StableDiffusionXLControlNetInpaintPipeline,
}
"""The class of pipeline that has ControlNets as well, for each that has none."""
SAMPLED = (*WITH_CONTROL, *WITH_CONTROL.values(), StableDiffusionInstructPix2PixPipeline)
"""The pipelines that clips are sampled with."""


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message names it, the reason and a remedy."""


def load_pipeline(
    model: str | Path | None = None,
    config: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
):
    """Opens a checkpoint as the pipeline that it is for: to make images from text, for inpainting, or Instruct-Pix2Pix;
    nothing is downloaded, and nothing unpickled.

    model: None for the project's own tiny checkpoint; a `.safetensors` file of SD 1.x, SD 2.x or SDXL, which is
        sampled with DDIM; or a folder in the format of `diffusers`, which is sampled with the scheduler it names.
    config: a folder with the configuration of a single file's components in the format of `diffusers`, for a model
        of a shape of its own. Without it they have the shapes of SD 1.x, SD 2.x or SDXL, whichever the file is, and
        whether it predicts ε or v is found out by one call of the UNet.
    device: default is "cuda" if there is one, else "cpu".
    dtype: default is float16 on CUDA, elsewhere float32.

    Raises ModelError for what cannot be loaded.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
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
    components = {}
    if config is None:
        config = CONFIGS / model_kind(file)
        # all of them use CLIP's vocabulary; they differ in what pads a prompt
        vocabulary = TINY_SD / "diffusers-config" / "tokenizer"
        padding = {"pad_token": "!"} if config.name == "sd2" else {}
        components["tokenizer"] = CLIPTokenizer.from_pretrained(vocabulary, **padding)
        if config.name == "sdxl":
            components["tokenizer_2"] = CLIPTokenizer.from_pretrained(vocabulary, pad_token="!")
    how = {"config": str(config), "torch_dtype": dtype, "local_files_only": True}
    channels = unet_channels(file)
    if channels in (8, 9):  # which no configuration needs to say
        components["unet"] = UNet2DConditionModel.from_single_file(
            str(file), subfolder="unet", in_channels=channels, **how
        )
    cls = _pipeline_class(Path(config), channels)
    of_text = (OF_SDXL if cls in OF_SDXL.values() else OF_SD)[4]
    pipe = of_text.from_single_file(str(file), **how, **components)
    return pipe if cls is of_text else cls.from_pipe(pipe, torch_dtype=dtype)  # not all open single files themselves


def _pipeline_class(folder: Path, channels: int | None = None):
    """The class of pipeline that the `model_index.json` of a folder names, or its sister for a UNet that takes so many
    `channels`; None: as many as that of the folder.
    """
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model: the folder {str(folder)!r} has no model_index.json; give a folder in the format of diffusers"
        )
    name = StableDiffusionPipeline.load_config(folder).get("_class_name")
    if name not in PIPELINES:
        raise ModelError(f"model: {str(folder)!r} is a {name}; ZS² works with {', '.join(PIPELINES)}")
    kinds = PIPELINES[name]
    if channels is None:
        channels = UNet2DConditionModel.load_config(folder, subfolder="unet", local_files_only=True)["in_channels"]
    if channels not in kinds:
        raise ModelError(
            f"model: its UNet takes {channels} channels, and {str(folder)!r} says that it is for a {name}; ZS² works "
            f"with UNets of this kind that take {', '.join(map(str, kinds))}"
        )
    return kinds[channels]


def unet_channels(file: Path) -> int | None:
    """The channels that the UNet of a single file takes, by its header; None if it has no UNet."""
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_slice(FIRST).get_shape()[1] if FIRST in set(tensors.keys()) else None


def model_kind(file: Path) -> str:
    """Returns whose shape a single file has by its header: "sd1", "sd2" or "sdxl". Raises ModelError for another."""
    with safe_open(file, framework="pt") as tensors:
        names = set(tensors.keys())
    if FIRST in names:
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
    if not is_sdxl(pipe) and pipe.unet.config.cross_attention_dim == 1024:
        pipe.unet.register_to_config(sample_size=96)  # SD 2.x with v-prediction makes images of 768×768 pixels


@torch.no_grad()
def predicts_noise(pipe) -> bool:
    """Whether the UNet predicts the noise ε in its input, rather than v = √ᾱ ε - √(1 - ᾱ) x₀.

    At the last time step the input is almost noise alone: ε correlates with it by about 1, v by about 0.
    """
    unet = pipe.unet
    size = unet.config.sample_size // 2
    noise = torch.randn(1, unet.config.out_channels, size, size, generator=torch.Generator().manual_seed(0))
    more = torch.zeros(1, unet.config.in_channels - unet.config.out_channels, size, size)
    if more.shape[1] == 5:
        more[:, 0] = 1  # everything is masked
    x = torch.cat([noise, more], dim=1).to(unet.device, unet.dtype)
    kwargs = {"encoder_hidden_states": x.new_zeros(1, 77, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":  # SDXL: pooled text, and the size of the image
        pixels = float(size * pipe.vae_scale_factor)
        kwargs["added_cond_kwargs"] = {
            "text_embeds": x.new_zeros(1, pipe.text_encoder_2.config.projection_dim),
            "time_ids": x.new_tensor([[pixels, pixels, 0, 0, pixels, pixels]]),
        }
    output = unet(x, pipe.scheduler.config.num_train_timesteps - 1, **kwargs).sample
    both = torch.stack([noise.to(output.device, output.dtype).flatten(), output.flatten()])
    return torch.corrcoef(both.float())[0, 1].item() > 0.5


def is_sdxl(pipe) -> bool:
    """Whether it is one of SDXL's pipelines, which have two text encoders."""
    return "text_encoder_2" in pipe.components


def takes_masks(pipe) -> bool:
    return "Inpaint" in type(pipe).__name__


def follows_picture(pipe) -> bool:
    """Whether the pipeline is one of Instruct-Pix2Pix, whose calls have a third block of rows."""
    return isinstance(pipe, StableDiffusionInstructPix2PixPipeline)


def check_pipeline(pipe) -> None:
    """Raises ValueError, which names the remedy, if `pipe`, as it is set up, cannot make a clip."""
    if not isinstance(pipe, SAMPLED):
        raise ValueError(
            f"ZS² cannot make clips with {type(pipe).__name__}; give a StableDiffusionPipeline or "
            "StableDiffusionXLPipeline, or one of theirs for img2img, inpainting or Instruct-Pix2Pix"
        )
    unet, scheduler = pipe.unet, pipe.scheduler
    if hasattr(unet, "_orig_mod"):
        raise ValueError("ZS² cannot hook a compiled UNet; set pipe.unet = pipe.unet._orig_mod")
    allowed = (8,) if follows_picture(pipe) else (4, 9) if takes_masks(pipe) else (pipe.vae.config.latent_channels,)
    if unet.config.in_channels not in allowed:
        raise ValueError(
            f"ZS²: the UNet takes {unet.config.in_channels} channels, where a {type(pipe).__name__} gives it "
            f"{' or '.join(map(str, allowed))}: it is a checkpoint for inpainting or editing; load it as what it is"
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
