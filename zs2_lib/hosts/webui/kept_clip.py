"""The clip that a job goes on from: its pictures take the place of those that are computed again.

The computation is the same, and on a CPU so are the pictures, bit for bit; a GPU's kernels round differently by the
size of a batch. Of a file that has lost something of its pictures (MP4 and the like) none are taken, except where the
frames before a retake come out otherwise: those between anchors follow from the anchors behind them as well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.going_on import kept_frames
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.postprocessing import INTERPOLATED_TO, UPSCALED_BY
from zs2_lib.settings.table import Settings

from .files import in_words, opened
from .library import clip_of

OTHER_PICTURES = (
    "The frames that were kept are up to {most} of 255 from what was computed again: the checkpoint, the settings or "
    "the machine may be others than those of the clip, and what is new may not join without a jump."
)


class KeptClip:
    """The clip that `settings` name: it is checked here, by SettingsError, and its pictures are read one by one."""

    def __init__(self, settings: Settings, undo: ExitStack, is_api: bool, note: Callable[[str], None]):
        self._note = note
        self.path = clip_of(settings.kept_clip, undo, is_api)
        self._source = opened("clip", self.path)
        self.text, self.values, self.settings = read_recipe(self.path)
        self._most = 0
        follow = settings.retakes != self.settings.retakes and settings.anchor_stride > 1
        self._exact = not follow and (self.path.is_dir() or self.path.suffix == ".apng")
        frames = kept_frames(self.settings, settings) if follow or self._exact else {}
        if UPSCALED_BY in self.values or INTERPOLATED_TO in self.values:  # its frames are others
            frames = {}
        self._frames = {new: old for new, old in frames.items() if old < self._source.info.frames}
        self._pictures = self._source.read(np.array(sorted(self._frames.values()), np.int64)) if self._frames else None

    def take_over(self, frame: int, seed: int, image: Image.Image) -> None:
        """Makes `image`, frame `frame` (counted from 0) of a clip of that seed, the picture of the clip, if it is kept.

        Frames come in their order.
        """
        if frame not in self._frames or str(seed) != self.values.get("Seed"):
            return
        with in_words("clip"):
            _, picture = next(self._pictures)
        if picture.size != image.size:
            self._frames = {}
            return
        difference = np.abs(np.asarray(image.convert("RGB"), np.int16) - np.asarray(picture, np.int16))
        self._most = max(self._most, int(difference.max()))
        image.paste(picture)

    def end(self) -> None:
        """Says what the user should know, once all frames have come."""
        if self._exact and self._most > 1:
            self._note(OTHER_PICTURES.format(most=self._most))


def read_recipe(path: Path) -> tuple[str, dict[str, str], Settings]:
    """The infotext of a clip's file, what it says by key, and its settings. Raises SettingsError."""
    with in_words("clip"):
        text = read_text(path)
    values = recipe.parsed(text)[2] if text else {}
    if not recipe.is_of_clip(values):
        raise SettingsError(
            f"clip: {path.name} does not say how it was made; give a file that ZS² wrote and no other program has "
            "written anew"
        )
    return text, values, Settings(enabled=True, **recipe.read(values))
