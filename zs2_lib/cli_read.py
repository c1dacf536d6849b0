"""What the options of the command line, texts, describe: the work to be done, or why it cannot be done."""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from zs2_lib import cli_control, cli_edit, cli_models, cli_upscale
from zs2_lib.cli_job import TINY, Faster, Job, Targets, model_name
from zs2_lib.cli_say import Refused
from zs2_lib.hosts.diffusers.prompt_text import check_prompts
from zs2_lib.hosts.diffusers.samplers import check_steps
from zs2_lib.media.formats import FORMATS, check_clip, clip_path, exact_rate, split_clip_name
from zs2_lib.media.interpolators import MINTERPOLATE
from zs2_lib.media.read import open_source
from zs2_lib.media.text import read_text
from zs2_lib.media.write import check_replaceable
from zs2_lib.settings import going_on, postprocessing, recipe
from zs2_lib.settings.finished import STOPPED, FinishedClip, Kept
from zs2_lib.settings.kinds import Choice, Number, Prompts, SettingsError, WholeNumber
from zs2_lib.settings.postprocessing import INTERPOLATED_TO, UPSCALED_BY, UPSCALER, check_interpolator
from zs2_lib.settings.row import Row
from zs2_lib.settings.schedule import number_text
from zs2_lib.settings.speeds import SPEEDS, Speed
from zs2_lib.settings.table import ROWS, Settings

STEPS, CFG = 20, 5
GOING_ON = {"recipe": (), "extend": ("frames", "extended"), "retake": ("retakes",)}
"""The options that name a clip to go on from, and the settings that each of them decides."""
LEAVES_FRAMES = (
    "quiet",
    "progress",
    "offload",
    "output",
    "model",
    "config",
    "in_betweens",
    "fps",
    "sidecar",
    "upscale",
    "interpolate",
    "interpolator",
)
"""Options that leave those frames as they are that a clip has."""
OF_RECIPE = {"seed": "Seed", "steps": "Steps", "cfg": "CFG scale", "size": "Size", **cli_models.OF_RECIPE}
OF_OTHERS = ("Model", "Model hash", "Lora hashes", "Version", "ZS2 notes", STOPPED)
FOLLOWED = (*OF_RECIPE.values(), *cli_edit.KEYS, *cli_upscale.KEYS, *OF_OTHERS)
"""Keys of a recipe, beside the settings', that are followed, or ask for nothing."""


def clip_options() -> list[Row]:
    """The settings that are options here: `cli_edit` has a source's, and the formats are known by the files' names."""
    rows = [*recipe.CARRIED.values(), ROWS["sidecar"]]
    return [row for row in rows if row.name != "formats" and row.group != "source"]


def flag(row: Row) -> str:
    return "--" + row.name.replace("_", "-")


@contextmanager
def refusals() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise Refused(error) from None


# --- a clip to be sampled ------------------------------------------------------------------------------


