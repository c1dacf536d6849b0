"""The part of the command line that makes frames larger: hires. fix, and upscalers of finished frames."""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zs2_lib.cli_models import Models, check_file, without_loras
from zs2_lib.hosts.diffusers import hires, samplers
from zs2_lib.media import upscalers
from zs2_lib.settings import postprocessing
from zs2_lib.settings.kinds import Number, SettingsError, WholeNumber, nearest
from zs2_lib.settings.postprocessing import NO_UPSCALER, UPSCALED_BY, UPSCALER
from zs2_lib.settings.schedule import number_text

SCALE, RESIZE = "Hires upscale", "Hires resize"
PROMPT, NEGATIVE = "Hires prompt", "Hires negative prompt"
SAMPLER, SCHEDULE = "Hires sampler", "Hires schedule type"
OF_RECIPE = {
    "--hires-upscaler": "Hires upscaler",
    "--hires-steps": "Hires steps",
    "--hires-denoising": "Denoising strength",
    "--hires-cfg": "Hires CFG Scale",
}
"""The options that say more of hires. fix, and the WebUI's keys for them in a recipe."""
KEYS = (SCALE, RESIZE, PROMPT, NEGATIVE, SAMPLER, SCHEDULE, *OF_RECIPE.values())
"""Keys of a recipe that are followed here."""
SCALES = Number(1, 4)
MOST_PIXELS = 8192
"""Of a side."""
MOST_STEPS = 999
"""As many as a checkpoint has been trained with, less one."""
FACTORS = postprocessing.ROWS["scale"].kind


# --- options -------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "larger frames",
        "--hires is the WebUI's hires. fix: a clip made of text alone is sampled again in a larger size. --upscale "
        "makes the frames of any clip larger, also those of --input. Upscaler models are .safetensors files, and need "
        "the package spandrel.",
    )
    group.add_argument(
        "--hires",
        metavar="SCALE|WxH|off",
        help="How many times as wide and high, from 1 to 4, down to multiples of 8 pixels; or the size, one side of "
        "which may be 0.",
    )
    group.add_argument(
        "--hires-upscaler",
        metavar="NAME|FILE",
        help=f"{', '.join((*hires.LATENT, *upscalers.BY_RESIZING))}, or the file of an upscaler model. Default Latent.",
    )
    group.add_argument("--hires-steps", metavar="N", help="Steps of the second pass. Default 0, as many as the first.")
    group.add_argument(
        "--hires-denoising",
        metavar="X",
        help="How much of the way from noise to picture the second pass goes, more than 0 and up to 1. Default "
        f"{hires.DENOISING}.",
    )
    group.add_argument("--hires-cfg", metavar="X", help="--cfg of the second pass. Default: the same.")
    group.add_argument(
        "--upscale",
        metavar="FACTOR[:NAME|FILE]",
        help=f"How many times as wide and high, from {FACTORS.low} to {FACTORS.high}, by "
        f"{', '.join(upscalers.BY_RESIZING)}, or the file of an upscaler model. Default Lanczos.",
    )


# --- upscalers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upscaler:
    """One by its name, as the WebUI has it; a model by its file as well."""

    name: str
    file: str | None = None

    def open(self, device, dtype) -> upscalers.Upscale:
        """What makes pictures larger; a model computes on that device in that type of numbers. Raises ValueError."""
        if self.file is None:
            return upscalers.BY_RESIZING[self.name]
        from zs2_lib.hosts.diffusers.upscalers import load_upscaler  # which torch alone does not need

        return load_upscaler(self.file, device, dtype)


def read_upscaler(flag: str, key: str, text: str, names: tuple[str, ...]) -> Upscaler:
    """The upscaler that `text` is: one of `names`, in small letters or large, or a file, which `flag` gives. Raises
    SettingsError, which names `key`.
    """
    of_case = {name.lower(): name for name in names} | {NO_UPSCALER.lower(): "Lanczos"}  # so the WebUI resizes
    if name := of_case.get(text.strip().lower()):
        return Upscaler(name)
    if key != flag:  # a recipe's
        raise SettingsError(
            f"{key}: {text!r} is not searched for; give its file by {flag} FILE.safetensors, or another one of "
            f"{', '.join(names)}"
        )
    if not Path(text).suffix and not Path(text).exists():
        raise SettingsError(
            f"{key}: {text!r} is not allowed; give one of {', '.join(names)}, or the .safetensors file of an upscaler "
            f"model{nearest(text, names)}"
        )
    check_file(key, text)
    if importlib.util.find_spec("spandrel") is None:
        raise SettingsError(f"{key}: it needs spandrel; install it with: {sys.executable} -m pip install spandrel")
    return Upscaler(Path(text).stem, text)


