"""What a worker of a batch does: the clip of one job, as the command line makes it, in files that appear whole."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import torch

from zs2_lib.cli import parser
from zs2_lib.cli_job import ALONE, Hands, Job, check_edit, load, make, pictures_of
from zs2_lib.cli_read import read_job
from zs2_lib.cli_say import voice
from zs2_lib.media.write import all_or_nothing, write_clip

from .identity import checkpoint
from .jobs import outputs
from .manifest import size_of

UNFINISHED, HELPED = ".unfinished", ".helped"
"""The folder, in that of the batch, where files are until they are whole; and one in it that is never there."""
STAY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before Ray is imported, this has it listen at 127.0.0.1 alone; otherwise it would at all addresses."""


class Said(io.StringIO):
    """What the command line has said in lines of JSON.

    last: its newest progress, and what it is `about`. notes: the others.
    """

    def __init__(self, **about):
        super().__init__()
        self.about, self.last = about, about
        self.notes: list[str] = []

    def write(self, text: str) -> int:
        with suppress(ValueError):
            line = json.loads(text) if text.startswith("{") else {}
            if "note" in line:
                self.notes.append(line["note"])
            elif "done" in line:
                self.last = {**self.about, **line}
        return len(text)


class Maker:
    """Makes clips into `folder`, and keeps the last checkpoint loaded. On a CPU it has so many `threads`."""

    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        self.said = Said()
        self._loaded, self._pipe = None, None
        self._helped: tuple = (None, None)

    def make(self, name: str, arguments: tuple[str, ...], formats: tuple[str, ...], hands: Hands = ALONE) -> dict:
        """Makes one clip, and returns what the manifest says of it: its files with their sizes, or the error."""
        torch.set_num_threads(self.threads)  # which each thread of the process has its own of
        started, work = time.monotonic(), self.folder / UNFINISHED / name
        about: dict = {"files": {}, "error": None, "loading": 0.0}
        with self._heard(job=name) as said:
            try:
                shutil.rmtree(work, ignore_errors=True)  # of a worker that died
                work.mkdir(parents=True)
                job = self._job(work / name, arguments, formats)
                pipe = self._pipeline(job)
                about["loading"] = round(time.monotonic() - started, 3)
                make(pipe, job, hands)
                about["files"] = deliver(work, self.folder)
            except Exception as error:  # whatever it is, the batch goes on
                self._loaded = self._pipe = None
                about["error"] = f"{type(error).__name__}: {error}"
            finally:
                shutil.rmtree(work, ignore_errors=True)
        seconds = round(time.monotonic() - started - about["loading"], 3)
        return {**about, "seconds": seconds, "host": socket.gethostname(), "pid": os.getpid(), "notes": said.notes}

    def prepare(self, name: str, arguments: tuple[str, ...], formats: tuple[str, ...]) -> tuple[object, Job]:
        """Loads the checkpoint of a job that another worker is at. Returns its pipeline and the job."""
        torch.set_num_threads(self.threads)
        with self._heard(helps=name):
            if self._helped[0] != arguments:
                self._helped = arguments, self._job(self.folder / UNFINISHED / HELPED / name, arguments, formats)
            return self._pipeline(self._helped[1]), self._helped[1]

    def decode(self, latents: torch.Tensor, name: str, *of_job) -> list[np.ndarray]:
        """The pictures of latents of a job that another worker is at, whose arguments are those of `make`."""
        pipe, job = self.prepare(name, *of_job)
        with self._heard(helps=name):
            latents = latents.to(pipe._execution_device)
            return [np.asarray(picture) for picture in pictures_of(pipe, job, latents)]

    def write(self, clip: tuple, name: str) -> Path:
        """The file of a clip, the arguments of `write_clip`, of a job that another worker is at. Raises
        FileNotFoundError where that is finished, or begun anew by another.
        """
        if not (folder := clip[1].parent).is_dir():
            raise FileNotFoundError(f"{folder} is gone")
        with self._heard(helps=name):
            return write_clip(*clip)

    @contextmanager
    def _heard(self, **about) -> Iterator[Said]:
        """Scope in which the command line says what it does to `said`."""
        self.said, before = Said(**about), (voice.quiet, voice.json)
        voice.quiet, voice.json = False, True
        try:
            with redirect_stdout(self.said), redirect_stderr(self.said):
                yield self.said
        finally:
            self.said, (voice.quiet, voice.json) = Said(), before

    def _job(self, target: Path, arguments: tuple[str, ...], formats: tuple[str, ...]) -> Job:
        return read_job(parser().parse_args([*outputs(target, formats), *arguments]))

    def _pipeline(self, job: Job):
        if self._loaded != checkpoint(job):
            self._loaded = self._pipe = None  # before the next takes its memory, or fails to load
            self._pipe = load(job)
            self._loaded = checkpoint(job)
            torch.set_num_threads(self.threads)
        elif job.edit:
            check_edit(self._pipe, job)
        return self._pipe


def deliver(work: Path, folder: Path) -> dict[str, int]:
    """Moves the finished files of a job to their place, and returns their sizes by name."""
    files = {}
    for made in sorted(work.glob("[!.]*")):  # what a helper that died has begun does not count
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
