"""A finished clip: what its file, or the folder of its frames, says of itself."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from zs2_lib.media.formats import FORMATS, exact_rate
from zs2_lib.media.sound import add_audio
from zs2_lib.media.source import Selection, Source

from . import recipe
from .kinds import SettingsError
from .postprocessing import INTERPOLATED_TO
from .schedule import number_text

STOPPED = "ZS2 stopped"
"""Key in the infotext of a clip of which the sampling was interrupted or skipped."""
_RATE = re.compile(r"at ([\d.]+) fps")  # as `interpolated_to` writes it


class FinishedClip:
    """A clip that is there: its pictures and their times (`source`), its `text`, and the `values` in that, by key."""

    def __init__(self, source: Source, text: str | None):
        self.source, self.text = source, text or ""
        self.values = recipe.parsed(self.text)[2]

    @property
    def closed(self) -> bool:
        """Whether it goes on with its first picture after the last one."""
        return self._said("loop") not in (None, "off") and STOPPED not in self.values

    @property
    def rate(self) -> Fraction:
        """Frames per second, as the file has it; a folder, which has none, as its recipe says."""
        if self.source.path.is_dir():
            later = _RATE.search(self.values.get(INTERPOLATED_TO, ""))
            fps = float(later[1]) if later else (self._said("fps") or 0) * (self._said("in_betweens") or 1)
            if fps:
                return exact_rate(fps)
        return self.source.clip_fps()

    def add_sound(self, file: Path, format: str, frames: int, rate: Fraction) -> None:
        """Gives a file that was made of the clip, and has so many frames at that rate, the clip's sound, as long as the
        frames last, if both can have any. Raises what `add_audio` does, and leaves the file as it was.
        """
        if self.source.info.has_audio and FORMATS[format].sound:
            taken = min(self.source.info.frames, math.ceil(frames * self.rate / rate))
            add_audio(file, self.source, Selection(frames=taken))

    def _said(self, name: str):
        """The value of a setting in the recipe, None if it says nothing that can be read."""
        with suppress(SettingsError):
            return recipe.read(self.values, (name,)).get(name)


def interpolated_to(frames: int, rate: Fraction) -> str:
    """The value of the key `INTERPOLATED_TO`."""
    return f"{frames} frames at {number_text(round(float(rate), 3))} fps"
