"""How fast this machine has made clips, from session to session: kept in one file of the host's data folder."""

from __future__ import annotations

import json
import logging
import math
import statistics
from functools import cache
from pathlib import Path

from modules import paths_internal, shared

from zs2_lib.media.write import write_sidecar

from .estimate import AFTER, SAMPLING

log = logging.getLogger(__name__)

LAST = 5
"""How many jobs of a kind are kept."""
MOST_KINDS = 200


def kind_of(anchor_stride: int, anchor_depth: str, preflight: bool = False) -> str:
    """What jobs have in common that are alike: the checkpoint, which part of the UNet computes all frames, and whether
    they are preflights, whose small pictures take longer for their size.
    """
    depth = f" {anchor_stride} {anchor_depth}" if anchor_stride > 1 else ""
    return f"{shared.opts.sd_model_checkpoint}{depth}{' preflight' if preflight else ''}"


def record(kind: str, rates: dict[str, float], positions: int = 0) -> None:
    """A clip, or a segment of it, was made at these rates, by the names of `estimate.py`, of frames with so many latent
    `positions`; 0 for rates of something else.
    """
    jobs = _jobs()
    of_kind = jobs.pop(kind, {})
    for name, rate in rates.items():
        for each in dict.fromkeys((name, _sized(name, positions))):
            of_kind[each] = [*of_kind.get(each, ()), rate][-LAST:]
    jobs[kind] = of_kind
    for oldest in list(jobs)[:-MOST_KINDS]:
        del jobs[oldest]
    _save(jobs)


def rate(kind: str, name: str, positions: int = 0) -> float | None:
    """The median rate of the last jobs of the kind, of about that size if there were such; None if there were none."""
    rates = _rates(kind, name, positions)
    return statistics.median(rates) if rates else None


def seconds_for(kind: str, work: float, name: str = SAMPLING, positions: int = 0) -> tuple[float | None, int]:
    """(seconds, of how many jobs they are known) of sampling `work` UNet rows × latent positions at the rate `name`, of
    frames with so many `positions`.
    """
    known = rate(kind, name, positions)
    return (None if known is None else known * work), len(_rates(kind, name, positions))


def seconds_after(kind: str, frames: int, positions: int) -> float | None:
    """Seconds from the end of sampling to the file, of so many frames with so many latent `positions` each."""
    known = rate(kind, AFTER, positions)
    return None if known is None else known * frames * positions


def _rates(kind: str, name: str, positions: int) -> list[float]:
    of_kind = _jobs().get(kind, {})
    return of_kind.get(_sized(name, positions)) or of_kind.get(name) or []


def _sized(name: str, positions: int) -> str:
    """The name of a rate for sizes that are alike: the positions, to a factor of two."""
    return f"{name} 2^{positions.bit_length()}" if positions else name


def _path() -> Path:
    return Path(paths_internal.data_path, "zs2-pace.json")


@cache
def _jobs() -> dict[str, dict[str, list[float]]]:
    """By kind, the one that was seen last at the end; empty where the file cannot be read."""
    try:
        kinds = json.loads(_path().read_text("utf-8"))
        return {
            str(kind): {
                str(name): [float(rate) for rate in rates if 0 < rate < math.inf] for name, rates in of_kind.items()
            }
            for kind, of_kind in kinds.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read; what is known of this machine's speed begins anew: %s", _path(), error)
        return {}


def _save(jobs: dict) -> None:
    try:
        write_sidecar(_path().with_suffix(""), jobs)
    except OSError as error:
        log.warning("%s cannot be written; forecasts know this session's jobs alone: %s", _path(), error)
