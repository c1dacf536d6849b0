"""What makes two jobs the same: the hash of all that decides about a clip's files, with the content of its model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path

from zs2_lib.cli_job import TINY, Job
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

PIECES, PIECE = 64, 2**16
"""Of a large file so many pieces of so many bytes are read, spread over the whole of it."""
NOT_MEANT = ("targets", "notes", "model", "config")
PER_CLIP = ("prompt", "negative", "settings", "targets", "size", "seed", "steps", "cfg", "faster", "sampler")
PER_CLIP += ("notes", "kept", "hires", "upscale")
"""Fields of a job on which the loaded pipeline does not depend."""
NOT_LOADED = frozenset(
    ("strength", "image_guidance", "selection", "sampler", "schedule", "clip_skip", "rng", "expected")
)
NOT_LOADED |= {"pictures", "images", "weight", "start", "end"}
"""The same of what its fields consist of: of edits, samplers, ControlNets."""
SAID = ("negative", "model", "config", "seed", "steps", "cfg", "size", "speed", "sidecar")
SAID = tuple(f"--{name.replace('_', '-')}" for name in (*SAID, *recipe.CARRIED))
"""Options of which the job says in full what they mean."""


def meaning(job: Job, arguments: Sequence[str]) -> str:
    """The hash of a job: it changes with any setting, and with the content of any file that an option names; not with
    the name of the job's own files, nor with a model's place.
    """
    named = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in NOT_MEANT}
    values = {name: _plain(value) for name, value in named.items()}
    values["model"] = TINY if job.model is None else identity(job.model)
    values["options"] = sorted(argument for argument in arguments if argument.partition("=")[0] not in SAID)
    values["files"] = sorted(
        identity(path)
        for argument in arguments
        for path in _paths(argument)
        if not argument.startswith(("--negative=", "--model="))
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def checkpoint(job: Job) -> str:
    """The hash of what a loaded pipeline depends on; jobs of which it is equal share one."""
    named = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in PER_CLIP}
    if job.edit:  # the pipeline of a mask is another one
        named["edit"] = replace(job.edit, masks=job.edit.masks is not None)
    return hashlib.sha256(json.dumps(_plain(named, NOT_LOADED), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: object, without: Collection[str] = ()) -> object:
    """A value as JSON has it. Of an object of another kind the class counts; its options and files say the rest."""
    if isinstance(value, Settings):
        return recipe.by_key(value)
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one, without) for key, one in value.items() if key not in without}
    if isinstance(value, (list, tuple)):
        return [_plain(one, without) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 5.0, of an option, is 5, its default
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value) if type(value).__str__ is not object.__str__ else type(value).__name__


def _paths(argument: str) -> list[str]:
    """The files and folders that an option such as `--recipe=a.mp4` or `--lora=b.safetensors:0.5` names."""
    text = argument.partition("=")[2]
    parts = [text, *(text[: mark.start()] for mark in re.finditer("[@:=]", text))]
    parts += [end for part in list(parts) for end in part.split("=")[1:]] + [text.partition(":")[2]]
    return [part for part in dict.fromkeys(parts) if part and len(part) < 1000 and _exists(part)]


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


@cache
def identity(path: str) -> str:
    """The hash of a file's content, of a large one its size and pieces of it; of a folder that of all its files."""
    digest = hashlib.sha256()
    place = Path(path)
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        relative = file.relative_to(place).as_posix()
        if not file.is_file() or any(part.startswith(".") for part in Path(relative).parts if part != "."):
            continue
        size = file.stat().st_size
        digest.update(f"{relative} {size}\n".encode())
        with open(file, "rb") as opened:
            if size <= PIECES * PIECE:
                digest.update(opened.read())
                continue
            for piece in range(PIECES):
                opened.seek((size - PIECE) * piece // (PIECES - 1))
                digest.update(opened.read(PIECE))
    return digest.hexdigest()[:32]
