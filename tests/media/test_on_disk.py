"""Pictures that wait on the disk."""

from __future__ import annotations

import pytest
from PIL import Image

from zs2_lib.media.on_disk import OnDisk


class Interrupted(Image.Image):
    """A picture of which a part is written when the disk is full."""

    def save(self, path, **options):
        path.write_bytes(b"a part")
        raise OSError("No space left on device")


def test_no_part_of_a_picture_is_left(tmp_path):
    pictures = OnDisk(tmp_path)
    pictures.append(Image.new("RGB", (4, 4), "red"))
    with pytest.raises(OSError, match="No space"):
        pictures.append(Interrupted())
    assert [path.name for path in tmp_path.iterdir()] == ["00001.png"]
    assert len(pictures) == 1 and pictures[0].getpixel((0, 0)) == (255, 0, 0)
