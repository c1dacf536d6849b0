"""Axes of the host's X/Y/Z plot: one for each setting that a clip can differ by, its speed, and its preset.

Values are checked before the first cell: each by itself when the host confirms an axis, all axes together when it
begins to draw. A cell's values lie on its copy of `p`, from which its job takes them over the panel's settings.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial

from modules import processing, scripts

from zs2_lib.settings.kinds import (
    Choice,
    Counts,
    File,
    Kind,
    Number,
    NumberSchedule,
    Prompts,
    SettingsError,
    Takes,
    YesNo,
)
from zs2_lib.settings.speeds import SPEEDS
from zs2_lib.settings.table import ROWS, Settings

from . import presets
from .edit import SourceVideo
from .limits import check_frames

HOSTS_FILE = "xyz_grid.py"
PREFIX = "[ZS2] "
NO_AXIS = ("enabled", "extended", "kept_clip", "formats", "returns", "sidecar", "control", "preflight")
"""Settings that no clip differs by, and lists of files."""
OFF = "ZS² is off, so that no cell would be a clip; switch it on in its panel, or choose another axis"
QUOTES = 'a comma ends a value of an axis: put one that holds commas in quotes, as in "0:0.01, 8:0.05", "0:0.1, 8:0"'
SINGLE = "it is a keyframe alone; " + QUOTES
LINES = r'write \n between the lines of a value, as in "0: a red circle\n12: a blue square"; ' + QUOTES
HINTS = {Prompts: LINES, NumberSchedule: QUOTES, Takes: QUOTES, Counts: QUOTES}
MOST_VALUES = 1000
"""Of a range."""
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_RANGE = re.compile(
    rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*([+-]?)\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\])?"
)  # as the host writes them: 0-0.5 (+0.1), 1-3 [3]


@dataclass(frozen=True)
class Axis:
    """name: as messages say it. changes: the settings, by name, that a value sets; of_host(p, value): sets what it has
    of the host.
    """

    name: str
    label: str
    kind: Callable[[], Kind]
    changes: Callable[[object], Mapping]
    of_host: Callable[[object, object], None] = lambda p, value: None

    def read(self, text: str):
        """The value that a text of the axis stands for, still to be checked."""
        kind = self.kind()
        if isinstance(kind, YesNo):
            text = text.strip().capitalize()
        if isinstance(kind, Prompts):
            text = text.replace("\\n", "\n")
        return kind.parse(text)

    def check(self, value, settings: Settings) -> None:
        """Raises SettingsError for a value that is not allowed beside the panel's `settings`."""
        kind = self.kind()
        if isinstance(kind, NumberSchedule) and re.fullmatch(r"\d+\s*:[^,]*", str(value)):
            raise SettingsError(f"{self.label}: {self.name}: {value!r} is not allowed: {SINGLE}")
        if self.name in ROWS:
            kind = ROWS[self.name].kind_for(settings.source)
        try:
            kind.check(self.name, value)
        except SettingsError as error:
            hint = f"; {HINTS[type(kind)]}" if type(kind) in HINTS else ""
            raise SettingsError(f"{self.label}: {error}{hint}") from None

    def choices(self) -> list[str] | None:
        """What the host's list offers, where there is one."""
        kind = self.kind()
        if isinstance(kind, YesNo):
            return ["True", "False"]
        return list(kind.choices) if isinstance(kind, Choice) else None


def _axes() -> Iterator[Axis]:
    for name, row in ROWS.items():
        if name not in NO_AXIS:
            of_source = "Source: " if row.group == "source" and not isinstance(row.kind, File) else ""
            label = PREFIX + of_source + row.label
            yield Axis(name, label, lambda row=row: row.kind, lambda value, name=name: {name: value})
    speeds = Choice(tuple(SPEEDS))
    yield Axis("speed", PREFIX + "Speed", lambda: speeds, lambda value: SPEEDS[value].settings, _lower_steps)
    yield Axis("preset", PREFIX + "Preset", lambda: Choice(tuple(presets.names())), _of_preset, _set_host)


def _lower_steps(p, speed: str) -> None:
    p.steps = min(p.steps, SPEEDS[speed].steps or p.steps)


def _of_preset(name: str) -> dict:
    return presets.users.get(name).by_name


