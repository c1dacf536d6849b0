"""Animated images and folders of pictures show what browsers show, at the same times."""

import struct

import numpy as np
import pytest
from media_files import SIZE, close, numbers, on_white, paint, quarters, transparent, write_images
from PIL import Image

from zs2_lib.media.read import open_source
from zs2_lib.media.source import Selection

av = pytest.importorskip("av")


@pytest.mark.parametrize("format", ["gif", "webp", "apng"])
def test_animated_images_with_unequal_durations(tmp_path, format):
    milliseconds = [40, 200, 30, 500, 20, 100]
    frames = [Image.fromarray(paint(number)) for number in range(6)]
    path = tmp_path / f"a.{format}"
    options = {"lossless": True} if format == "webp" else {}
    kind = "PNG" if format == "apng" else format.upper()
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=milliseconds, **options)

    source = open_source(path)
    times = [sum(milliseconds[:number]) / 1000 for number in range(6)]
    assert [time for time, _ in source.frames()] == pytest.approx(times)
    assert (source.info.variable, source.info.duration) == (True, pytest.approx(0.89))
    for fps in (5, 24, 100):
        moments = np.arange(0, 0.89 - 1e-9, 1 / fps)
        on_screen = np.searchsorted(times, moments + 1e-9, side="right") - 1  # the last frame that has appeared
        assert numbers(source, Selection(fps=fps)) == on_screen.tolist()


def test_a_last_frame_that_stays(tmp_path):
    frames = [Image.fromarray(paint(number)) for number in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 100, 100, 2000])
    source = open_source(tmp_path / "a.gif")
    assert (source.info.variable, source.info.duration) == (True, 2.3)
    assert numbers(source, Selection(fps=10)) == [0, 1, 2] + [3] * 20


def test_delays_that_browsers_do_not_believe_last_100_ms(tmp_path):
    frames = [Image.fromarray(paint(number)) for number in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=0)
    assert open_source(tmp_path / "a.gif").info.fps == 10


def test_the_background_can_be_black(tmp_path):
    """As masks need it: what is transparent is not masked."""
    clear, opaque = Image.new("RGBA", SIZE, (255, 255, 255, 0)), Image.new("RGBA", SIZE, (250, 250, 250, 255))
    clear.save(tmp_path / "a.png", save_all=True, append_images=[opaque], duration=100)
    for background, levels in (("black", [0, 250]), ("white", [255, 250])):
        frames = [picture for _, picture in open_source(tmp_path / "a.png", background=background).frames()]
        assert [picture.getextrema()[0] for picture in frames] == [(level, level) for level in levels]


@pytest.mark.parametrize("format", ["gif", "webp", "png"])
def test_transparent_images_are_laid_on_white(tmp_path, format):
    looks = [(0, 200), (32, 190), (0, 180)]  # shift, red: Pillow merges frames of equal colours, whatever their alpha
    frames = [Image.fromarray(np.roll(transparent(0, red), shift, axis=1)) for shift, red in looks]
    path = tmp_path / "a.file"
    options = {"gif": {"disposal": 2}, "webp": {"lossless": True}, "png": {}}[format]
    frames[0].save(path, format, save_all=True, append_images=frames[1:], duration=100, **options)
    pictures = [picture for _, picture in open_source(path).frames()]
    assert len(pictures) == 3
    for (shift, red), picture in zip(looks, pictures):
        half = (red, 0, 0) if format == "gif" else (round(127 + red * 128 / 255), 127, 127)
        assert close(picture, np.roll(on_white(half, red), shift, axis=1), tolerance=2)


def test_a_gif_frame_beyond_the_edges_is_cut(tmp_path):
    frames = [Image.fromarray(paint(number) + np.uint8(number)) for number in range(3)]  # which differ everywhere
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    data = path.read_bytes()
    place = data.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", *SIZE))  # the last frame's position and size
    path.write_bytes(data[: place + 1] + struct.pack("<HH", 32, 24) + data[place + 5 :])
    source = open_source(path)
    assert source.info.size == SIZE
    pictures = [picture for _, picture in source.frames()]
    assert [picture.size for picture in pictures] == [SIZE] * 3
    np.testing.assert_array_equal(np.asarray(pictures[2])[24:, 32:], paint(2)[:24, :32] + 2)


