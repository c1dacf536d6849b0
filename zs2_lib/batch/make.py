"""What a worker of a batch does: the clip of one job, as the command line makes it, in files that appear whole."""

from __future__ import annotations

import io
import os
import shutil
import socket
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import torch

from zs2_lib.cli import parser
from zs2_lib.cli_job import load, make
from zs2_lib.cli_read import read_job
from zs2_lib.media.write import all_or_nothing

from .identity import checkpoint
from .jobs import outputs
from .manifest import size_of

UNFINISHED = ".unfinished"
"""The folder, in that of the batch, where files are until they are whole."""
STAY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before Ray is imported, this has it listen at 127.0.0.1 alone; otherwise it would at all addresses."""


class Said(io.StringIO):
    """What the command line has said; `last` is its newest line, such as that of the progress."""

    last = ""

    def write(self, text: str) -> int:
        self.last = text.replace("\r", "\n").strip().split("\n")[-1] or self.last
        return super().write(text)

    @property
    def notes(self) -> list[str]:
        lines = self.getvalue().replace("\r", "\n").split("\n")
        return [line.removeprefix("zs2: ") for line in lines if line.startswith("zs2: ")]


class Maker:
    """Makes clips into `folder`, and keeps the last checkpoint loaded. On a CPU it has so many `threads`."""

    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        self.said = Said()
        self._loaded, self._pipe = None, None

    def make(self, name: str, arguments: tuple[str, ...], formats: tuple[str, ...]) -> dict:
        """Makes one clip, and returns what the manifest says of it: its files with their sizes, or the error."""
        torch.set_num_threads(self.threads)  # which each thread of the process has its own of
        started, self.said = time.monotonic(), Said()
        work = self.folder / UNFINISHED / name
        about: dict = {"files": {}, "error": None, "loading": 0.0}
        with redirect_stdout(self.said), redirect_stderr(self.said):
            try:
                shutil.rmtree(work, ignore_errors=True)  # of a worker that died
                work.mkdir(parents=True)
                job = read_job(parser().parse_args([*outputs(work / name, formats), *arguments]))
                pipe = self._pipeline(job)
                about["loading"] = round(time.monotonic() - started, 3)
                make(pipe, job)
                about["files"] = deliver(work, self.folder)
            except Exception as error:  # whatever it is, the batch goes on
                self._loaded = self._pipe = None
                about["error"] = f"{type(error).__name__}: {error}"
            finally:
                shutil.rmtree(work, ignore_errors=True)
        seconds = round(time.monotonic() - started - about["loading"], 3)
        return {**about, "seconds": seconds, "host": socket.gethostname(), "pid": os.getpid(), "notes": self.said.notes}

    def _pipeline(self, job):
        if self._loaded != checkpoint(job):
            self._pipe = None  # before the next takes its memory
            self._pipe = load(job)
            self._loaded = checkpoint(job)
            torch.set_num_threads(self.threads)
        return self._pipe


def deliver(work: Path, folder: Path) -> dict[str, int]:
    """Moves the finished files of a job to their place, and returns their sizes by name."""
    files = {}
    for made in sorted(work.iterdir()):
        with all_or_nothing(folder / made.name) as unfinished:
            os.replace(made, unfinished)
        files[made.name] = size_of(folder / made.name)
    return files


def clean(folder: Path) -> None:
    """Removes what workers that died have left."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    with suppress(OSError):
        for part in folder.glob(".????????????????.part"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
