"""The manifest of a batch: a line of JSON for each job that was finished or given up, by which it goes on later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zs2_lib.cli_say import Refused

from .jobs import MANIFEST, Planned


class Manifest:
    """`manifest.jsonl` in the folder of a batch, which one process at a time may write.

    A line is appended by one write, and flushed to the disk; what a process killed in the middle of it has left is
    taken off. Raises Refused where another batch is at work.
    """

    def __init__(self, folder: Path, write: bool = True):
        self.folder, self.file = folder, folder / MANIFEST
        self.notes: list[str] = []
        self.pending: list[bytes] = []
        self._records: dict[str, dict] = {}
        self._opened = None
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            self._opened = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            self._lock()
        self._read()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *exception) -> None:
        with suppress(OSError):
            self.write_pending()
        os.close(self._opened)

    @property
    def records(self) -> list[dict]:
        """The last line of each name."""
        return list(self._records.values())

    def finished(self, planned: Planned) -> dict | None:
        """The record of a job that is done: its hash is there, and so are the files, of the size that they had. A job
        that was given no name may have had another number."""
        candidates = [self._records.get(planned.name)] if planned.named else self._by_hash.get(planned.hash, ())
        return next((one for one in candidates if one and one["hash"] == planned.hash and self._are_there(one)), None)

    def is_taken(self, planned: Planned) -> bool:
        """Whether the job's name is that of another finished job."""
        record = self._records.get(planned.name)
        return record is not None and record["hash"] != planned.hash and self._are_there(record)

    def add(self, record: Mapping) -> None:
        """Appends a line; one that cannot be written waits in `pending` for the next. Raises OSError."""
        self._keep(dict(record))
        self.pending.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.write_pending()

    def write_pending(self) -> None:
        if not self.pending:
            return
        lines, end = b"".join(self.pending), os.lseek(self._opened, 0, os.SEEK_END)
        try:
            written = os.write(self._opened, lines)
            if written < len(lines):
                raise OSError(28, f"{self.file}: no space left on the disk")
            os.fsync(self._opened)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._opened, end)
            raise
        self.pending.clear()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"--out: another batch writes into {self.folder}; wait for it, or choose a folder") from None

    def _read(self) -> None:
        self._by_hash: dict[str, list[dict]] = {}
        data = self.file.read_bytes() if self.file.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and self._opened is not None:
            os.ftruncate(self._opened, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                if not isinstance(record["files"], dict):
                    raise TypeError("files")
                self._keep({"error": None, **record, "name": str(record["name"]), "hash": str(record["hash"])})
            except (ValueError, KeyError, TypeError) as error:
                self.notes.append(f"{self.file}, line {number} is no record ({error}), and does not count")

    def _keep(self, record: dict) -> None:
        if (before := self._records.get(record["name"])) is not None:
            self._by_hash[before["hash"]].remove(before)
        self._records[record["name"]] = record
        self._by_hash.setdefault(record["hash"], []).append(record)

    def _are_there(self, record: dict) -> bool:
        return not record.get("error") and all(
            size_of(self.folder / file) == size for file, size in record["files"].items()
        )


def size_of(path: Path) -> int | None:
    """The bytes of a file, or of the files in a folder; None if there is none."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    return None
