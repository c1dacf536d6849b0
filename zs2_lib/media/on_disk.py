"""Pictures that wait on the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


class OnDisk(Sequence):
    """Pictures in a folder, as a clip of the format "png" has them; only those that are looked at are in memory."""

    def __init__(self, folder: str | os.PathLike):
        self.folder, self.count = Path(folder), 0

    def append(self, picture: Image.Image) -> None:
        path = self._path(self.count)
        try:
            picture.save(path, compress_level=1)
        except BaseException:  # such as a full disk
            path.unlink(missing_ok=True)
            raise
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        with Image.open(self._path(range(len(self))[index])) as picture:
            picture.load()
        return picture

    def _path(self, number: int) -> Path:
        return self.folder / f"{number + 1:05d}.png"


class Part(Sequence):
    """The values of these `frames`, which are looked up when they are asked for."""

    def __init__(self, values: Sequence, frames: Sequence[int]):
        self.values, self.frames = values, frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Part(self.values, self.frames[index])
        return self.values[self.frames[index]]
