"""The clips that are there: in folders that the extension writes to and in no other, each by a name.

A clip's name is its path in such a folder behind the folder's label: `txt2img-images/2026-11-26/00001-7.mp4`.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from modules.shared import opts

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.png import FRAME_NAME
from zs2_lib.settings.kinds import File
from zs2_lib.settings.options import FOLDER

from .files import LONGEST_PATH, file_of
from .names import folder_of_clips

PREVIEWS = "zs2-previews"
"""Folder, in the host's for temporary files, of what the page's gallery plays and is not saved."""
OUTPUTS = ("outdir_samples", "outdir_txt2img_samples", "outdir_img2img_samples")
"""The host's options that name the folders of its pictures, which hold those of clips."""
SUFFIXES = {row.suffix: format for format, row in FORMATS.items() if not row.is_folder}

_written: dict[Path, None] = {}
_labels: dict[Path, str] = {}
"""Those that were given: a clip keeps its name when the settings name other folders."""
_last: list[Path] = []
_lock = threading.Lock()


class UnknownClip(LookupError):
    """There is no clip of that name."""


@dataclass(frozen=True)
class Entry:
    """A clip that is there: a file, or a folder of PNG files."""

    name: str
    path: Path
    format: str
    bytes: int
    modified: float
    """Seconds since 1970."""


def previews_folder() -> Path:
    """Where what the page's gallery plays waits, if it is not saved: in the host's folder for temporary files."""
    gradio = os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio")
    return Path(os.path.abspath(opts.temp_dir or gradio), PREVIEWS)


def remember(outputs: str) -> None:
    """Clips are written into the host's output directory `outputs`."""
    _written[folder_of_clips(outputs)] = None


def made(path: Path) -> None:
    """The file or folder of the last clip that was sampled is `path`."""
    _last[:] = [path]


def latest() -> Path | None:
    """The last clip of this session, if it is still there."""
    return next((path for path in _last if path.exists()), None)


def folders() -> dict[str, Path]:
    """Where clips may lie, by label: in the output directories of the host, where jobs of this session wrote to, and
    among the previews.
    """
    outputs = [folder for name in OUTPUTS if (folder := getattr(opts, name, ""))]
    usual = [Path(os.path.abspath(folder), FOLDER) for folder in outputs]
    paths = dict.fromkeys([*usual, *map(folder_of_clips, outputs), *_written])
    return {"previews": previews_folder(), **{_label(path): path for path in paths}}


def _label(folder: Path) -> str:
    with _lock:
        if folder not in _labels:
            name, taken = folder.parent.name, {"previews", *_labels.values()}
            names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            _labels[folder] = next(name for name in names if name and name not in taken)
        return _labels[folder]


def name_of(path: Path) -> str | None:
    """The name of the clip at `path`; None if it lies in no folder of clips."""
    for label, folder in folders().items():
        if path.is_relative_to(folder):
            return f"{label}/{path.relative_to(folder).as_posix()}"
    return None


def clips() -> list[Entry]:
    """All clips, the newest first."""
    found = []
    for label, folder in folders().items():
        for path, format in _clips_in(folder):
            with suppress(OSError):  # it was removed meanwhile
                name = f"{label}/{path.relative_to(folder).as_posix()}"
                files = list(path.iterdir()) if path.is_dir() else [path]
                size = sum(file.stat().st_size for file in files)
                found.append(Entry(name, path, format, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def find(name: str) -> Path:
    """The clip of that name, or a frame of a PNG folder, whose name follows its folder's. Raises UnknownClip."""
    label, _, within = name.partition("/")
    folder = folders().get(label)
    parts = within.split("/")
    if folder is None or not within or "\0" in within or any(part.startswith(".") or not part for part in parts):
        raise UnknownClip(name)
    root, path = Path(os.path.realpath(folder)), Path(os.path.realpath(folder.joinpath(*parts)))
    if path == root or not path.is_relative_to(root) or not _is_of_clip(path):
        raise UnknownClip(name)
    return path


def clip_of(value: str, undo: ExitStack, is_api: bool) -> Path:
    """The clip that the setting `clip` gives: a name, a path or the base64 of a file, which is kept until `undo` is
    closed. Raises SettingsError as `file_of` does.
    """
    value = File().check("clip", value)
    if len(value) <= LONGEST_PATH:
        with suppress(UnknownClip):
            return find(value)
    return file_of("clip", value, undo, is_api)


def _is_of_clip(path: Path) -> bool:
    if path.is_file():
        return path.suffix in SUFFIXES or bool(FRAME_NAME.fullmatch(path.name))
    return path.is_dir() and _is_png_clip(os.listdir(path))


def _is_png_clip(names: list[str]) -> bool:
    return bool(names) and all(FRAME_NAME.fullmatch(name) for name in names)


def _clips_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, format) of the clips in a folder; links to folders are not followed."""
    for at, subfolders, names in os.walk(folder):
        if at != str(folder) and not subfolders and _is_png_clip(names):
            yield Path(at), "png"
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(at, name)
            if path.suffix in SUFFIXES and not name.startswith(".") and not path.is_symlink():
                yield path, SUFFIXES[path.suffix]
