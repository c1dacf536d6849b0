"""How far λ moved the pictures of the small checkpoint, by sampler, steps and CFG scale: see docs/motion.md."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .schedule import Schedule, number_text


class Measured(NamedTuple):
    """The clips measured that are nearest to what is asked for."""

    sampler: str
    steps: int
    cfg_scale: float
    motion: float
    change: float
    """The mean |difference| between neighbouring frames, of 255, at that λ and without momentum."""
    most: float
    """That of frames with independent noise."""

    def at(self, motion: float) -> float:
        """The change at another λ, which grows with its square root up to that of independent noise; a rough guess."""
        return min(self.change * math.sqrt(motion / self.motion), self.most)

    def text(self, motion: Schedule) -> str:
        """What it says of this λ, in words."""
        low, high = (round(self.at(value)) for value in motion.bounds)
        here = f"λ {' to '.join(map(number_text, dict.fromkeys(motion.bounds)))}"
        change = f"{low} to {high}" if low < high else f"{high}"
        return (
            f"With {self.sampler}, {self.steps} steps and CFG {self.cfg_scale:g}, {here} is about {change} of 255 from "
            "frame to frame with the small checkpoint, without momentum."
        )


@cache
def _table() -> dict:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def measured(sampler: str, steps: int, cfg_scale: float) -> Measured | None:
    """What was measured of the sampler, nearest to so many steps and that CFG scale; None of a sampler that was not."""
    table = _table()
    changes = table["change"].get(sampler)
    if changes is None:
        return None

    def distance(number: int) -> float:
        column = table["columns"][number]
        return abs(math.log2(steps / column["steps"])) + abs(cfg_scale - column["cfg_scale"]) / 4

    number = min((number for number, change in enumerate(changes) if change is not None), key=distance)
    column, independent = table["columns"][number], table["independent"]
    most = max(independent.get(sampler, max(independent.values())), changes[number])
    return Measured(sampler, column["steps"], column["cfg_scale"], table["motion"], changes[number], most)
