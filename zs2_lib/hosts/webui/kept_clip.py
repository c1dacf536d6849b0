"""The clip that a job goes on from: its pictures take the place of those that are computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import FinishedClip, Kept
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from .files import in_words, opened
from .library import clip_of


class KeptClip:
    """The clip that `settings` name: it is checked here, by SettingsError, and its pictures are read one by one."""

    def __init__(self, settings: Settings, undo: ExitStack, is_api: bool, note: Callable[[str], None]):
        self._note = note
        self.path = clip_of(settings.kept_clip, undo, is_api)
        source = opened("clip", self.path)
        self.text, self.values, self.settings = read_recipe(self.path)
        self._kept = Kept(FinishedClip(source, self.text), self.settings, settings)

    def take_over(self, frame: int, seed: int, image: Image.Image) -> None:
        """Makes `image`, frame `frame` (counted from 0) of a clip of that seed, the picture of the clip, if it is kept.

        Frames come in their order.
        """
        if str(seed) == self.values.get("Seed"):
            with in_words("clip"):
                self._kept.take_over(frame, image)

    def end(self) -> None:
        """Says what the user should know, once all frames have come."""
        for note in self._kept.notes:
            self._note(note)


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
