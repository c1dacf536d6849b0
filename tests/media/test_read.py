"""Sources are made here, each frame with its number painted on, and read back: the right frame at the right time."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zs2_lib.media import read as source_module
from zs2_lib.media import write as video
from zs2_lib.media.read import Selection, add_audio, open_source

av = pytest.importorskip("av")

SIZE = (64, 48)
X264 = {"preset": "veryfast", "bf": "2", "g": "250", "x264-params": "scenecut=0"}


# Making sources -----------------------------------------------------------------------------------------------------


def paint(number, size=SIZE):
    """A picture (height, width, 3) that shows the 8 bits of `number`, and below each its opposite, as 4x4 blocks."""
    bits = [number >> bit & 1 for bit in range(8)]
    blocks = np.array(bits + [1 - bit for bit in bits], np.uint8).reshape(4, 4)
    rows, columns = (np.arange(length) * 4 // length for length in reversed(size))
    return np.repeat(blocks[rows][:, columns, None] * 219 + 16, 3, axis=2)


def number_on(picture):
    """The number (0 to 255) that `paint` has put on `picture`; fails if it is not legible."""
    grey = np.asarray(picture.convert("L"), float)
    height, width = grey.shape
    levels = grey[np.ix_(*((np.arange(4) * 2 + 1) * length // 8 for length in (height, width)))].ravel()
    bits = (levels > 128).astype(int)
    assert (np.abs(levels - 128) > 60).all() and (bits[:8] + bits[8:] == 1).all(), f"illegible: {levels}"
    return sum(bit << place for place, bit in enumerate(bits[:8]))


def write_video(
    path,
    count=24,
    codec="libx264",
    options=X264,
    fps=24,
    times=None,
    size=SIZE,
    pix_fmt="yuv420p",
    frame=None,
    setup=None,
    index_first=False,
):
    """A video with the numbers 0, 1, ... on its frames.

    times: seconds of each frame, instead of `fps`.
    frame: makes a frame's pixels from its number, as an array (height, width, 3 or 4) or av.VideoFrame.
    setup: is called with the stream before anything is encoded.
    index_first: an MP4 begins with its index, so that a part of it can be read.
    """
    frame = frame or (lambda number: paint(number % 256, size))
    time_base = Fraction(1, 1000) if times else 1 / Fraction(fps)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options if codec == "libx264" else options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if setup:
            setup(stream)
        for number in range(len(times) if times else count):
            picture = frame(number)
            if isinstance(picture, np.ndarray):
                picture = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
                picture = picture.reformat(format=pix_fmt)
            picture.pts = round(times[number] * 1000) if times else number
            picture.time_base = time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_sound(path, video_codec="libx264", audio_codec="aac", rate=44100, seconds=4, fps=24, layout="stereo"):
    """A numbered video with a beep of 50 ms at 0 s, 0.5 s, 1 s, ..."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(video_codec, rate=fps, options={"g": "24"})
        pictures.width, pictures.height = SIZE
        pictures.pix_fmt = "yuv420p"
        sound = container.add_stream(audio_codec, rate=rate, layout=layout)
        for number in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        time = np.arange(rate * seconds) / rate
        samples = np.where(time % 0.5 < 0.05, np.sin(2 * np.pi * 1000 * time) / 2, 0).astype(np.float32)
        for start in range(0, len(samples), 1024):
            block = np.repeat(samples[None, start : start + 1024], 1 if layout == "mono" else 2, axis=0)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def write_images(path, count=24, fps=10, alpha=False):
    """A numbered GIF, WebP or APNG (by the suffix), or PNG folder."""
    format = path.suffix[1:] or "png"
    frames = [paint(number) for number in range(count)]
    return video.write_clip(frames, path.with_suffix(""), format, fps)


KINDS = {
    "mp4": lambda folder: write_video(folder / "a.mp4"),
    "mov": lambda folder: write_video(folder / "a.mov"),
    "mkv": lambda folder: write_video(folder / "a.mkv"),
    "ts": lambda folder: write_video(folder / "a.ts"),
    "webm": lambda folder: write_video(folder / "a.webm", codec="libvpx-vp9", options={"deadline": "realtime"}),
    "vp8": lambda folder: write_video(folder / "a8.webm", codec="libvpx", options={"deadline": "realtime"}),
    "mpeg4": lambda folder: write_video(folder / "a4.mp4", codec="mpeg4", options={"bf": "2", "q": "2"}),
    "gif": lambda folder: write_images(folder / "a.gif", fps=25),
    "webp": lambda folder: write_images(folder / "a.webp"),
    "apng": lambda folder: write_images(folder / "a.apng"),
    "folder": lambda folder: write_images(folder / "a"),
}
RATES = {"gif": 25, "webp": 10, "apng": 10, "folder": 8}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder) for name, make in KINDS.items()}


def numbers(source, selection=Selection()):
    """The numbers on the frames, after checking that there are as many as promised."""
    found = [number_on(picture) for _, picture in source.frames(selection)]
    assert len(found) == source.count(selection)
    return found


def on_screen(times, moment):
    """The number of the frame that is on the screen: the last that has appeared."""
    return max(number for number, time in enumerate(times) if time <= moment + 1e-9)


