"""What the owner of the server allows by the flags of preload.py, and by those of the host."""

from __future__ import annotations

import tempfile
from pathlib import Path

from modules import paths_internal, shared
from modules.shared import opts

from zs2_lib.media.source import MAX_PIXELS
from zs2_lib.settings.kinds import MAX_FRAMES, SettingsError


def _flag(name: str, default):
    value = getattr(shared.cmd_opts, name, None)
    return default if value is None else value


def max_frames() -> int:
    """The most frames of a clip (--zs2-max-frames)."""
    return min(_flag("zs2_max_frames", MAX_FRAMES), MAX_FRAMES)


def check_frames(frames: int, remedy: str, key: str = "frames") -> None:
    """Raises SettingsError of the setting `key` if a clip may not have so many frames."""
    most = max_frames()
    if frames > most:
        limit = "a clip has at most" if most == MAX_FRAMES else "the owner of this server (--zs2-max-frames) allows"
        raise SettingsError(f"{key}: {frames} frames are selected, {limit} {most}; {remedy}")


def max_source_pixels() -> int:
    """The most pixels of a source's frame (--zs2-max-source-pixels)."""
    return min(_flag("zs2_max_source_pixels", MAX_PIXELS), MAX_PIXELS)


def source_folders() -> list[Path]:
    """The folders that a request may name files in: those of --zs2-source-dir, what the host serves files from, and
    where it writes its images; none that lies in another.
    """
    folders = [*_flag("zs2_source_dir", ()), paths_internal.data_path, *(shared.cmd_opts.gradio_allowed_path or ())]
    folders.append(opts.temp_dir or Path(tempfile.gettempdir(), "gradio"))
    paths = list(dict.fromkeys([*(Path(folder).resolve() for folder in folders if folder), *output_folders()]))
    return [path for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]


def output_folders() -> list[Path]:
    """Where the host writes its images."""
    return [Path(value).resolve() for key, value in opts.data.items() if key.startswith("outdir_") and value]
