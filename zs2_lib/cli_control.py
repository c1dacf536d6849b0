"""ControlNets on the command line: their options, and what each shows in each frame of a clip."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zs2_lib.cli_edit import Shown
from zs2_lib.hosts.diffusers.preprocessors import CANNY, NAMES, NONE, THRESHOLDS, preprocessor
from zs2_lib.media.picks import TOO_FEW, picks_of_control
from zs2_lib.media.read import open_source
from zs2_lib.media.source import Source
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.schedule import number_text
from zs2_lib.settings.table import FROM_SOURCE, Settings

FORM = "MODEL=IMAGES[:PREPROCESSOR][@WEIGHT[,START,END]]"
EXAMPLE = "canny.safetensors=dance.mp4:canny@0.8,0,0.6"
HEAVIEST = 2.0
"""The largest weight, as in the WebUI."""
KEY = re.compile(r"ControlNet \d+")
"""The key of a unit in a recipe."""


@dataclass(frozen=True)
class Pictures:
    """The control images of a clip: `picks` says which frame of the `source` each frame of it has.

    whole: they become as large as the clip as they are, as the frames of a source video do; else what is too much of
        their longer side is cut off.
    """

    source: Source
    picks: np.ndarray
    preprocess: Callable[[Image.Image], Image.Image]
    whole: bool = False

    def __call__(self, frames: range, size: tuple[int, int]) -> Iterator[Image.Image]:
        """Those of these frames of the clip, of this size (width, height). Raises ValueError where one is damaged."""
        numbers, index = np.unique(self.picks[frames.start : frames.stop], return_inverse=True)
        try:
            read = [picture for _, picture in self.source.read(numbers)]
        except ValueError as error:
            raise ValueError(f"--control: {error}") from error
        fit = Image.Image.resize if self.whole else ImageOps.fit
        made = [self.preprocess(fit(picture, size, Image.Resampling.LANCZOS)) for picture in read]
        return (made[number] for number in index)


@dataclass(frozen=True)
class Unit:
    """A ControlNet and what it is given, checked."""

    model: Path
    images: str
    preprocessor: str
    weight: float
    start: float
    end: float
    pictures: Pictures

    @property
    def text(self) -> str:
        """The unit in a recipe, as the WebUI's extension writes it."""
        low, high = THRESHOLDS if self.preprocessor == CANNY else (-1, -1)
        values = {
            "Module": self.preprocessor,
            "Model": re.sub("[,:]", "_", self.model.name.removesuffix(".safetensors")),
            "Weight": number_text(self.weight),
            "Resize Mode": "Just Resize" if self.pictures.whole else "Crop and Resize",
            "Processor Res": -1,
            "Threshold A": low,
            "Threshold B": high,
            "Guidance Start": number_text(self.start),
            "Guidance End": number_text(self.end),
            "Pixel Perfect": True,
            "Control Mode": "Balanced",
        }
        return ", ".join(f"{key}: {value}" for key, value in values.items())


def add_options(parser: argparse.ArgumentParser):
    """Adds the options, and returns their group; those of the settings are yet to be added to it."""
    group = parser.add_argument_group("ControlNet", "What the frames follow, frame by frame.")
    group.add_argument(
        "--control",
        action="append",
        metavar=FORM,
        help="A ControlNet and its images; may be given more than once. MODEL: a .safetensors file, or a folder in the "
        "format of diffusers, made for the checkpoint's architecture. IMAGES: a video or a folder of images, one for "
        f'each frame, one image for all, or "{FROM_SOURCE}" for the frames of the source video; in-betweens have the '
        f"image of the frame before them. PREPROCESSOR: {', '.join(NAMES)}; default {NONE}. WEIGHT: 0 to "
        f"{HEAVIEST:g}; default 1. START, END: the part of the steps in which it has a say, 0 to 1; default all. "
        f'Names may hold "=", ":" and "@": the longest name that is there counts. Such as {EXAMPLE}',
    )
    return group