# The right frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_at_its_time(kinds, kind):
    source = open_source(kinds[kind])
    fps = RATES.get(kind, 24)

    info = source.info
    assert (info.size, info.frames, info.fps, info.variable) == (SIZE, 24, fps, False)
    assert info.duration == pytest.approx(24 / fps)
    assert not (info.has_audio or info.hdr or info.broken)
    assert source.clip_fps() == fps

    tick = 1e-9 if kind in ("mp4", "mov", "ts", "mpeg4", "folder", "webp", "apng", "gif") else 5.1e-4
    for expected, (time, picture) in itertools.zip_longest(range(24), source.frames()):
        assert number_on(picture) == expected
        assert (picture.mode, picture.size) == ("RGB", SIZE)
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


# Time ---------------------------------------------------------------------------------------------------------------

VARIABLE = [0, 0.040, 0.080, 0.500, 0.520, 0.540, 1.234, 1.300, 2.0, 2.1, 2.15, 2.9]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_variable_frame_rate(tmp_path, suffix):
    source = open_source(write_video(tmp_path / f"a.{suffix}", times=VARIABLE))
    assert source.info.variable
    times, pictures = zip(*source.frames())
    assert times == pytest.approx(VARIABLE, abs=1e-9)
    assert [number_on(picture) for picture in pictures] == list(range(12))

    for fps in (1, 10, 24, 50):
        for start in (0, 0.3, 0.5, 1.9):
            moments = start + np.arange(0, 2.9 - start, 1 / fps)
            found = numbers(source, Selection(start=start, fps=fps))[: len(moments)]
            assert found == [on_screen(VARIABLE, moment) for moment in moments]
    assert numbers(source, Selection(start=0.05, end=1.3)) == [2, 3, 4, 5, 6]
    assert numbers(source, Selection(every=4)) == [0, 4, 8]
    assert float(source.clip_fps()) == pytest.approx(11 / 2.9, rel=1e-3)
    assert float(source.clip_fps(Selection(every=4))) == pytest.approx(2 / 2.0, rel=1e-3)
    with pytest.raises(ValueError, match="no frame of a.* appears from 0.6 to 1.2 s"):
        source.count(Selection(start=0.6, end=1.2))
    assert numbers(source, Selection(start=0.6, end=1.2, fps=5)) == [5, 5, 5]


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
        expected = [on_screen(times, number / fps) for number in range(100) if number / fps < 0.89 - 1e-9]
        assert numbers(source, Selection(fps=fps)) == expected


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


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_clocks_that_do_not_begin_at_0(tmp_path, suffix):
    times = [5 + number / 25 for number in range(50)]
    path = write_video(tmp_path / f"a.{suffix}", times=times, fps=25)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).time == pytest.approx(5, abs=0.1)
    source = open_source(path)
    assert (source.info.duration, source.info.fps) == (2, 25)
    assert [time for time, _ in source.frames()] == pytest.approx(np.arange(50) / 25, abs=1e-9)
    assert numbers(source, Selection(start=1, end=1.2)) == [25, 26, 27, 28, 29]
    assert numbers(source, Selection(start=1, fps=5)) == [25, 30, 35, 40, 45]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_in_the_middle(tmp_path, codec, monkeypatch):
    """It begins with the first frame that can be decoded, and that is known without decoding everything."""
    options = GROUPS["open"] if codec == "libx264" else {"bf": "2", "g": "15", "q": "2"}
    path = write_video(tmp_path / "a.ts", 90, codec, options, fps=25)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[packets[5][0] :])
    decoded = count_decoded(monkeypatch)
    source = open_source(path)
    assert len(decoded) < 60
    assert numbers(source) == list(range(15, 90))
    assert next(source.frames())[0] == 0
    assert numbers(source, Selection(start=2, frames=2)) == [65, 66]


def test_a_clock_that_jumps_back_is_refused(tmp_path):
    one, other = (write_video(tmp_path / name, 40, "mpeg2video", {"g": "5"}, fps=25) for name in ("a.ts", "b.ts"))
    one.write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(ValueError, match="a.ts does not say in which order its frames are shown: convert it to MP4"):
        open_source(one)


def boxes(data, start, end, path=""):
    while start < end:
        size, name = struct.unpack(">I4s", data[start : start + 8])
        yield path + "/" + name.decode("latin1"), start, size
        if name in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"):
            yield from boxes(data, start + 8, start + size, path + "/" + name.decode())
        start += size


def test_edit_lists(tmp_path):
    """An MP4 of 60 frames whose edit list shows only the second that begins with frame 12."""
    path = write_video(tmp_path / "a.mp4", 60)
    data = bytearray(path.read_bytes())
    (edit,) = (start for name, start, _ in boxes(data, 0, len(data)) if name.endswith("/elst"))
    assert struct.unpack_from(">I", data, edit + 12) == (1,)  # entry
    _, media_start = struct.unpack_from(">Ii", data, edit + 16)
    struct.pack_into(">Ii", data, edit + 16, 1000, media_start + 12 * 512)
    path.write_bytes(data)

    source = open_source(path)
    assert (source.info.frames, source.info.duration, source.info.broken) == (24, 1, False)
    assert numbers(source) == list(range(12, 36))
    assert numbers(source, Selection(start=0.5, every=5)) == [24, 29, 34]
    assert numbers(source, Selection(fps=6)) == [12, 16, 20, 24, 28, 32]


