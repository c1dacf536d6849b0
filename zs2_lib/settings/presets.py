"""How fast a clip is made, in one word for the three settings that decide it."""

from typing import NamedTuple


class Preset(NamedTuple):
    """A speed; its fields are the names of the settings that it sets."""

    anchor_stride: int
    anchor_depth: str
    anchor_start: float


PRESETS = {
    "exact": Preset(1, "medium", 0.18),
    "balanced": Preset(8, "medium", 0.18),
    "fast": Preset(16, "medium", 0.12),
}
"""By name, slowest first."""
