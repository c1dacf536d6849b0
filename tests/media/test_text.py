"""The text of a clip comes back from its file as it was given, whatever is in it, and after its file was remuxed."""

import os
import random
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.text import read_text
from zs2_lib.media.write import write_clip

av = pytest.importorskip("av")

LINES = (
    'a café "by" the sea, \\n is no line break \\, it\'s {json: ["a", 1]}\r\n',
    "猫と犬, 😀👩‍👩‍👧 𝔘𝔫𝔦 \U0010ffff, שלום (مرحبا:1.2), <lora:x:0.8>; # = % &amp; \t\n",
    "Negative prompt: blurry,  two  spaces, Steps: 3\n\n",
    "Steps: 20, Sampler: Euler a, ZS2 prompts: \"0: a, b\\n8: c\"\n",
)  # fmt: skip
SHORT = "".join(LINES)


def mixed(size):
    """So many bytes and more of UTF-8 of the lines in any order."""
    choose, text = random.Random(0), ""
    while len(text.encode()) < size:
        text += choose.choice(LINES)
    return text


TEXTS = {
    "lines": SHORT,
    "100 KB": mixed(100_000),
    "latin-1": "é\xa0ÿ" * 100,
    "ends in spaces": "a  ",
    "ends in line breaks": "a\r\n\n",
    "begins with spaces": " \n a",
    "one": "x",
    **{f"{size} bytes": "y" * size for size in (254, 255, 256, 65_535, 65_536)},
}


def clip(count=3):
    return [np.full((16, 16, 3), 60 * number, np.uint8) for number in range(count)]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_text_comes_back(tmp_path, format, name):
    assert read_text(write_clip(clip(), tmp_path / "a", format, 8, TEXTS[name])) == TEXTS[name]


def remux(source, target, format):
    """What `ffmpeg -i source -c copy target` does."""
    with av.open(str(source), format="apng" if format == "apng" else None) as old, av.open(str(target), "w") as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


REMUXED = [
    ("mp4", "mp4"), ("mp4", "mkv"), ("webm", "webm"), ("webm", "mkv"), ("webm", "mp4"), ("gif", "gif"),
    ("apng", "apng"),
]  # fmt: skip


@pytest.mark.parametrize("format, to", REMUXED)
def test_after_a_remux(tmp_path, format, to):
    """Not WebP: FFmpeg cannot read an animated one. MOV takes texts up to 64 KB."""
    for text in (SHORT, TEXTS["100 KB"]):
        path = write_clip(clip(), tmp_path / "a", format, 8, text)
        remux(path, tmp_path / f"b.{to}", format)
        assert read_text(tmp_path / f"b.{to}") == text
        remux(tmp_path / f"b.{to}", tmp_path / f"c.{format}", format)
        assert read_text(tmp_path / f"c.{format}") == text


@pytest.mark.skipif(not shutil.which("HandBrakeCLI"), reason="HandBrakeCLI is not installed")
@pytest.mark.parametrize("to", ["mp4", "mkv"])
@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_after_handbrake(tmp_path, format, to):
    frames = [np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)] * 16
    path = write_clip(frames, tmp_path / "a", format, 8, TEXTS["100 KB"])
    command = ["HandBrakeCLI", "-i", path, "-o", tmp_path / f"b.{to}", "-f", f"av_{to}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)})
    assert read_text(tmp_path / f"b.{to}") == TEXTS["100 KB"]


@pytest.mark.parametrize("format", FORMATS)
def test_no_text(tmp_path, format):
    assert read_text(write_clip(clip(), tmp_path / "a", format, 8)) is None


@pytest.mark.parametrize("format", FORMATS)
def test_what_no_file_carries_costs_no_clip(tmp_path, format):
    """Half a character, as JSON can hold it, and a zero byte, which ends a text in C."""
    assert read_text(write_clip(clip(), tmp_path / "a", format, 8, "a\ud83d b\0c")) == "a? b\ufffdc"


@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_a_text_that_is_no_utf8(tmp_path, format):
    path = write_clip(clip(), tmp_path / "a", format, 8, "a caf# at the sea")
    path.write_bytes(path.read_bytes().replace(b"caf#", b"caf\xe9"))
    assert read_text(path) == "a caf\ufffd at the sea"


def test_stills_of_the_webui(tmp_path):
    piexif = pytest.importorskip("piexif")
    from piexif import helper

    comment = helper.UserComment.dump(SHORT, encoding="unicode")
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    image = Image.fromarray(clip()[0])
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", SHORT)
    image.save(tmp_path / "a.png", pnginfo=info)
    for suffix in ("jpg", "webp"):
        image.save(tmp_path / f"a.{suffix}")
        piexif.insert(exif, str(tmp_path / f"a.{suffix}"))
    for suffix in ("png", "jpg", "webp"):
        assert read_text(tmp_path / f"a.{suffix}") == SHORT


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "png"])
def test_damaged_files_are_refused_in_words_or_give_the_text(tmp_path, format):
    path = write_clip(clip(), tmp_path / "a", format, 8, SHORT)
    data = path.read_bytes()
    refused = 0
    for end in random.Random(1).sample(range(len(data)), 60):
        path.write_bytes(data[:end])
        try:
            assert read_text(path) in (SHORT, None) or format == "gif"
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused
    for position in random.Random(2).sample(range(len(data)), 60):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            read_text(path)
        except ValueError as error:
            assert path.name in str(error)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_text(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no frames"):
        read_text(tmp_path / "empty")
