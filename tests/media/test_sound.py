"""A clip gets the sound of the time that its frames come from, in time with them, or stays as it was."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from media_files import SIZE, paint

from zs2_lib.media import sound as sound_module
from zs2_lib.media.read import open_source
from zs2_lib.media.sound import add_audio
from zs2_lib.media.source import Selection
from zs2_lib.media.write import write_clip

av = pytest.importorskip("av")


SOUNDS = {
    "aac.mp4": ("libx264", "aac", 44100),
    "aac.mkv": ("libx264", "aac", 48000),
    "mp3.mp4": ("libx264", "libmp3lame", 44100),
    "pcm.mov": ("libx264", "pcm_s16le", 22050),
    "opus.webm": ("libvpx", "libopus", 48000),
}


def write_sound(path, video_codec="libx264", audio_codec="aac", rate=44100, seconds=4, fps=24, layout="stereo"):
    """A numbered video with a beep of 50 ms at 0 s, 0.5 s, 1 s, ..."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(video_codec, rate=fps, options={"g": "24"})
        pictures.width, pictures.height = SIZE
        pictures.pix_fmt = "yuv420p"
        sound = container.add_stream(audio_codec, rate=rate, layout=layout)
        if audio_codec == "wmav2":
            sound.bit_rate = 128000
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
    clip = write_clip(pictures, tmp_path / "clip", format, source.clip_fps(selection), "seed 1")
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
    clip = write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", "mp4", 24)
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
    clip = write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", "mp4", 24)
    add_audio(clip, source, selection)
    assert beeps(clip)[1][:3] == pytest.approx([0.25, 0.75, 1.25], abs=2e-3)


def test_sound_of_a_clip_with_frames_in_between(tmp_path, sounds):
    """2m - 1 frames at twice the rate, as frame interpolation makes them, are a little shorter than the selection."""
    source = open_source(sounds["aac.mp4"])
    selection = Selection(fps=6)
    frames = list(source.frames(Selection(fps=12)))[:-1]
    clip = write_clip((picture for _, picture in frames), tmp_path / "clip", "mp4", 12)
    add_audio(clip, source, selection)
    assert len(beeps(clip)[1]) == 8


def write_amr(path):
    """A 3GP as phones write it: five frames of AMR, of 20 ms each, in a packet. The speech is noise."""
    generator = np.random.default_rng(0)
    (path.parent / "noise.amr").write_bytes(b"#!AMR\n" + b"".join(b"\x3c" + generator.bytes(31) for _ in range(200)))
    with av.open(str(path.parent / "noise.amr")) as speech, av.open(str(path), "w", format="3gp") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        sound = container.add_stream_from_template(speech.streams.audio[0])
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        for packet in speech.demux():
            if packet.size:
                packet.stream = sound
                container.mux(packet)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    packets = []
    for place, size in places:  # FFmpeg writes a packet for each frame: up to five in a row become one
        if packets and sum(packets[-1]) == place and packets[-1][1] < 5 * size:
            packets[-1][1] += size
        else:
            packets.append([place, size])
    if len({size for _, size in packets}) > 1:
        pytest.skip("this FFmpeg puts sound and pictures together in another way")
    data = bytearray(path.read_bytes())
    table = data.index(b"samr")
    for name, values in (
        (b"stts", (1, len(packets), 800)), (b"stsz", (packets[0][1], len(packets))), (b"stsc", (1, 1, 1, 1)),
        (b"stco", (len(packets), *(place for place, _ in packets))),
    ):  # fmt: skip
        place = data.index(name, table) + 8
        data[place : place + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    path.write_bytes(data)
    return path


def loudness(path, start=0):
    """(seconds of sound from `start` on, its root mean square)"""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", 48000)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.clip(np.concatenate([frame.to_ndarray()[0] for frame in frames]), -1, 1)
    samples = samples[int(start * 48000) :]
    return len(samples) / 48000, np.sqrt((samples**2).mean())


@pytest.mark.parametrize("format", ["mp4", "webm"])
@pytest.mark.parametrize("start", [0, 1.5])
def test_packets_of_several_frames(tmp_path, format, start):
    if "amrnb" not in av.codecs_available:
        pytest.skip("this PyAV cannot decode AMR")
    source, selection = open_source(write_amr(tmp_path / "phone.3gp")), Selection(start=start)
    assert source.info.has_audio
    clip = write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", format, source.clip_fps(selection))
    add_audio(clip, source, selection)
    seconds, loud = loudness(clip)
    assert seconds == pytest.approx(4 - start, abs=0.05)
    assert loud > loudness(tmp_path / "noise.amr", start)[1] / 2  # the codec drops some of the noise


@pytest.mark.parametrize("name", ["wma.wmv", "mp2.mpg", "ac3.avi", "pcm.avi", "mp3.flv", "aac.ts"])
def test_sound_of_other_containers_stays_in_time(tmp_path, name):
    codec = {"wma": "wmav2", "pcm": "pcm_s16le", "mp3": "libmp3lame"}.get(name.split(".")[0])
    video = {"wmv": "wmv2", "mpg": "mpeg2video", "flv": "flv"}.get(name.split(".")[1], "mpeg4")
    path = write_sound(tmp_path / name, video, codec or name.split(".")[0], 44100, fps=25)
    source, selection = open_source(path), Selection(start=1.2)
    assert source.info.has_audio
    clip = write_clip((p for _, p in source.frames(selection)), tmp_path / "clip", "mp4", source.clip_fps(selection))
    add_audio(clip, source, selection)
    _, starts, end = beeps(clip)
    found = beeps(path)[1] - float(source.zero) - 1.2
    np.testing.assert_allclose(starts[:5], found[found > 0][:5], atol=0.02)
    assert end == pytest.approx(2.8, abs=0.06)


def test_sound_that_is_announced_and_not_there(tmp_path):
    data = write_sound(tmp_path / "a.ts", "mpeg2video", "mp2", 48000, seconds=2, fps=25).read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    silent = tmp_path / "silent.ts"
    silent.write_bytes(b"".join(packet for packet in packets if (packet[1] & 31) << 8 | packet[2] != 0x101))
    source = open_source(silent)
    assert not source.info.has_audio
    clip = write_clip((p for _, p in source.frames()), tmp_path / "clip", "mp4", source.clip_fps())
    with pytest.raises(ValueError, match=r"silent.ts has no sound to add to clip.mp4"):
        add_audio(clip, source)


def test_sound_that_cannot_be_added_leaves_the_clip_alone(tmp_path, sounds, kinds, monkeypatch):
    source = open_source(sounds["aac.mp4"])
    clip = write_clip((p for _, p in source.frames()), tmp_path / "clip", "mp4", 24)
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
    webm = write_clip((p for _, p in source.frames()), tmp_path.parent / "clip", "webm", 24)
    with pytest.raises(ValueError, match="the sound of damaged.mov cannot be added to clip.webm .*convert it to AAC"):
        add_audio(webm, open_source(damaged))

    monkeypatch.setattr(sound_module, "_copied_sound", lambda *arguments: iter(()))
    refused("aac.mp4 has no sound from 0.00 to 4.00 s to add to clip.mp4", clip, source)

    def broken(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(sound_module, "_copied_sound", broken)
    refused(None, clip, source, error=KeyboardInterrupt)
