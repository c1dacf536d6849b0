"""What is put on a checkpoint before clips are sampled from it: LoRAs, embeddings, a VAE, and where its CLIP ends."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL
from safetensors.torch import load_file

from .checkpoints import ModelError, is_sdxl
from .text_encoding import CHUNK


@dataclass(frozen=True)
class Lora:
    """A LoRA's .safetensors file, and how much of it is taken."""

    file: str
    weight: float = 1.0


def put(pipe, loras: Sequence[Lora] = (), embeddings: Iterable[str] = (), vae: str | None = None) -> None:
    """Puts these files on the pipeline for good. Raises ModelError for one that does not fit."""
    if vae is not None:
        use_vae(pipe, Path(vae))
    for file in embeddings:
        add_embedding(pipe, Path(file))
    if loras:
        merge_loras(pipe, loras)


def merge_loras(pipe, loras: Sequence[Lora]) -> None:
    """Adds the LoRAs to the weights of UNet and text encoders, as the WebUI does; by `diffusers`, which needs peft."""
    names = [f"zs2_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras):
        with _in_words("lora", lora.file, "it may be of another architecture, or no LoRA that diffusers knows"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # peft's, that there are several
                pipe.load_lora_weights(load_file(lora.file), adapter_name=name)
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise ModelError(f"lora: {lora.file!r} fits no layer of this checkpoint; choose a LoRA made for its kind")
    pipe.set_adapters(names, [lora.weight for lora in loras])
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()  # the layers around the weights, which are merged


def add_embedding(pipe, file: Path) -> None:
    """Makes the file's name, without its suffix, a word of prompts that stands for the embedding in it."""
    word, xl = file.stem, is_sdxl(pipe)
    with _in_words("embedding", str(file), "it may be of another architecture, or its name a word that CLIP has"):
        tensors = load_file(file)
        if xl != {"clip_l", "clip_g"}.issubset(tensors):
            raise ValueError("it is for SD 1.x or SD 2.x, not SDXL" if xl else "it is for SDXL, not SD 1.x or SD 2.x")
        if longest := max((len(each) for each in tensors.values() if each.ndim == 2 and len(each) > CHUNK), default=0):
            raise ValueError(f"it has {longest} vectors, more than the {CHUNK} tokens that CLIP reads at once")
        if not xl:
            values = tensors.get("emb_params", next(iter(tensors.values())) if len(tensors) == 1 else None)
            if values is None or values.ndim not in (1, 2):
                raise ValueError("it holds no textual inversion")
            pipe.load_textual_inversion(values, token=word)
            return
        for name, encoder, tokenizer in (
            ("clip_l", pipe.text_encoder, pipe.tokenizer),
            ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
        ):
            pipe.load_textual_inversion(tensors[name], token=word, text_encoder=encoder, tokenizer=tokenizer)


def use_vae(pipe, path: Path) -> None:
    """Takes another VAE, of the shape of the pipeline's own: a .safetensors file, or a folder of `diffusers`."""
    own = pipe.vae
    with _in_words("vae", str(path), "its shape may not be that of the checkpoint's VAE"):
        if path.is_dir():
            vae = AutoencoderKL.from_pretrained(
                path, torch_dtype=own.dtype, use_safetensors=True, local_files_only=True
            )
        else:
            with tempfile.TemporaryDirectory() as config:
                own.save_config(config)
                vae = AutoencoderKL.from_single_file(
                    str(path), config=config, torch_dtype=own.dtype, local_files_only=True
                )
        if vae.config.latent_channels != own.config.latent_channels:
            raise ValueError(f"it has {vae.config.latent_channels} channels, not {own.config.latent_channels}")
    pipe.vae = vae.to(own.device)


@contextmanager
def clip_skip(pipe, layer: int) -> Iterator[None]:
    """Scope in which CLIP ends with this layer, counted from the last one, 1, for both prompts, as in the WebUI
    (the `clip_skip` of `diffusers` leaves the negative prompt out). SD 2.x and SDXL always take the last but one.

    Raises ModelError for more layers than there are.
    """
    with ExitStack() as undo:
        if layer > 1 and clip_skip_counts(pipe):
            encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).encoder
            kept = len(encoder.layers) - layer + 1
            if kept < 1:
                raise ModelError(
                    f"clip skip: {layer} is not allowed, this checkpoint's CLIP has {len(encoder.layers)} layers; give "
                    "fewer"
                )
            undo.callback(setattr, encoder, "layers", encoder.layers)
            encoder.layers = encoder.layers[:kept]
        yield


def clip_skip_counts(pipe) -> bool:
    """Whether a clip skip changes anything."""
    return not is_sdxl(pipe) and pipe.unet.config.cross_attention_dim != 1024


@contextmanager
def _in_words(what: str, file: str, remedy: str) -> Iterator[None]:
    """Scope in which errors say that a file cannot be used, and the `remedy`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of whatever kind: the libraries have many for a file that is not what they expect
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"{what}: {file!r} cannot be used with this checkpoint ({reason}); {remedy}") from error
