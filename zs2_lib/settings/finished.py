"""A finished clip: what its file, or the folder of its frames, says of itself, and which of its pictures are kept."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from zs2_lib.media.formats import FORMATS, exact_rate
from zs2_lib.media.kept import KeptPictures
from zs2_lib.media.sound import add_audio
from zs2_lib.media.source import Selection, Source

from . import recipe
from .going_on import kept_frames
from .kinds import SettingsError
from .postprocessing import INTERPOLATED_TO, UPSCALED_BY
from .schedule import number_text
from .table import Settings

STOPPED = "ZS2 stopped"
"""Key in the infotext of a clip of which the sampling was interrupted or skipped."""
OTHER_PICTURES = (
    "The frames that were kept are up to {most} of 255 from what was computed again: the checkpoint, the settings or "
    "the machine may be others than those of the clip, and what is new may not join without a jump."
)
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


class Kept:
    """The pictures of the clip that take the place of those of a clip with the settings `after`, which is made of it.

    The computation is the same, and on a CPU so are the pictures, bit for bit; a GPU's kernels round differently by
    the size of a batch. Of a file that has lost something of its pictures (MP4 and the like) none are taken, except
    where the frames before a retake come out otherwise: those between anchors follow from the anchors behind them as
    well.

    before: the settings of the clip.
    """

    def __init__(self, clip: FinishedClip, before: Settings, after: Settings):
        path, count = clip.source.path, clip.source.info.frames
        follow = after.retakes != before.retakes and after.anchor_stride > 1
        self._exact = not follow and (path.is_dir() or path.suffix == ".apng")
        others = (
            any(key in clip.values for key in (UPSCALED_BY, INTERPOLATED_TO, STOPPED)) or count == 1 < before.length
        )
        frames = kept_frames(before, after) if (follow or self._exact) and not others else {}
        self._pictures = KeptPictures(clip.source, frames)
        self.take_over = self._pictures.take_over

    @property
    def notes(self) -> list[str]:
        """What the user should know, once all frames have come."""
        most = self._pictures.most
        return [OTHER_PICTURES.format(most=most)] if self._exact and most > 1 else []


def interpolated_to(frames: int, rate: Fraction) -> str:
    """The value of the key `INTERPOLATED_TO`."""
    return f"{frames} frames at {number_text(round(float(rate), 3))} fps"
