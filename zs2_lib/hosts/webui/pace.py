"""How fast this machine has sampled clips since the host was started."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Hashable

from modules import shared

from zs2_lib.core.clip import Clip

LAST = 5
"""How many jobs of a kind are kept."""

_jobs: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=LAST))


def kind_of(anchor_stride: int, anchor_depth: str) -> Hashable:
    """What jobs have in common that are alike: the checkpoint, and which part of the UNet computes all frames."""
    return shared.opts.sd_model_checkpoint, anchor_stride, anchor_depth if anchor_stride > 1 else ""


def record(clip: Clip, work: int, seconds: float) -> None:
    """A clip, or a segment of it, was sampled. `work`: UNet rows × latent positions of a row, of all its calls."""
    if work and not (shared.state.interrupted or shared.state.skipped):
        _jobs[kind_of(clip.anchors.stride, clip.anchors.depth)].append(seconds / work)


def seconds_for(kind: Hashable, work: int) -> tuple[float | None, int]:
    """(seconds, of how many jobs they are known) that so much `work` takes, by the median of the last jobs of the kind;
    None if there were none.
    """
    jobs = _jobs.get(kind, ())
    return (statistics.median(jobs) * work if jobs else None), len(jobs)
