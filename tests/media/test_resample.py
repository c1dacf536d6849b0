"""Protects interpolation: pictures that are there stay, those between lie between, and memory is constant."""

import gc
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from zs2_lib.media import interpolators
from zs2_lib.media.interpolators import InterpolatorError
from zs2_lib.media.resample import interpolated, interpolated_count


def noise(count, size=(48, 40), seed=0):
    """Pictures that have nothing in common."""
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def square(left, size=(128, 96), side=24, colours=("blue", "red")):
    """A square whose left edge is there; both colours have no green, so brightness alone tells them apart."""
    picture = Image.new("RGB", size, colours[0])
    picture.paste(colours[1], (left, 30, left + side, 30 + side))
    return picture


def centre(picture):
    """The centre of mass of what is red, (x, y)."""
    red = np.asarray(picture).astype(float)[..., 0]
    return [float((red.sum(axis) * np.arange(red.shape[1 - axis])).sum() / red.sum()) for axis in (0, 1)]


def same(a, b):
    return a.mode == b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()


def blend(before, after, time):
    return Image.blend(before, after, time)


@pytest.fixture
def registered():
    """Registers interpolators for the time of a test."""
    before = dict(interpolators._registered)
    yield interpolators.register
    interpolators._registered.clear()
    interpolators._registered.update(before)


@pytest.mark.parametrize("size", [(48, 40), (33, 47), (8, 8), (16, 16), (1, 3), (300, 9)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_kept_pictures_are_the_same(size, factor):
    pictures = noise(5, size)
    made = list(interpolated(pictures, 8, 8 * factor))
    assert len(made) == factor * 4 + 1 == interpolated_count(5, 8, 8 * factor)
    assert all(same(made[factor * i], picture) for i, picture in enumerate(pictures))
    assert {picture.size for picture in made} == {size}


@pytest.mark.parametrize("fps, to", [(8, 12), (8, 30), (Fraction(30000, 1001), 60), (8, 8), (Fraction(25, 2), 20)])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 11])
def test_times_at_any_rate(fps, to, closed, frames):
    pictures = noise(frames)
    made = list(interpolated(pictures, fps, to, closed=closed))
    step = Fraction(fps) / to
    assert len(made) == interpolated_count(frames, fps, to, closed)
    assert abs(Fraction(len(made)) / to - Fraction(frames) / Fraction(fps)) <= 1 / Fraction(fps)
    kept = [k for k in range(len(made)) if (k * step).denominator == 1]
    assert kept and all(same(made[k], pictures[int(k * step)]) for k in kept)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("distance", [3, 8])
def test_in_betweens_lie_on_the_way(factor, distance):
    pictures = [square(10 + distance * i) for i in range(6)]
    made = [centre(picture) for picture in interpolated(pictures, 8, 8 * factor)]
    begin = centre(pictures[0])
    for k, place in enumerate(made):
        assert place == pytest.approx([begin[0] + distance * k / factor, begin[1]], abs=1)


def test_a_loop_is_closed():
    pictures = [square(10 + 6 * i) for i in (0, 1, 2, 3, 2, 1)]
    made = list(interpolated(pictures, 8, 16, closed=True))
    assert len(made) == 12 and all(same(made[2 * i], picture) for i, picture in enumerate(pictures))
    assert centre(made[11])[0] == pytest.approx(centre(square(13))[0], abs=1)


def test_equal_pictures_stay_equal():
    pictures = [square(10)] * 3 + [square(16)] * 3
    made = list(interpolated(pictures, 8, 24))
    assert all(same(picture, pictures[0]) for picture in made[:7])
    assert all(same(picture, pictures[-1]) for picture in made[9:])


def test_a_cut_is_no_smear():
    one = [square(10 + 4 * i) for i in range(4)]
    other = [square(80 - 4 * i, colours=("white", "green")) for i in range(4)]
    between = list(interpolated(one + other, 8, 16))[7]
    assert same(between, one[-1]) or same(between, other[0])


