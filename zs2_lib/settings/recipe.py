"""A clip's recipe: its settings as a host's infotext carries them, one key for each, and what it says read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from .row import Row
from .table import ROWS, Settings

_OF_THE_REQUEST = ("enabled", "returns", "sidecar", "source", "mask", "control", "kept_clip", "preflight")
CARRIED = {name: row for name, row in ROWS.items() if name not in _OF_THE_REQUEST}
"""The settings that an infotext carries. That it carries them says that ZS² was enabled; files it can't carry."""
LONGEST_NAME = 4096
"""Characters of a file's name; what is longer is a file's content."""


def infotext_key(row: Row) -> str:
    """A setting's key in the infotext: "ZS2 frames", "ZS2 noise model"."""
    return "ZS2 " + row.name.replace("_", " ")


def texts(settings: Settings) -> dict[str, str]:
    """What the host writes into its images, by infotext key: the settings that belong to the clip."""
    groups = ("", *(group for group in ("source", "control") if getattr(settings, group)))
    rows = [row for row in CARRIED.values() if row.group in groups and getattr(settings, row.name) is not None]
    return {infotext_key(row): row.kind.print(getattr(settings, row.name)) for row in rows}


def is_of_clip(infotext: Mapping[str, str]) -> bool:
    """Whether the infotext, texts by key, is that of a clip."""
    return infotext_key(ROWS["frames"]) in infotext


def read(infotext: Mapping[str, str], names: Iterable[str] = CARRIED) -> dict[str, object]:
    """The values of those of the settings `names` of which the infotext, texts by key, speaks.

    A clip's infotext without prompts says that there are none. Raises SettingsError for a value that is not allowed.
    """
    values = {}
    for row in (CARRIED[name] for name in names):
        text = infotext.get(infotext_key(row))
        if text is not None:
            values[row.name] = row.kind.read(infotext_key(row), text)
        elif row.default is None and is_of_clip(infotext):
            values[row.name] = None
    return values


def by_key(settings: Settings) -> dict[str, object]:
    """All settings by their keys in API requests, as JSON has them, without the content of files."""

    def is_content(value: object) -> bool:
        return isinstance(value, str) and len(value) > LONGEST_NAME

    values = {row.key: row.kind.plain(getattr(settings, name)) for name, row in ROWS.items()}
    for key in ("source", "mask", "clip"):
        values[key] = "" if is_content(values[key]) else values[key]
    values["control"] = ["" if is_content(value) else value for value in values["control"]]
    return values


_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # as the WebUI finds it
_FEWEST = 3  # pairs that make a line the one of values, as the WebUI takes it


def parameters(prompt: str, negative: str, values: Mapping[str, object]) -> str:
    """The whole text that the WebUI writes into an image: the prompts, and `values` by key in the last line."""
    lines = [prompt]
    if negative or _negative_line(prompt.split("\n")) is not None:
        lines.append(f"{_NEGATIVE} {negative}")
    return "\n".join(lines + [", ".join(f"{key}: {_quoted(value)}" for key, value in values.items())])


def parsed(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, texts of the values by key) of a text that `parameters` or the WebUI wrote.

    The reverse of `parameters` for three values or more, unless a line of the negative prompt begins like one. A last
    line that holds fewer belongs to the prompts.
    """
    rest, _, last = text.rpartition("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _FEWEST:
        rest, pairs = text, []
    lines = rest.split("\n")
    place = _negative_line(lines)
    if place is None:
        return rest, "", {key: _unquoted(value) for key, value in pairs}
    negative = "\n".join([lines[place].removeprefix(_NEGATIVE).removeprefix(" "), *lines[place + 1 :]])
    return "\n".join(lines[:place]), negative, {key: _unquoted(value) for key, value in pairs}


def with_values(text: str, values: Mapping[str, object]) -> str:
    """`text`, which `parameters` or the WebUI wrote, with more `values` at its end; of a key that it has, the later
    one counts.
    """
    more = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items())
    return text + (", " if parsed(text)[2] else "\n" if text else "") + more


def _negative_line(lines: list[str]) -> int | None:
    """The number of the last line that begins as that of the negative prompt does."""
    return max((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), default=None)


def _quoted(value: object) -> str:
    """The text of a value, in quotes where the WebUI would not find its end, or would take its own for some."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if text[:1] == '"' or any(mark in text for mark in ",:\n") else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text
