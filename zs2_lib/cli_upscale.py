"""The part of the command line that makes frames larger: hires. fix."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from zs2_lib.cli_models import Models, without_loras
from zs2_lib.hosts.diffusers import hires, samplers
from zs2_lib.settings.kinds import Choice, Number, SettingsError, WholeNumber
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
MOST_PIXELS = 16384
"""Of a side."""
MOST_STEPS = 999
"""As many as a checkpoint has been trained with, less one."""


# --- options -------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "larger frames",
        "hires. fix: a clip made of text alone is sampled again in a larger size, as the WebUI does it.",
    )
    group.add_argument(
        "--hires",
        metavar="SCALE|WxH|off",
        help="How many times as wide and high, from 1 to 4, down to multiples of 8 pixels; or the size, one side of "
        "which may be 0.",
    )
    group.add_argument("--hires-upscaler", metavar="NAME", help=f"{', '.join(hires.LATENT)}. Default Latent.")
    group.add_argument("--hires-steps", metavar="N", help="Steps of the second pass. Default 0, as many as the first.")
    group.add_argument(
        "--hires-denoising",
        metavar="X",
        help="How much of the way from noise to picture the second pass goes, more than 0 and up to 1. Default "
        f"{hires.DENOISING}.",
    )
    group.add_argument("--hires-cfg", metavar="X", help="--cfg of the second pass. Default: the same.")


# --- hires. fix ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hires:
    """The second pass of a clip, checked: what `hosts.diffusers.hires.Hires` has, by names.

    scale: None where `resize` says the size.
    sampler, schedule: None for those of the first pass.
    """

    scale: float | None
    resize: hires.Size | None
    upscaler: str
    steps: int
    denoising: float
    guidance: float | None
    prompt: str | None = None
    negative: str | None = None
    sampler: str | None = None
    schedule: str | None = None

    def of_host(self, own_scheduler) -> hires.Hires:
        """The same as the host takes it; `own_scheduler` is that of the checkpoint."""
        scheduler = samplers.scheduler(own_scheduler, self.sampler, self.schedule) if self.sampler else None
        return hires.Hires(
            self.scale or 1.0,
            self.resize,
            self.upscaler,
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
            "Hires upscaler": self.upscaler,
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
    sampler, schedule, notes = _sampler(of_recipe, models)
    prompt, of_prompt = _prompt(of_recipe)
    pass_two = Hires(
        scale,
        resize,
        "Latent" if text is None else Choice(tuple(hires.LATENT)).read(key, text),
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