# Seeking ------------------------------------------------------------------------------------------------------------

GROUPS = {
    "one": X264,
    "many": {"preset": "veryfast", "bf": "2", "g": "12", "x264-params": "scenecut=0"},
    "short": {"preset": "veryfast", "bf": "3", "g": "4", "x264-params": "scenecut=0:b-adapt=0"},
    "open": {"preset": "veryfast", "bf": "3", "g": "15", "x264-params": "scenecut=0:open-gop=1:b-adapt=0"},
    "intra refresh": {"preset": "veryfast", "g": "20", "x264-params": "scenecut=0:intra-refresh=1"},
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("group", GROUPS)
def test_any_frame_can_be_the_first(tmp_path, group, suffix, monkeypatch):
    source = open_source(write_video(tmp_path / f"a.{suffix}", 90, options=GROUPS[group]))
    monkeypatch.setattr(source_module._Video, "_SEEK_GAP", 0)
    order = random.Random(0).sample(range(90), 18)
    for first in order:
        assert numbers(source, Selection(start=first / 24, frames=2, every=7)) == [
            number for number in (first, first + 7) if number < 90
        ]
    picks = sorted(order)
    assert [number_on(picture) for picture in source._pictures(picks)] == picks


def count_decoded(monkeypatch):
    """A list that grows with each frame that is decoded."""
    decoded, original = [], source_module._decoded

    def counting(packets, decoder):
        for frame in original(packets, decoder):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(source_module, "_decoded", counting)
    return decoded


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_a_late_start_does_not_decode_what_comes_before(tmp_path, monkeypatch, suffix):
    codec, options = (
        ("libvpx-vp9", {"g": "25", "deadline": "realtime"}) if suffix == "webm" else ("libx264", GROUPS["many"])
    )
    path = write_video(tmp_path / f"a.{suffix}", 250, codec=codec, options=options)
    decoded = count_decoded(monkeypatch)
    source = open_source(path)
    assert len(decoded) < 30
    decoded.clear()
    assert numbers(source, Selection(start=240 / 24, frames=3)) == [240, 241, 242]
    assert len(decoded) < 40
    decoded.clear()
    assert numbers(source, Selection(every=100)) == [0, 100, 200]
    assert len(decoded) < 100


def test_a_seek_that_lands_too_late_is_made_good(kinds, monkeypatch):
    source = open_source(kinds["mp4"])
    run = source_module._Video._run

    def late(self, start, parallel=True):
        return ((number, frame) for number, frame in run(self, 0, parallel) if not start or number > start + 5)

    source._keys = np.arange(24)
    monkeypatch.setattr(source_module._Video, "_run", late)
    assert numbers(source, Selection(start=10 / 24)) == list(range(10, 24))


def test_pictures_that_are_never_shown(tmp_path):
    """VP8 may store pictures for the decoder's use alone: their packets have times, but are no frames."""
    shown = write_video(tmp_path / "a.webm", 24, "libvpx", {"deadline": "realtime", "g": "1"})
    hidden = tmp_path / "b.webm"
    with av.open(str(shown)) as old, av.open(str(hidden), "w") as new:
        stream = old.streams.video[0]
        target = new.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
            data = bytes(packet)
            copies = (
                [data] if number % 4 else [data, bytes([data[0] & ~0x10]) + data[1:]]
            )  # without the flag that shows it
            for offset, content in enumerate(copies):
                copy = av.Packet(content)
                copy.pts = copy.dts = packet.pts + 20 * offset
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, True, target
                new.mux(copy)
    with av.open(str(hidden)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 30
    source = open_source(hidden)
    assert numbers(source) == list(range(24))
    assert numbers(source, Selection(start=0.5, every=5)) == [12, 17, 22]
    assert (source.info.frames, source.info.fps) == (24, 24)


# The right look -----------------------------------------------------------------------------------------------------

COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (230, 40, 60),
    (10, 200, 120),
]


def quarters(size=SIZE):
    """red | green over blue | white. (height, width, 3)"""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = size[1] // 2, size[0] // 2
    picture[:top, :left], picture[:top, left:] = (220, 30, 30), (30, 200, 30)
    picture[top:, :left], picture[top:, left:] = (30, 30, 220), (230, 230, 230)
    return picture


def close(picture, expected, tolerance=12):
    """Whether the middles of the quarters are of the expected colours."""
    picture, expected = np.asarray(picture, int), np.asarray(expected, int)
    assert picture.shape == expected.shape
    spots = np.ix_(*((length // 4, length * 3 // 4) for length in picture.shape[:2]))
    return np.abs(picture[spots] - expected[spots]).max() <= tolerance


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation(tmp_path, suffix, degrees, mirrored):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write the rotation")
    path = write_video(
        tmp_path / f"a.{suffix}",
        3,
        frame=lambda number: quarters(),
        setup=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    shown = np.rot90(quarters(), degrees // 90)  # counterclockwise, as the display matrix says, and then mirrored
    shown = np.fliplr(shown) if mirrored else shown
    source = open_source(path)
    assert source.info.size == (SIZE[::-1] if degrees in (90, 270) else SIZE)
    for _, picture in source.frames():
        assert picture.size == source.info.size
        assert close(picture, shown)


@pytest.mark.parametrize("size", [(63, 47), (65, 48), (64, 49), (1, 1), (17, 5)])
def test_odd_sizes(tmp_path, size):
    def frame(number):
        return np.full((size[1], size[0], 3), 40 * number, np.uint8)

    videos = [
        write_video(tmp_path / "a.mkv", 5, "ffv1", {}, size=size, frame=frame),
        write_video(tmp_path / "a.webm", 5, "libvpx-vp9", {"deadline": "realtime"}, size=size, frame=frame),
    ]
    if min(size) > 16:
        videos.append(write_video(tmp_path / "b.mkv", 5, pix_fmt="yuv444p", size=size, frame=frame))
    for path in [*videos, video.write_clip(map(frame, range(5)), tmp_path / "a", "gif", 10)]:
        source = open_source(path)
        assert source.info.size == size
        for number, (_, picture) in enumerate(source.frames()):
            assert picture.size == size
            assert np.abs(np.asarray(picture, int) - 40 * number).max() <= 4


@pytest.mark.parametrize("aspect, size", [((4, 3), (85, 48)), ((8, 9), (57, 48)), ((1, 1), SIZE), ((2, 1), (128, 48))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_become_square(tmp_path, suffix, aspect, size):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    source = open_source(write_video(tmp_path / f"a.{suffix}", 5, setup=setup))
    assert source.info.size == size
    assert numbers(source) == list(range(5))
    assert next(source.frames())[1].size == size


def test_pixels_become_square_before_they_are_turned(tmp_path):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stream.set_display_rotation(90)

    source = open_source(write_video(tmp_path / "a.mp4", 3, frame=lambda number: quarters(), setup=setup))
    assert source.info.size == (48, 128)
    assert close(next(source.frames())[1], np.rot90(quarters((128, 48))))


def transparent(number, red=200):
    """Red; opaque on the left, half transparent top right, and clear bottom right. (48, 64, 4)"""
    picture = np.full((48, 64, 4), (red, 0, 0, 255), np.uint8)
    picture[:24, 32:, 3], picture[24:, 32:, 3] = 128, 0
    return picture


def on_white(half, red=200):
    """What that looks like on white, if half transparent pixels are `half`."""
    picture = np.full((48, 64, 3), (red, 0, 0), np.uint8)
    picture[:24, 32:], picture[24:, 32:] = half, 255
    return picture


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a8.webm", "libvpx", "yuva420p"),
        ("a.mov", "qtrle", "argb"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("png.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "bgra"),
    ],
)
def test_transparent_videos_are_laid_on_white(tmp_path, name, codec, pix_fmt):
    options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
    source = open_source(write_video(tmp_path / name, 5, codec, options, frame=transparent, pix_fmt=pix_fmt))
    pictures = [picture for _, picture in source.frames()]
    assert len(pictures) == 5
    for picture in pictures:
        assert close(picture, on_white((227, 127, 127)), tolerance=4)


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


def test_a_gif_of_patches_looks_as_in_another_reader(tmp_path):
    """Frames that change a part, keep, clear or restore what was there, in local palettes with transparent pixels."""
    generator = np.random.default_rng(0)
    frames = []
    for number in range(12):
        patch = Image.fromarray(generator.integers(0, 256, (48, 64, 4), dtype=np.uint8).round(-6))
        alpha = np.zeros((48, 64), np.uint8)
        top, left = generator.integers(0, 30, 2)
        alpha[top : top + 16, left : left + 24] = 255
        patch.putalpha(Image.fromarray(alpha))
        frames.append(patch)
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, disposal=[1, 2, 1, 1, 2, 1] * 2)

    with av.open(str(path)) as container:
        other = [frame.to_ndarray(format="rgba") for frame in container.decode(video=0)]
    pictures = [picture for _, picture in open_source(path).frames()]
    assert len(pictures) == len(other)
    for picture, pixels in zip(pictures, other):
        white = Image.new("RGBA", picture.size, "white")
        expected = Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


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


@pytest.mark.parametrize("colours", ["tagged", "untagged"])
def test_interlaced(tmp_path, colours):
    """A bar moves between the two fields of each frame; deinterlaced, no line differs from both its neighbours."""

    def bar(position):
        picture = np.full((64, 96, 3), (40, 60, 90), np.uint8)
        picture[:, int(position) + 6 : int(position) + 20] = (220, 180, 60)
        return picture

    def woven(number):
        picture = bar(4 * number)
        picture[::2] = bar(4 * number + 2)[::2]  # the lower field comes first, which is what the encoder says
        return picture

    def setup(stream):
        if colours == "tagged":
            stream.codec_context.colorspace = 1

    def converted(number):
        frame = av.VideoFrame.from_ndarray(woven(number), format="rgb24")
        return frame.reformat(format="yuv420p", dst_colorspace="ITU709" if colours == "tagged" else "ITU601")

    options = {"preset": "veryfast", "bf": "2", "crf": "10", "flags": "+ildct+ilme", "g": "8"}
    path = write_video(tmp_path / "a.mp4", 18, options=options, size=(96, 64), frame=converted, fps=25, setup=setup)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame

    def combing(picture):
        luma = np.asarray(picture.convert("L"), int)
        return np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean()

    source = open_source(path)
    pictures = [picture for _, picture in source.frames()]
    assert (len(pictures), source.info.frames, source.info.fps) == (18, 18, 25)
    assert combing(Image.fromarray(woven(5))) > 5
    for number, picture in enumerate(pictures):
        assert combing(picture) < 1
        luma = np.asarray(Image.fromarray(bar(4 * number)).convert("L"), int)
        assert np.abs(np.asarray(picture.convert("L"), int) - luma).mean() < 1
    for first in range(18):  # a frame is the same wherever reading begins
        ((_, picture),) = source.frames(Selection(start=first / 25, frames=1))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(pictures[first]))
    picks = [picture for _, picture in source.frames(Selection(every=5))]
    np.testing.assert_array_equal(np.asarray(picks[3]), np.asarray(pictures[15]))


MATRICES = {"BT.601": (6, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722), "BT.2020": (9, 0.2627, 0.0593)}


def yuv(colour, matrix, full, bits):
    """What H.273 says that an RGB colour of 8 bits is in Y'CbCr, independent of FFmpeg."""
    _, kr, kb = MATRICES[matrix]
    r, g, b = (value / 255 for value in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    chroma = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    largest, scale = 2**bits - 1, 2 ** (bits - 8)
    if full:
        values = [y * largest, *(value * largest + 2 ** (bits - 1) for value in chroma)]
    else:
        values = [(16 + 219 * y) * scale, *((128 + 224 * value) * scale for value in chroma)]
    return [min(max(round(value), 0), largest) for value in values]


def write_colours(path, matrix, full, pix_fmt, bits, size=SIZE, tagged=True):
    """A lossless video that shows each of COLOURS."""

    def frame(number):
        picture = av.VideoFrame(*size, pix_fmt)
        for plane, value in zip(picture.planes, yuv(COLOURS[number], matrix, full, bits)):
            kind = np.uint8 if bits == 8 else np.uint16
            plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind).tobytes())
        if tagged:
            picture.colorspace, picture.color_range = MATRICES[matrix][0], 2 if full else 1
        return picture

    def setup(stream):
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = MATRICES[matrix][0], 2 if full else 1

    return write_video(path, len(COLOURS), "ffv1", {}, pix_fmt=pix_fmt, size=size, frame=frame, setup=setup)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    "pix_fmt, bits", [("yuv420p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv444p12le", 12)]
)
def test_colours(tmp_path, matrix, full, pix_fmt, bits):
    source = open_source(write_colours(tmp_path / "a.mkv", matrix, full, pix_fmt, bits))
    assert source.count() == len(COLOURS)
    for colour, (_, picture) in zip(COLOURS, source.frames()):
        assert np.abs(np.asarray(picture, int) - colour).max() <= 2, colour


@pytest.mark.parametrize(
    "size, matrix", [((640, 480), "BT.601"), ((720, 576), "BT.601"), ((1280, 718), "BT.601"), ((1280, 720), "BT.709")]
)
def test_untagged_colours_are_those_of_the_resolution(tmp_path, size, matrix):
    path = write_colours(tmp_path / "a.mkv", matrix, False, "yuv420p", 8, size, tagged=False)
    for colour, (_, picture) in zip(COLOURS, open_source(path).frames()):
        assert np.abs(np.asarray(picture, int) - colour).max() <= 2, colour


@pytest.mark.parametrize("format", video.FORMATS)
def test_a_clip_of_our_own_comes_back(tmp_path, format):
    path = video.write_clip([quarters(), quarters()[::-1], quarters()], tmp_path / "a", format, 8)
    source = open_source(path)
    assert (source.count(), source.clip_fps()) == (3, 8)
    for expected, (_, picture) in zip([quarters(), quarters()[::-1], quarters()], source.frames()):
        assert close(picture, expected, tolerance=3)


@pytest.mark.parametrize("transfer, hdr", [(1, False), (16, True), (18, True)])
def test_hdr_is_said(tmp_path, transfer, hdr):
    def setup(stream):
        stream.codec_context.color_trc = transfer

    path = write_video(tmp_path / "a.mp4", 3, pix_fmt="yuv420p10le", setup=setup)
    assert open_source(path).info.hdr is hdr
    assert numbers(open_source(path)) == [0, 1, 2]


# Folders ------------------------------------------------------------------------------------------------------------


def test_folder_order_is_natural(tmp_path):
    names = [
        "frame10.png",
        "frame2.PNG",
        "Frame1.jpg",
        "frame02b.bmp",
        "frame100.tif",
        "a/ignored.png",
        "b9.webp",
        "B10.jpeg",
    ]
    order = ["b9.webp", "B10.jpeg", "Frame1.jpg", "frame2.PNG", "frame02b.bmp", "frame10.png", "frame100.tif"]
    (tmp_path / "a").mkdir()
    for name in names:
        Image.fromarray(paint(order.index(name) if name in order else 99)).save(tmp_path / name)
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
    stored = {  # how to store it such that the orientation makes it upright
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
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


# Files as they come -------------------------------------------------------------------------------------------------


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


def grainy(number):
    """A number under so much noise that compressing it does not make it small."""
    return paint(number) // 2 + np.random.default_rng(number).integers(0, 32, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "gif", "apng"])
def test_truncated_files_say_where_they_break_off(tmp_path, kind, share):
    if kind in ("gif", "apng"):
        path = video.write_clip(map(grainy, range(60)), tmp_path / "a", kind, 25)
    elif kind == "webm":
        path = write_video(
            tmp_path / "a.webm", 60, "libvpx-vp9", {"deadline": "realtime", "crf": "10"}, 25, frame=grainy
        )
    else:
        path = write_video(
            tmp_path / f"a.{kind}", 60, options=GROUPS["many"], fps=25, frame=grainy, index_first=kind == "mp4"
        )
    assert open_source(path).info.frames == 60 and not open_source(path).info.broken

    source = open_source(cut_file(path, share))
    info = source.info
    assert info.broken
    assert 5 < info.frames < 60 and info.duration == pytest.approx(info.frames / 25)
    with pytest.raises(
        ValueError, match=rf"breaks off at {info.duration:.2f} s.* set the end to {info.duration:.2f} s"
    ):
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


def test_a_file_that_lacks_only_what_comes_after_the_frames_is_complete(tmp_path):
    path = write_video(tmp_path / "a.mkv", 60, options=GROUPS["many"], fps=25, frame=grainy)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\x1c\x53\xbb\x6b")])  # without the table for seeking
    source = open_source(path)
    assert (source.info.frames, source.info.broken) == (60, False)
    ((_, picture),) = source.frames(Selection(start=2.2, frames=1))
    assert number_on(picture.point(lambda level: 255 * (level > 78))) == 55


def test_damage_in_the_middle_is_an_error_where_it_is(tmp_path):
    path = write_video(tmp_path / "a.mp4", 90, options=GROUPS["many"])
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size, packet.pts) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size, _ in packets[40:43]:
        data[position + 5 : position + size] = bytes(size - 5)
    path.write_bytes(data)

    source = open_source(path)
    assert source.count() == 90 and not source.info.broken
    found = []
    with pytest.raises(ValueError, match=r"a.mp4 is damaged: the frame at 1\.[67]\d s cannot be decoded"):
        for _, picture in source.frames():
            found.append(number_on(picture))
    assert 35 <= len(found) <= 43 and found == list(range(len(found)))
    assert numbers(source, Selection(end=1.5)) == list(range(36))
    assert numbers(source, Selection(start=50 / 24)) == list(range(50, 90))


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
    assert [(number_on(a[1]), number_on(b[1])) for a, b in zip(one, other)][:3] == [
        (n, first + n + 1) for n in range(3)
    ]
    one.close()
    other.close()
    assert open_files(path) == 0


FREED_WHILE_IT_REPORTS = """
import gc, sys
import av
from zs2_lib.media.read import open_source
av.logging.set_level(av.logging.ERROR)  # as torchvision does
gc.set_threshold(1, 1, 1)  # what is dropped is freed at once
sys.setswitchinterval(10)
for _ in range(4):
    frames = open_source(sys.argv[1]).frames()
    next(frames)
    frames.close()
"""


def test_a_decoder_that_reports_errors_while_it_is_freed(tmp_path):
    """FFmpeg's threads wait for Python's lock to report an error, and who frees them, with the lock, waits for the threads."""
    size = (960, 540)
    path = write_video(
        tmp_path / "a.mkv",
        12,
        size=size,
        options={"preset": "ultrafast", "bf": "0", "g": "90", "crf": "30"},
        frame=(lambda number: np.random.default_rng(number).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)),
    )
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, length in packets[3:]:  # the first frames are right, and errors follow
        for share in range(40, 60):
            data[position + length * share // 100] ^= 0xFF
    path.write_bytes(data)
    subprocess.run(
        [sys.executable, "-c", FREED_WHILE_IT_REPORTS, path], check=True, timeout=120, stderr=subprocess.DEVNULL
    )


def test_memory_does_not_grow_with_the_clip(tmp_path):
    if not Path("/proc/self/statm").exists():
        pytest.skip("cannot tell this process's memory")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = (320, 240)  # 225 KiB a frame
    options = {"q": "5", "g": "50"}
    path = write_video(tmp_path / "a.mp4", 1000, "mpeg4", options, size=size, fps=25)
    source = open_source(path)
    peaks, growth = [], []
    for count in (100, 1000):
        tracemalloc.start()
        for number, _ in enumerate(source.frames(Selection(frames=count))):
            if number == 90:
                before = resident()
        growth.append(resident() - before)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**18
    assert growth[1] < 2**24  # of 225 MB of pictures


# Refusals -----------------------------------------------------------------------------------------------------------


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
            picture.disposition = av.stream.Disposition.attached_pic
        for start in range(0, 44100, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        if cover:
            container.mux(
                picture.encode(av.VideoFrame.from_ndarray(paint(0), format="rgb24").reformat(format="yuvj420p"))
            )
            container.mux(picture.encode(None))
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
        "a.mp4 is no video",
    ),
    "audio only": (lambda p: audio_only(p / "a.mp4"), "a.mp4 holds sound but no video"),
    "audio with a cover": (lambda p: audio_only(p / "a.mp4", cover=True), "a.mp4 holds sound but no video"),
    "no index": (lambda p: cut_file(write_video(p / "a.mp4"), 0.5), "a.mp4 is no video, or it is damaged or incomplete"),
    "zero frames": (lambda p: no_frames(p / "a.mp4"), "a.mp4 holds no frame that can be decoded"),
    "out of order": (lambda p: write_video(p / "a.avi"), "a.avi does not say in which order .* convert it to MP4"),
    "huge video": (lambda p: huge_video(p / "a.mkv"), "a.mkv is 9000x9000, but a frame may have 67 million pixels"),
    "bomb": (lambda p: saved(p / "a.png", png(50000, 50000)), "a.png has too many pixels: scale it down"),
    "large picture": (lambda p: saved(p / "a.png", png(9000, 9000)), "a.png is 9000x9000, but a frame may have 67 million"),
    "0x0": (lambda p: saved(p / "a.gif", b"GIF89a" + bytes(200)), "a.gif is (damaged|0x0)"),
    "head of a gif": (lambda p: saved(p / "a.gif", b"GIF89a"), "a.gif is damaged"),
    "corrupt gif": (
        lambda p: saved(p / "a.gif", b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0x80, 0, 0) + b"\x09" * 99),
        "a.gif is damaged",
    ),
    "half a webp": (lambda p: cut_file(write_images(p / "a.webp"), 0.5), "a.webp (is damaged|breaks off)"),
    "half a picture": (lambda p: saved(p / "a.png", picture_bytes(p / "a.png", 0.5)), "a.png is damaged"),
    "empty folder": (lambda p: folder_of(p / "a"), r"the folder .*a holds no frames: .* end with \.png, \.jpg"),
    "folder without pictures": (lambda p: folder_of(p / "a", ("a.txt", b"x"), ("b.mp4", b"x")), "holds no frames"),
    "folder with text as a picture": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", b"no picture")),
        "2.png is damaged, or no picture in spite of its name",
    ),
    "folder with an empty picture": (lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", b"")), "2.png is damaged"),
    "folder with half a picture": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", picture_bytes(p / "x.png", 0.5))),
        "2.png is damaged",
    ),
    "folder of two sizes": (
        lambda p: folder_of(p / "a", ("1.png", paint(0)), ("2.png", paint(1)), ("3.png", paint(2, (48, 64)))),
        "3.png is 48x64, but 1.png is 64x48: a folder of frames needs one size",
    ),
    "folder with a bomb": (lambda p: folder_of(p / "a", ("1.png", png(50000, 50000))), "1.png has too many pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path, case):
    make, message = BAD_FILES[case]
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        for _ in open_source(path).frames():
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a.mp4 is a device or a pipe"):
        open_source(tmp_path / "a.mp4")


@pytest.mark.parametrize("kind", ["mp4", "gif", "folder"])
def test_files_that_may_not_be_read(kinds, kind, monkeypatch):
    def forbidden(*args, **options):
        raise PermissionError(13, "Permission denied")

    for owner, name in ((source_module, "open"), (source_module.Image, "open"), (Path, "iterdir")):
        monkeypatch.setattr(owner, name, forbidden, raising=False)
    with pytest.raises(ValueError, match="may not be read: allow it in its permissions"):
        open_source(kinds[kind])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"start": -1}, "start is -1, but a source begins at 0 s"),
        ({"start": float("nan")}, "start is nan"),
        ({"start": float("inf")}, "start is inf"),
        ({"end": 0}, "end is 0, but has to come after the start, 0 s"),
        ({"start": 2, "end": 1}, "end is 1, but has to come after the start, 2 s"),
        ({"start": 2, "end": 2}, "end is 2, but has to come after the start, 2 s"),
        ({"end": float("nan")}, "end is nan"),
        ({"fps": 0}, "fps is 0, but a selection takes 0.1 to 240 frames per second"),
        ({"fps": -24}, "fps is -24"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": 241}, "fps is 241"),
        ({"every": 0}, "every is 0, but has to be a whole number from 1 on"),
        ({"every": -2}, "every is -2"),
        ({"every": 1.5}, "every is 1.5"),
        ({"every": float("nan")}, "every is nan"),
        ({"frames": 0}, "frames is 0, but has to be a whole number from 1 on"),
        ({"frames": -1}, "frames is -1"),
        ({"frames": float("inf")}, "frames is inf"),
    ],
)
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


