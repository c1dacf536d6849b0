"""A long clip in a WebUI's job: each of the host's batches is a segment of it."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from modules import shared

from zs2_lib.core.clip import SEGMENT, Clip
from zs2_lib.media.on_disk import OnDisk, Part
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

AT_ONCE = 1024
"""The most frames of a clip that cannot be cut into segments."""
BY_PICTURE = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")
BY_PICTURE += ("all_hr_prompts", "all_hr_negative_prompts")
"""Lists of the host's job with an entry for each picture, of which it takes a part for each batch."""
OF_BATCH = {name.removeprefix("all_"): name for name in BY_PICTURE[:4]}
"""What the host has taken for a batch when it says that it begins, and of which lists."""
BY_FRAME = ("init_latent", "image_conditioning", "mask", "nmask", "color_corrections", "overlay_images")
"""What the host's img2img makes of the init images before its first batch, with a row or an entry for each of them."""


class Segments:
    """The batches that the clips of a job `p` are sampled in: `of_clip` for each clip, of `size` frames or fewer."""

    def __init__(self, p, settings: Settings, reason: str | None):
        """`reason` says what needs all frames at once, if anything does. Raises SettingsError for too many of them."""
        frames, size = settings.length, SEGMENT * settings.in_betweens
        if reason and frames > AT_ONCE:
            raise SettingsError(
                f"frames: {frames} are not allowed: {reason}, and there a clip has at most {AT_ONCE}; give fewer frames"
            )
        self.p, self.frames = p, frames
        self.of_clip = 1 if reason else -(-frames // size)
        self.size = size if self.of_clip > 1 else frames
        self.clip: Clip | None = None
        """The clip that is sampled now."""
        self._whole: dict = {}

    @property
    def device_of_all(self) -> torch.device:
        """Where what the host makes of all init images is kept."""
        return torch.device("cpu") if self.of_clip > 1 else shared.device

    @property
    def now(self) -> range:
        """The frames of the host's batch, counted from 0."""
        return self.of(self.p.iteration)

    def of(self, batch: int) -> range:
        """The frames of a batch, which is counted from 0."""
        first = batch % self.of_clip * self.size
        return range(first, min(first + self.size, self.frames))

    @property
    def number(self) -> int:
        """The clip of the host's batch, counted from 0."""
        return self.p.iteration // self.of_clip

    @property
    def clips(self) -> int:
        """How many clips the job has."""
        return self.p.n_iter // self.of_clip

    def repeated(self, of_clips: list) -> list:
        """What each clip has as an entry for each picture."""
        return self._of_batches([value for value in of_clips for _ in range(self.of_clip * self.size)])

    def _of_batches(self, values: list) -> list:
        if self.of_clip == 1 or isinstance(values, OfBatches):
            return values
        return OfBatches(values, self.frames, self.of_clip, self.size)

    def once_a_frame(self, values: list) -> list:
        """A list with an entry for each picture of all batches, without those that the last batch of a clip lacks."""
        each = self.of_clip * self.size
        return [values[start + frame] for start in range(0, len(values), each) for frame in range(self.frames)]

    def begin_batch(self) -> None:
        """All frames of a clip have one prompt, also where another extension made it up for each image; what the host
        has taken for a segment is that of its frames.
        """
        p, each = self.p, self.of_clip * self.size
        clip = slice(self.number * each, (self.number + 1) * each)
        for name in BY_PICTURE:
            if values := getattr(p, name, None):
                values = self._of_batches(values)
                setattr(p, name, values)
                if "prompt" in name:
                    values[clip] = [values[clip.start]] * each
        start = p.iteration * p.batch_size
        for name, of in OF_BATCH.items():
            setattr(p, name, getattr(p, of)[start : start + p.batch_size])
        if self.of_clip > 1:
            for name in ("seeds", "subseeds", "generators"):
                setattr(p.rng, name, getattr(p.rng, name)[: len(self.now)])
            self._take_init_images()

    def _take_init_images(self) -> None:
        p, now = self.p, self.now
        if not self._whole:
            self._whole = {name: getattr(p, name) for name in BY_FRAME if getattr(p, name, None) is not None}
        for name, whole in self._whole.items():
            if len(whole) == self.frames:
                part = Part(whole, now) if isinstance(whole, OnDisk) else whole[now.start : now.stop]
            elif isinstance(whole, torch.Tensor) and len(whole) == self.size:  # the same for each
                part = whole[: len(now)]
            else:
                continue
            setattr(p, name, part.to(shared.device) if isinstance(part, torch.Tensor) else part)

    def begin_clip(self, settings: Settings, undo: ExitStack) -> Clip:
        """The clip for the batch that is sampled next."""
        if not self.now.start or self.clip is None:
            self.clip = settings.clip(int(self.p.seeds[0]), self.size if self.of_clip > 1 else None)
            undo.enter_context(self.clip)
        self.clip.begin_segment(self.now)
        return self.clip


class OfBatches(list):
    """A list with an entry for each picture of the batches, of which the last of a clip may have fewer: a slice that is
    a batch has those.
    """

    def __init__(self, values: list, frames: int, of_clip: int, size: int):
        super().__init__(values)
        self._frames, self._of_clip, self._size = frames, of_clip, size

    def __getitem__(self, key):
        values = super().__getitem__(key)
        if not isinstance(key, slice):
            return values
        number, rest = divmod(key.start or 0, self._size)
        if rest or key.stop != (key.start or 0) + self._size:
            return values
        return values[: self._frames - number % self._of_clip * self._size]
