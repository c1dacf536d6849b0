"""ControlNets of `diffusers`: opening them, the pipelines that have them, and their part in a clip's UNet calls.

Nothing is downloaded, and nothing unpickled.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from zs2_lib.hosts.undo import override

from .checkpoints import PICKLED, WITH_CONTROL, ModelError

OF_TEXT = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
"""Whose models take a text of so many values a token."""
OF_DIFFUSERS = "controlnet_cond_embedding."
"""How names begin in the format of `diffusers`, and in no other."""
OTHERS = {
    "lllite": "a ControlNet-LLLite",
    "lora_controlnet": "a Control-LoRA",
    "task_embedding": "a ControlNet Union",
    "adapter.": "a T2I-Adapter",
    "body.": "a T2I-Adapter",
}
"""What models for control that are no ControlNets are, by the begin of a tensor's name."""


@dataclass(frozen=True)
class Unit:
    """The images that one ControlNet of a pipeline is given in a clip, and how strongly it follows them.

    pictures: gives the control image of each of these frames of the clip (counted from 0, in-betweens among them) in
        the size (width, height) of the clip.
    weight: the factor of its residuals.
    start, end: the part of the steps that it has a say in, 0 to 1.
    """

    pictures: Callable[[range, tuple[int, int]], Iterable[Image.Image]]
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


def with_controls(pipe, models: Sequence[str | Path]):
    """A pipeline with the modules of `pipe`, which samples clips of text, img2img or inpainting, and a ControlNet for
    each of the `models`, which may come more than once: `.safetensors` files or folders in the format of `diffusers`.

    Raises ModelError for what cannot be loaded, or is made for other checkpoints.
    """
    cls = WITH_CONTROL.get(type(pipe))
    if cls is None:
        raise ModelError(
            f"control: {type(pipe).__name__} has no ControlNet; give one of "
            f"{', '.join(each.__name__ for each in WITH_CONTROL)}"
        )
    nets = {Path(model): None for model in models}
    for model in nets:
        nets[model] = load_control(model, pipe.unet)
    more = {"add_watermarker": pipe.watermark is not None} if hasattr(pipe, "watermark") else {}
    controls = [nets[Path(model)] for model in models]  # a list even of one is a MultiControlNetModel
    return cls.from_pipe(pipe, controlnet=controls, torch_dtype=pipe.unet.dtype, **more)


# --- models --------------------------------------------------------------------------------------------


def load_control(model: str | Path, unet) -> ControlNetModel:
    """Opens a ControlNet for `unet`, whose device and type of numbers it gets. Raises ModelError."""
    model = Path(model)
    if not model.exists():
        raise ModelError(
            f"control: there is no {str(model)!r}; give a .safetensors file or a folder in the format of diffusers "
            "that is on this machine (nothing is downloaded)"
        )
    try:
        net = (_load_folder if model.is_dir() else _load_file)(model, unet)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(
            f"control: {str(model)!r} cannot be loaded ({reason}); it has to be complete, and made for this "
            "checkpoint's architecture"
        ) from error
    return net.to(unet.device).eval()


def _load_folder(folder: Path, unet) -> ControlNetModel:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"control: the folder {str(folder)!r} has no config.json; give the folder of a ControlNet in the format of "
            "diffusers, which has one beside its weights"
        )
    shape = json.loads(config.read_text(encoding="utf-8"))
    if shape.get("_class_name") != "ControlNetModel":
        raise ModelError(
            f"control: {str(folder)!r} is a {shape.get('_class_name')}; ZS² works with ControlNetModel; choose "
            "such a model"
        )
    if shape.get("global_pool_conditions"):
        raise ModelError(
            f"control: {str(folder)!r} sees its image as a whole (global_pool_conditions, as shuffle does), and works "
            "for a part of the rows alone (guess mode); choose another ControlNet"
        )
    pickled = [file for file in folder.iterdir() if file.suffix in PICKLED]
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        what = f"{pickled[0].name} can run code when it is opened" if pickled else "there are none"
        raise ModelError(
            f"control: {str(folder)!r} has no weights as .safetensors ({what}); get them as .safetensors, or convert "
            "them"
        )
    _check_text(folder, shape.get("cross_attention_dim", 1280), unet)
    if tuple(shape.get("block_out_channels", ())) != tuple(unet.config.block_out_channels):
        raise ModelError(
            f"control: {str(folder)!r} has blocks of {shape.get('block_out_channels')} channels, the checkpoint of "
            f"{list(unet.config.block_out_channels)}; choose a ControlNet that is made for it"
        )
    variant = "fp16" if all(".fp16" in file.name for file in weights) else None
    return ControlNetModel.from_pretrained(
        folder, torch_dtype=unet.dtype, use_safetensors=True, variant=variant, local_files_only=True
    )


