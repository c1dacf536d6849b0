"""The files that a job's settings name: paths and base64, where they may lie, and the sources opened from them."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from modules import paths_internal, shared
from modules.shared import opts

from zs2_lib.media.read import open_source
from zs2_lib.media.source import Source, TooLarge
from zs2_lib.settings.kinds import SettingsError

from .limits import max_source_pixels, source_folders

BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
LONGEST_PATH = 4096
GIVEN = "the {key} of the request"
"""The name of a file that was given as base64."""


def file_of(key: str, value: str, undo: ExitStack, is_api: bool) -> Path:
    """The file or folder that the setting `key` gives: a path, or the base64 of a file, which is kept until `undo` is
    closed.

    A path of a request must lie inside `source_folders()`; from the panel, which shows the files of the machine that
    the host runs on, any will do unless the host was started with --hide-ui-dir-config. Raises SettingsError.
    """
    content = _content(key, value)
    if content is not None:
        path = Path(temporary_folder(undo), GIVEN.format(key=key))
        path.write_bytes(content)
        return path
    path = Path(os.path.realpath(_path(value)))
    if is_api or shared.cmd_opts.hide_ui_dir_config:
        _check_allowed(key, value, path)
    return path


def _path(value: str) -> str:
    return os.path.join(paths_internal.data_path, os.path.expanduser(value))


def _content(key: str, value: str) -> bytes | None:
    """The content of the file that `value` is the base64 of; None if it is a path.

    Raises SettingsError if it is neither.
    """
    beginning = f"{key}: {value[:40]!r}{'…' * (len(value) > 40)}"
    if value[:5].lower() == "data:":
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            raise SettingsError(f"{beginning} is a data URL without base64; give data:video/mp4;base64,… or a path")
    elif (
        BASE64.fullmatch(value)
        and (not value.startswith("/") or value.startswith("/9j/"))
        and not os.path.exists(_path(value))
    ):
        data = value
    elif len(value) > LONGEST_PATH or "\0" in value:
        raise SettingsError(f"{beginning} is neither the base64 of a file nor a path; give the one or the other")
    elif re.match(r"[a-z]+://", value, re.IGNORECASE):
        raise SettingsError(
            f"{beginning} is an address, which is not opened; download the file, and give its base64 or its path"
        )
    else:
        return None
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: it is not ASCII
        raise SettingsError(
            f"{beginning} is no base64 of a file ({error}); give a path, or all of the base64"
        ) from None


def _check_allowed(key: str, value: str, path: Path) -> None:
    """Raises SettingsError if a request may not name `path`, or what a link in that folder leads to."""
    folders = source_folders()
    remedy = f"a path inside {', '.join(map(str, folders))} (--gradio-allowed-path and --zs2-source-dir allow more)"

    def allowed(place: Path) -> bool:
        return any(place.is_relative_to(folder) for folder in folders)

    if not allowed(path):
        raise SettingsError(f"{key}: {value!r} is not allowed; give the base64 of a file, or {remedy}")
    with suppress(OSError):  # no folder, or one that cannot be read, which is said when it is opened
        for entry in path.iterdir():
            if entry.is_symlink() and not allowed(Path(os.path.realpath(entry))):
                raise SettingsError(
                    f"{key}: {value!r} is not allowed, its {entry.name!r} is a link that leads out of it; give {remedy}"
                )


def temporary_folder(undo: ExitStack) -> str:
    """A folder that is there until `undo` is closed, or forgotten after an error."""
    if opts.temp_dir:
        os.makedirs(opts.temp_dir, exist_ok=True)  # Forge Neo names one that it has not made yet
    return undo.enter_context(
        tempfile.TemporaryDirectory(prefix="zs2-", dir=opts.temp_dir or None, ignore_cleanup_errors=True)
    )


@functools.lru_cache(maxsize=4)
def _opened(path: Path, background: str, max_pixels: int, _changed: int) -> Source:
    return open_source(path, background=background, max_pixels=max_pixels)


def opened(key: str, path: Path, background: str = "white") -> Source:
    """The source at `path`; kept, since a long video's times take reading all of it.

    Raises SettingsError that names `key`.
    """
    changed, most = os.stat(path).st_mtime_ns if os.path.exists(path) else 0, max_source_pixels()
    with in_words(key):
        try:
            return _opened(path, background, most, changed)
        except TooLarge as error:
            raise TooLarge(f"{error} (--zs2-max-source-pixels of this server is {most})") from error


@contextmanager
def in_words(key: str):
    """What a source has against a file or a selection is said of the setting `key`."""
    try:
        yield
    except SettingsError:
        raise
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SettingsError(f"{key}: {error}") from error
