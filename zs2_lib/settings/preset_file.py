"""The user's presets, in one JSON file that can be edited by hand, and shared.

{"version": 1, "presets": {name: {"settings": {keys of API requests}, "steps": …, "denoising_strength": …,
"about": …}}}, of which only the settings have to be there.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from zs2_lib.media.write import all_or_nothing

from .kinds import SettingsError, nearest
from .presets import SHIPPED, Preset, as_json, checked_name

log = logging.getLogger(__name__)

VERSION = 1


class PresetFile:
    """The user's presets, in the file `path`, which is read anew each time and may be edited meanwhile.

    What cannot be read is put aside: a file that is no JSON as a whole, a preset that is not allowed alone. It goes to
    a file of its own beside it, and `notes` says which and why.
    """

    def __init__(self, path: Path):
        self.path = Path(os.path.realpath(path))
        self.notes: list[str] = []
        self._lock = threading.RLock()

    def read(self) -> dict[str, Preset]:
        """The presets by name; none where the file cannot be opened, which `notes` tells."""
        with self._lock:
            try:
                return self._read()[1]
            except OSError as error:
                self._note(f"{self.path} could not be read: {error}.")
                return {}

    def get(self, name: str) -> Preset:
        """One of the user's, or of those that are shipped. Raises SettingsError where there is none."""
        presets = {**SHIPPED, **self.read()}
        if name not in presets:
            raise SettingsError(f"preset: there is none with the name {name!r}{nearest(name, presets)}")
        return presets[name]

    def save(self, name: str, preset: Preset, replaces: str = "") -> str:
        """Adds a preset and returns its name; one that is there is replaced only if `replaces` says so.

        Raises SettingsError, and leaves the file as it was.
        """
        name, entry = checked_name(name), Preset.from_mapping(preset.mapping()).mapping()

        def change(entries: dict) -> None:
            if name in entries and name != replaces:
                raise SettingsError(f"name: {name!r} is taken; choose that preset to replace it, or give another name")
            entries[name] = entry

        self._change(change)
        return name

    def rename(self, name: str, new: str) -> str:
        """Gives a preset another name, in its place, and returns that. Raises SettingsError."""
        new = checked_name(new)

        def change(entries: dict) -> None:
            self._check_own(name, entries)
            if new in entries and new != name:
                raise SettingsError(f"name: {new!r} is taken; give another name")
            pairs = [(new if each == name else each, entry) for each, entry in entries.items()]
            entries.clear()
            entries.update(pairs)

        self._change(change)
        return new

    def delete(self, name: str) -> None:
        """Takes a preset out of the file. Raises SettingsError."""

        def change(entries: dict) -> None:
            self._check_own(name, entries)
            del entries[name]

        self._change(change)

    def _check_own(self, name: str, entries: Mapping) -> None:
        if name in SHIPPED:
            raise SettingsError(f"preset: {name!r} is shipped and stays; save it under another name to change it")
        if name not in entries:
            raise SettingsError(f"preset: there is none of yours with the name {name!r}{nearest(name, entries)}")

    def _change(self, change: Callable[[dict], None]) -> None:
        with self._lock:
            try:
                whole, _ = self._read()
                change(whole["presets"])
                self._write(self.path, as_json(whole))
            except OSError as error:
                raise SettingsError(
                    f"presets: {self.path} could not be written ({error.strerror or error}), and is as it was; make "
                    "room there, or make the folder writable"
                ) from error

    def _read(self) -> tuple[dict, dict[str, Preset]]:
        """The file's whole content, and the presets in it that are allowed. Raises OSError."""
        try:
            whole = json.loads(self.path.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
            if not isinstance(whole, dict) or not isinstance(whole.get("presets"), dict):
                raise ValueError('it is no object with "presets"')
            if whole.setdefault("version", VERSION) != VERSION:
                raise ValueError(f"its version is {whole['version']!r}, and {VERSION} is known")
        except FileNotFoundError:
            whole = {}
        except (ValueError, RecursionError) as error:
            aside = self._aside()
            os.rename(self.path, aside)
            self._note(f"{self.path.name} could not be read ({error}); it is kept as {aside.name}.")
            whole = {}
        whole = {"version": VERSION, "presets": {}, **whole}
        presets, faults = {}, {}
        for name, entry in whole["presets"].items():
            try:
                if checked_name(name) != name:
                    raise SettingsError(f"name: {name!r} begins or ends with a space; leave it out")
                presets[name] = Preset.from_mapping(entry)
            except SettingsError as error:
                faults[name] = str(error)
        if faults:
            whole = self._put_aside(whole, faults)
        return whole, presets

    def _put_aside(self, whole: dict, faults: Mapping[str, str]) -> dict:
        """Moves the presets with `faults` to a file of their own; returns what is left. Where it cannot be written,
        they stay.
        """
        entries, aside = whole["presets"], self._aside()
        bad = {"version": VERSION, "presets": {name: entries[name] for name in faults}, "faults": faults}
        left = {**whole, "presets": {name: entry for name, entry in entries.items() if name not in faults}}
        where = f"it is kept in {aside.name}"
        try:
            self._write(aside, json.dumps(bad, indent=2).encode())
            try:
                self._write(self.path, as_json(left))
            except OSError:
                aside.unlink()
                raise
        except OSError as error:
            left, where = whole, f"it stays where it is, as nothing can be written there: {error.strerror or error}"
        for name, fault in faults.items():
            self._note(f"The preset {name!r} in {self.path.name} is not used ({fault}); {where}.")
        return left

    def _aside(self) -> Path:
        """A path beside the file that is free."""
        paths = (self.path.with_name(f"{self.path.stem}.broken-{number}.json") for number in itertools.count(1))
        return next(path for path in paths if not os.path.lexists(path))

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with all_or_nothing(path) as unfinished, open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _note(self, text: str) -> None:
        if text not in self.notes:
            log.warning("%s", text)
            self.notes.append(text)


def _each_once(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is there twice")
    return dict(pairs)