def _load_file(file: Path, unet) -> ControlNetModel:
    """A single file, in the format of the original releases or of `diffusers`; it has the shape of the UNet's way down,
    so the checkpoint's own says what it is.
    """
    if file.suffix != ".safetensors":
        raise ModelError(
            f"control: {str(file)!r} is no .safetensors file (others, such as .pth and .ckpt, can run code when they "
            "are opened); convert it to .safetensors"
        )
    _check_text(file, text_size(file), unet)
    with torch.device("meta"):
        shape = ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
        net = ControlNetModel.from_config(shape, in_channels=unet.config.out_channels)  # those of latents alone
    try:
        net = _filled(net, file, unet.dtype)
        complete = not any(tensor.is_meta for tensor in net.parameters())
    except RuntimeError:
        complete = False
    if not complete:
        raise ModelError(
            f"control: {str(file)!r} lacks some of the tensors that a ControlNet of this checkpoint's shape has, or "
            "has others; if it is of a smaller shape, give its folder in the format of diffusers"
        )
    return net


def _filled(net: ControlNetModel, file: Path, dtype: torch.dtype) -> ControlNetModel:
    """A ControlNet with the shape of `net` and the weights of the file. Raises RuntimeError where they do not fit, or
    leaves what is missing on the device "meta", as versions of `diffusers` differ.
    """
    if any(name.startswith(OF_DIFFUSERS) for name in names_in(file)):  # which older versions do not know
        net.load_state_dict(load_file(file), assign=True)
        return net.to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        net.save_config(folder)
        return ControlNetModel.from_single_file(str(file), config=folder, torch_dtype=dtype, local_files_only=True)


def names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def text_size(file: Path) -> int:
    """How many values a token has in the text that a ControlNet in a single file is made for, by its header. Raises
    ModelError for what is no ControlNet.
    """
    names = names_in(file)
    attention = next((name for name in names if name.endswith("attn2.to_k.weight")), None)
    with safe_open(file, framework="pt") as tensors:
        size = tensors.get_slice(attention).get_shape()[1] if attention else 0
    what = next((what for begin, what in OTHERS.items() for name in names if name.startswith(begin)), None)
    parts = ("control_model.input_hint_block.", "input_hint_block.", OF_DIFFUSERS)
    if what or not size or not any(name.startswith(parts) for name in names):
        raise ModelError(
            f"control: {str(file)!r} is {what or 'no ControlNet'}; choose a ControlNet for SD 1.x, SD 2.x or SDXL"
        )
    return size


def _check_text(model: Path, size: int, unet) -> None:
    """Raises ModelError for a ControlNet that is made for checkpoints with another text encoder."""
    own = unet.config.cross_attention_dim
    if size != own:
        made_for, is_of = (OF_TEXT.get(each, f"texts of {each} values a token") for each in (size, own))
        raise ModelError(
            f"control: {str(model)!r} is made for {made_for}, the checkpoint is of {is_of}; choose a ControlNet that "
            "is made for it"
        )


# --- sampling ------------------------------------------------------------------------------------------


