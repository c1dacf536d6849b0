"""The command line's options about what samples a clip: sampler, LoRAs, embeddings, VAE, clip skip."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zs2_lib.hosts.diffusers import devices, draws, samplers
from zs2_lib.settings.kinds import Choice, Number, SettingsError, WholeNumber
from zs2_lib.settings.schedule import number_text

OF_RECIPE = {"sampler": "Sampler", "scheduler": "Schedule type", "clip_skip": "Clip skip", "rng": "RNG"}
"""The options that a recipe has, with its keys."""
_TAG = re.compile(r"\s*<lora:([^:>]+)(?::([^:>]+))?[^>]*>")  # as the WebUI writes it; more numbers are of no use here


@dataclass(frozen=True)
class Models:
    """What samples a clip, beside the checkpoint. Without anything asked for it is the checkpoint as it is.

    sampler, schedule: the WebUI's names; None for the scheduler of the checkpoint, and its own schedule type.
    loras: files with their weights. embeddings, vae: files. clip_skip: as the WebUI counts it.
    """

    sampler: str | None = None
    schedule: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[str, ...] = ()
    vae: str | None = None
    clip_skip: int = 1
    rng: str = draws.CPU
    """Where the noise of frame 1 comes from, one of `draws.SOURCES`."""
    expected: str | None = None
    """What a recipe calls the checkpoint's own scheduler."""
    device: str | None = None
    dtype: str | None = None
    offload: str | None = None
    compiled: bool = False
    """Where it computes and how; None leaves it to the checkpoint and the machine."""

    @property
    def tags(self) -> str:
        """What the WebUI has in a prompt for the LoRAs."""
        return "".join(f" <lora:{Path(file).stem}:{number_text(weight)}>" for file, weight in self.loras)

    def values(self, own_sampler: str) -> dict[str, object]:
        """What a recipe says of them, by the WebUI's keys; `own_sampler` is the name of the checkpoint's scheduler."""
        values = {"Sampler": self.sampler or own_sampler, "Schedule type": self.schedule}
        values |= {
            "Clip skip": self.clip_skip if self.clip_skip > 1 else None,
            "RNG": self.rng,
            "VAE": Path(self.vae).name if self.vae else None,
        }
        return {key: value for key, value in values.items() if value is not None}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sampler and models",
        "Files are .safetensors; nothing is downloaded, and nothing unpickled.",
    )
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"By the WebUI's names: {', '.join(samplers.SAMPLERS)}. Default: the checkpoint's own, DDIM for a single "
        "file.",
    )
    group.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"The WebUI's schedule type: {', '.join(samplers.SCHEDULES)}; some samplers have few. Default Automatic.",
    )
    group.add_argument(
        "--lora",
        action="append",
        metavar="FILE[:WEIGHT]",
        help="A LoRA, default weight 1; needs the package peft. May be given more than once.",
    )
    group.add_argument(
        "--embedding",
        action="append",
        metavar="FILE",
        help="A textual inversion, which a prompt names like the file, without .safetensors. May be given more than "
        "once.",
    )
    group.add_argument("--vae", metavar="FILE|FOLDER", help="Another VAE; a folder in the format of diffusers.")
    group.add_argument(
        "--clip-skip",
        metavar="N",
        help="The layer of CLIP that ends it, counted as in the WebUI from the last one, 1. SD 1.x alone has it.",
    )
    group.add_argument(
        "--rng",
        metavar="|".join(draws.SOURCES),
        help="Where the noise of the first frame comes from, as in the WebUI: CPU, or NV, as on an NVIDIA GPU, the "
        "WebUI's default. Default CPU.",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device", metavar="auto|cuda:N|mps|cpu", help="Where it computes. Default auto: a CUDA GPU, else the CPU."
    )
    group.add_argument(
        "--dtype",
        metavar="|".join(devices.DTYPES),
        help="The precision of the weights. Default float16 on CUDA, elsewhere float32.",
    )
    group.add_argument(
        "--offload",
        metavar="|".join(devices.OFFLOADS),
        help="Keeps all of the checkpoint but the model that computes (model), or the layer (sequential), in main "
        "memory.",
    )
    group.add_argument(
        "--compile",
        action="store_const",
        const="True",
        help="Compiles where ZS² does not reach: convolutions, cross-attention, feed-forward layers. "
        "Takes minutes once, and gives other roundings.",
    )


