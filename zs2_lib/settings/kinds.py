"""The kinds of values that settings have: each checks a value, prints it, and parses its text.

What depends on a setting's kind and not on the setting (its control in the panel, its flag on the command line, its
text in the infotext) is decided by the kind.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Collection
from dataclasses import dataclass

from .schedule import PromptKeyframes, Schedule, number_text

MAX_FRAMES = 100_000


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the key, the value, what is allowed and a remedy.

    A host that was asked over HTTP answers with `status_code` and `detail`; the WebUI looks for them among the
    attributes of the instance.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.status_code = 422
        self.detail = message


class Kind:
    """A kind of value. This one's text is the value itself."""

    def check(self, key: str, value):
        """`value`, of a JSON request or of `parse`, in its proper type. Raises SettingsError that names `key`."""
        raise NotImplementedError

    def print(self, value) -> str:
        """The text of a checked value."""
        return str(value)

    def parse(self, text: str):
        """The value that `text` stands for, still to be checked; where it stands for none, `text` itself."""
        return text

    def plain(self, value):
        """A checked value as JSON has it, which `check` takes."""
        return value

    def schema(self) -> dict:
        """What is allowed, as a JSON schema."""
        return {"type": "string"}

    def read(self, key: str, text: str):
        """The checked value that `text` stands for. Raises SettingsError that names `key`."""
        return self.check(key, self.parse(text))


class YesNo(Kind):
    def check(self, key: str, value) -> bool:
        if not isinstance(value, bool):
            raise SettingsError(f"{key}: {value!r} is not allowed; give true or false")
        return value

    def parse(self, text: str) -> bool | str:
        return {"True": True, "False": False}.get(text, text)

    def schema(self) -> dict:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number(Kind):
    """A number from `low` to `high`, and 0 where that leaves it to the source."""

    low: float
    high: float
    or_zero: bool = False
    json_type = "number"

    def check(self, key: str, value) -> float:
        if not self._allows(value):
            raise SettingsError(f"{key}: {value!r} is not allowed; give a number from {self.low:g} to {self.high:g}")
        return float(value)

    def _allows(self, value) -> bool:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number and (self.low <= value <= self.high or (self.or_zero and value == 0))

    def print(self, value: float) -> str:
        return number_text(value)

    def parse(self, text: str) -> int | float | str:
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                pass
        return text

    def schema(self) -> dict:
        limits = {"minimum": self.low, "maximum": self.high}
        return {"type": self.json_type, **({"anyOf": [limits, {"const": 0}]} if self.or_zero else limits)}


class WholeNumber(Number):
    """A whole number from `low` to `high`, and 0 where that leaves it to the source."""

    json_type = "integer"

    def check(self, key: str, value) -> int:
        if not self._allows(value) or value != int(value):
            raise SettingsError(f"{key}: {value!r} is not allowed; give a whole number from {self.low} to {self.high}")
        return int(value)

    def print(self, value: int) -> str:
        return str(value)


@dataclass(frozen=True)
class NumberSchedule(Kind):
    """A number from `low` to `high` for every frame."""

    low: float
    high: float = math.inf

    def check(self, key: str, value) -> Schedule:
        limits = f"from {self.low:g} to {self.high:g}" if self.high < math.inf else f"of {self.low:g} or more"
        keyframes = "keyframes of such numbers such as '0:0.01, 8:0.05' (frame:value, frames count from 0)"
        allowed = f"a number {limits}, or {keyframes}"
        try:
            schedule = Schedule.parse(value)
        except ValueError as error:
            raise SettingsError(f"{key}: {value!r} is not allowed: {error}; give {allowed}") from None
        if schedule.bounds[0] < self.low or schedule.bounds[1] > self.high:
            raise SettingsError(f"{key}: {value!r} is not allowed; give {allowed}")
        return schedule

    def plain(self, value: Schedule) -> float | str:
        return str(value) if len(value.keyframes) > 1 else value.keyframes[0][1]

    def schema(self) -> dict:
        number = {"type": "number", "minimum": self.low}
        if self.high < math.inf:
            number["maximum"] = self.high
        return {"anyOf": [number, {"type": "string", "examples": ["0:0.01, 8:0.05"]}]}


class Prompts(Kind):
    """A prompt for every frame, or None, whose text is empty: the same prompt for all frames."""

    def check(self, key: str, value) -> PromptKeyframes | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            return PromptKeyframes.parse(value)
        except ValueError as error:
            raise SettingsError(
                f"{key}: {value!r} is not allowed: {error}; give a line 'frame: prompt' for each keyframe "
                "(frames count from 0), or nothing"
            ) from None

    def print(self, value: PromptKeyframes | None) -> str:
        return "" if value is None else str(value)

    def plain(self, value: PromptKeyframes | None) -> str | None:
        return None if value is None else str(value)

    def schema(self) -> dict:
        return {"type": ["string", "null"]}


@dataclass(frozen=True)
class Choice(Kind):
    """One of `choices`."""

    choices: tuple[str, ...]

    def check(self, key: str, value) -> str:
        if value not in self.choices:
            raise SettingsError(
                f"{key}: {value!r} is not allowed; give one of {_quoted(self.choices)}{nearest(value, self.choices)}"
            )
        return value

    def schema(self) -> dict:
        return {"enum": list(self.choices)}