@pytest.mark.parametrize("name", [interpolators.MINTERPOLATE, "blend"])
def test_memory_does_not_grow(registered, name):
    """Of 600 pictures at most three are taken ahead, and a handful lives at a time."""
    registered("blend", blend)
    different, taken = noise(20, (32, 32)), 0

    def pictures():
        nonlocal taken
        for number in range(600):
            taken += 1
            yield different[number % 20].copy()

    def living():
        return sum(type(thing) is Image.Image for thing in gc.get_objects())

    before, ahead, alive = living(), [], []
    for k, _ in enumerate(interpolated(pictures(), 8, 16, name)):
        ahead.append(taken - k // 2)
        if k % 100 == 0:
            alive.append(living() - before)
    assert k == 1198 and max(ahead) <= 3 and max(alive) <= 8


def test_an_interpolator_of_an_extension(registered):
    asked = []

    def between(before, after, time):
        asked.append(time)
        after.paste("red", (0, 0, 9, 9))  # what it does to its pictures is its own affair
        return Image.blend(before, after, time)

    registered("mine", between)
    pictures = noise(3)
    made = list(interpolated(pictures, 8, 24, "mine"))
    assert asked == pytest.approx([1 / 3, 2 / 3] * 2)
    assert all(same(made[3 * i], picture) for i, picture in enumerate(pictures))
    assert "mine" in interpolators.names()


@pytest.mark.parametrize(
    "gives, words",
    [
        (lambda before, after, time: None, "48x40 in the mode RGB, and gave NoneType"),
        (lambda before, after, time: np.asarray(before), "gave ndarray"),
        (lambda before, after, time: before.resize((8, 8)), "gave one of 8x8 in the mode RGB"),
        (lambda before, after, time: before.convert("L"), "gave one of 48x40 in the mode L"),
        (lambda before, after, time: 1 / 0, "failed .ZeroDivisionError"),
    ],
)
def test_what_an_interpolator_gives_is_checked(registered, gives, words):
    registered("mine", gives)
    with pytest.raises(InterpolatorError, match=f"'mine'.*{words}.*another one"):
        list(interpolated(noise(2), 8, 16, "mine"))


def test_an_interpolator_of_a_package(tmp_path, monkeypatch):
    """Found by its metadata, loaded when it is chosen; one that fails to import is named, and harms no other."""
    (tmp_path / "rifelike.py").write_text(
        "from PIL import Image\ndef between(before, after, time):\n    return Image.blend(before, after, time)\n"
    )
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there\n")
    metadata = tmp_path / "rifelike-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rifelike\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[zs2.interpolators]\nRIFE-like = rifelike:between\nbroken = broken:between\nnumber = math:pi\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    assert interpolators.names()[0] == "minterpolate"
    assert {"RIFE-like", "broken", "number"} <= set(interpolators.names())
    pictures = noise(2)
    made = list(interpolated(pictures, 8, 16, "RIFE-like"))
    assert same(made[1], blend(*pictures, 0.5))
    with pytest.raises(InterpolatorError, match="'broken' of the package rifelike .*a_module_that_is_not_there"):
        interpolated(pictures, 8, 16, "broken")
    with pytest.raises(InterpolatorError, match="is a float and no function"):
        interpolated(pictures, 8, 16, "number")


def test_bad_input():
    with pytest.raises(ValueError, match="no interpolator 'minterpolat'.*one of minterpolate"):
        interpolated(noise(2), 8, 16, "minterpolat")
    for to in (0, 4):
        with pytest.raises(ValueError, match=f"to be {to}, but has to be 8 or more"):
            interpolated(noise(2), 8, to)
    with pytest.raises(ValueError, match="frame 2 is 8x8, but frame 1 is 48x40"):
        list(interpolated([*noise(1), *noise(1, (8, 8))], 8, 16))
    with pytest.raises(ValueError, match="name of its own"):
        interpolators.register("minterpolate", blend)
    with pytest.raises(TypeError, match="register a function"):
        interpolators.register("mine", math.pi)
    assert list(interpolated([], 8, 16)) == []
