"""The jobs of a batch: lines of JSON, a CSV, or a folder of clips that carry their recipes, read and checked.

A job is a call of the command line: each of its keys becomes an option, so what the command line can do a job can, it
is checked in the same words, and gives the same clip, bit for bit.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zs2_lib.cli import parser
from zs2_lib.cli_job import Job
from zs2_lib.cli_read import check_target, clip_options, read_job
from zs2_lib.cli_say import Refused
from zs2_lib.media.formats import clip_path
from zs2_lib.settings.kinds import Choices, SettingsError, YesNo, nearest
from zs2_lib.settings.table import ROWS

from .cost import Cost, cost
from .identity import checkpoint, meaning
from .recipes import recipes_in

OWN = ("prompt", "name", "formats", "enabled")
"""Keys that are no option of the same name."""
NOT_OFFERED = ("help", "output", "input", "progress", "quiet")
"""Options that are the batch's affair, or have another key."""
OPTIONS = {
    "negative_prompt": "negative",
    "source_start": "start",
    "source_end": "end",
    "source_every": "every",
    "source_audio": "audio",
}
"""The command line's names of keys that the API has other names for."""
MANIFEST = "manifest.jsonl"
LONGEST_STEM = 150
"""Bytes of a name: what a file system allows, 255, less what suffixes and unfinished files add."""
Values = Mapping[str, object]


@dataclass(frozen=True)
class Planned:
    """One job, checked.

    arguments: those of the command line, with the seed, without the files.
    named: whether the name was given, and did not come from number and seed.
    """

    place: str
    name: str
    named: bool
    arguments: tuple[str, ...]
    formats: tuple[str, ...]
    job: Job
    hash: str

    @property
    def checkpoint(self) -> str:
        return checkpoint(self.job)

    @property
    def cost(self) -> Cost:
        return cost(self.job)


def read_jobs(source: str, folder: Path, defaults: Values) -> tuple[list[Planned], list[str]]:
    """(jobs, faults) of a file or folder; each fault is a sentence with file and line. Nothing is loaded or made.

    defaults: values of keys of a job that names no model.
    Raises Refused for a file that cannot be read at all.
    """
    jobs, faults, taken, same = [], [], {}, Counter()
    for number, (place, values, texts) in enumerate(_lines(source), 1):
        try:
            if isinstance(values, str):
                raise Refused(values)
            values = {key: value for key, value in values.items() if value is not None}
            values = values if "model" in values else {**defaults, **values}
            planned = _plan(place, number, values, texts, folder, same)
            for target in _paths(planned, folder):
                if (other := taken.setdefault(str(target).casefold(), place)) != place:
                    raise Refused(f"name: {planned.name!r} is not allowed, {other} has it; give each job its own")
        except (Refused, SettingsError) as fault:
            faults.append(f"{place}: {_by_key(str(fault))}")
        else:
            jobs.append(planned)
    if not jobs and not faults:
        raise Refused(f"{source} holds no job; give a line of JSON for each")
    return jobs, faults


def check_folder(folder: Path) -> None:
    """Refuses a folder for clips that cannot be made or written."""
    check_target(folder / "a", "mp4")


def _paths(planned: Planned, folder: Path) -> list[Path]:
    return [clip_path(folder / planned.name, format) for format in planned.formats] + (
        [folder / f"{planned.name}.json"] if planned.job.settings.sidecar else []
    )


def outputs(target: Path, formats: tuple[str, ...]) -> list[str]:
    """The command line's options for these files."""
    return [f"--output={target}.{format}" for format in formats]


# --- files of jobs -------------------------------------------------------------------------------------


def _lines(source: str) -> Iterator[tuple[str, Values | str, bool]]:
    """(place, values by key or what is wrong with them, whether all values are texts) of each job."""
    path = Path(source)
    try:
        if path.is_dir():
            yield from ((str(file), values, False) for file, values in recipes_in(path))
        elif path.suffix.lower() == ".csv":
            yield from _lines_of_csv(path)
        elif path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            yield from _lines_of_json(path)
        else:
            raise Refused(f"{source!r} is not allowed; give a .jsonl or .csv file, or a folder of clips")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{source}: {error}; give a file of jobs, in UTF-8") from None


