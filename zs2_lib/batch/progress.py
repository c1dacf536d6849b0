"""What a batch says while it works: a line for each job that is finished, and on stderr bars, or lines of JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from tqdm import tqdm

from zs2_lib.cli_say import BAR, say, voice, write_line

from .jobs import Planned

GIVEN_UP = "given up"
MOST_LINES = 16
"""Of workers, on a terminal."""


class Progress:
    """A scope that says how much of `jobs` is done, on stderr and `out`, and what each of so many workers is at."""

    def __init__(self, jobs: Sequence[Planned], workers: int, out: TextIO):
        self._work = {job.name: job.cost.work for job in jobs}
        self._all, self._out, self._begin = sum(self._work.values()), out, time.monotonic()
        self._jobs, self._finished, self._given_up, self._before = len(jobs), 0, 0, {}
        self._whole, self._lines, self._more = None, [], None
        if sys.stderr.isatty() and not (voice.quiet or voice.json):
            # of 0 lines is a terminal that does not say how many it has
            room = os.get_terminal_size(sys.stderr.fileno()).lines - 4
            shown = min(workers, MOST_LINES, room if room > 0 else MOST_LINES)
            self._whole = tqdm(total=1.0, bar_format=BAR, dynamic_ncols=True)
            self._lines = [_line(1 + number) for number in range(shown)]
            if shown < workers:
                self._more = _line(1 + shown)
                self._more.set_description_str(f"and {workers - shown} more workers")
            self.show({})

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        for bar in (self._more, *reversed(self._lines), self._whole):
            if bar is not None:
                bar.close()

    def done(self, job: Planned, outcome: Mapping) -> None:
        """A job was finished or given up."""
        self._finished += 1
        self._given_up += bool(outcome["error"])
        del self._work[job.name]
        what = f"{GIVEN_UP}: {outcome['error']}" if outcome["error"] else ", ".join(outcome["files"])
        took = "" if outcome["seconds"] is None else f" ({outcome['seconds']:.1f} s on {outcome['host']})"
        with tqdm.external_write_mode(file=sys.stderr):  # whose terminal is that of stdout, mostly
            print(f"{self._finished}/{self._jobs} {job.name}: {what}{took}", file=self._out, flush=True)
        if voice.json and not voice.quiet:
            about = {key: outcome[key] for key in ("files", "error", "seconds", "host", "tries")}
            write_line({"job": job.name, **about, **self._counts})

    def say(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            say(text)

    def show(self, at_work: Mapping[int, Mapping]) -> None:
        """What each worker is at, by number from 0: of a clip the `job` and its progress, or whom it `helps`."""
        done = self._all - sum(self._work.values())
        done += sum(at.get("done", 0) * self._work.get(at.get("job"), 0) for at in at_work.values())
        done /= self._all
        if self._whole is not None:
            self._whole.n = done
            self._whole.set_description_str(f"{self._finished} of {self._jobs} clips: ")
        for number, bar in enumerate(self._lines):
            bar.set_description_str(f"worker {number + 1}: {words(at_work.get(number, {}))}")
        if voice.json and not voice.quiet and at_work != self._before:
            self._before = at_work
            seconds = (time.monotonic() - self._begin) * (1 - done) / done if done else None
            line = {"done": round(done, 4), "seconds_left": seconds if seconds is None else round(seconds, 1)}
            workers = {str(number + 1): _without_seconds(at) for number, at in at_work.items()}
            write_line({**self._counts, **line, "workers": workers})

    @property
    def _counts(self) -> dict[str, int]:
        return {"jobs_done": self._finished, "jobs": self._jobs, "given_up": self._given_up}


def _line(position: int) -> tqdm:
    return tqdm(bar_format="{desc}", position=position, leave=False, dynamic_ncols=True)


def words(at: Mapping) -> str:
    """What a worker is at, for people."""
    if "helps" in at:
        return f"helps with {at['helps']}"
    if "job" not in at:
        return "-"
    if "step" in at:
        first, last = at["frames"]
        step = f"{'hires ' * bool(at.get('hires'))}step {at['step']}/{at['steps']}"
        doing = f"{at['done']:.0%}, {step}, frames {first}-{last}"
    elif "decoded" in at:
        doing = f"decoded frame {at['decoded']} of {at['of']}"
    elif "interpolated" in at:
        doing = f"interpolated frame {at['interpolated']} of {at['of']}"
    else:
        doing = "loading"
    return f"{doing}: {at['job']}"


def _without_seconds(at: Mapping) -> dict:
    return {key: value for key, value in at.items() if key != "seconds_left"}
