"""What the command line says on stderr while it works: notes, errors and progress, for people or as lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # without colours, with or without NO_COLOR


class Refused(Exception):
    """Ends the program with its message, one line, and exit status 2: what was asked for cannot be done."""

    status = 2


class ModelRefused(Refused):
    """The same, with exit status 3: a model cannot be loaded, or sampled from."""

    status = 3


class Failed(Exception):
    """The same, with exit status 1."""

    status = 1


@dataclass
class Voice:
    """How it is said. quiet: errors alone. json: a line of JSON for everything, with one key "note", "error", or the
    keys of progress.
    """

    quiet: bool = False
    json: bool = False


voice = Voice()
"""That of this run of the program."""


def listen(arguments: Sequence[str] | None) -> None:
    """Sets the voice as these arguments, by themselves those of the program, ask for, before they are parsed; what a
    console cannot show, such as λ, is replaced.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    pairs = zip(arguments, [*arguments[1:], ""])
    voice.json = any(one == "--progress=json" or (one, next) == ("--progress", "json") for one, next in pairs)
    voice.quiet = "--quiet" in arguments


def say(text: object, error: bool = False) -> None:
    if voice.quiet and not error:
        return
    if voice.json:
        write_line({"error" if error else "note": str(text)})
        return
    with tqdm.external_write_mode(file=sys.stderr):  # a bar is on its line
        print(f"zs2: {'error: ' * error}{text}", file=sys.stderr)


def write_line(about: Mapping) -> None:
    """A line of JSON on stderr, in one piece, so that an interruption does not tear it."""
    sys.stderr.write(json.dumps(about, ensure_ascii=False) + "\n")
    sys.stderr.flush()


class Meter:
    """A scope with a bar, or lines of JSON, that say how much of the work is done."""

    def __init__(self):
        self._bar = None if voice.quiet or voice.json else tqdm(total=1.0, bar_format=BAR)
        self._begin, self._done = time.monotonic(), 0.0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: float, words: str, **about) -> None:
        """`done` is from 0 to 1; `words` say what is being done, `about` the same for JSON."""
        self._done = done
        if voice.json and not voice.quiet:
            left = (time.monotonic() - self._begin) * (1 - done) / done if done else None
            line = {**about, "done": round(done, 4), "seconds_left": left if left is None else round(left, 1)}
            write_line(line)
        elif self._bar is not None:
            self._bar.n = done
            self._bar.set_description(words)

    def decoded(self, frame: int, frames: int) -> None:
        """The next of the frames was decoded, which hardly counts."""
        self.show(
            1.0 if frame == frames else self._done, f"decoded frame {frame} of {frames}", decoded=frame, of=frames
        )