class Controls:
    """The ControlNets of a pipeline while it samples a clip: a `unit` for each.

    The pipeline calls them with all rows of the clip, before the UNet. Here they run in the UNet's passes, with the
    rows of each, so that memory is what a pass needs, and momentum and anchors see the same rows in both.

    Raises ValueError where the pipeline has another number of ControlNets.
    """

    def __init__(self, pipe, units: Sequence[Unit]):
        self.pipe, self.units = pipe, tuple(units)
        self.nets = list(getattr(getattr(pipe, "controlnet", None), "nets", ()))
        if len(self.nets) != len(self.units) or (hasattr(pipe, "controlnet") and not self.nets):
            raise ValueError(
                f"control: {len(self.units)} units for a {type(pipe).__name__} with {len(self.nets)} ControlNets; give "
                "one for each, and the pipeline that control.with_controls makes"
            )
        self._stand_ins = [Image.new("RGB", (8, 8)) for _ in self.units]

    def arguments(self, width: int | None = None, height: int | None = None) -> dict:
        """The pipeline's arguments that belong to them; nothing if there are none."""
        if not self.units:
            return {}
        own = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        return {
            "width": width or own,
            "height": height or own,
            "control_image" if hasattr(self.pipe, "prepare_control_image") else "image": self._stand_ins,
            "controlnet_conditioning_scale": [float(unit.weight) for unit in self.units],
            "control_guidance_start": [float(unit.start) for unit in self.units],
            "control_guidance_end": [float(unit.end) for unit in self.units],
        }

    def enter(self, undo: ExitStack, frames: range) -> None:
        """From here on until `undo` is closed the pipeline's call is one of these frames of the clip."""
        if not self.units:
            return
        self._frames = frames
        self._images = [torch.empty(0)] * len(self.units)
        undo.callback(self._images.clear)
        self._forward = self.pipe.controlnet.forward
        override(undo, self.pipe.controlnet, "forward", self._put_off)
        prepare = "prepare_control_image" if hasattr(self.pipe, "prepare_control_image") else "prepare_image"
        override(undo, self.pipe, prepare, self._of_frames(getattr(self.pipe, prepare)))

    def unet(self, unet: Callable) -> Callable:
        """`unet`, the UNet's `forward`, with the residuals that the ControlNets make of the rows that it is given."""

        @functools.wraps(unet)
        def controlled(sample, *args, down_block_additional_residuals=None, mid_block_additional_residual=None, **more):
            if down_block_additional_residuals is not None:
                of_controls, by_name, frames = down_block_additional_residuals
                if any(by_name["conditioning_scale"]):  # before the start and after the end of all there is nothing
                    images = [each[frames].to(sample.device) for each in self._images]
                    down, middle = self._forward(*of_controls, controlnet_cond=images, **by_name)
                    more |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return unet(sample, *args, **more)

        return controlled

    def _put_off(self, sample: torch.Tensor, *args, controlnet_cond, **by_name) -> tuple[tuple, None]:
        """Stands for the ControlNets' `forward`: instead of residuals the UNet is given what they are called with, and
        of the images their numbers, which are cut along with its rows.
        """
        frames = len(self._frames)
        return ((sample, *args), by_name, torch.arange(frames).repeat(sample.shape[0] // frames)), None

    def _of_frames(self, prepare: Callable) -> Callable:
        """The pipeline's function that prepares a control image: for a unit's stand-in it prepares those of all frames,
        which wait in main memory, and gives rows that look like them.
        """

        @functools.wraps(prepare)
        def prepared(image, width, height, *, device, do_classifier_free_guidance=False, guess_mode=False, **kwargs):
            number = next(number for number, stand_in in enumerate(self._stand_ins) if stand_in is image)
            kwargs |= {"width": width, "height": height, "batch_size": 1, "num_images_per_prompt": 1, "device": "cpu"}
            pictures = self.units[number].pictures(self._frames, (width, height))
            images = self._images[number] = torch.cat([prepare(image=each, **kwargs) for each in pictures])
            groups = 2 if do_classifier_free_guidance and not guess_mode else 1
            return images[:1].to(device).expand(groups * len(images), -1, -1, -1)

        return prepared