@dataclass(frozen=True)
class Larger:
    """Finished frames made larger by a factor, down to multiples of 8 pixels."""

    scale: float
    upscaler: Upscaler

    @property
    def texts(self) -> dict[str, str]:
        """What a recipe says of it."""
        return {UPSCALER: self.upscaler.name, UPSCALED_BY: number_text(self.scale)}

    def open(self, device, dtype) -> Callable[[Image.Image], Image.Image]:
        """What makes a frame larger; see `Upscaler.open`."""
        upscale = self.upscaler.open(device, dtype)
        return lambda picture: upscale(picture, upscalers.large_size(picture.size, self.scale))


def read_upscale(options: argparse.Namespace) -> Larger | None:
    """What makes finished frames larger, if the options ask for it. Raises SettingsError."""
    if options.upscale is None:
        return None
    factor, _, name = options.upscale.partition(":")
    scale = FACTORS.read("--upscale", factor)
    names = tuple(upscalers.BY_RESIZING)
    return Larger(scale, read_upscaler("--upscale", "--upscale", name or names[0], names))


# --- hires. fix ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hires:
    """The second pass of a clip, checked: what `hosts.diffusers.hires.Hires` has, by names.

    scale: None where `resize` says the size.
    sampler, schedule: None for those of the first pass.
    """

    scale: float | None
    resize: hires.Size | None
    upscaler: Upscaler
    steps: int
    denoising: float
    guidance: float | None
    prompt: str | None = None
    negative: str | None = None
    sampler: str | None = None
    schedule: str | None = None

    def of_host(self, pipe) -> hires.Hires:
        """The same as the host takes it, with the checkpoint's own scheduler on the pipeline. Raises ValueError."""
        scheduler = samplers.scheduler(pipe.scheduler, self.sampler, self.schedule) if self.sampler else None
        upscaler = self.upscaler.name
        if upscaler not in hires.LATENT:
            upscaler = self.upscaler.open(pipe._execution_device, pipe.unet.dtype)
        return hires.Hires(
            self.scale or 1.0,
            self.resize,
            upscaler,
            self.steps,
            self.denoising,
            self.guidance,
            self.prompt,
            self.negative,
            scheduler,
        )

    @property
    def texts(self) -> dict[str, str]:
        """What a recipe says of it, by the WebUI's keys."""
        texts = {
            "Denoising strength": number_text(self.denoising),
            SCALE: None if self.scale is None else number_text(self.scale),
            RESIZE: None if self.resize is None else "x".join(map(str, self.resize)),
            "Hires CFG Scale": None if self.guidance is None else number_text(self.guidance),
            SAMPLER: self.sampler,
            SCHEDULE: self.schedule,
            PROMPT: self.prompt,
            NEGATIVE: self.negative,
            "Hires steps": str(self.steps) if self.steps else None,
            "Hires upscaler": self.upscaler.name,
        }
        return {key: text for key, text in texts.items() if text is not None}


def read_hires(
    options: argparse.Namespace, made_of: Mapping[str, str], steps: int, models: Models
) -> tuple[Hires | None, list[str]]:
    """(the second pass that the options ask for, or the texts of a recipe, by key; notes).

    steps, models: those of the first pass.
    Raises SettingsError.
    """
    given = [flag for flag in ("--hires", *OF_RECIPE) if _option(options, flag) is not None]
    pictures = next((flag for flag in ("--source", "--image") if _option(options, flag)), None)
    if pictures and given:
        raise SettingsError(
            f"{given[0]} is not allowed with {pictures}: hires. fix is for clips made of text alone, as in the WebUI; "
            "leave it out, or give a larger --size"
        )
    of_recipe = made_of if SCALE in made_of or RESIZE in made_of else {}
    if pictures:
        return None, [f"hires. fix of the recipe is not followed with {pictures}"] if of_recipe else []
    if options.hires == "off" or (options.hires is None and not of_recipe):
        if others := [flag for flag in given if flag != "--hires"]:
            raise SettingsError(f"{others[0]}: there is no second pass; give --hires SCALE as well")
        return None, []
    scale, resize = _size(options, of_recipe)

    def read(flag: str, kind: Number, default):
        key, text = _chosen(options, flag, of_recipe)
        return default if text is None else kind.read(key, text)

    key, text = _chosen(options, "--hires-upscaler", of_recipe)
    names = (*hires.LATENT, *upscalers.BY_RESIZING)
    sampler, schedule, notes = _sampler(of_recipe, models)
    prompt, of_prompt = _prompt(of_recipe)
    pass_two = Hires(
        scale,
        resize,
        Upscaler("Latent") if text is None else read_upscaler("--hires-upscaler", key, text, names),
        read("--hires-steps", WholeNumber(0, MOST_STEPS), 0),
        read("--hires-denoising", Number(0, 1), hires.DENOISING),
        read("--hires-cfg", Number(0, 100), None),
        prompt,
        of_recipe.get(NEGATIVE),
        sampler,
        schedule,
    )
    _check_steps(pass_two, steps, sampler or models.sampler)
    return pass_two, notes + of_prompt


