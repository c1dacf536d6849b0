"""Files without a clock are read in order; of a file that is cut off anywhere the whole frames come, and only these.

The same call gives the same answer each time.
"""

import random
from fractions import Fraction

import numpy as np
import pytest
from media_files import X264, number_on, numbers, write_video

from zs2_lib.media.formats import MAX_FPS, MIN_FPS, check_clip
from zs2_lib.media.read import open_source
from zs2_lib.media.source import Selection
from zs2_lib.media.write import write_clip

av = pytest.importorskip("av")

SHORT = {**X264, "g": "12"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=error:keyint=12:bframes=2"}
MPEG = {"bf": "2", "g": "12", "q": "2"}

WITHOUT_A_CLOCK = {
    "a.avi": ("libx264", SHORT), "b.avi": ("mpeg4", MPEG), "a.h264": ("libx264", SHORT), "a.hevc": ("libx265", X265),
    "a.m4v": ("mpeg4", MPEG), "a.m1v": ("mpeg1video", MPEG), "a.m2v": ("mpeg2video", MPEG),
}  # fmt: skip
PROGRAM_STREAMS = {"a.mpg": ("mpeg1video", MPEG), "a.vob": ("mpeg2video", MPEG), "b.vob": ("libx264", SHORT)}


def write(path, codec, options, count=40, fps=25, **more):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    return write_video(path, count, codec, options, fps=fps, **more)


@pytest.mark.parametrize("fps", [25, 30])
@pytest.mark.parametrize("name", [*WITHOUT_A_CLOCK, *PROGRAM_STREAMS])
def test_containers(tmp_path, name, fps):
    """B-frames in AVI, streams without a container, program streams with and without a time for each frame."""
    codec, options = {**WITHOUT_A_CLOCK, **PROGRAM_STREAMS}[name]
    source = open_source(write(tmp_path / name, codec, options, fps=fps))
    info = source.info
    assert (info.frames, info.fps, info.variable, info.broken) == (40, fps, False, False)
    assert numbers(source) == list(range(40))
    assert [time for time, _ in source.frames()] == pytest.approx(np.arange(40) / fps, abs=1e-4)
    assert numbers(source, Selection(start=20 / fps, every=7)) == [20, 27, 34]
    assert numbers(source, Selection(fps=fps / 2)) == list(range(0, 40, 2))
    assert len(source.contact_strip().getcolors(10**6)) > 2


CUT = {
    "a.ts": ("libx264", SHORT), "slices.ts": ("libx264", {**SHORT, "x264-params": "scenecut=0:slices=4"}),
    "hevc.ts": ("libx265", X265), "mpeg2.ts": ("mpeg2video", MPEG), "a.mpg": ("mpeg1video", MPEG),
    "a.vob": ("mpeg2video", MPEG), "b.vob": ("libx264", SHORT), "a.h264": ("libx264", SHORT),
    "a.m1v": ("mpeg1video", MPEG), "a.avi": ("libx264", SHORT), "b.avi": ("mpeg4", MPEG), "a.flv": ("libx264", SHORT),
    "a.nut": ("libx264", SHORT), "a.wmv": ("wmv2", {"q": "2"}), "a.mkv": ("libx264", SHORT),
    "a.ivf": ("libvpx", {"deadline": "realtime"}), "a.webm": ("libvpx-vp9", {"deadline": "realtime"}),
}  # fmt: skip


def noisy(number):
    """A picture of noise, so that each frame has thousands of bytes."""
    return np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def same(picture, other):
    return np.array_equal(np.asarray(picture), np.asarray(other))


@pytest.mark.parametrize("name", CUT)
def test_files_that_are_cut_anywhere(tmp_path, name):
    path = write(tmp_path / name, *CUT[name], frame=noisy, size=(128, 96))
    data = path.read_bytes()
    source = open_source(path)
    assert not source.info.broken
    whole = [picture for _, picture in source.frames()]
    broken = 0
    for end in random.Random(0).sample(range(len(data) // 3, len(data) * 39 // 40), 8):
        path.write_bytes(data[:end])
        infos, found = set(), []
        for _ in range(2):
            source = open_source(path)
            infos.add(source.info)
            found.append([picture for _, picture in source.frames(Selection(frames=source.info.frames))])
        assert len(infos) == 1 and source.info.frames == len(found[0]) < (40 if source.info.broken else 41)
        assert all(map(same, found[0], whole)), end
        assert all(map(same, found[1], whole)), end
        broken += source.info.broken
    assert broken >= 6  # some may be cut between two frames


def test_damage_gives_the_same_answer_each_time(tmp_path):
    """Frames that a decoder has mended, or that build on such, are never handed out."""
    path = write(tmp_path / "a.mkv", "libx264", SHORT, frame=noisy, size=(128, 96))
    whole = [picture for _, picture in open_source(path).frames()]
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for damaged in (3, 15, 17, 26, 38):
        changed, (position, size) = bytearray(data), packets[damaged]
        changed[position + 12 : position + size] = bytes(size - 12)
        path.write_bytes(changed)
        answers = set()
        for _ in range(3):
            source, found, message = open_source(path), [], ""
            try:
                for _, picture in source.frames():
                    found.append(picture)
            except ValueError as error:
                message = str(error)
            assert all(map(same, found, whole)) and message
            answers.add((len(found), source.info, message))
        assert len(answers) == 1
        start = 24 if damaged < 20 else 0  # another group of frames
        assert same(next(open_source(path).frames(Selection(start=start / 25)))[1], whole[start])


# --- rates ---------------------------------------------------------------------------------------------------


def test_a_last_frame_shorter_than_half_a_millisecond(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10000)
        packets = []
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 1000, stream.time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for number, packet in enumerate(packets):
            packet.duration = 1 if number == 4 else 1000
            container.mux(packet)
    source = open_source(path)
    assert source.info.frames == source.count() == len(list(source.frames())) == 5
    assert source.count(Selection(end=source.info.duration)) == 5
    assert source.count(Selection(start=0.4)) == source.count(Selection(start=0.4, fps=10)) == 1
    assert source.count(Selection(end=0.4)) == 4
    with pytest.raises(ValueError, match="ends at"):
        source.count(Selection(start=source.info.duration))


@pytest.mark.parametrize("fps", [8, 10, 12, 15, 16, 20, 25, 30, 40, 50])
@pytest.mark.parametrize("format", ["gif", "webp", "apng"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_rates_of_short_clips(tmp_path, format, count, fps):
    """The time of a GIF counts hundredths of a second: 3 frames at 30 fps last 30, 30 and 40 ms."""
    frames = [np.full((8, 8, 3), 30 * number, np.uint8) for number in range(count)]
    source = open_source(write_clip(frames, tmp_path / "a", format, fps))
    assert (source.info.fps, source.clip_fps()) == (fps, fps)
    assert source.count(Selection(fps=fps)) == count
    assert source.info.duration == pytest.approx(count / fps)


def check_rates(source, selection=None):
    selection = selection or Selection()
    assert isinstance(source.info.fps, Fraction)
    rate = source.clip_fps(selection)
    assert isinstance(rate, Fraction) and MIN_FPS <= float(rate) <= MAX_FPS
    check_clip("mp4", rate)


@pytest.mark.parametrize("milliseconds", [1, 20, 40, 60000])
def test_a_single_frame_has_a_rate_that_a_clip_may_have(tmp_path, milliseconds):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, stream.time_base
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            packet.duration = milliseconds
            container.mux(packet)
    source = open_source(path)
    assert source.info.frames == 1
    check_rates(source)
    check_rates(source, Selection(every=3))


def test_rates_are_fractions(kinds, tmp_path):
    for path in kinds.values():
        for selection in (None, Selection(every=2), Selection(frames=1), Selection(fps=7.5), Selection(start=0.3)):
            check_rates(open_source(path), selection)
    data = bytearray(write_video(tmp_path / "a.webm", 1, "libvpx", {"deadline": "realtime"}).read_bytes())
    place = data.find(b"\x23\xe3\x83")  # the default duration becomes void
    assert place > 0
    data[place : place + 3] = b"\xec" + bytes([0x80 | (data[place + 3] & 0x7F) + 2]) + b"\0"
    (tmp_path / "a.webm").write_bytes(data)
    source = open_source(tmp_path / "a.webm")
    check_rates(source)
    assert number_on(next(source.frames())[1]) == 0


@pytest.mark.parametrize("size", [(4001, 1), (1, 4001), (2000, 100), (100, 2000)])
def test_contact_strips_of_extreme_shapes(tmp_path, size):
    frames = [np.full((size[1], size[0], 3), 60 * number, np.uint8) for number in range(3)]
    source = open_source(write_clip(frames, tmp_path / "a", "gif", 10))
    strip = source.contact_strip()
    width = strip.width // 3
    assert strip.height == 96 and 1 <= width <= 8 * 96
    for number in range(3):
        assert strip.getpixel((width * number + width // 2, 47))[0] == pytest.approx(60 * number, abs=3)
