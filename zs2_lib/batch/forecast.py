"""How long a batch will take: from the pace of its manifest, or of first steps that are measured."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from zs2_lib.cli_job import Job, load, sample
from zs2_lib.cli_say import Failed, Refused, voice

from .cost import BETWEEN_OF_FULL, Cost, rows_of_step, strength_of
from .jobs import Planned


@dataclass(frozen=True)
class Kind:
    """Jobs of one pace: the checkpoint, how large the pictures are, and which part of the UNet computes all frames."""

    checkpoint: str
    size: str
    anchors: str

    @classmethod
    def of(cls, planned: Planned) -> Kind:
        (width, height), settings = planned.job.size, planned.job.settings
        size = f"{width}x{height}" if width else "the model's own size"
        anchors = f"{settings.anchor_stride} {settings.anchor_depth}" if settings.anchor_stride > 1 else ""
        return cls(planned.checkpoint, size, anchors)


class Pace(NamedTuple):
    """Seconds for a row of the UNet in full, for one between anchors, and for what follows with each frame."""

    full: float
    between: float
    frame: float = 0.0

    def seconds(self, planned: Planned) -> float:
        cost = planned.cost
        return self.full * cost.full + self.between * cost.between + self.frame * planned.job.settings.length


def known_pace(records: Iterable[dict]) -> dict[Kind, Pace]:
    """That of jobs that were made before, all that follows the sampling in it."""
    sums: dict[Kind, list[float]] = {}
    for record in records:
        if not record.get("error") and record.get("rows") and record.get("seconds"):
            kind = Kind(record.get("checkpoint", ""), record.get("size", ""), record.get("anchors", ""))
            between = record.get("between", 0)
            both = sums.setdefault(kind, [0, 0])
            both[0] += record["seconds"]
            both[1] += Cost(record["rows"] - between, between).work
    return {
        kind: Pace(seconds / work, BETWEEN_OF_FULL * seconds / work) for kind, (seconds, work) in sums.items() if work
    }


def measured_pace(planned: Planned) -> tuple[Pace, float]:
    """(pace, seconds to load the checkpoint) by two steps of the job on this machine, the first in full, and two frames
    that are decoded. Raises Failed.
    """
    job, started = planned.job, time.perf_counter()
    heard, before = _Heard(), (voice.quiet, voice.json)
    voice.quiet, voice.json = False, True
    try:
        with redirect_stderr(heard):
            pipe = load(job)
            loaded = time.perf_counter()
            frames = sample(pipe, _shortened(job))
            for _ in range(min(2, job.settings.length)):
                next(frames)
        frames.close()
    except (Refused, ValueError, RuntimeError, OSError) as error:
        raise Failed(f"{planned.place}: its first steps cannot be measured: {error}") from error
    finally:
        voice.quiet, voice.json = before
    return heard.pace(planned), loaded - started


def _shortened(job: Job) -> Job:
    """The job with two steps, of which anchors leave the first in full, and no second pass."""
    steps = math.ceil(2 / max(strength_of(job), 0.01))
    return replace(job, steps=steps, settings=replace(job.settings, anchor_start=0.0), hires=None)


class _Heard(io.StringIO):
    """When the command line has said what, in lines of JSON."""

    def __init__(self):
        super().__init__()
        self.lines: list[tuple[float, dict]] = []

    def write(self, text: str) -> int:
        with suppress(ValueError):
            if text.startswith("{"):
                self.lines.append((time.perf_counter(), json.loads(text)))
        return len(text)

    def pace(self, planned: Planned) -> Pace:
        """That of a shortened job."""
        begins, decoded, calls, part = {}, [], 1, 1.0
        for at, line in self.lines:
            if "step" in line:
                calls = line["steps"]
                if line["step"] not in begins and line["step"] == 2:
                    part = line["done"] * calls  # of the frames, which is sampled at once
                begins.setdefault(line["step"], at)
            elif "decoded" in line:
                decoded.append(at)
        frame = decoded[1] - decoded[0] if len(decoded) > 1 else 0.0
        times = [*begins.values(), decoded[0] - frame]
        full, *others = (after - before for before, after in zip(times, times[1:]))
        between = min(others) if others else full
        if planned.job.settings.anchor_stride == 1:
            full = between = min(full, between)  # the first one may take longer
        step = rows_of_step(planned.job) * part / -(-calls // 2)  # some samplers call twice in a step
        return Pace(full / step, between / step, frame)


def time_text(seconds: float) -> str:
    """About how long, in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} seconds"
