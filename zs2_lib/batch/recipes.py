"""A folder of clips and images that carry their recipes, as jobs that make them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.text import read_text

STILLS = (".png", ".jpg", ".jpeg")
SUFFIXES = (*(f".{format}" for format in FORMATS), ".mkv", ".mov", *STILLS)


def recipes_in(folder: Path) -> Iterator[tuple[Path, dict[str, object] | str]]:
    """(file, values by key or what is wrong) of each clip in a folder; folders in it are clips of PNG files.

    Files of the same name and recipe are one clip in several formats. Raises OSError.
    """
    clips: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in SUFFIXES):
            continue
        stem = path.name if path.is_dir() else path.stem
        try:
            text = read_text(path)
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            yield path, str(error) or "it holds no picture"
            continue
        if not text:
            yield path, "it does not say how it was made; take it out of the folder"
            continue
        format = "png" if path.is_dir() else path.suffix[1:].lower()
        known = format in FORMATS and (path.is_dir() or path.suffix.lower() not in STILLS)
        clips.setdefault((stem, text), (path, []))[1].extend([format] if known else [])
    for (stem, _), (path, formats) in clips.items():
        yield path, {"recipe": str(path), "name": stem, **({"formats": formats} if formats else {})}