def _set_host(p, name: str) -> None:
    preset = presets.users.get(name)
    p.steps = preset.steps or p.steps
    if preset.denoising_strength is not None and isinstance(p, processing.StableDiffusionProcessingImg2Img):
        p.denoising_strength = preset.denoising_strength


AXES = {axis.label: axis for axis in _axes()}
"""By their labels in the host's lists."""


def module():
    """The module of the host's X/Y/Z plot; None where it is not there."""
    found = (data.module for data in scripts.scripts_data if data.script_class.__module__ == HOSTS_FILE)
    return next((module for module in found if hasattr(module, "axis_options")), None)


def add() -> None:
    """Adds the axes to the host's X/Y/Z plot, if it is there and has none of them; before its page is built."""
    plot = module()
    if plot is None or any(option.label in AXES for option in plot.axis_options):
        return
    for axis in AXES.values():
        more = {"choices": axis.choices} if axis.choices() else {}
        if isinstance(axis.kind(), (Number, NumberSchedule)):
            more["prepare"] = values_of
        confirm = partial(_confirm, axis)
        plot.axis_options.append(plot.AxisOption(axis.label, axis.read, partial(_apply, axis), confirm=confirm, **more))


def values_of(text: str) -> list[str]:
    """The values of an axis of numbers, ranges among them written out, ends included."""
    values = [value.strip() for row in csv.reader(io.StringIO(text), skipinitialspace=True) for value in row]
    return [number for value in values if value for number in _expanded(value)]


def _expanded(value: str) -> list[str]:
    match = _RANGE.fullmatch(value)
    if match is None:
        return [value]
    start, end = Decimal(match[1]), Decimal(match[2])
    if match[5]:
        count = int(match[5])
        if not 1 <= count <= MOST_VALUES:
            return [value]
        numbers = [start + (end - start) * place / max(count - 1, 1) for place in range(count)]
        whole = "." not in match[1] + match[2]
        return [str(int(number)) if whole else f"{round(number, 8):f}" for number in numbers]
    step = Decimal(match[4] or 1) * (-1 if match[3] == "-" or (not match[3] and end < start) else 1)
    if not step or not 0 <= (end - start) / step < MOST_VALUES:
        return [value]  # which is no number, and is refused as such
    count = int((end - start) / step) + 1
    return [f"{start + step * place:f}" for place in range(count)]


def _confirm(axis: Axis, p, values: list) -> None:
    """What the host calls before the first cell. Raises SettingsError, which stops it."""
    request = vars(p).get("zs2_request")
    if request is None or request.settings is None or not request.settings.enabled:
        raise SettingsError(f"{axis.label}: {OFF}")
    if not values:
        raise SettingsError(f"{axis.label}: no value is given; give one or more, with commas between")
    for value in values:
        axis.check(value, request.settings)
    request.axes[axis.label] = values


def _apply(axis: Axis, p, value, values: list) -> None:
    """Puts a value on the host's copy of `p` for a cell."""
    p.zs2_cell = {**vars(p).get("zs2_cell", {}), axis.label: value}
    axis.of_host(p, value)


def applied(p, settings: Settings) -> Settings:
    """The settings of the job `p`: the panel's, with what the axes of its cell set. Raises SettingsError."""
    cell = vars(p).get("zs2_cell")
    return replace(settings, **_changes(cell)) if cell and settings.enabled else settings


def _changes(cell: Mapping) -> dict:
    """What a cell, a value by each axis' label, sets: an axis of a setting has the last word, whatever a preset or a
    speed on another axis says of it.
    """
    labels = (label for label in reversed(AXES) if label in cell)
    return {name: value for label in labels for name, value in AXES[label].changes(cell[label]).items()}


def check_together(request, is_api: bool) -> None:
    """Raises SettingsError where a cell's values do not go together, or not with the panel's settings."""
    for values in itertools.product(*request.axes.values()):
        cell = dict(zip(request.axes, values))
        try:
            settings = replace(request.settings, **_changes(cell))
            if settings.source:
                with ExitStack() as undo:
                    SourceVideo(settings, undo, is_api)
            else:
                check_frames(settings.length, "give fewer frames")
        except SettingsError as error:
            named = ", ".join(f"{label}: {each}" for label, each in cell.items())
            raise SettingsError(f"X/Y/Z plot, the cell {named}: {error}") from None
