"""Names of clips and frames: made by the host's patterns, cut to what the file system takes, none given twice."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from modules import images
from modules.shared import opts
from PIL import Image

from . import options
from .limits import output_folders

GRID = "xyz_grid"
"""The beginning of the name of a playing grid, as of the host's own grids."""
STOPPED = "-stopped"
RESERVED = len("-000000.webm")
"""Bytes of a name that follow the part which is cut: a number where that is taken, and the suffix."""
NAME_LIMIT = 255
"""Bytes of a name that most file systems take."""
NUMBERS = ("[batch_number]", "[generation_number]", "[image_hash")
"""What tells the frames of a clip apart in the host's pattern."""


class ClipName:
    """The name of the clip `number`, counted from 0, of the `count` of `p`, whose first frame is `image`: as the host
    names images; numbers in it count clips.
    """

    def __init__(self, p, number: int, count: int, image: Image.Image, stopped: bool):
        view = copy.copy(p)
        view.batch_size, view.batch_index, view.iteration = count, number, 0
        name = images.FilenameGenerator(view, p.seeds[0], p.prompts[0], image)
        self.outputs = p.outpath_samples
        self.subfolders = ""
        if opts.save_to_dirs:
            subfolders = name.apply(opts.directories_filename_pattern or "[prompt_words]")
            self.subfolders = subfolders.lstrip(" ").rstrip("\\ /")
        usual = opts.samples_filename_pattern or ("[seed]" if opts.save_to_dirs else "[seed]-[prompt_spaces]")
        self.stem = name.apply(options.value("zs2_filename_pattern") or usual).strip("/")
        self.end = STOPPED * stopped

    def target(self) -> Path:
        """Its path without suffix, which no clip has yet. Makes its folder."""
        folder = folder_of_clips(self.outputs) / self.subfolders
        folder.mkdir(parents=True, exist_ok=True)
        *within, stem = Path(self._numbered(images.get_next_sequence_number(folder, ""))).parts
        return beside(folder.joinpath(*within), stem, self.end)  # a pattern may hold folders

    def alone(self, number: int) -> Path:
        """Its name without folder and suffix as that of the clip `number`, for one that is not saved."""
        return Path(shortened(Path(self._numbered(number)).name, NAME_LIMIT - RESERVED - len(self.end)) + self.end)

    def _numbered(self, number: int) -> str:
        if opts.save_images_add_number or not self.stem:
            return f"{number:05}-{self.stem}".rstrip("-")
        return self.stem


def folder_of_result(clip: Path) -> Path:
    """Where what is made of the file or folder `clip` is saved: beside it, if it lies where the host writes; otherwise
    among the clips of txt2img.
    """
    if any(clip.parent.is_relative_to(folder) for folder in output_folders()):
        return clip.parent
    return folder_of_clips(opts.outdir_samples or opts.outdir_txt2img_samples)


def folder_of_clips(outputs: str) -> Path:
    """Where clips are saved, in the host's output directory `outputs`."""
    return Path(os.path.abspath(outputs), options.value("zs2_folder"))


def grid_target(folder: Path, seed: int, stopped: bool) -> Path:
    """The path without suffix of a playing grid in `folder`, named as the host names its grids."""
    number = images.get_next_sequence_number(folder, GRID)
    return beside(folder, f"{GRID}-{number:04}-{seed}", STOPPED * stopped)


def beside(folder: Path, stem: str, end: str) -> Path:
    """A path without suffix in `folder`, which is made, that no clip has yet: `stem`, cut if it is too long, and `end`
    behind it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return folder / _not_taken(folder, shortened(stem, _room(folder) - len(end)) + end)


def fitting(outputs: str | None, apply: Callable, generator: images.FilenameGenerator, pattern: str) -> str:
    """The host's `FilenameGenerator.apply`, with folders and names cut to what the file system of `outputs` takes."""
    most = _name_limit(Path(outputs or "."))
    return "/".join(shortened(part, most) for part in apply(generator, pattern).split("/"))


def frame_name(filename: str, frame: int) -> str:
    """`filename`, which the host would give to a frame (counted from 1) of a clip, as one that the file system takes
    and that no other frame of the clip has.
    """
    folder, name = os.path.split(filename)
    stem, suffix = os.path.splitext(name)
    distinct = opts.save_images_add_number or any(word in opts.samples_filename_pattern.lower() for word in NUMBERS)
    end = "" if distinct else f"-{frame:04}"
    # the host cuts the whole path to the length of a name
    characters = _name_limit(Path(folder)) - max(4, len(suffix)) - len(folder) - 1 - len(end)
    if characters > 0:
        stem = stem[:characters]
    return os.path.join(folder, shortened(stem, _room(Path(folder)) - len(end)) + end + suffix)


def shortened(text: str, most: int) -> str:
    """As many whole characters of `text` as make at most `most` bytes, without what no file system takes."""
    text = text.replace("\0", "_").encode(errors="replace").decode()
    if len(text.encode()) <= most:
        return text
    return text.encode()[: max(most, 1)].decode(errors="ignore").rstrip(" .") or "_"


def _room(folder: Path) -> int:
    """The bytes that the stem of a file in `folder` may have."""
    path = _limit(folder, "PC_PATH_MAX", 260 if os.name == "nt" else 4096)
    return min(_name_limit(folder), path - len(os.fsencode(os.path.abspath(folder))) - 2) - RESERVED


def _name_limit(folder: Path) -> int:
    return _limit(folder, "PC_NAME_MAX", NAME_LIMIT)


def _limit(folder: Path, name: str, default: int) -> int:
    """A limit of the file system that `folder` is, or will be, on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        limit = os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):  # Windows, or a file system that does not say
        return default
    return limit if limit > 0 else default


def _not_taken(folder: Path, stem: str) -> str:
    """`stem`, with a number if files of that name are there already: a clip is never overwritten."""
    entries = list(folder.iterdir()) if folder.is_dir() else []
    taken = {path.stem for path in entries} | {path.name for path in entries}
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    return next(name for name in candidates if name not in taken)