@dataclass(frozen=True)
class OldYesNo(Choice):
    """One of `choices`, where there once was only true and false: they are the choices `yes` and `no`."""

    yes: str
    no: str

    def check(self, key: str, value) -> str:
        if isinstance(value, bool):
            value = self.yes if value else self.no
        return super().check(key, value)

    def parse(self, text: str) -> str:
        return {"True": self.yes, "False": self.no}.get(text, text)

    def schema(self) -> dict:
        return {"enum": [*self.choices, True, False]}


class Takes(Kind):
    """Pairs of a frame and a number, such as "9:1, 12:2", frames rising; or None, whose text is empty."""

    def check(self, key: str, value) -> tuple[tuple[int, int], ...] | None:
        pairs = self._pairs(value)
        if pairs is None or any(frame < 1 or take < 0 for frame, take in pairs):
            raise SettingsError(
                f"{key}: {value!r} is not allowed; give 'frame:number' for each frame from which on another take is, "
                "such as '9:1, 12:2' (frames count from 0; frame 0 is the still: choose another seed)"
            )
        if len({frame for frame, _ in pairs}) < len(pairs):
            raise SettingsError(f"{key}: {value!r} is not allowed; a frame has two numbers: give each frame once")
        return tuple(sorted(pairs)) or None

    @staticmethod
    def _pairs(value) -> list[tuple[int, int]] | None:
        """The pairs of a text, a list of pairs or None; None for anything else."""
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            matches = [re.fullmatch(r"(\d{1,6})\s*:\s*(\d{1,9})", part) for part in parts]
            return [(int(match[1]), int(match[2])) for match in matches] if all(matches) else None
        pairs = () if value is None else value
        if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) for pair in pairs):
            return None
        whole = all(len(pair) == 2 and all(type(number) is int for number in pair) for pair in pairs)
        return [tuple(pair) for pair in pairs] if whole else None

    def print(self, value: tuple[tuple[int, int], ...] | None) -> str:
        return ", ".join(f"{frame}:{take}" for frame, take in value or ())

    def plain(self, value: tuple[tuple[int, int], ...] | None) -> str | None:
        return self.print(value) if value else None

    def schema(self) -> dict:
        return {"type": ["string", "array", "null"], "examples": ["9:1, 12:2"]}


@dataclass(frozen=True)
class Counts(Kind):
    """Whole numbers from 1 to `high`, rising, such as "8, 16"; or None, whose text is empty."""

    high: int = MAX_FRAMES

    def check(self, key: str, value) -> tuple[int, ...] | None:
        numbers = value
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            numbers = [int(part) if re.fullmatch(r"\d{1,9}", part) else part for part in parts]
        numbers = () if numbers is None else numbers
        allowed = isinstance(numbers, (list, tuple)) and all(
            type(number) is int and 1 <= number <= self.high for number in numbers
        )
        if not allowed:
            raise SettingsError(
                f"{key}: {value!r} is not allowed; give whole numbers from 1 to {self.high}, such as '8, 16'"
            )
        return tuple(sorted(set(numbers))) or None

    def print(self, value: tuple[int, ...] | None) -> str:
        return ", ".join(map(str, value or ()))

    def plain(self, value: tuple[int, ...] | None) -> str | None:
        return self.print(value) if value else None

    def schema(self) -> dict:
        return {"type": ["string", "array", "null"], "examples": ["8, 16"]}


@dataclass(frozen=True)
class Choices(Kind):
    """One or more of `choices`, none of which holds a space, each once."""

    choices: tuple[str, ...]

    def check(self, key: str, value) -> tuple[str, ...]:
        allowed = _quoted(self.choices)
        if not isinstance(value, (list, tuple)) or not value:
            raise SettingsError(f"{key}: {value!r} is not allowed; give a list of one or more of {allowed}")
        for item in value:
            if item not in self.choices:
                raise SettingsError(
                    f"{key}: {item!r} is not allowed; the list may hold {allowed}{nearest(item, self.choices)}"
                )
        return tuple(dict.fromkeys(value))

    def print(self, value: tuple[str, ...]) -> str:
        return " ".join(value)

    def parse(self, text: str) -> list[str]:
        return text.split()

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def schema(self) -> dict:
        return {"type": "array", "items": {"enum": list(self.choices)}, "minItems": 1}


class File(Kind):
    """A file or folder as a host takes it, a path or base64; empty for none."""

    def check(self, key: str, value) -> str:
        if not isinstance(value, str):
            raise SettingsError(f"{key}: {value!r} is not allowed; give a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SettingsError(
                f"{key}: {value[:100]!r} is not allowed; give a text, not a half of a character"
            ) from None
        return value.strip()


class Files(Kind):
    """A list of files, or of words that stand for one."""

    def check(self, key: str, value) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise SettingsError(f"{key}: {value!r} is not allowed; give a list of texts, one for each")
        return tuple(value)

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def schema(self) -> dict:
        return {"type": "array", "items": {"type": "string"}}


def nearest(value, allowed: Collection[str]) -> str:
    """The end of a message: the one of `allowed` that a text may have meant; nothing for what is no text."""
    match = difflib.get_close_matches(value, allowed, n=1, cutoff=0.0) if isinstance(value, str) else []
    return f'; did you mean "{match[0]}"?' if match else ""


def _quoted(choices: Collection[str]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)
