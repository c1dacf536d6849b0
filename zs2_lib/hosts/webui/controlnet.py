"""Which picture each ControlNet unit shows in each frame of a clip, whatever ControlNet the host has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
from PIL import Image

from zs2_lib.media.picks import TOO_FEW, picks_of_control
from zs2_lib.media.resample import interpolated, interpolated_count
from zs2_lib.media.source import Source
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import FROM_SOURCE, Settings

from .edit import Masks, SourceVideo
from .files import file_of, in_words, opened


class Pictures:
    """The control images of a clip: `index[frame]` says which of the pictures, read one by one, is that of the frame.

    `key` is the setting that names them.
    """

    def __init__(self, source: Source, picks: np.ndarray, key: str):
        self.source, self.key = source, key
        self.numbers, self.index = np.unique(picks, return_inverse=True)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The pictures, (height, width, rgb) in 0..255."""
        with in_words(self.key):
            for _, picture in self.source.read(self.numbers):
                yield np.asarray(picture.convert("RGB"))


class FinerPictures(Pictures):
    """Those of a clip with in-betweens, which show what lies between the `picks` of the kept frames by their flow."""

    def __init__(self, source: Source, picks: np.ndarray, key: str, settings: Settings):
        super().__init__(source, picks, key)
        self._times = settings.in_betweens
        kept, part = np.divmod(np.arange(settings.length), self._times)
        here, there = self.index[kept], self.index[np.minimum(kept + 1, len(picks) - 1)]
        nearest = np.where(2 * part < self._times, here, there) * self._times  # where they begin again
        self.index = np.where(there == here + 1, here * self._times + part, nearest)

    def __len__(self) -> int:
        return interpolated_count(len(self.numbers), 1, self._times)

    def __iter__(self) -> Iterator[np.ndarray]:
        pictures = (Image.fromarray(picture) for picture in super().__iter__())
        return map(np.asarray, interpolated(pictures, 1, self._times))


class InitImages:
    """The job's init images, one for each frame, with their masks: what a unit without an image takes."""

    def __init__(self, frames: int, masks: Masks | None):
        self.index = np.arange(frames)
        self.masks = masks

    def __len__(self) -> int:
        return len(self.index)


def given_units(read: Callable[[], list[tuple]], settings: Settings, note: Callable[[str], None]) -> list[tuple]:
    """What `read` gives: each unit of the job, enabled or not, with its entry in the setting `control`.

    Raises SettingsError where the units cannot be read, or there are fewer than entries.
    """
    try:
        given = read()
    except (ValueError, AssertionError) as error:
        raise SettingsError(f"ControlNet: {error}") from error
    if len(settings.control) > len(given):
        raise SettingsError(
            f"control: {len(settings.control)} entries for {len(given)} ControlNet units; give one for each"
        )
    for number, value in enumerate(settings.control):
        if value and not given[number][0].enabled:
            note(f"control: ControlNet unit {number} is not enabled: its frames are not used.")
    return given


def pictures_of(
    p,
    number: int,
    value: str,
    has_own: bool,
    settings: Settings,
    source: SourceVideo | None,
    undo: ExitStack,
    note: Callable[[str], None],
) -> Pictures | InitImages | None:
    """Where the frames of the job's unit `number` come from, whose entry in `control` is `value`; None: from its own
    image, which it has if `has_own`. `note(text)` tells the user something. Raises SettingsError.
    """
    frames = settings.frames
    if not value:
        init_images = len(getattr(p, "init_images", None) or [])
        if has_own or (source is None and init_images < 2):
            return None
        if init_images:
            return InitImages(settings.length, source.masks if source else None)
        return Pictures(source.source, source.picks, "source")
    if value == FROM_SOURCE:
        if source is None:
            raise SettingsError(
                f'control: entry {number} is "{FROM_SOURCE}", but there is no source; give `source`, or a video or '
                "folder"
            )
        return Pictures(source.source, source.picks, "source")
    key = f"control[{number}]"
    video = opened(key, file_of(key, value, undo, p.is_api))
    count = video.info.frames
    if 1 < count < frames:
        note(
            f"ControlNet unit {number} has {count} frames for {frames}: {TOO_FEW[settings.control_fit]} "
            f'(control_fit "{settings.control_fit}"; hold, loop or stretch).'
        )
    elif count > frames:
        note(f"ControlNet unit {number} has {count} frames for {frames}: the first {frames} are used.")
    picks = picks_of_control(count, frames, settings.control_fit, min(settings.extended or (frames,)))
    return FinerPictures(video, picks, key, settings) if settings.in_betweens > 1 else Pictures(video, picks, key)


def short(value) -> str:
    """`value` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) < 100 else text[:100] + "…"
