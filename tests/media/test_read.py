"""Whatever kind a source is of, the right frame comes at the right time; what cannot be read is refused in words."""

import gc
import itertools
import math
import os
import random
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media_files import GROUPS, KINDS, close, grainy, number_on, numbers, paint, quarters, write_images, write_video
from PIL import Image

from zs2_lib.media import read as read_module
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.read import open_source
from zs2_lib.media.source import Selection
from zs2_lib.media.write import write_clip

av = pytest.importorskip("av")

RATES = {"gif": 25, "webp": 10, "apng": 10, "folder": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_at_its_time(kinds, kind):
    source = open_source(kinds[kind])
    fps = RATES.get(kind, 24)

    info = source.info
    assert (info.size, info.frames, info.fps, info.variable) == ((64, 48), 24, fps, False)
    assert info.duration == pytest.approx(24 / fps)
    assert not (info.has_audio or info.hdr or info.broken)
    assert source.clip_fps() == fps

    tick = 1e-9 if kind in ("mp4", "mov", "ts", "mpeg4", "folder", "webp", "apng", "gif") else 5.1e-4
    for expected, (time, picture) in itertools.zip_longest(range(24), source.frames()):
        assert number_on(picture) == expected
        assert (picture.mode, picture.size) == ("RGB", (64, 48))
        assert time == pytest.approx(expected / fps, abs=tick)


@pytest.mark.parametrize("kind", KINDS)
def test_ranges(kinds, kind):
    source = open_source(kinds[kind])
    fps = float(source.info.fps)
    for first, stop in [(0, 1), (5, 6), (7, 24), (23, 24), (11, 17)]:
        selection = Selection(start=first / fps, end=stop / fps)
        assert numbers(source, selection) == list(range(first, stop))
        assert source.clip_fps(selection) == source.info.fps
    assert numbers(source, Selection(start=3 / fps, every=5)) == [3, 8, 13, 18, 23]
    assert source.clip_fps(Selection(every=5)) == source.info.fps / 5
    assert numbers(source, Selection(start=3 / fps, every=5, frames=2)) == [3, 8]
    assert numbers(source, Selection(end=100, frames=100)) == list(range(24))
    assert numbers(source, Selection(start=2 / fps, end=3 / fps, every=9, frames=2)) == [2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [1, 7, 23.976, 24, 25, Fraction(30000, 1001), 240])
def test_resampling_shows_what_is_on_the_screen(kinds, kind, fps):
    source = open_source(kinds[kind])
    rate = source.info.fps
    selection = Selection(start=0.25, end=0.95, fps=fps)
    moments = [Fraction(1, 4) + number / selection.rate for number in range(1000)]
    expected = [int(moment * rate + Fraction(1, 1000)) for moment in moments if moment < Fraction("0.95")]
    assert numbers(source, selection) == expected
    assert source.clip_fps(selection) == selection.rate


def test_resampling_at_the_sources_own_rate_takes_each_frame_once(tmp_path):
    """Though Matroska rounds times to milliseconds and GIF to hundredths, some of them up."""
    for fps in (24, 30, Fraction(30000, 1001), 60):
        path = write_video(tmp_path / "a.mkv", 60, fps=fps)
        assert numbers(open_source(path), Selection(fps=fps)) == list(range(60))
    for fps in (8, 12, 30, 50):
        path = write_images(tmp_path / "a.gif", 30, fps=fps)
        assert numbers(open_source(path), Selection(fps=fps)) == list(range(30))
        assert numbers(open_source(path)) == list(range(30))
        assert open_source(path).clip_fps() == fps


def test_times_that_were_rounded_select_the_frame_they_came_from(tmp_path):
    source = open_source(write_video(tmp_path / "a.mp4", 12, fps=30))
    for number, (time, _) in enumerate(source.frames()):
        for rounded in (time, round(time, 3), np.float32(time)):
            assert numbers(source, Selection(start=float(rounded), frames=1)) == [number]
            if number:
                assert numbers(source, Selection(end=float(rounded)))[-1] == number - 1


def test_every_and_fps_together(kinds):
    source = open_source(kinds["mp4"])
    selection = Selection(fps=12, every=3)
    assert numbers(source, selection) == [0, 6, 12, 18]
    assert source.clip_fps(selection) == 4


def test_frames_that_look_alike_stay(tmp_path):
    path = write_video(tmp_path / "a.mp4", frame=lambda number: paint(number // 12))
    assert numbers(open_source(path)) == [0] * 12 + [1] * 12


def test_a_repeated_frame_is_not_the_same_object(kinds):
    first, second = itertools.islice(open_source(kinds["mp4"]).frames(Selection(fps=48)), 2)
    assert first[0] == second[0] == 0
    first[1].paste((255, 0, 0), (0, 0, 64, 48))
    assert number_on(second[1]) == 0


@pytest.mark.parametrize("size", [(63, 47), (65, 48), (64, 49), (1, 1), (17, 5)])
def test_odd_sizes(tmp_path, size):
    def frame(number):
        return np.full((size[1], size[0], 3), 40 * number, np.uint8)

    videos = [
        write_video(tmp_path / "a.mkv", 5, "ffv1", {}, size=size, frame=frame),
        write_video(tmp_path / "a.webm", 5, "libvpx-vp9", {"deadline": "realtime", "crf": "4"}, size=size, frame=frame),
    ]
    if min(size) > 16:
        videos.append(write_video(tmp_path / "b.mkv", 5, pix_fmt="yuv444p", size=size, frame=frame))
    for path in [*videos, write_clip(map(frame, range(5)), tmp_path / "a", "gif", 10)]:
        source = open_source(path)
        assert source.info.size == size
        for number, (_, picture) in enumerate(source.frames()):
            assert picture.size == size
            assert np.abs(np.asarray(picture, int) - 40 * number).max() <= 4


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_of_our_own_comes_back(tmp_path, format):
    path = write_clip([quarters(), quarters()[::-1], quarters()], tmp_path / "a", format, 8)
    source = open_source(path)
    assert (source.count(), source.clip_fps()) == (3, 8)
    for expected, (_, picture) in zip([quarters(), quarters()[::-1], quarters()], source.frames()):
        assert close(picture, expected, tolerance=3)


@pytest.mark.parametrize("kind", KINDS)
def test_contact_strip(kinds, kind):
    source = open_source(kinds[kind])

    def shown(strip, count):
        width = strip.width // count
        return [number_on(strip.crop((width * place, 0, width * (place + 1), strip.height))) for place in range(count)]

    strip = source.contact_strip()
    assert strip.size == (8 * 128, 96)
    assert shown(strip, 8) == [0, 3, 7, 10, 13, 16, 20, 23]
    strip = source.contact_strip(Selection(start=0.5, frames=3), height=60)
    assert strip.size == (3 * 80, 60)
    first = math.ceil(0.5 * source.info.fps)
    assert shown(strip, 3) == [first, first + 1, first + 2]
    assert shown(source.contact_strip(most=1), 1) == [0]
    with pytest.raises(ValueError, match="at least 1 frame of 1 pixel, got most=0, height=96"):
        source.contact_strip(most=0)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "gif", "webp", "apng"])
def test_the_content_tells_what_a_file_is(kinds, kind, tmp_path):
    for name in ("a.txt", "a.mp4", "a.gif", "a", "sp ace & ünïcode 猫.png", "http:a.mp4", "a%03d.mp4"):
        path = tmp_path / name
        path.write_bytes(kinds[kind].read_bytes())
        assert numbers(open_source(str(path)), Selection(every=10)) == [0, 10, 20]


def cut_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.4, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "gif", "apng"])
def test_truncated_files_say_where_they_break_off(tmp_path, kind, share):
    path = tmp_path / f"a.{kind}"
    if kind in ("gif", "apng"):
        write_clip(map(grainy, range(60)), tmp_path / "a", kind, 25)
    elif kind == "webm":
        write_video(path, 60, "libvpx-vp9", {"deadline": "realtime", "crf": "10"}, 25, frame=grainy)
    else:
        write_video(path, 60, options=GROUPS["many"], fps=25, frame=grainy, index_first=kind == "mp4")
    assert open_source(path).info.frames == 60 and not open_source(path).info.broken

    source = open_source(cut_file(path, share))
    info = source.info
    assert info.broken
    assert 5 < info.frames < 60 and info.duration == pytest.approx(info.frames / 25)
    end = f"{info.duration:.2f} s"
    with pytest.raises(ValueError, match=rf"breaks off at {end}.* set the end to {end}"):
        source.frames()
    with pytest.raises(ValueError, match="breaks off"):
        source.count(Selection(end=2.4))
    with pytest.raises(ValueError, match="start is 2.39 s, but .* ends at .* where it breaks off"):
        source.count(Selection(start=2.39))
    found = []
    for _, picture in source.frames(Selection(end=info.duration)):
        found.append(number_on(picture.point(lambda level: 255 * (level > 78))))
    assert found == list(range(info.frames))
    assert source.count(Selection(frames=5)) == 5
    assert source.count(Selection(end=info.duration, fps=50)) == 2 * info.frames


