"""What cannot be used as input is refused before sampling, in words to act on, and the host is as it was before."""

from __future__ import annotations

import base64
import math
import os
import struct
import wave
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from host import KIND, difference, left_behind
from sources import EDIT, folder, mask, scene, video

LONGEST_MESSAGE = 3000
"""Characters: a message does not repeat a whole file."""


@pytest.fixture(scope="module")
def place(host) -> Path:
    """A folder that requests may name files in."""
    path = host.data / "bad input"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def frames(place) -> Path:
    return folder(place / "frames")


STILL = {"init_images": [np.asarray(scene(0))], "denoising_strength": 0.6}


@pytest.fixture(scope="module", autouse=True)
def before(host, place):
    """The still and the state of the host before anything is refused, and where it stores its files for a while."""
    temporary = place / "temporary"
    with host.client.options_set(temp_dir=str(temporary)):
        yield host.generate(**STILL).frames, host.state(), temporary


def refused(host, settings: dict, *words: str, **payload) -> None:
    message = host.refusal(settings, words, **{**EDIT, **payload})
    assert len(message) < LONGEST_MESSAGE


# --- files -----------------------------------------------------------------------------------------------------


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def silent_wave(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for start in range(0, 44100, 1024):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = 44100, start, Fraction(1, 44100)
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    return written(path, content[: round(len(content) * share)])


def without_pictures(path: Path) -> Path:
    """An MP4 with a complete index and none of the pictures it lists."""
    content = video(path, count=48, index_first=True).read_bytes()
    return written(path, content[: content.index(b"mdat") + 4])


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def folder_with(path: Path, name: str, content: bytes) -> Path:
    written(folder(path) / name, content)
    return path


def folder_with_another_size(path: Path) -> Path:
    scene(1, (64, 64)).save(folder(path) / "frame1.png")
    return path


def folder_with_a_link(path: Path) -> Path:
    (folder(path) / "frame9.png").symlink_to("/etc/passwd")
    return path


def folder_without_images(path: Path) -> Path:
    path.mkdir()
    written(path / "film.mp4", b"no image")
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    return path


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def file(path: Path, suffix: str, content: bytes) -> Path:
    return written(path.with_suffix(suffix), content)


def mp4(path: Path, share: float, **options) -> Path:
    """The first part of an MP4."""
    return cut(video(path.with_suffix(".mp4"), count=48, **options), share)


EMPTY_GIF = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 128, 0, 0) + bytes(6) + b";"
PLAYLIST = b"#EXTM3U\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n"
ADDRESS = "http://example.com/film.mp4"
PAGE = b"<!doctype html><p>404"
NO_VIDEO = ["is no video", "give an MP4"]
ALLOWED = ["not allowed", "base64", "inside", "--gradio-allowed-path"]
SOURCES = {
    "nothing there": (lambda path: path, ["there is no file or folder", "check its name"]),
    "below a file": (lambda path: written(path, b"x") / "film.mp4", ["there is no file or folder"]),
    "too long a name": (lambda path: path.with_name("a" * 300), ["cannot be read"]),
    "outside the allowed folders": (lambda path: "/etc/passwd", ["'/etc/passwd'", *ALLOWED]),
    "outside by dots": (lambda path: path / "../../../../../../../../../../etc", ALLOWED),
    "outside by dots from the data folder": (lambda path: "../" * 20 + "etc/passwd", ALLOWED),
    "outside by a link": (lambda path: link(path, "/etc"), ALLOWED),
    "outside by a home": (lambda path: "~root/film.mp4", ALLOWED),
    "outside by links in a folder": (folder_with_a_link, ["not allowed", "'frame9.png'", "a link", "inside"]),
    "a link to itself": (lambda path: link(path, path), ["cannot be read"]),
    "a device": (lambda path: "/dev/zero", ALLOWED),
    "a pipe": (lambda path: pipe(path), ["a device or a pipe", "give a video file"]),
    "an address": (lambda path: ADDRESS, [repr(ADDRESS), "an address", "download"]),
    "a path with a null byte": (lambda path: f"{path}\0.mp4", ["neither", "base64", "path"]),
    "empty": (lambda path: file(path, ".mp4", b""), ["empty (0 bytes)", "copied or downloaded completely"]),
    "text called .mp4": (lambda path: file(path, ".mp4", b"Dear diary, " * 99), NO_VIDEO),
    "zeros called .mov": (lambda path: file(path, ".mov", bytes(9999)), NO_VIDEO),
    "a page called .webm": (lambda path: file(path, ".webm", PAGE * 9), NO_VIDEO),
    "a playlist": (lambda path: file(path, ".mp4", PLAYLIST), NO_VIDEO),
    "MP4 without its index": (lambda path: mp4(path, 0.3), ["damaged or incomplete", "give an MP4"]),
    "MP4 without its end": (
        lambda path: mp4(path, 0.95, index_first=True),
        ["breaks off at", "set the end", "complete file"],
    ),
    "MP4 of no frames": (
        lambda path: without_pictures(path.with_suffix(".mp4")),
        ["no frame that can be decoded", "convert it to MP4"],
    ),
    "WAV": (lambda path: silent_wave(path.with_suffix(".wav")), ["no video", "wav"]),
    "only sound": (
        lambda path: sound_only(path.with_suffix(".mp4")),
        ["sound but no video", "give a file with moving pictures"],
    ),
    "GIF of no frames": (lambda path: file(path, ".gif", EMPTY_GIF), ["is damaged", "replace it"]),
    "half a PNG": (
        lambda path: cut(folder(path, count=1) / "frame0.png", 0.5),
        ["frame0.png is damaged", "replace it"],
    ),
    "PNG bomb": (lambda path: file(path, ".png", png(50000, 50000)), ["too many pixels", "scale it down"]),
    "too large a PNG": (lambda path: file(path, ".png", png(9000, 9000)), ["9000x9000", "67 million", "scale it down"]),
    "folder without images": (folder_without_images, ["holds no frames", ".png"]),
    "folder of different sizes": (folder_with_another_size, ["frame1.png is 64x64", "128x128", "one size"]),
    "folder with text": (
        lambda path: folder_with(path, "frame3.png", b"no picture"),
        ["frame3.png", "no picture", "replace it"],
    ),
    "folder with a bomb": (
        lambda path: folder_with(path, "frame3.png", png(50000, 50000)),
        ["frame3.png has too many pixels", "scale it down"],
    ),
    "base64 of text": (lambda path: as_base64(b"no video at all " * 9), NO_VIDEO),
    "base64 of a bomb": (lambda path: as_base64(png(50000, 50000) + bytes(99)), ["too many pixels", "scale it down"]),
    "base64 cut off": (lambda path: as_base64(b"no video at all " * 9)[:101], ["base64", "all of the base64"]),
    "base64 with a wrong letter": (lambda path: "A" * 5000 + "*" + "A" * 5000, ["neither", "base64", "path"]),
    "data URL with a wrong letter": (
        lambda path: "data:video/mp4;base64," + "A" * 99 + "*",
        ["no base64", "give a path"],
    ),
    "data URL of a page": (lambda path: "data:text/html;base64," + as_base64(PAGE), NO_VIDEO),
    "data URL in plain text": (lambda path: "data:text/html,<p>404", ["without base64", "data:video/mp4;base64,"]),
    "data URL of nothing": (lambda path: "data:video/mp4;base64,", ["empty (0 bytes)"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_source_that_cannot_be_read(host, place, name):
    make, words = SOURCES[name]
    source = str(make(place / name))
    refused(host, {"source": source}, "source", *words)


MASKS = {
    "not there": (lambda path: path, ["there is no file"]),
    "outside": (lambda path: "/etc/passwd", ALLOWED),
    "text called .png": (lambda path: written(path.with_suffix(".png"), b"no mask " * 99), NO_VIDEO),
    "only sound": (lambda path: sound_only(path.with_suffix(".mp4")), ["sound but no video"]),
    "MP4 of no frames": (lambda path: without_pictures(path.with_suffix(".mp4")), ["no frame that can be decoded"]),
    "base64 of text": (lambda path: as_base64(b"no mask at all " * 9), NO_VIDEO),
    "too few": (lambda path: folder(path, mask, 4), ["4 frames", "6", "give one mask, one for each of"]),
    "too many": (lambda path: folder(path, mask, 7), ["7 frames", "6", "give one mask, one for each of"]),
    "of another shape": (
        lambda path: folder(path, mask, size=(96, 128)),
        ["96x128", "128x128", "masks of the source's shape"],
    ),
    "of different sizes": (folder_with_another_size, ["frame1.png is 64x64", "one size"]),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_that_does_not_fit(host, place, frames, name):
    make, words = MASKS[name]
    refused(host, {"source": str(frames), "mask": str(make(place / f"mask {name}"))}, "mask", *words)


def test_neither_an_init_image_nor_a_source(host):
    words = ("source", "neither an init image nor a source", "`init_images`")
    refused(host, {"frames": 3}, *words, init_images=[])


def test_a_refused_path_names_each_folder_once(host):
    message = host.refusal({"source": "/etc/passwd"}, **EDIT)
    assert message.splitlines()[1].count(str(host.data)) == 1


def test_mask_without_a_source(host, place):
    settings, words = {"mask": str(place / "mask.png")}, ("mask", "without a source", "give `source`")
    refused(host, settings, *words, init_images=STILL["init_images"])


# --- settings --------------------------------------------------------------------------------------------------

SETTINGS = [
    ({"source_start": 3}, ["start is 3", "ends at 0.75 s", "earlier start"]),
    ({"source_start": 0.75}, ["start is 0.75", "ends at 0.75 s", "earlier start"]),
    ({"source_start": 0.5, "source_end": 0.25}, ["source_end is 0.25", "after the start, 0.5 s"]),
    ({"source_start": 0.5, "source_end": 0.5}, ["source_end is 0.5", "after the start, 0.5 s"]),
    ({"source_start": 0.01, "source_end": 0.02}, ["no frame", "from 0.01 to 0.02 s", "longer range"]),
    ({"source_start": -0.5}, ["source_start", "-0.5", "from 0 to 360000"]),
    ({"source_end": -1}, ["source_end", "-1", "from 0 to 360000"]),
    ({"source_fps": 0.01}, ["source_fps is 0.01", "0.1 to"]),
    ({"source_fps": 121}, ["source_fps", "121", "120"]),
    ({"source_every": 0}, ["source_every", "0", "from 1 to 1000"]),
    ({"source_every": 1.5}, ["source_every", "1.5", "whole number"]),
    ({"frames": 100001}, ["frames", "100001", "100000"]),
    ({"frames": -1}, ["frames", "-1", "from 1 to 100000"]),
    ({"frames": 1025, "loop": True}, ["loop", "1025 frames", "at most 1024"]),
    ({"fps": 0.05}, ["fps", "0.05", "from 0.1 to 120"]),
    ({"fps": 60, "formats": ["gif"]}, ["fps", "60", "gif", "50", "use mp4"]),
    ({"source_audio": True}, ["source_audio", "no sound", "give false"]),
    ({"source_begin": 1}, ["source_begin", "did you mean", '"source_']),
    ({"Source": "film.mp4"}, ["'Source'", "did you mean", '"source"']),
    ({"sourc_fps": 8}, ["sourc_fps", '"source_fps"']),
    ({"prompts": "a red circle"}, ["prompts", "'a red circle'", "frame: prompt"]),
    ({"prompts": "0: a\n0: b"}, ["prompts", "frame 0 has two prompts", "each frame once"]),
    ({"prompts": "-1: a"}, ["prompts", "-1: a", "frames count from 0"]),
    ({"prompts": ["0: a"]}, ["prompts", "0: a", "frame: prompt"]),
    ({"prompts": "0: a AND b\n4: c"}, ["prompts", "frame 0 has 2 part", "frame 4 has 1", "AND", "as many parts"]),
    (
        {"prompts": "0: a <lora:none:x>\n4: b"},
        ["prompts", "<lora:none:x>", "same weights" if "LoRA weights by frame" in KIND.lacks else "write numbers"],
    ),
]


@pytest.mark.parametrize("settings, words", SETTINGS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_setting_that_does_not_fit(host, frames, settings, words):
    refused(host, {"source": str(frames), **settings}, *words)


NO_NUMBERS = [math.nan, math.inf, -math.inf, "8", True, None, [], {}, [8]]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
@pytest.mark.parametrize("key", ["frames", "fps", "source_start", "source_end", "source_fps", "source_every"])
def test_no_number(host, frames, key, value):
    refused(host, {"source": str(frames), key: value}, key, repr(value), "number")


@pytest.mark.parametrize("value", [5, 0, True, None, ["film.mp4"], {"path": "film.mp4"}], ids=str)
@pytest.mark.parametrize("key", ["source", "mask"])
def test_no_text(host, frames, key, value):
    refused(host, {"source": str(frames), key: value}, key, repr(value), "give a text")


@pytest.mark.parametrize("value", ["yes", 1, None, []], ids=str)
def test_neither_true_nor_false(host, frames, value):
    refused(host, {"source": str(frames), "source_audio": value}, "source_audio", repr(value), "true or false")


# --- the owner of the server -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_flags_of_the_owner(start, tmp_path):
    """preload.py: more folders than the host's own, and less than a clip or a source may have elsewhere."""
    flags = ("--zs2-source-dir", str(tmp_path / "films"), "--zs2-max-frames", "4", "--zs2-max-source-pixels", "9000")
    (tmp_path / "films").mkdir()
    small = folder(tmp_path / "films" / "small", size=(64, 64))
    with start(*flags) as host:
        clip = host.generate(**EDIT, alwayson_scripts={"ZS2": {"args": [{"source": str(small), "frames": 3}]}})
        assert len(clip.files) == 3
        for settings, payload, words in (
            ({"frames": 5}, STILL, ["frames", "5", "--zs2-max-frames", "4"]),
            ({"source": str(small)}, {}, ["source", "6", "--zs2-max-frames", "4", "source_end"]),
            (
                {"source": str(folder(tmp_path / "films" / "large"))},
                {},
                ["128x128", "scale it down", "--zs2-max-source-pixels", "9000"],
            ),
            ({"source": str(folder(tmp_path / "elsewhere"))}, {}, ["elsewhere", str(tmp_path / "films")]),
        ):
            refused(host, settings, *words, **payload)


# --- afterwards ------------------------------------------------------------------------------------------------


def test_the_host_is_as_before(host, place, before):
    """After all of these: the next still is the same bit for bit, nothing hangs on the host, no file waits anywhere."""
    still, state, temporary = before
    refused(host, {"source": as_base64(b"no video at all " * 9)})
    assert difference(host.generate(**STILL).frames, still) == 0
    assert left_behind(state, host.state()) == []
    assert not host.state()["job"]["running"]
    assert list(temporary.rglob("*")) == []


def test_at_least_40():
    """The number of different bad inputs that the issue asks for, without those that only differ in a number's type."""
    assert len(SOURCES) + len(MASKS) + len(SETTINGS) >= 40
