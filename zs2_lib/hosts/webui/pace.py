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


def record(kind: str, rates: dict[str, float]) -> None:
    """A clip, or a segment of it, was made at these rates, by the names of `estimate.py`."""
    jobs = _jobs()
    of_kind = jobs.pop(kind, {})
    for name, rate in rates.items():
        of_kind[name] = [*of_kind.get(name, ()), rate][-LAST:]
    jobs[kind] = of_kind
    for oldest in list(jobs)[:-MOST_KINDS]:
        del jobs[oldest]
    _save(jobs)


def rate(kind: str, name: str) -> float | None:
    """The median rate of the last jobs of the kind, None if there were none."""
    rates = _jobs().get(kind, {}).get(name)
    return statistics.median(rates) if rates else None


def seconds_for(kind: str, work: float, name: str = SAMPLING) -> tuple[float | None, int]:
    """(seconds, of how many jobs they are known) of sampling `work` UNet rows × latent positions at the rate `name`."""
    known = rate(kind, name)
    return (None if known is None else known * work), len(_jobs().get(kind, {}).get(name, ()))


def seconds_after(kind: str, positions: float) -> float | None:
    """Seconds from the end of sampling to the file, of frames with so many latent `positions` together."""
    known = rate(kind, AFTER)
    return None if known is None else known * positions


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
