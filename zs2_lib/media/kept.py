"""Pictures of a clip that take the place of those of another one, which were computed again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from .source import Source


class KeptPictures:
    """frames: which frame of the other clip is which of `source`, both counted from 0, rising."""

    def __init__(self, source: Source, frames: Mapping[int, int]):
        self._frames = {new: old for new, old in frames.items() if old < source.info.frames}
        self._pictures = source.read(np.array(list(self._frames.values()), np.int64)) if self._frames else None
        self.most = 0
        """The largest difference of a picture from what was computed again, of 255."""

    def take_over(self, frame: int, image: Image.Image) -> None:
        """Makes `image`, this frame of the other clip, the picture of the source, if it is one of `frames`.

        Frames come in their order. Pictures of another size are left alone. Raises ValueError where the source cannot
        be read.
        """
        if frame not in self._frames:
            return
        _, picture = next(self._pictures)
        if picture.size != image.size:
            self._frames = {}
            return
        difference = np.abs(np.asarray(image.convert("RGB"), np.int16) - np.asarray(picture, np.int16))
        self.most = max(self.most, int(difference.max()))
        image.paste(picture)