def _option(options: argparse.Namespace, flag: str) -> str | None:
    return getattr(options, flag.removeprefix("--").replace("-", "_"))


def _chosen(options: argparse.Namespace, flag: str, of_recipe: Mapping[str, str]) -> tuple[str, str | None]:
    """What an option's value is called in an error, and its text, None if there is none."""
    text, key = _option(options, flag), OF_RECIPE[flag]
    return (flag, text) if text is not None or key not in of_recipe else (f"{key} of the recipe", of_recipe[key])


def _size(options: argparse.Namespace, of_recipe: Mapping[str, str]) -> tuple[float | None, hires.Size | None]:
    """(scale, None) or (None, size)."""
    key, text = "--hires", options.hires
    if text is None:
        key = RESIZE if RESIZE in of_recipe else SCALE
        key, text = f"{key} of the recipe", of_recipe[key]
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.lower())
    if not match:
        try:
            return SCALES.read(key, text), None
        except SettingsError as error:
            raise SettingsError(f"{error}, or a size such as 1024x1536, or off") from None
    size = int(match[1]), int(match[2])
    if not any(size) or any(side and not 64 <= side <= MOST_PIXELS for side in size):
        raise SettingsError(
            f"{key}: {text!r} is not allowed; give WIDTHxHEIGHT of 64 to {MOST_PIXELS} pixels, or 0 for one of them"
        )
    return None, size


def _sampler(of_recipe: Mapping[str, str], models: Models) -> tuple[str | None, str | None, list[str]]:
    """(sampler, schedule type, notes) of a second pass that has others than the first."""
    if SAMPLER not in of_recipe and SCHEDULE not in of_recipe:
        return None, None, []
    try:
        sampler, schedule = models.sampler, models.schedule
        if SAMPLER in of_recipe:
            sampler, _ = samplers.read_sampler(f"{SAMPLER} of the recipe", of_recipe[SAMPLER])
        if SCHEDULE in of_recipe:
            schedule = samplers.read_schedule(f"{SCHEDULE} of the recipe", of_recipe[SCHEDULE], sampler)
        elif sampler and schedule not in samplers.SAMPLERS[sampler].schedules:
            schedule = samplers.AUTOMATIC
    except SettingsError as error:
        return None, None, [f"the second pass has the sampler of the first: {error}"]
    return (sampler, schedule, []) if sampler else (None, None, [f"not followed of the recipe: {SCHEDULE}"])


def _prompt(of_recipe: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The prompt of the second pass, and notes."""
    prompt = of_recipe.get(PROMPT)
    if prompt is None:
        return None, []
    plain = without_loras(prompt)
    return plain, [] if plain == prompt else [
        f"LoRAs that the {PROMPT} names are not followed: those of the prompt are"
    ]


def _check_steps(pass_two: Hires, first_steps: int, sampler: str | None) -> None:
    """Raises SettingsError for more steps on the whole way than there can be."""
    steps, denoising = pass_two.steps or first_steps, pass_two.denoising
    most = samplers.SAMPLERS[sampler].most_steps if sampler else MOST_STEPS
    count = hires.schedule(steps, denoising)[0] if denoising else math.inf
    if count > most:
        raise SettingsError(
            f"--hires-denoising: {denoising:g} is not allowed with {steps} steps, which are then a part of more than "
            f"{most}; give {math.ceil(100 * steps / most) / 100:g} to 1, or fewer --hires-steps"
        )