def read_job(options: argparse.Namespace, seed: int | None = None) -> Job:
    """The job that the options describe; refuses one that cannot be done, before anything is loaded or sampled.

    seed: where neither options nor recipe say one; None for a new one.
    """
    with refusals():
        targets, formats = read_targets(options.output)
        made = read_recipe(options)
        if (step := step_of(options)) is not None:
            check_output(targets, Path(read_clip_name(step, getattr(options, step))[0]))
        prompt = made.prompt if options.prompt is None else options.prompt
        if prompt is None:
            raise SettingsError("there is no prompt; give one, or a clip that has one (--recipe, --extend, --retake)")
        speed = SPEEDS[Choice(tuple(SPEEDS)).read("--speed", options.speed)] if options.speed is not None else None
        settings = read_settings(options, made, formats, speed)
        named = {name: made.chosen(options, name) for name in OF_RECIPE}
        steps = read_number(WholeNumber(1, 999), *named["steps"], STEPS)
        steps = speed.steps if speed and speed.steps and options.steps is None else steps
        edit, settings, of_edit = cli_edit.read(options, settings, read_size(*named["size"]), steps, made.values)
        control, of_control = cli_control.read(options, settings, edit.pictures if edit else None)
        settings = replace(settings, control=tuple(unit.images for unit in control))
        shown = [*((edit.pictures, edit.masks) if edit else ()), *(unit.pictures for unit in control)]
        for file in {each.source.path for each in shown if each}:
            check_output(targets, file)
        upscale = cli_upscale.read_upscale(options)
        faster = read_faster(options, exact_rate(settings.rate), settings.loop != "off", formats)
        negative = made.negative if options.negative is None else options.negative
        seed = read_number(WholeNumber(0, 2**63 - 1), *named["seed"], random.randrange(2**32) if seed is None else seed)
        cfg = read_number(Number(0, 100), *named["cfg"], CFG)
        frames = ROWS["prompts"].kind.print(settings.prompts)
        models, prompt, notes = cli_models.read(options, named, made.values, prompt, frames)
        check_steps(models.sampler, steps)
        hires, of_hires = cli_upscale.read_hires(options, made.values, steps, models)
        check_texts(prompt, negative, cfg, steps, hires, settings)
    check_packages(formats, faster)
    return Job(
        prompt=prompt,
        negative=negative,
        model=options.model,
        config=options.config,
        settings=settings,
        targets=targets,
        size=edit.size if edit else read_size(*named["size"]),
        seed=seed,
        steps=steps,
        cfg=cfg,
        faster=faster,
        notes=(*made.notes, *of_edit, *of_control, *of_hires, *notes),
        kept=read_kept(options, made, settings),
        models=models,
        edit=edit,
        control=control,
        hires=hires,
        upscale=upscale,
    )


def check_texts(
    prompt: str, negative: str, cfg: float, steps: int, hires: cli_upscale.Hires | None, settings: Settings
) -> None:
    """Raises SettingsError for prompts, of both passes, that are not allowed together."""
    check_prompts(prompt, settings.prompts, negative, cfg > 1, steps)
    if hires:
        second = cfg if hires.guidance is None else hires.guidance
        texts = hires.prompt or prompt, settings.prompts, hires.negative or negative
        check_prompts(*texts, second > 1, hires.steps or steps, steps)


def check_output(targets: list[tuple[Path, str]], clip: Path) -> None:
    """Raises SettingsError where the clip that is gone on from would be replaced."""
    for target, format in targets:
        if clip_path(target, format).resolve() == clip.resolve():
            raise SettingsError(f"--output: {clip_path(target, format)} is the input; choose another name")


def read_number(kind: Number, name: str, text: str | None, default):
    return default if text is None else kind.read(name, text)


def read_settings(options: argparse.Namespace, made: Recipe, formats: tuple[str, ...], speed: Speed | None) -> Settings:
    """Those of the clip: what the options say, and of what they say nothing about those of the recipe. Raises
    SettingsError for a value that is not allowed.
    """
    values = cli_edit.source_values(options, made.values) | (speed.settings if speed else {})
    for row in clip_options():
        text = getattr(options, row.name)
        if text is not None:
            if isinstance(row.kind, Prompts):
                text = read_prompts(flag(row), text)
            values[row.name] = row.kind_for(options.source).read(flag(row), text)
    return replace(made.settings, formats=formats, **values)


def read_prompts(flag: str, text: str) -> str:
    """`text` itself if it is empty or begins like a line of keyframes, else what the file of that name holds."""
    if not text.strip() or re.match(r"\s*[0-9]+\s*:", text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{flag}: {text!r} is not allowed: it is no line 'frame: prompt', and no text file that can be read "
            f"({error}); give such lines, or a file (UTF-8) that holds them"
        ) from None


