"""Frames of a video are exact to the frame and look as a player shows them, also after a seek and in damaged files."""

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media_files import GROUPS, SIZE, close, grainy, number_on, numbers, on_white, quarters, transparent, write_video
from PIL import Image

from zs2_lib.media import decode, video_index, videos
from zs2_lib.media.read import open_source
from zs2_lib.media.source import Selection

av = pytest.importorskip("av")

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
            assert found == (np.searchsorted(VARIABLE, moments + 1e-9, side="right") - 1).tolist()
    assert numbers(source, Selection(start=0.05, end=1.3)) == [2, 3, 4, 5, 6]
    assert numbers(source, Selection(every=4)) == [0, 4, 8]
    assert float(source.clip_fps()) == pytest.approx(11 / 2.9, rel=1e-3)
    assert float(source.clip_fps(Selection(every=4))) == pytest.approx(2 / 2.0, rel=1e-3)
    with pytest.raises(ValueError, match="no frame of a.* appears from 0.6 to 1.2 s"):
        source.count(Selection(start=0.6, end=1.2))
    assert numbers(source, Selection(start=0.6, end=1.2, fps=5)) == [5, 5, 5]


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


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("group", GROUPS)
def test_any_frame_can_be_the_first(tmp_path, group, suffix, monkeypatch):
    source = open_source(write_video(tmp_path / f"a.{suffix}", 90, options=GROUPS[group]))
    monkeypatch.setattr(videos.Video, "_SEEK_GAP", 0)
    order = random.Random(0).sample(range(90), 18)
    for first in order:
        assert numbers(source, Selection(start=first / 24, frames=2, every=7)) == [
            number for number in (first, first + 7) if number < 90
        ]
    picks = sorted(order)
    assert [number_on(picture) for picture in source._pictures(picks)] == picks


def count_decoded(monkeypatch):
    """A list that grows with each frame that is decoded."""
    decoded, original = [], decode.decoded

    def counting(packets, decoder):
        for frame in original(packets, decoder):
            decoded.append(frame.pts)
            yield frame

    for module in (video_index, videos):
        monkeypatch.setattr(module, "decoded", counting)
    return decoded


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_a_late_start_does_not_decode_what_comes_before(tmp_path, monkeypatch, suffix):
    webm = ("libvpx-vp9", {"g": "25", "deadline": "realtime"})
    path = write_video(tmp_path / f"a.{suffix}", 250, *(webm if suffix == "webm" else ("libx264", GROUPS["many"])))
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
    run = videos.Video._run

    def late(self, start):
        return ((number, frame) for number, frame in run(self, 0) if not start or number > start + 5)

    source._keys = np.arange(24)
    monkeypatch.setattr(videos.Video, "_run", late)
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
            unshown = bytes([data[0] & ~0x10]) + data[1:]  # without the flag that shows it
            for offset, content in enumerate([data] if number % 4 else [data, unshown]):
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


writes_rotation = pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="this PyAV cannot write the rotation"
)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@writes_rotation
def test_rotation(tmp_path, suffix, degrees, mirrored):
    def setup(stream):
        stream.set_display_rotation(degrees, hflip=mirrored)

    path = write_video(tmp_path / f"a.{suffix}", 3, frame=lambda number: quarters(), setup=setup)
    shown = np.rot90(quarters(), degrees // 90)  # counterclockwise, as the display matrix says, and then mirrored
    shown = np.fliplr(shown) if mirrored else shown
    source = open_source(path)
    assert source.info.size == (SIZE[::-1] if degrees in (90, 270) else SIZE)
    for _, picture in source.frames():
        assert picture.size == source.info.size
        assert close(picture, shown)


@pytest.mark.parametrize("aspect, size", [((4, 3), (85, 48)), ((8, 9), (57, 48)), ((1, 1), SIZE), ((2, 1), (128, 48))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_become_square(tmp_path, suffix, aspect, size):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    source = open_source(write_video(tmp_path / f"a.{suffix}", 5, setup=setup))
    assert source.info.size == size
    assert numbers(source) == list(range(5))
    assert next(source.frames())[1].size == size


@writes_rotation
def test_pixels_become_square_before_they_are_turned(tmp_path):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stream.set_display_rotation(90)

    source = open_source(write_video(tmp_path / "a.mp4", 3, frame=lambda number: quarters(), setup=setup))
    assert source.info.size == (48, 128)
    assert close(next(source.frames())[1], np.rot90(quarters((128, 48))))


TRANSPARENT = [
    ("a.webm", "libvpx-vp9", "yuva420p"), ("a8.webm", "libvpx", "yuva420p"), ("a.mov", "qtrle", "argb"),
    ("prores.mov", "prores_ks", "yuva444p10le"), ("png.mov", "png", "rgba"), ("a.mkv", "ffv1", "bgra"),
]  # fmt: skip


@pytest.mark.parametrize("name, codec, pix_fmt", TRANSPARENT)
def test_transparent_videos_are_laid_on_white(tmp_path, name, codec, pix_fmt):
    options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
    source = open_source(write_video(tmp_path / name, 5, codec, options, frame=transparent, pix_fmt=pix_fmt))
    pictures = [picture for _, picture in source.frames()]
    assert len(pictures) == 5
    for picture in pictures:
        assert close(picture, on_white((227, 127, 127)), tolerance=4)


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


COLOURS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (230, 40, 60), (10, 200, 120),
]  # fmt: skip
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


BITS = {"yuv420p": 8, "yuv420p10le": 10, "yuv422p10le": 10, "yuv444p12le": 12}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pix_fmt", BITS)
def test_colours(tmp_path, matrix, full, pix_fmt):
    source = open_source(write_colours(tmp_path / "a.mkv", matrix, full, pix_fmt, BITS[pix_fmt]))
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


@pytest.mark.parametrize("transfer, hdr", [(1, False), (16, True), (18, True)])
def test_hdr_is_said(tmp_path, transfer, hdr):
    def setup(stream):
        stream.codec_context.color_trc = transfer

    path = write_video(tmp_path / "a.mp4", 3, pix_fmt="yuv420p10le", setup=setup)
    assert open_source(path).info.hdr is hdr
    assert open_source(path).count() == 3


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
    """FFmpeg's threads wait for Python's lock to report an error; who frees them, with the lock, waits for them."""

    def noise(number):
        return np.random.default_rng(number).integers(0, 256, (540, 960, 3), dtype=np.uint8)

    options = {"preset": "ultrafast", "bf": "0", "g": "90", "crf": "30"}
    path = write_video(tmp_path / "a.mkv", 12, size=(960, 540), options=options, frame=noise)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, length in packets[3:]:  # the first frames are right, and errors follow
        for share in range(40, 60):
            data[position + length * share // 100] ^= 0xFF
    path.write_bytes(data)
    command = [sys.executable, "-c", FREED_WHILE_IT_REPORTS, path]
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)


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