def test_an_apngs_still_is_not_part_of_the_animation(tmp_path):
    frames = [Image.fromarray(paint(number)) for number in range(5)]
    frames[4].save(tmp_path / "a.png", save_all=True, append_images=frames[:4], duration=100, default_image=True)
    source = open_source(tmp_path / "a.png")
    assert (numbers(source), source.info.duration) == ([0, 1, 2, 3], pytest.approx(0.4))


def test_folder_order_is_natural(tmp_path):
    order = ["b9.webp", "B10.jpeg", "Frame1.jpg", "frame2.PNG", "frame02b.bmp", "frame10.png", "frame100.tif"]
    (tmp_path / "a").mkdir()
    for number in (5, 3, 2, 4, 6, 0, 1):
        Image.fromarray(paint(number)).save(tmp_path / order[number])
    Image.fromarray(paint(99)).save(tmp_path / "a" / "ignored.png")
    for name in ("notes.txt", ".hidden.png", "thumbs.db"):
        (tmp_path / name).write_bytes(b"no picture")
    assert numbers(open_source(tmp_path)) == list(range(7))


def test_a_folder_plays_at_the_rate_it_is_given(tmp_path):
    write_images(tmp_path / "a", 24)
    source = open_source(tmp_path / "a", folder_fps=12)
    assert (source.info.duration, source.clip_fps()) == (2, 12)
    assert numbers(source, Selection(start=0.5, end=1)) == [6, 7, 8, 9, 10, 11]
    assert numbers(source, Selection(fps=6)) == list(range(0, 24, 2))
    for fps in (0, -1, float("nan"), 241):
        with pytest.raises(ValueError, match="folder_fps is .* plays at 0.1 to 240"):
            open_source(tmp_path / "a", folder_fps=fps)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path, suffix):
    upright = Image.fromarray(quarters())
    turn = Image.Transpose
    turns = (
        turn.FLIP_LEFT_RIGHT,
        turn.ROTATE_180,
        turn.FLIP_TOP_BOTTOM,
        turn.TRANSPOSE,
        turn.ROTATE_90,
        turn.TRANSVERSE,
    )
    stored = [upright, *map(upright.transpose, (*turns, turn.ROTATE_270))]  # such that orientations 1 to 8 undo it
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    for orientation, image in enumerate(stored, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.{suffix}", exif=exif, **options)
    source = open_source(tmp_path)
    assert source.info.size == SIZE
    for _, picture in source.frames():
        assert close(picture, quarters())
    assert open_source(tmp_path / f"6.{suffix}").info.size == SIZE
    assert close(next(open_source(tmp_path / f"6.{suffix}").frames())[1], quarters())


def test_kinds_of_pictures(tmp_path):
    depth = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(depth).save(tmp_path / "1.png")
    Image.fromarray(depth).save(tmp_path / "2.tif")
    Image.new("LA", SIZE, (0, 128)).save(tmp_path / "3.png")
    Image.new("1", SIZE, 1).save(tmp_path / "4.png")
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / "5.jpg")
    Image.new("P", SIZE, 0).save(tmp_path / "6.png", transparency=0)
    pictures = [np.asarray(picture, int) for _, picture in open_source(tmp_path).frames()]
    assert np.abs(pictures[0] - depth[..., None] / 257).max() <= 0.5
    np.testing.assert_array_equal(pictures[0], pictures[1])
    for picture, colour in zip(pictures[2:], [(127, 127, 127), (255, 255, 255), (255, 0, 0), (255, 255, 255)]):
        assert np.abs(picture - colour).max() <= 3


def test_a_single_picture_is_a_source_of_one_frame(tmp_path):
    Image.fromarray(paint(7)).save(tmp_path / "a.jpg", quality=95)
    source = open_source(tmp_path / "a.jpg")
    assert (numbers(source), source.info.frames) == ([7], 1)
    assert numbers(source, Selection(fps=30)) == [7, 7, 7]