# The contact strip --------------------------------------------------------------------------------------------------


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


# Sound --------------------------------------------------------------------------------------------------------------

SOUNDS = {
    "aac.mp4": ("libx264", "aac", 44100),
    "aac.mkv": ("libx264", "aac", 48000),
    "mp3.mp4": ("libx264", "libmp3lame", 44100),
    "pcm.mov": ("libx264", "pcm_s16le", 22050),
    "opus.webm": ("libvpx", "libopus", 48000),
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    return {name: write_sound(folder / name, *codecs) for name, codecs in SOUNDS.items()}


def beeps(path):
    """(codec, when each beep begins, when the sound ends), in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", "mono", stream.sample_rate)
        samples, begin = [], None
        for frame in container.decode(stream):
            begin = float(frame.pts * frame.time_base) if begin is None else begin
            samples += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        loud = np.flatnonzero(np.abs(np.concatenate(samples)) > 0.15)
        starts = loud[np.r_[True, np.diff(loud) > stream.sample_rate // 5]]
        end = begin + sum(map(len, samples)) / stream.sample_rate
        return stream.codec_context.codec.canonical_name, starts / stream.sample_rate + begin, end


def pictures_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        text = container.metadata.get("comment") or container.metadata.get("COMMENT")
        frames = [(float(frame.time), frame.to_ndarray().tobytes()) for frame in container.decode(stream)]
        return frames, stream.average_rate, text


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("format", ["mp4", "webm"])
@pytest.mark.parametrize("selection", [Selection(start=1.25, end=3, fps=12), Selection(every=3)], ids=["part", "whole"])
def test_sound_stays_in_time(tmp_path, sounds, name, format, selection):
    source = open_source(sounds[name])
    assert source.info.has_audio
    pictures = (picture for _, picture in source.frames(selection))
    clip = video.write_clip(pictures, tmp_path / "clip", format, source.clip_fps(selection), "seed 1")
    before = pictures_of(clip)
    add_audio(clip, source, selection)

    assert pictures_of(clip) == before and before[2] == "seed 1"
    assert [entry.name for entry in tmp_path.iterdir()] == [clip.name]
    seconds = float(source.count(selection) / source.clip_fps(selection))
    codec, starts, end = beeps(clip)
    expected = np.arange(0, 4, 0.5) - selection.start
    expected = expected[(expected >= 0) & (expected < seconds - 0.03)]
    np.testing.assert_allclose(starts[: len(expected)], expected, atol=2e-3)
    assert end == pytest.approx(seconds, abs=0.03)
    kept = {"mp4": ("aac", "mp3", "opus"), "webm": ("opus",)}[format]
    original = name.split(".")[0]
    assert codec == (original if original in kept else kept[0])
    with av.open(str(clip)) as container:
        assert container.duration / 1e6 == pytest.approx(seconds, abs=0.03)


def test_sound_is_replaced(tmp_path, sounds):
    source = open_source(sounds["aac.mp4"])
    selection = Selection(end=2)
    clip = video.write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", "mp4", 24)
    add_audio(clip, source, selection)
    add_audio(clip, open_source(sounds["pcm.mov"]), selection)
    with av.open(str(clip)) as container:
        assert (len(container.streams.audio), len(container.streams.video)) == (1, 1)
    assert beeps(clip)[1] == pytest.approx([0, 0.5, 1, 1.5], abs=2e-3)


def test_sound_of_a_video_whose_clock_does_not_begin_at_0(tmp_path, sounds):
    shifted = tmp_path / "shifted.mkv"
    with av.open(str(sounds["aac.mkv"])) as old, av.open(str(shifted), "w") as new:
        targets = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.pts += 7000
                packet.dts = None if packet.dts is None else packet.dts + 7000
                packet.stream = targets[packet.stream.index]
                new.mux(packet)
    source = open_source(shifted)
    selection = Selection(start=2.25)
    clip = video.write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", "mp4", 24)
    add_audio(clip, source, selection)
    assert beeps(clip)[1][:3] == pytest.approx([0.25, 0.75, 1.25], abs=2e-3)


def test_sound_of_a_clip_with_frames_in_between(tmp_path, sounds):
    """2m - 1 frames at twice the rate, as frame interpolation makes them, are a little shorter than the selection."""
    source = open_source(sounds["aac.mp4"])
    selection = Selection(fps=6)
    frames = list(source.frames(Selection(fps=12)))[:-1]
    clip = video.write_clip((picture for _, picture in frames), tmp_path / "clip", "mp4", 12)
    add_audio(clip, source, selection)
    assert len(beeps(clip)[1]) == 8


def test_sound_that_cannot_be_added_leaves_the_clip_alone(tmp_path, sounds, kinds, monkeypatch):
    source = open_source(sounds["aac.mp4"])
    clip = video.write_clip((p for _, p in source.frames()), tmp_path / "clip", "mp4", 24)
    before = clip.read_bytes()

    def refused(message, *arguments, error=ValueError):
        with pytest.raises(error, match=message):
            add_audio(*arguments)
        assert clip.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]

    refused("clip.mp4 lasts 4.00 s, but the selection of aac.mp4 1.00 s: .* drift away", clip, source, Selection(end=1))
    refused("a.mp4 has no sound to add to clip.mp4", clip, open_source(kinds["mp4"]))
    refused("a.gif has no sound", clip, open_source(kinds["gif"]))
    refused("start is 9 s, but aac.mp4 ends at 4.00 s", clip, source, Selection(start=9))
    refused("cannot add sound to clip.gif: only .mp4 and .webm", tmp_path / "clip.gif", source)
    refused("there is no file or folder", tmp_path / "other.mp4", source, error=FileNotFoundError)
    damaged = tmp_path.parent / "damaged.mov"
    data = bytearray(sounds["aac.mp4"].read_bytes())
    with av.open(str(sounds["aac.mp4"])) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    damaged.write_bytes(data)
    webm = video.write_clip((p for _, p in source.frames()), tmp_path.parent / "clip", "webm", 24)
    with pytest.raises(ValueError, match="the sound of damaged.mov cannot be added to clip.webm .*convert it to AAC"):
        add_audio(webm, open_source(damaged))

    monkeypatch.setattr(source_module, "_copied_sound", lambda *arguments: iter(()))
    refused("aac.mp4 has no sound from 0.00 to 4.00 s to add to clip.mp4", clip, source)

    def broken(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(source_module, "_copied_sound", broken)
    refused(None, clip, source, error=KeyboardInterrupt)
