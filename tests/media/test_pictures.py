"""Whatever frames are handed in as, they become RGB pictures of one size, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.pictures import contact_sheet, rgb_pictures
from zs2_lib.media.write import write_clip


def test_transparency_is_laid_on_white():
    colour, half, palette = (200, 0, 0, 255), (200, 0, 0, 128), Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    frames = [Image.new("RGBA", (4, 4), colour), Image.new("RGBA", (4, 4), half), Image.new("L", (4, 4), 7), palette]
    frames.append(np.full((4, 4, 4), (9, 9, 9, 0), np.uint8))
    assert [picture.getpixel((0, 0)) for picture in rgb_pictures(frames)] == [
        (200, 0, 0), (227, 127, 127), (7, 7, 7), (255, 255, 255), (255, 255, 255),
    ]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_bad_clips_are_refused(tmp_path, format):
    def write(*frames):
        write_clip(iter(frames), tmp_path / "folder" / "clip", format, 8)

    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        write()
    with pytest.raises(ValueError, match="frame 3 is 8x6, but frame 1 is 8x8"):
        write(frame, frame, frame[:6])
    with pytest.raises(ValueError, match=r"frame 1 is an array \(8, 8, 3\) of float32"):
        write(frame.astype(np.float32))
    with pytest.raises(ValueError, match=r"frame 2 is an array \(3, 8, 8\)"):
        write(frame, frame.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="frame 1 has the mode F"):
        write(Image.new("F", (8, 8)))
    with pytest.raises(TypeError, match="frame 1 is a str"):
        write("frame.png")
    assert [entry.name for entry in tmp_path.rglob("*")] in ([], ["folder"])


def test_contact_sheet():
    clip = np.random.default_rng(0).integers(0, 256, (5, 6, 10, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet(iter(clip), 3))
    assert sheet.shape == (12, 30, 3)
    np.testing.assert_array_equal(sheet[:6, 10:20], clip[1])
    np.testing.assert_array_equal(sheet[6:, 10:20], clip[4])
    assert (sheet[6:, 20:] == 255).all()
    assert contact_sheet(clip, 8).size == (50, 6)
    with pytest.raises(ValueError, match="at least 1 column, got 0"):
        contact_sheet(clip, 0)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        contact_sheet([], 3)