def read(
    options: argparse.Namespace,
    named: Mapping[str, tuple[str, str | None]],
    recipe: Mapping[str, str],
    prompt: str,
    frames: str = "",
) -> tuple[Models, str, list[str]]:
    """(what samples the clip, the prompt without its LoRAs, notes).

    `named` has for each of `OF_RECIPE` what its value is called in an error, and its text; `recipe`, `prompt` and
    `frames`, the prompts by frame, are those of the clip. Raises SettingsError for what is not allowed.
    """
    sampler, schedule, expected, notes = _sampler(options, named, recipe)
    skip_key, skip = named["clip_skip"]
    prompt, loras = _loras(options.lora or (), prompt, frames)
    files = [("--embedding", file) for file in options.embedding or ()] + [("--lora", file) for file, _ in loras]
    if options.vae is not None and not Path(options.vae).is_dir():
        files.append(("--vae", options.vae))
    for key, file in files:
        check_file(key, file)
    rng, more = _rng(options, named, recipe)
    device = None if options.device is None else devices.read_device("--device", options.device)
    compiled = options.compile is not None
    devices.read_precision(device, options.dtype, options.offload, compiled)
    models = Models(
        sampler=sampler,
        schedule=schedule,
        loras=tuple(loras),
        embeddings=tuple(options.embedding or ()),
        vae=options.vae,
        expected=expected,
        device=device,
        dtype=options.dtype,
        offload=options.offload,
        compiled=compiled,
        clip_skip=1 if skip is None else WholeNumber(1, 12).read(skip_key, skip),
        rng=rng,
    )
    return models, prompt, notes + more


def _sampler(options, named, recipe) -> tuple[str | None, str | None, str | None, list[str]]:
    """(sampler, schedule type, expected, notes), as `Models` has them."""
    (key, text), (schedule_key, schedule_text) = named["sampler"], named["scheduler"]
    from_recipe, expected = options.sampler is None, None
    if from_recipe and text and not schedule_text and "Version" not in recipe and samplers.is_own(text):
        text, expected = None, text
    if not from_recipe and options.scheduler is None:
        schedule_text = None  # another sampler than the recipe's: its schedule type is of no use
    if text is None and schedule_text is None:
        return None, None, expected, []
    sampler, schedule = samplers.read_sampler(key, text) if text is not None else (None, None)
    if schedule_text is not None:
        schedule = samplers.read_schedule(schedule_key, schedule_text, sampler)
    elif schedule is not None:
        schedule = samplers.read_schedule(key, schedule, sampler)
    elif sampler is not None:
        schedule = samplers.AUTOMATIC
    notes = []
    if "Version" in recipe:  # a WebUI's
        notes = [samplers.note_on(sampler) if from_recipe and sampler else None]
    return sampler, schedule, expected, [note for note in notes if note]


def _rng(options, named, recipe) -> tuple[str, list[str]]:
    """(where the noise of frame 1 comes from, notes). WebUIs but Forge Neo do not name the GPU, their default."""
    key, text = named["rng"]
    if options.rng is None and "Version" in recipe and text in (None, "GPU"):
        of_gpu = "the recipe's noise came from a WebUI's device; that of an NVIDIA GPU is taken"
        return draws.NVIDIA, [f"{of_gpu}, give --rng CPU if it ran on a CPU"]
    return draws.CPU if text is None else Choice(draws.SOURCES).read(key, text.upper()), []


def _loras(given: list[str], prompt: str, frames: str) -> tuple[str, list[tuple[str, float]]]:
    """(the prompt without the WebUI's words for LoRAs, the LoRAs with their weights): those that are given, with the
    weights of the prompt where they are given none. `frames` are the prompts by frame.
    """
    of_prompt = {name: weight or "1" for name, weight in _TAG.findall(prompt)}
    loras, names = [], set()
    for text in given:
        file, weight = text, None
        if not Path(text).exists() and (match := re.fullmatch(r"(.+):([^:/\\]*)", text, re.DOTALL)):
            file, weight = match.groups()
        name = Path(file).stem
        weight = of_prompt.get(name, "1") if weight is None else weight
        loras.append((file, Number(-10, 10).read(f"--lora {name}", weight)))
        names.add(name)
    if lost := [name for name in of_prompt if name not in names]:
        raise SettingsError(
            f"prompt: the LoRA {lost[0]!r} is not searched for; give it by --lora FILE, or a prompt without "
            f"<lora:{lost[0]}:…>"
        )
    if "<lora:" in frames:
        raise SettingsError(
            "prompts: LoRAs by frame are not allowed here; name them by --lora, for all frames, or use the WebUI"
        )
    if loras and importlib.util.find_spec("peft") is None:
        raise SettingsError(f"--lora: it needs peft; install it with: {sys.executable} -m pip install peft")
    return without_loras(prompt), loras


def without_loras(prompt: str) -> str:
    """The prompt without the WebUI's words for LoRAs."""
    return _TAG.sub("", prompt)


def check_file(key: str, file: str) -> None:
    """Raises SettingsError for a file that is not there, or could run code when it is opened."""
    if not Path(file).is_file():
        raise SettingsError(f"{key}: there is no file {file!r}; give one that is on this machine")
    if Path(file).suffix != ".safetensors":
        raise SettingsError(
            f"{key}: {file!r} is no .safetensors file (others, such as .pt and .bin, can run code when they are "
            "opened); convert it to .safetensors"
        )