def open_files(path):
    links = Path("/proc/self/fd")
    if not links.exists():
        pytest.skip("cannot list this process's open files")
    return sum(os.path.exists(link) and os.path.samefile(link, path) for link in links.iterdir())


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "gif", "webp", "apng"])
def test_files_are_closed(kinds, kind):
    path = kinds[kind]
    source = open_source(path)
    assert open_files(path) == 0
    for stop in (0, 1, 5, 24):
        frames = source.frames(Selection(every=2))
        assert open_files(path) == 0
        for _ in itertools.islice(frames, stop):
            pass
        del frames
        gc.collect()
        assert open_files(path) == 0
    one, other = source.frames(), source.frames(Selection(start=0.4))
    first = number_on(next(other)[1])
    pairs = [(number_on(a[1]), number_on(b[1])) for a, b in zip(one, other)]
    assert pairs[:3] == [(n, first + n + 1) for n in range(3)]
    one.close()
    other.close()
    assert open_files(path) == 0


def png(width, height):
    """The header of a PNG file of that size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def audio_only(path, cover=False):
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic.value
        for start in range(0, 44100, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        if cover:
            cover = av.VideoFrame.from_ndarray(paint(0), format="rgb24").reformat(format="yuvj420p")
            container.mux([*picture.encode(cover), *picture.encode(None)])
    return path


def huge_video(path):
    """A Matroska file that says its frames are 9000x9000."""
    write_video(path, 2, "ffv1", {}, size=(320, 300), frame=lambda number: np.zeros((300, 320, 3), np.uint8))
    data = path.read_bytes()
    for tag, value in ((b"\xb0", 320), (b"\xba", 300)):  # PixelWidth, PixelHeight
        entry = tag + b"\x82" + value.to_bytes(2, "big")
        assert data.count(entry) == 1
        data = data.replace(entry, tag + b"\x82" + (9000).to_bytes(2, "big"))
    path.write_bytes(data)
    return path


def no_frames(path):
    """An MP4 whose index is complete, but whose pictures are missing."""
    data = write_video(path, 12, index_first=True).read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    return path


def folder_of(path, *files):
    path.mkdir()
    for name, content in files:
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            Image.fromarray(content).save(path / name)
    return path


def saved(path, content):
    path.write_bytes(content)
    return path


def picture_bytes(path, share):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return cut_file(path, share).read_bytes()


BAD_FILES = {
    "missing": (lambda p: p / "nothing.mp4", "there is no file or folder .*nothing.mp4: check its name"),
    "missing folder": (lambda p: p / "no" / "a.mp4", "there is no file or folder"),
    "below a file": (lambda p: saved(p / "file", b"x") / "a.mp4", "there is no file or folder"),
    "no name": (lambda p: "", "no source is given: name a video"),
    "too long a name": (lambda p: p / ("a" * 5000), "cannot be read"),
    "empty file": (lambda p: saved(p / "a.mp4", b""), r"a.mp4 is empty \(0 bytes\)"),
    "text": (lambda p: saved(p / "a.mp4", b"Dear diary,\n" * 99), "a.mp4 is no video.* give an MP4"),
    "noise": (lambda p: saved(p / "a.webm", random.Random(0).randbytes(9999)), "a.webm is no video"),
    "zeros": (lambda p: saved(p / "a.mov", bytes(9999)), "a.mov is no video"),
    "a playlist": (lambda p: saved(p / "a.mp4", b"#EXTM3U\n#EXTINF:5,\n/b.ts\n#EXT-X-ENDLIST\n"), "a.mp4 is no video"),
    "a list of files": (
        lambda p: saved(p / "a.mp4", f"ffconcat version 1.0\nfile {write_video(p / 'b.mp4', 2).name}\n".encode()),
        "a.mp4 is no video"),
    "audio only": (lambda p: audio_only(p / "a.mp4"), "a.mp4 holds sound but no video"),
    "audio with a cover": (lambda p: audio_only(p / "a.mp4", cover=True), "a.mp4 holds sound but no video"),
    "no index": (
        lambda p: cut_file(write_video(p / "a.mp4"), 0.5), "a.mp4 is no video, or it is damaged or incomplete"),
    "zero frames": (lambda p: no_frames(p / "a.mp4"), "a.mp4 holds no frame that can be decoded"),
    "huge video": (lambda p: huge_video(p / "a.mkv"), "a.mkv is 9000x9000, but a frame may have 67 million pixels"),
    "bomb": (lambda p: saved(p / "a.png", png(50000, 50000)), "a.png has too many pixels: scale it down"),
    "large picture": (lambda p: saved(p / "a.png", png(9000, 9000)), "9000x9000, but a frame may have 67 million"),
    "0x0": (lambda p: saved(p / "a.gif", b"GIF89a" + bytes(200)), "a.gif is (damaged|0x0)"),
    "head of a gif": (lambda p: saved(p / "a.gif", b"GIF89a"), "a.gif is damaged"),
    "corrupt gif": (
        lambda p: saved(p / "a.gif", b"GIF89a\x40\0\x30\0\x80\0\0" + b"\t" * 99), "a.gif is damaged"),
    "half a webp": (lambda p: cut_file(write_images(p / "a.webp"), 0.5), "a.webp (is damaged|breaks off)"),
    "half a picture": (lambda p: saved(p / "a.png", picture_bytes(p / "a.png", 0.5)), "a.png is damaged"),
    "empty folder": (lambda p: folder_of(p / "a"), r"the folder .*a holds no frames: .* end with \.png, \.jpg"),
    "folder without pictures": (lambda p: folder_of(p / "a", ("a.txt", b"x"), ("b.mp4", b"x")), "holds no frames"),
    "folder with text as a picture": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", b"no picture")),
        "2.png is damaged, or no picture in spite of its name"),
    "folder with an empty picture": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", b"")), "2.png is damaged"),
    "folder with half a picture": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", picture_bytes(p / "x.png", 0.5))),
        "2.png is damaged"),
    "folder of two sizes": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", paint(1)), ("3.png", paint(2, (48, 64)))),
        "3.png is 48x64, but 1.png is 64x48: a folder of frames needs one size"),
    "folder with a bomb": (lambda p: folder_of(p / "a", ("1.png", png(50000, 50000))), "1.png has too many pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path, case):
    make, message = BAD_FILES[case]
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        for _ in open_source(path).frames():
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_pixels_can_be_fewer(kinds, kind):
    assert open_source(kinds[kind], max_pixels=64 * 48).count() == 24
    with pytest.raises(ValueError, match=r"64x48, but a frame may have .* pixels \(such as 55x55\): scale it down"):
        open_source(kinds[kind], max_pixels=64 * 48 - 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a.mp4 is a device or a pipe"):
        open_source(tmp_path / "a.mp4")


@pytest.mark.parametrize("kind", ["mp4", "gif", "folder"])
def test_files_that_may_not_be_read(kinds, kind, monkeypatch):
    def forbidden(*args, **options):
        raise PermissionError(13, "Permission denied")

    for owner, name in ((read_module, "open"), (Image, "open"), (Path, "iterdir")):
        monkeypatch.setattr(owner, name, forbidden, raising=False)
    with pytest.raises(ValueError, match="may not be read: allow it in its permissions"):
        open_source(kinds[kind])


BAD_SELECTIONS = [
    ({"start": -1}, "start is -1, but a source begins at 0 s"), ({"start": math.nan}, "start is nan"),
    ({"start": math.inf}, "start is inf"), ({"end": 0}, "end is 0, but has to come after the start, 0 s"),
    ({"start": 2, "end": 1}, "end is 1, but has to come after the start, 2 s"), ({"end": math.nan}, "end is nan"),
    ({"start": 2, "end": 2}, "end is 2, but has to come after the start, 2 s"), ({"fps": -24}, "fps is -24"),
    ({"fps": 0}, "fps is 0, but a selection takes 0.1 to 240 frames per second"), ({"fps": math.nan}, "fps is nan"),
    ({"fps": math.inf}, "fps is inf"), ({"fps": 241}, "fps is 241"), ({"every": -2}, "every is -2"),
    ({"every": 0}, "every is 0, but has to be a whole number from 1 on"), ({"every": 1.5}, "every is 1.5"),
    ({"every": math.nan}, "every is nan"), ({"frames": -1}, "frames is -1"), ({"frames": math.inf}, "frames is inf"),
    ({"frames": 0}, "frames is 0, but has to be a whole number from 1 on"),
]  # fmt: skip


@pytest.mark.parametrize("values, message", BAD_SELECTIONS)
def test_selections_that_no_source_could_serve(values, message):
    with pytest.raises(ValueError, match=message):
        Selection(**values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_behind_the_end(kinds, kind):
    source = open_source(kinds[kind])
    for start in (source.info.duration, 1e6):
        for method in (source.frames, source.count, source.clip_fps, source.contact_strip):
            with pytest.raises(ValueError, match=rf"start is {start} s, but a.* ends at .* s: choose an earlier start"):
                method(Selection(start=start))


def test_without_pyav(kinds, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(RuntimeError, match="cannot read videos without PyAV.*pip install av"):
        open_source(kinds["mp4"])
    for kind in ("gif", "webp", "apng", "folder"):
        assert open_source(kinds[kind]).count() == 24


def test_a_file_that_goes_away(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    source = open_source(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        next(source.frames())
