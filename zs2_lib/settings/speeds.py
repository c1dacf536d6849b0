"""How fast a clip is made, in one word for the settings that decide it.

Each is a point on the frontier of what a clip costs and how far it is from the exact one: see docs/benchmarks.md.
"""

from typing import NamedTuple


class Speed(NamedTuple):
    """The settings that a speed sets, by their names, and the host's sampling steps, None where they stay."""

    anchor_stride: int
    anchor_depth: str
    anchor_start: float
    steps: int | None = None

    @property
    def settings(self) -> dict:
        """Those of ZS²."""
        values = self._asdict()
        del values["steps"]
        return values


SPEEDS = {
    "exact": Speed(1, "medium", 0.18),
    "fine": Speed(8, "gentle", 0.18),
    "balanced": Speed(8, "medium", 0.3),
    "fast": Speed(8, "medium", 0.3, steps=14),
}
"""By name, slowest first."""