def _lines_of_json(path: Path) -> Iterator[tuple[str, Values | str, bool]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", _object(line), False


def _object(line: str) -> Values | str:
    def once(pairs: list) -> dict:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return dict(pairs)

    try:
        values = json.loads(line, object_pairs_hook=once)
    except ValueError as error:
        return f'no JSON ({error}); a job is one line, such as {{"prompt": "a red circle", "seed": 1}}'
    if not isinstance(values, dict):
        return f'{line.strip()[:60]} is no object; a job is one line, such as {{"prompt": "a red circle", "seed": 1}}'
    return values


def _lines_of_csv(path: Path) -> Iterator[tuple[str, Values | str, bool]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        keys = [key.strip() for key in next(reader, [])]
        line = reader.line_num + 1
        for cells in reader:
            place, line = f"{path}, line {line}", reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) > len(keys) or len(set(keys)) < len(keys):
                fault = f"{len(cells)} values for the {len(set(keys))} keys {', '.join(keys)} of the first line"
                yield place, f"{fault}; give each its key, and put texts with commas in quotes", True
            else:
                yield place, {key: text for key, text in zip(keys, cells) if text != ""}, True


# --- from keys to options ------------------------------------------------------------------------------


@cache
def _parser():
    return parser()


@cache
def _keys() -> frozenset[str]:
    """All keys of a job: the command line's options."""
    options = vars(_parser().parse_args(["--output=x.mp4"]))
    return frozenset({*options, *OWN, *OPTIONS}) - {*NOT_OFFERED, *OPTIONS.values()}


def _plan(place: str, number: int, values: Values, texts: bool, folder: Path, same: Counter) -> Planned:
    """The job of these values, the `number`-th. Raises Refused or SettingsError."""
    for key in values:
        if key not in _keys():
            raise Refused(f"{key!r} is no key of a job; there are {', '.join(sorted(_keys()))}{nearest(key, _keys())}")
    formats = _formats(values.get("formats", ["mp4"]))
    arguments = [argument for key, value in values.items() for argument in _arguments(key, value, values, texts)]
    # the same at each start, and another one for a job that is there twice
    alike = json.dumps([arguments, values.get("prompt")], sort_keys=True, default=str)
    same[alike] += 1
    seed = int(hashlib.sha256(f"{alike}{same[alike]}".encode()).hexdigest()[:8], 16)

    def options(name: str, *more: str) -> Namespace:
        prompt = ["--", str(values["prompt"])] if "prompt" in values else []
        return _parser().parse_args([*outputs(folder / name, formats), *arguments, *more, *prompt])

    name = values.get("name")
    job = read_job(options("a" if name is None else check_name(name)), seed)
    _check_model(job.model, job.config)
    if name is None:
        name = f"{number:05}-{job.seed}"
        read_job(options(name), seed)  # whether it can be written
    decided = [f"--seed={job.seed}", *(["--", str(values["prompt"])] if "prompt" in values else [])]
    arguments = [argument for argument in arguments if not argument.startswith("--seed=")]
    digest = meaning(job, arguments)
    return Planned(place, str(name), "name" in values, (*arguments, *decided), formats, job, digest)


def _formats(value: object) -> tuple[str, ...]:
    kind = ROWS["formats"].kind
    assert isinstance(kind, Choices)
    formats = kind.check("formats", kind.parse(value) if isinstance(value, str) else value)
    return tuple(dict.fromkeys(formats))


def _arguments(key: str, value: object, values: Values, texts: bool) -> list[str]:
    """The options that say what a key says."""
    flag = "--" + OPTIONS.get(key, key.replace("_", "-"))
    if key in ("prompt", "name", "formats"):
        if key == "prompt" and not isinstance(value, str):
            raise Refused(f"prompt: {value!r} is not allowed; give a text")
        return []
    if key == "enabled":
        if value not in (True, "True", "true"):
            raise Refused(f"enabled: {value!r} is not allowed; every job of a batch is a clip, leave it out")
        return []
    row = {row.name: row for row in clip_options()}.get(key)
    if row:
        kind = row.kind_for(str(values.get("source") or ""))
        value = kind.check(key, kind.parse(value) if texts else value)
        if isinstance(kind, YesNo):
            return [flag] if value else []
        return [f"{flag}={kind.print(value)}"]
    if isinstance(value, bool) or (texts and value in ("True", "true", "False", "false")):
        return [flag] if value in (True, "True", "true") else []
    if isinstance(value, list):
        return [f"{flag}={_text(key, one)}" for one in value]
    return [f"{flag}={_text(key, value)}"]


def _text(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Refused(f"{key}: {value!r} is not allowed; give a text or a number")
    return str(value)


def check_name(name: object) -> str:
    """Returns the stem of a job's files, or raises SettingsError."""
    text = str(name) if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
    wrong = not text or text != text.strip() or text[:1] in ".-" or text[-1:] == "." or text == MANIFEST
    if wrong or re.search(r'[<>:"/\\|?*\x00-\x1f]', text) or len(text.encode()) > LONGEST_STEM:
        raise SettingsError(
            f"name: {name!r} is not allowed; give the name of a file without folder and suffix, of up to "
            f'{LONGEST_STEM} bytes, not beginning with . or -, without < > : " / \\ | ? *'
        )
    return text


@cache
def _check_model(model: str | None, config: str | None) -> None:
    """Raises Refused for a checkpoint that is not there, or that is none, without loading it."""
    if model is None and config is None:
        return
    from zs2_lib.hosts.diffusers.checkpoints import check_model  # which takes seconds

    try:
        check_model(model, config)
    except ValueError as error:
        raise Refused(error) from None


def _by_key(message: str) -> str:
    """An error of the command line with the key instead of the option."""
    found = re.match(r"--([a-z0-9-]+)(?=[: ])", message)
    if not found:
        return message
    keys = {option: key for key, option in OPTIONS.items()} | {"output": "name"}
    key = keys.get(found[1], found[1].replace("-", "_"))
    return key + message[found.end() :]