def read_size(name: str, text: str | None) -> tuple[int | None, int | None]:
    """(width, height) in pixels of "512" or "768x512"; nothing if nothing is given."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text.lower())
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if any(side % 8 or not 64 <= side <= 4096 for side in (width, height)):
        raise SettingsError(
            f"{name}: {text!r} is not allowed; give one number or WIDTHxHEIGHT, multiples of 8 from 64 to 4096, "
            "such as 512 or 768x512"
        )
    return width, height


# --- going on from a clip ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a clip is made with where the options say nothing else; of no file: nothing but the settings' defaults.

    values: texts by key, as the infotext has them.
    """

    settings: Settings
    before: Settings | None = None
    """The settings of the clip itself."""
    prompt: str | None = None
    negative: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def chosen(self, options: argparse.Namespace, name: str) -> tuple[str, str | None]:
        """What an option's value is called in an error, and its text, None if there is none."""
        text = getattr(options, name)
        if text is None and OF_RECIPE[name] in self.values:
            return f"{OF_RECIPE[name]} of the recipe", self.values[OF_RECIPE[name]]
        return "--" + name.replace("_", "-"), text


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the clip that the options name, changed to go on from it. Raises SettingsError."""
    step = step_of(options)
    if step is None:
        return Recipe(Settings(enabled=True))
    file, numbers = read_clip_name(step, getattr(options, step))
    for name in GOING_ON[step]:
        if getattr(options, name) is not None:
            raise SettingsError(f"{flag(ROWS[name])} is not allowed with --{step}, which decides it; leave it out")
    try:
        text = read_text(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(f"--{step}: {error}") from None
    prompt, negative, values = recipe.parsed(text or "")
    if not values or (step != "recipe" and not recipe.is_of_clip(values)):
        raise SettingsError(
            f"--{step}: {file} does not say how it was made; give a file that ZS² wrote and no other program has "
            "written anew"
        )
    check_followed(step, values, options.model)
    cli_edit.check_given(step, values, options)
    cli_control.check_given(step, values, options)
    rows = [row for row in clip_options() if row.name in recipe.CARRIED]
    if options.source:
        rows += [row for row in recipe.CARRIED.values() if row.group == "source"]
    try:
        before = Settings(enabled=True, **recipe.read(values, [row.name for row in rows]))
        change = {"recipe": lambda clip: clip, "extend": going_on.extended, "retake": going_on.retaken}[step]
        settings = change(before, *numbers)
    except SettingsError as error:
        raise SettingsError(f"--{step}: {error}") from None
    return Recipe(settings, before, prompt, negative, values, notes_on(values, options))


def read_kept(options: argparse.Namespace, made: Recipe, settings: Settings) -> Kept | None:
    """What is kept of the clip that the options name; nothing of one that is to be another from its first frame on."""
    step = step_of(options)
    given = {name for name, value in vars(options).items() if value is not None}
    if step is None or settings == replace(made.before, formats=settings.formats) or given - {*LEAVES_FRAMES, step}:
        return None
    file, _ = read_clip_name(step, getattr(options, step))
    try:
        clip = FinishedClip(open_source(file), read_text(file))
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"--{step}: {error}") from None
    return Kept(clip, made.before, settings)


def step_of(options: argparse.Namespace) -> str | None:
    """The option by which a clip to go on from is named, if one is."""
    return next((step for step in GOING_ON if getattr(options, step) is not None), None)


def read_clip_name(step: str, text: str) -> tuple[str, tuple[int, ...]]:
    """The file and the numbers behind its last "@". Raises SettingsError."""
    if step == "recipe":
        return text, ()
    form = {"extend": "(.+)@([0-9]{1,9})", "retake": "(.+)@([0-9]{1,9})(?::([0-9]{1,9}))?"}[step]
    match = re.fullmatch(form, text, re.DOTALL)
    if not match:
        example = {"extend": "clip.mp4@8, for 8 more frames", "retake": "clip.mp4@4, for others from frame 4 on"}[step]
        raise SettingsError(f"--{step}: {text!r} is not allowed; give a clip and a number, such as {example}")
    file, *numbers = match.groups()
    return file, tuple(int(number) for number in numbers if number is not None)


def check_followed(step: str, values: Mapping[str, str], model: str | None) -> None:
    """Raises SettingsError for a recipe that says what the command line cannot do, and one of an unknown model."""
    made_with = values.get("Model", TINY)
    if model is None and made_with != TINY:
        raise SettingsError(
            f"--{step}: the clip was made with the model {made_with!r}, which is not searched for; give it by "
            "--model PATH"
        )


def notes_on(values: Mapping[str, str], options: argparse.Namespace) -> list[str]:
    """Sentences about what a recipe says and is not followed."""
    given = {"VAE", "VAE hash"} if options.vae is not None else set()
    followed = {*FOLLOWED, *given, *postprocessing.KEYS, *map(recipe.infotext_key, recipe.CARRIED.values())}
    others = [key for key in values if key not in followed and not cli_control.KEY.fullmatch(key)]
    notes = [f"not followed of the recipe: {', '.join(others)}"] if others else []
    if UPSCALED_BY in values and options.upscale is None:
        by = f"{values[UPSCALED_BY]} times by {values.get(UPSCALER)}"
        notes.append(f"the clip was made larger {by}; --upscale does so again")
    if INTERPOLATED_TO in values and options.interpolate is None:
        notes.append(f"the clip was interpolated to {values[INTERPOLATED_TO]}; --interpolate does so again")
    made_with, model = values.get("Model", "that the recipe does not name"), model_name(options.model)
    if made_with != model:
        notes.append(f"the clip was made with the model {made_with}, not {model}")
    return notes


# --- more frames per second ----------------------------------------------------------------------------


def read_faster(options: argparse.Namespace, rate: Fraction, closed: bool, formats: tuple[str, ...]) -> Faster | None:
    """What makes a clip of that rate faster, if anything does. Raises SettingsError for what is not allowed."""
    text, interpolator = options.interpolate, options.interpolator or MINTERPOLATE
    if text is None:
        if options.interpolator is not None:
            raise SettingsError("--interpolator: there is nothing to interpolate; give --interpolate as well")
        return None
    check_interpolator(interpolator, "--interpolator")
    most = postprocessing.ROWS["interpolate"].kind.high
    times = re.fullmatch(r"x([0-9])", text.lower())
    try:
        to = rate * int(times[1]) if times else exact_rate(float(text))
        allowed = 2 <= int(times[1]) <= most if times else to > rate
    except (ValueError, OverflowError):
        allowed = False
    if not allowed:
        now = number_text(round(float(rate), 3))
        raise SettingsError(
            f"--interpolate: {text!r} is not allowed; give x2 to x{most}, or more frames per second than the clip has, "
            f"{now}"
        )
    for format in formats:
        try:
            check_clip(format, to)
        except ValueError as error:
            raise SettingsError(f"--interpolate: {text!r} is not allowed with {format}: {error}") from None
    return Faster(rate, to, interpolator, closed)


# --- files ---------------------------------------------------------------------------------------------


def read_targets(names: list[str]) -> tuple[Targets, tuple[str, ...]]:
    """The files to write, and their formats. Refuses what could not be written, before it is made."""
    try:
        targets = [split_clip_name(name) for name in names]
    except ValueError as error:
        raise Refused(f"--output: {error}") from None
    for target, format in targets:
        check_target(target, format)
    return targets, tuple(format for _, format in targets)


def check_target(target: Path, format: str) -> None:
    """Refuses a clip that could not be written."""
    try:
        check_replaceable(target, format)
    except FileExistsError as error:
        raise Refused(f"--output: {error}") from None
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Refused(f"--output: cannot write into {str(folder)!r}; choose a folder that can be written")


def check_packages(formats: tuple[str, ...], faster: Faster | None) -> None:
    """Refuses work that lacks a package."""
    needed = any(FORMATS[format].needs_av for format in formats) or (faster and faster.interpolator == MINTERPOLATE)
    if needed and importlib.util.find_spec("av") is None:
        raise Refused(f"missing packages; install them with: {sys.executable} -m pip install av")
