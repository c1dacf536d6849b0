"""How long the rest of a job takes: from what its own steps took, and from what is known of earlier jobs."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

SAMPLING, FULL, BETWEEN, SECOND, AFTER = "sampling", "full", "between", "second", "after"
"""Rates: seconds for each UNet row and latent position, of a whole job's sampling, of calls in full, of those between
anchors, of those in full in the second pass of hires.fix; and for each frame and latent position what comes after the
sampling, up to the clip's file.
"""
BETWEEN_OF_FULL = 0.6
"""What a call between anchors takes of one in full, before either is known: of SD 1.5."""
ROWS_OF_A_FRAME = 3
"""How many UNet rows take as long as a frame after the sampling, before that is known: of SD 1.5 and its VAE."""
LATEST = 8
"""Calls that the rate of the next ones follows from."""


class Sampling(NamedTuple):
    """A sampling of a batch: how many calls of the denoiser it has, the UNet rows × latent positions of each, and the
    first call between anchors (`calls` without anchors)."""

    calls: int
    work: float
    change: int

    def seconds(self, rates: dict[str, float], start: float = 0) -> float:
        """From call `start` on."""
        left = max(self.calls - start, 0)  # a sampler may call more often than it said
        full = min(max(self.change - start, 0), left)
        return self.work * (full * rates[FULL] + (left - full) * rates[BETWEEN])


class Estimate:
    """The time that is left of a job whose batches have `frames` frames each.

    Each call of the denoiser in a batch is announced by `call`, from 0 on in each sampling (two with hires.fix), the
    end of the last one by `sampled`, and the end of all that follows by `batch_done`.

    known: rates of earlier jobs by name, None where there are none.
    second: the second sampling of a batch, as (calls, positions of a frame) as parts of the first's, and where the
        diffusion begins in it; None if there is none.
    start: up to which part of the diffusion all frames are computed in full; None without anchors.
    """

    def __init__(
        self,
        frames: Sequence[int],
        known: Callable[[str], float | None] = lambda name: None,
        second: tuple[float, float, float] | None = None,
        start: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.frames, self._known, self._second, self._start, self._clock = list(frames), known, second, start, clock
        self.batch = 0
        """The batch that is made, counted from 0."""
        self.number = 0
        """The call that runs, counted from 0."""
        self._samplings: list[Sampling] = []
        """Those of the batch, as far as they have begun."""
        self._whole: list[Sampling] = []
        """Those of the batch before."""
        self._seen = [{name: deque(maxlen=LATEST) for name in (FULL, BETWEEN)} for _ in range(2)]
        """The rates of the last calls, of a batch's first and second sampling."""
        self._after: list[float] = []
        self._work = self._seconds = self._first_time = 0.0
        self._positions = 0.0
        """Latent positions of a frame in a batch's first sampling."""
        self._began: float | None = None
        self._sampled: float | None = None

    # --- what happens ------------------------------------------------------------------------------------------------

    def call(self, number: int, calls: int, work: float, positions: int, time: float) -> None:
        """Call `number` (from 0) of `calls` of a sampling begins: `work` UNet rows × latent positions, of frames with
        so many `positions`; `time` is where the diffusion is, from noise (0) to the picture (1).
        """
        self.end_call()
        if not number or not self._samplings:
            self._samplings.append(Sampling(calls, work, calls))
            self._first_time = time
        if not self._second_now:
            self._positions = positions
        change = self._change(number, calls, time)
        self._samplings[-1] = Sampling(calls, work, change)
        self.number, self._began = number, self._clock()

    def end_call(self) -> None:
        """The call that runs has ended, with all that belongs to its step."""
        if self._began is None:
            return
        now, seconds = self._samplings[-1], self._clock() - self._began
        self._seen[self._second_now][FULL if self.number < now.change else BETWEEN].append(seconds / now.work)
        self._work, self._seconds, self._began = self._work + now.work, self._seconds + seconds, None
        self.number += 1

    @property
    def _second_now(self) -> bool:
        return len(self._samplings) > 1

    @property
    def is_sampled(self) -> bool:
        """Whether what follows the sampling of the batch runs."""
        return self._sampled is not None

    def _change(self, number: int, calls: int, time: float) -> int:
        """The first call of the sampling that is between anchors, as far as it is known in this one."""
        if self._start is None:
            return calls
        if number and time >= self._start:
            return min(self._samplings[-1].change, number)
        bend = 1.0
        if 0 < number < calls and 1 > time > self._first_time:
            bend = math.log((time - self._first_time) / (1 - self._first_time)) / math.log(number / calls)
        return max(self._calls_in_full(calls, self._first_time, bend), number + 1)

    def _calls_in_full(self, calls: int, begins: float, bend: float = 1.0) -> int:
        """Of the calls of a sampling, whose time goes from `begins` to 1 as call / calls to the power `bend` does."""
        part = max(self._start - begins, 0) / max(1 - begins, 1e-6)
        return max(math.ceil(calls * part ** (1 / max(bend, 0.1))), 1)

    def sampled(self) -> dict[str, float]:
        """The batch is sampled. Returns the rates that were seen."""
        self.end_call()
        self._sampled = self._clock()
        rates = {name: statistics.median(seen) for name, seen in self._seen[0].items() if seen}
        if self._second_now and self._seen[1][FULL]:
            rates[SECOND] = statistics.median(self._seen[1][FULL])
        return {**rates, SAMPLING: self._seconds / self._work} if self._work else rates

    def batch_done(self) -> dict[str, float]:
        """All that follows the sampling of the batch is done. Returns the rate of that, if it is known."""
        found = {}
        if self._sampled is not None and self._positions:
            positions = self.frames[self.batch] * self._positions_at_the_end()
            self._after.append((self._clock() - self._sampled) / positions)
            found = {AFTER: self._after[-1]}
        self.batch, self._whole, self._samplings, self._sampled = self.batch + 1, self._samplings, [], None
        self.number = 0
        return found

    def _positions_at_the_end(self) -> float:
        """Latent positions of a frame of the finished clip."""
        return self._positions * (self._second[1] if self._second else 1)

    # --- what is left ------------------------------------------------------------------------------------------------

    def seconds_left(self) -> float | None:
        """Of the whole job; None while nothing is known."""
        if self.batch >= len(self.frames):
            return 0.0
        planned = self._planned(self._samplings or self._whole)
        if not planned or self._rates(0) is None:
            return None
        seconds = [each.seconds(self._rates(number)) for number, each in enumerate(planned)]
        here, after = self.frames[self.batch], self._after_now()
        rest = sum(self.frames[self.batch + 1 :]) / here * (sum(seconds) + after)
        if self._sampled is not None:
            return max(after - (self._clock() - self._sampled), 0.0) + rest
        if not self._samplings:
            return sum(seconds) + after + rest
        return self._left_of_sampling() + sum(seconds[len(self._samplings) :]) + after + rest

    def _left_of_sampling(self) -> float:
        """Of the sampling that runs."""
        now, rates = self._samplings[-1], self._rates(self._second_now)
        left = now.seconds(rates, self.number)
        if self._began is None:
            return left
        one = left - now.seconds(rates, self.number + 1)
        return left - min(self._clock() - self._began, one)

    def _planned(self, samplings: list[Sampling]) -> list[Sampling]:
        """All samplings of a batch, of which the first ones are `samplings`."""
        if self._second is None or len(samplings) != 1:
            return samplings
        part, times, begins = self._second
        calls = max(round(samplings[0].calls * part), 1)
        change = calls if self._start is None else self._calls_in_full(calls, begins)
        return [*samplings, Sampling(calls, samplings[0].work * times, change)]

    def _after_now(self) -> float:
        """What follows the sampling of the batch, in seconds."""
        rate = self._after[-1] if self._after else self._known(AFTER) or self._rates(0)[FULL] * ROWS_OF_A_FRAME
        return rate * self.frames[self.batch] * self._positions_at_the_end()

    def _rates(self, second: int) -> dict[str, float] | None:
        """Of the calls of a batch's first sampling, or of its `second`."""
        seen = {name: statistics.median(rates) for name, rates in self._seen[second].items() if rates}
        full = seen.get(FULL) or self._known(SECOND if second else FULL) or (second and self._rates(0)[FULL])
        if not full:
            return None
        known = self._known(FULL)
        ratio = (self._known(BETWEEN) or known * BETWEEN_OF_FULL) / known if known else BETWEEN_OF_FULL
        return {FULL: full, BETWEEN: seen.get(BETWEEN) or full * ratio}
