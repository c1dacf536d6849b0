"""What a format takes is said before a clip is made: names, rates, and why not."""

from __future__ import annotations

import numpy as np
import pytest

from zs2_lib.media.formats import FORMATS, check_clip, clip_path, split_clip_name
from zs2_lib.media.write import write_clip


@pytest.mark.parametrize("fps", [0, -1, 241, 0.05, float("nan"), float("inf")])
@pytest.mark.parametrize("format", FORMATS)
def test_frame_rates_out_of_range_are_refused(tmp_path, format, fps):
    with pytest.raises(ValueError, match=f"fps is .*{format} takes 0.1 to"):
        write_clip([np.zeros((8, 8, 3), np.uint8)], tmp_path / "clip", format, fps)
    assert list(tmp_path.iterdir()) == []


def test_frame_rates_that_browsers_slow_down_are_refused():
    assert check_clip("gif", 50) == 50
    with pytest.raises(ValueError, match="gif takes 0.1 to 50 .* use mp4"):
        check_clip("gif", 60)
    with pytest.raises(ValueError, match="webp takes 0.1 to 90"):
        check_clip("webp", 100)
    assert check_clip("mp4", 100) == 100


@pytest.mark.parametrize("format, nearest", [("mpeg4", "mp4"), ("GIF", "gif"), ("web", "webm|webp"), ("pngs", "png")])
def test_unknown_formats_are_refused(format, nearest):
    with pytest.raises(ValueError, match=f"unknown clip format '{format}'.*did you mean \"({nearest})\""):
        check_clip(format, 8)


@pytest.mark.parametrize(
    "name, path, format",
    [
        ("clip.mp4", "clip", "mp4"),
        ("out/clip.apng", "out/clip", "apng"),
        ("motion_0.05.gif", "motion_0.05", "gif"),
        ("CLIP.WEBM", "CLIP", "webm"),
        ("frames.png", "frames", "png"),
    ],
)
def test_typed_names(name, path, format):
    stem, found = split_clip_name(name)
    assert (stem.as_posix(), found) == (path, format)
    assert clip_path(stem, found).as_posix().lower() == (path if format == "png" else name).lower()


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.", ".mp4", "", "clip.mp4/"])
def test_typed_names_without_a_known_suffix(name):
    if name == "clip.mp4/":  # pathlib drops the slash
        assert split_clip_name(name)[1] == "mp4"
        return
    with pytest.raises(ValueError, match=r"end it with one of \.mp4, \.gif, \.webp, \.apng, \.webm, \.png"):
        split_clip_name(name)
