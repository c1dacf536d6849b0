"""Protects clips side by side: each frame of each clip when and where it belongs, whatever their lengths and rates."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from zs2_lib.media.side_by_side import Cell, common_rate, frames_of_longest, side_by_side

GROUND = Image.new("RGB", (40, 20), "white")


def cell(frames: int, rate: int | Fraction, left: int, size=(8, 8), reads: list | None = None, lacks: int = 0) -> Cell:
    """A clip whose frame k is of the grey 10 + k, at (left, 4) in a room of 8x8."""

    def pictures():
        if reads is not None:
            reads.append(left)
        return (Image.new("RGB", size, (10 + number,) * 3) for number in range(frames - lacks))

    return Cell(pictures, frames, Fraction(rate), (left, 4), (8, 8))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([8], 8),
        ([8, 12], 24),
        ([8, 16, 24], 48),
        ([24, Fraction(30000, 1001)], Fraction(30000, 1001)),
        ([7, 11, 13], 13),
        ([Fraction(1, 10), 8], 8),
        ([Fraction(15, 2), 5], 15),
    ],
)
def test_rate(rates, expected):
    assert common_rate([Fraction(rate) for rate in rates]) == expected


def test_each_frame_at_its_time_and_place():
    reads = []
    cells = [cell(3, 8, 0, reads=reads), cell(4, 12, 16, reads=reads), cell(1, 8, 30, reads=reads)]
    count = frames_of_longest(cells, Fraction(24))
    assert count == 9
    frames = [np.asarray(picture) for picture in side_by_side(GROUND, cells, Fraction(24), count)]
    assert [frame[8, 4, 0] - 10 for frame in frames] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [frame[8, 20, 0] - 10 for frame in frames] == [0, 0, 1, 1, 2, 2, 3, 3, 0]
    assert {frame[8, 34, 0] for frame in frames} == {10} and reads == [0, 16, 30, 16]
    assert all((frame[:4] == 255).all() and (frame[12:] == 255).all() for frame in frames)
    assert (np.asarray(GROUND) == 255).all()


def test_smaller_and_larger_ones_in_the_middle_of_their_room():
    small, large = cell(1, 8, 0, size=(4, 2)), cell(1, 8, 20, size=(32, 16))
    (frame,) = (np.asarray(picture)[..., 0] for picture in side_by_side(GROUND, [small, large], Fraction(8), 1))
    assert (frame == 10).sum() == 4 * 2 + 8 * 4
    assert (frame[7:9, 2:6] == 10).all() and (frame[6:10, 20:28] == 10).all()


def test_a_file_with_fewer_frames_than_it_should_have():
    frames = side_by_side(GROUND, [cell(4, 8, 0, lacks=2)], Fraction(8), 5)
    assert [np.asarray(frame)[8, 4, 0] - 10 for frame in frames] == [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="no pictures"):
        list(side_by_side(GROUND, [cell(2, 8, 0, lacks=2)], Fraction(8), 1))
