"""How long a batch will take: from the pace of its manifest, or of a first step that is measured."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace

from zs2_lib.cli_job import load, sample
from zs2_lib.cli_say import Failed, Refused

from .jobs import Planned


@dataclass(frozen=True)
class Kind:
    """Jobs of one pace: the checkpoint, and how large the pictures are."""

    checkpoint: str
    size: str

    @classmethod
    def of(cls, planned: Planned) -> Kind:
        width, height = planned.job.size
        return cls(planned.checkpoint, f"{width}x{height}" if width else "the model's own size")


def known_pace(records: Iterable[dict]) -> dict[Kind, float]:
    """Seconds for a row of the UNet in jobs that were made before."""
    sums: dict[Kind, list[float]] = {}
    for record in records:
        if not record.get("error") and record.get("rows") and record.get("seconds"):
            both = sums.setdefault(Kind(record.get("checkpoint", ""), record.get("size", "")), [0, 0])
            both[0] += record["seconds"]
            both[1] += record["rows"]
    return {kind: seconds / rows for kind, (seconds, rows) in sums.items()}


def measured_pace(planned: Planned) -> tuple[float, float]:
    """(seconds for a row, seconds to load the checkpoint) by one step of the job on this machine. Raises Failed."""
    started = time.perf_counter()
    try:
        pipe = load(planned.job)
        loaded = time.perf_counter()
        with redirect_stderr(io.StringIO()):
            next(sample(pipe, replace(planned.job, steps=1)))
        seconds = time.perf_counter() - loaded
    except (Refused, ValueError, RuntimeError, OSError) as error:
        raise Failed(f"{planned.place}: its first step cannot be measured: {error}") from error
    return seconds / (planned.rows / planned.job.steps), loaded - started


def time_text(seconds: float) -> str:
    """About how long, in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} seconds"