def read(
    options: argparse.Namespace, settings: Settings, edited: Shown | None = None
) -> tuple[tuple[Unit, ...], list[str]]:
    """The units that the options ask for, for a clip with these settings, and sentences about them.

    edited: the pictures that the frames are made of.

    Raises SettingsError for what is not allowed.
    """
    given, notes = options.control or (), []
    if not given:
        for name in ("control_fit", "control_momentum"):
            if getattr(options, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise SettingsError(f"{flag}: there is no ControlNet; give --control as well, or leave it out")
    return tuple(_unit(text, settings, edited, notes) for text in given), notes


def _unit(text: str, settings: Settings, edited: Shown | None, notes: list[str]) -> Unit:
    model, images, name, numbers = split(text)
    try:
        preprocess = preprocessor(name)
    except ValueError as error:
        raise SettingsError(f"--control: {error}") from None
    weight, start, end = _numbers(text, numbers)
    whole = images == FROM_SOURCE and not Path(images).exists()
    if whole:
        if edited is None:
            raise SettingsError(
                f"--control: {text!r} takes the frames of the source video, but there is none; give --source, or a "
                "video or folder"
            )
        video, picks = edited.source, edited.picks
    else:
        try:
            video = open_source(images)
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"--control: {error}") from None
        frames = settings.frames
        picks = picks_of_control(video.info.frames, frames, settings.control_fit, min(settings.extended or (frames,)))[
            np.arange(settings.length) // settings.in_betweens
        ]
        notes += _notes_on(text, video.info.frames, settings)
    return Unit(Path(model), images, name, weight, start, end, Pictures(video, picks, preprocess, whole))


def split(text: str) -> tuple[str, str, str, str]:
    """The model, the images, the preprocessor and the numbers behind "@" in the text of a unit. Raises SettingsError
    where they are not there.

    Of the ways to read it the one counts whose files are there, with the longest name of the images.
    """
    ways = []
    for sign in re.finditer("=", text):
        model, rest = text[: sign.start()], text[sign.end() :]
        match = re.fullmatch(r"(.+?)(?::([a-z0-9_+]+))?(?:@([-+.,\d\s]+))?", rest, re.DOTALL)
        if not model or not match:
            continue
        before_numbers, _, numbers = rest.rpartition("@") if match[3] else (rest, "", "")
        whole = before_numbers.rpartition(":") if match[2] else (before_numbers, "", "")
        ways += [(model, rest, NONE, ""), (model, before_numbers, NONE, numbers)]
        ways += [(model, match[1], match[2] or NONE, numbers)] if whole[0] else []
    if not ways:
        raise SettingsError(f"--control: {text!r} is not allowed; give {FORM}, such as {EXAMPLE}")
    for way in ways:
        if Path(way[0]).exists() and (way[1] == FROM_SOURCE or Path(way[1]).exists()):
            return way
    there = [way for way in ways if Path(way[0]).exists()]
    missing = there[-1][1] if there else ways[0][0]
    raise SettingsError(
        f"--control: {text!r} names {missing!r}, which is not there (nothing is downloaded); give {FORM}, such as "
        f"{EXAMPLE}"
    )


def _numbers(text: str, numbers: str) -> tuple[float, float, float]:
    """Weight, start and end."""
    try:
        weight, *part = (float(number) for number in (numbers or "1").split(","))
        start, end = part or (0.0, 1.0)
    except ValueError:
        weight, start, end = -1.0, 0.0, 1.0
    if not (0 <= weight <= HEAVIEST and 0 <= start < end <= 1):
        raise SettingsError(
            f"--control: {numbers!r} in {text!r} is not allowed; behind @ give a weight from 0 to {HEAVIEST:g}, or "
            "also the start and a later end, from 0 to 1, such as @0.8 or @0.8,0,0.6"
        )
    return weight, start, end


def _notes_on(text: str, count: int, settings: Settings) -> list[str]:
    frames, fit = settings.frames, settings.control_fit
    if 1 < count < frames:
        return [f"--control {text}: {count} images for {frames} frames: {TOO_FEW[fit]} (--control-fit {fit})"]
    if count > frames:
        return [f"--control {text}: {count} images for {frames} frames: the first {frames} are used"]
    return []


def recipe_values(units: Sequence[Unit]) -> dict[str, str]:
    """What a recipe says of the units, by key."""
    return {f"ControlNet {number}": unit.text for number, unit in enumerate(units)}


def check_given(step: str, values: Mapping[str, str], options: argparse.Namespace) -> None:
    """Raises SettingsError where a recipe, texts by key, has units that the options do not give."""
    units = [f"{key} ({values[key]})" for key in values if KEY.fullmatch(key)]
    if units and not options.control:
        raise SettingsError(
            f"--{step}: the clip was made with ControlNet, whose models and images its file does not carry; give "
            f"--control {FORM} for each: {'; '.join(units)}"
        )
