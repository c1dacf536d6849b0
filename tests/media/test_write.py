"""Clips are written, read back with independent readers, and compared: frames, colours, time and text."""

import io
import os
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageSequence

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.write import clip_bytes, write_clip

av = pytest.importorskip("av")


TEXT = (
    "a café by the sea, 猫と犬, 😀 <lora:x:0.8>\n"
    "Negative prompt: " + "blurry, " * 60 + "\n"
    "Steps: 20, Sampler: Euler a, Seed: 1"
)


# The largest mean error (levels of 255) that each format may make in a frame of the moving clip below.
MEAN_ERROR = {"mp4": 3, "webm": 3, "webp": 3, "gif": 8, "apng": 0, "png": 0}
ANIMATED_IMAGES = ("gif", "webp", "apng")
TICK = {"mp4": 1e-3, "webm": 1e-3, "gif": 1e-2, "webp": 1e-3, "apng": 1e-3}  # seconds


def moving_clip(count=5, width=64, height=48):
    """A grey-violet gradient at rest and a red square that moves right. (height, width, 3) each"""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2).astype(np.uint8)
    frames = []
    for number in range(count):
        frame = ground.copy()
        left = number * width // (2 * count)
        frame[height // 4 : height // 2, left : left + width // 4] = (230, 40, 60)
        frames.append(frame)
    return frames


def read(path, format):
    """(frames, seconds of each frame, text) of a written clip. Seconds are None for a PNG folder."""
    if format in ("mp4", "webm"):
        return read_video(path)
    if format == "png":
        images = [Image.open(file) for file in sorted(path.iterdir())]
        return [np.asarray(image) for image in images], None, images[0].info.get("parameters")
    with Image.open(path) as image:
        text = webui_text(image)
        frames, seconds = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            seconds.append(frame.info.get("duration", 0) / 1000)
    return frames, seconds, text


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        times = [frame.time for frame in decoded] + [container.duration / av.time_base]
        text = container.metadata.get("comment") or container.metadata.get("COMMENT")
        return [bt709_to_rgb(frame) for frame in decoded], list(np.diff(times)), text


def bt709_to_rgb(frame):
    """What the standard says that limited-range BT.709 4:2:0 samples look like, independent of FFmpeg's conversion."""
    height, width = frame.height, frame.width
    planes = frame.to_ndarray(format="yuv420p")
    luma = planes[:height].astype(float)
    chroma = planes[height:].reshape(2, height // 2, width // 2).repeat(2, axis=1).repeat(2, axis=2).astype(float)
    y, (pb, pr) = (luma - 16) / 219, (chroma - 128) / 224
    rgb = np.stack([y + 1.5748 * pr, y - 0.18732 * pb - 0.46812 * pr, y + 1.8556 * pb], axis=2)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def webui_text(image):
    """The text as the WebUI's PNG Info finds it, without piexif."""
    if "parameters" in image.info:
        return image.info["parameters"]
    if "exif" in image.info:
        assert b"\x92\x86\x00\x07" in image.info["exif"]  # type UNDEFINED, else piexif fails
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        return comment[8:].decode("utf-16-be")
    comment = image.info.get("comment")
    return comment.decode("utf8") if isinstance(comment, bytes) else comment


def mean_error(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(tmp_path, format):
    clip = moving_clip()
    path = write_clip(clip, tmp_path / "clip", format, 8, TEXT)

    assert path == tmp_path / ("clip" if format == "png" else f"clip.{format}")
    assert names(tmp_path) == [path.name]
    frames, seconds, text = read(path, format)
    assert len(frames) == len(clip)
    for frame, original in zip(frames, clip):
        assert frame.shape == original.shape
        assert mean_error(frame, original) <= MEAN_ERROR[format]
    assert text == TEXT
    if seconds is not None:
        assert sum(seconds) == pytest.approx(5 / 8, abs=TICK[format])


@pytest.mark.parametrize("format", FORMATS)
def test_odd_sizes(tmp_path, format):
    clip = moving_clip(3, width=33, height=47)
    frames, _, _ = read(write_clip(clip, tmp_path / "clip", format, 8), format)

    if format in ("mp4", "webm"):  # one more row and column, a repetition of the last
        assert {frame.shape for frame in frames} == {(48, 34, 3)}
        assert mean_error(frames[0][:47, 33], frames[0][:47, 32]) < 6
        assert mean_error(frames[0][47], frames[0][46]) < 6
    else:
        assert {frame.shape for frame in frames} == {(47, 33, 3)}
    for frame, original in zip(frames, clip):
        assert mean_error(frame[:47, :33], original) <= 2 * MEAN_ERROR[format]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (64, 48)])
def test_one_frame(tmp_path, format, size):
    clip = [Image.new("RGB", size, (200, 30, 90))]
    frames, seconds, text = read(write_clip(clip, tmp_path / "clip", format, 8, TEXT), format)
    assert len(frames) == 1 and text == TEXT
    assert np.abs(frames[0][: size[1], : size[0]].astype(int) - (200, 30, 90)).max() <= 3
    if format in ("mp4", "webm", "gif"):  # of one frame, readers of WebP and APNG do not report a duration
        assert sum(seconds) == pytest.approx(1 / 8, abs=TICK[format])


@pytest.mark.parametrize("format", FORMATS)
def test_equal_frames_are_all_kept(tmp_path, format):
    still, other = moving_clip(2)
    clip = [still, still, still, other, other, still]
    frames, seconds, _ = read(write_clip(clip, tmp_path / "clip", format, 12), format)

    assert len(frames) == 6
    for frame, original in zip(frames, clip):
        assert mean_error(frame, original) <= MEAN_ERROR[format]
    if seconds is not None:
        assert sum(seconds) == pytest.approx(0.5, abs=TICK[format])
        assert max(seconds) - min(seconds) <= TICK[format] * 1.01

    frames, _, _ = read(write_clip([still] * 4, tmp_path / "still", format, 12), format)
    assert len(frames) == 4


@pytest.mark.parametrize("format", FORMATS)
def test_flat_colours_come_back(tmp_path, format):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (230, 40, 60)]
    clip = [Image.new("RGB", (32, 32), colour) for colour in colours]
    frames, _, _ = read(write_clip(clip, tmp_path / "clip", format, 8), format)
    for frame, colour in zip(frames, colours):
        assert np.abs(frame.astype(int) - colour).max() <= {"png": 0, "apng": 0, "gif": 0}.get(format, 3), colour


@pytest.mark.parametrize("format", FORMATS)
def test_generators_and_kinds_of_frames(tmp_path, format):
    clip = moving_clip(3)
    reused = np.empty_like(clip[0])  # a generator may yield one buffer again and again

    def frames():
        for frame in clip:
            reused[:] = frame
            yield reused

    from_generator, _, _ = read(write_clip(frames(), tmp_path / "a", format, 8), format)
    from_images, _, _ = read(write_clip([Image.fromarray(f) for f in clip], tmp_path / "b", format, 8), format)
    np.testing.assert_array_equal(from_generator, from_images)
    assert mean_error(from_images[2], clip[2]) <= MEAN_ERROR[format]


@pytest.mark.parametrize("format", FORMATS)
def test_a_frames_own_metadata_stays_out(tmp_path, format):
    frames = [Image.fromarray(frame) for frame in moving_clip(2)]
    for frame in frames:
        frame.info.update(parameters="old", comment=b"old", exif=b"Exif\0\0old", icc_profile=b"old", duration=9999)
    path = write_clip(frames, tmp_path / "clip", format, 10)
    read_back, seconds, text = read(path, format)
    assert text is None and len(read_back) == 2
    assert seconds is None or sum(seconds) == pytest.approx(0.2)
    if format not in ("mp4", "webm"):
        with Image.open(path / "00001.png" if format == "png" else path) as image:
            assert not {"parameters", "comment", "exif", "icc_profile"} & set(image.info)


@pytest.mark.parametrize("fps", [8, 12.5, 23.976, 29.97, 50, Fraction(30000, 1001), np.float32(7.5), 0.1])
@pytest.mark.parametrize("format", ANIMATED_IMAGES)
def test_rounded_durations_add_up(tmp_path, format, fps):
    clip = moving_clip(20, width=16, height=16)
    _, seconds, _ = read(write_clip(clip, tmp_path / "clip", format, fps), format)
    np.testing.assert_allclose(np.cumsum(seconds), np.arange(1, 21) / float(fps), atol=TICK[format])


def test_gif_at_8_fps_alternates(tmp_path):
    _, seconds, _ = read(write_clip(moving_clip(4), tmp_path / "clip", "gif", 8), "gif")
    assert seconds == [0.12, 0.13, 0.12, 0.13]


@pytest.mark.parametrize(
    "fps, rate",
    [(8, 8), (12.5, Fraction(25, 2)), (29.97, Fraction(2997, 100)), (30000 / 1001, Fraction(30000, 1001)), (240, 240)],
)
@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_video_frame_rate_is_exact(tmp_path, format, fps, rate):
    path = write_clip(moving_clip(7), tmp_path / "clip", format, fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    expected = [Fraction(number) / rate for number in range(7)]
    if format == "mp4":
        assert times == expected
    else:  # Matroska counts milliseconds
        np.testing.assert_allclose(np.array(times, float), np.array(expected, float), atol=6e-4)


@pytest.mark.parametrize("loop", [True, False])
def test_loop(tmp_path, loop):
    plays = {}
    for format in ANIMATED_IMAGES:
        with Image.open(write_clip(moving_clip(2), tmp_path / "clip", format, 8, loop=loop)) as image:
            plays[format] = image.info.get("loop")
    assert plays == ({"gif": 0, "webp": 0, "apng": 0} if loop else {"gif": None, "webp": 1, "apng": 1})


@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_video_is_tagged_as_what_it_is(tmp_path, format):
    path = write_clip(moving_clip(2), tmp_path / "clip", format, 8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ({"mp4": "h264", "webm": "vp9"}[format], "yuv420p")
        bt709, limited = 1, 1
        assert (context.colorspace, context.color_primaries, context.color_trc) == (bt709, bt709, bt709)
        assert context.color_range == limited


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "png"])  # whose ZIP has times
def test_the_same_frames_give_the_same_bytes(tmp_path, format):
    """Whatever is in the memory that the writer gets, and for x264 in a width that its fast code does not fit."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((192, 128), Image.Resampling.BICUBIC)
    clips = set()
    for count in range(4):
        kept = [os.urandom(7000 * count) for _ in range(200)]
        clips.add(
            clip_bytes(write_clip([picture.rotate(angle) for angle in range(0, 60, 2)], tmp_path / "a", format, 8))
        )
        del kept
    assert len(clips) == 1


def test_mp4_can_start_before_it_is_loaded(tmp_path):
    data = write_clip(moving_clip(2), tmp_path / "clip", "mp4", 8).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"colr" in data


def test_gif_has_one_palette_and_no_crawling(tmp_path):
    """A moving square must not disturb the dithering of the gradient around it."""
    clip = moving_clip(5, width=96, height=96)
    data = write_clip(clip, tmp_path / "clip", "gif", 8).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    colours = np.unique(np.concatenate(frames).reshape(-1, 3), axis=0)
    assert 200 < len(colours) <= 256
    for before, after, source_before, source_after in zip(frames, frames[1:], clip, clip[1:]):
        still = (source_before == source_after).all(axis=2)
        assert 0.5 < still.mean() < 1
        np.testing.assert_array_equal(before[still], after[still])


def test_gif_dithering_keeps_mean_colours(tmp_path):
    """A gradient of far more than 256 colours is right on average: over 4x4 pixels, and as a whole."""
    clip = moving_clip(1, width=256, height=256)
    (frame,), _, _ = read(write_clip(clip, tmp_path / "clip", "gif", 8), "gif")
    blocks = [a.reshape(64, 4, 64, 4, 3).astype(float).mean(axis=(1, 3)) for a in (frame, clip[0])]
    assert mean_error(*blocks) < 1.8  # 2.3 without dithering
    assert abs((blocks[0] - blocks[1]).mean()) < 0.5  # 1.5 if Pillow's lookup were not centred


@pytest.mark.parametrize("format", ANIMATED_IMAGES)
def test_animated_images_store_only_what_changed(tmp_path, format):
    frame = np.random.default_rng(0).integers(100, 256, (64, 64, 3), dtype=np.uint8)
    moved = frame.copy()
    moved[41:49, 31:43] = 0
    clips = {"one": [frame], "equal": [frame, frame], "moved": [frame, moved]}
    paths = {name: write_clip(clip, tmp_path / name, format, 8) for name, clip in clips.items()}
    size = {name: path.stat().st_size for name, path in paths.items()}
    assert size["moved"] < 1.2 * size["one"]
    if format != "apng":  # Pillow's way to keep an equal frame is to store it whole
        assert size["equal"] < 1.1 * size["one"]

    (_, frame_2), _, _ = read(paths["moved"], format)
    dark = frame_2.max(axis=2) < 60
    assert dark[41:49, 31:43].mean() > 0.95
    assert dark.sum() <= 8 * 12


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", ["x", "y" * 255, "z" * 256, "ä" * 20000, 'quotes " and = ; # \\ and\r\n\ttabs'])
def test_text_of_any_kind(tmp_path, format, text):
    path = write_clip(moving_clip(2, 16, 16), tmp_path / "clip", format, 8, text)
    assert read(path, format)[2] == text


def test_webui_reads_the_exif_comment(tmp_path):
    piexif, helper = pytest.importorskip("piexif"), pytest.importorskip("piexif.helper")
    with Image.open(write_clip(moving_clip(3), tmp_path / "clip", "webp", 8, TEXT)) as image:
        comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert helper.UserComment.load(comment) == TEXT


def test_png_folder(tmp_path):
    clip = moving_clip(3)
    path = write_clip(clip, tmp_path / "frames", "png", 8, TEXT)
    assert names(path) == ["00001.png", "00002.png", "00003.png"]
    for file, frame in zip(sorted(path.iterdir()), clip):
        with Image.open(file) as image:
            assert image.info["parameters"] == TEXT
            np.testing.assert_array_equal(np.asarray(image), frame)


def test_png_folder_is_written_while_frames_arrive(tmp_path):
    waiting = []

    def frames():
        for frame in moving_clip(4):
            yield frame
            waiting.append(len(list(tmp_path.rglob("*.png"))))

    write_clip(frames(), tmp_path / "frames", "png", 8)
    assert waiting == [1, 2, 3, 4]


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"gif"})
    with pytest.raises(RuntimeError, match="lacks the encoder libx264.*choose webp"):
        write_clip(moving_clip(2), tmp_path / "clip", "mp4", 8)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(RuntimeError, match="pip install av"):
        write_clip(moving_clip(2), tmp_path / "clip", "webm", 8)
    assert names(tmp_path) == []


class Broken(Exception):
    pass


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 2])
def test_a_failure_leaves_nothing_and_keeps_the_old_clip(tmp_path, format, error, after):
    def frames():
        yield from moving_clip(after)
        raise error

    with pytest.raises(error):
        write_clip(frames(), tmp_path / "clip", format, 8)
    assert names(tmp_path) == []

    path = write_clip(moving_clip(3), tmp_path / "clip", format, 8, "old")
    before = clip_bytes(path)
    with pytest.raises(error):
        write_clip(frames(), tmp_path / "clip", format, 8, "new")
    assert clip_bytes(path) == before
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_an_old_clip_is_replaced(tmp_path, format):
    write_clip(moving_clip(3), tmp_path / "new" / "folders" / "clip", format, 8, "old")
    path = write_clip(moving_clip(2), tmp_path / "new" / "folders" / "clip", format, 8, "new")
    frames, _, text = read(path, format)
    assert (len(frames), text) == (2, "new")
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_an_error(tmp_path, format):
    resource = pytest.importorskip("resource")  # not on Windows
    noise = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    path = write_clip(noise, tmp_path / "clip", format, 8)
    complete = clip_bytes(path)
    size = path.stat().st_size if path.is_file() else (path / "00001.png").stat().st_size

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError):
                write_clip(noise, tmp_path / "clip", format, 8)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names(tmp_path) == [path.name]
        assert clip_bytes(path) == complete


def test_an_old_folder_returns_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = write_clip(moving_clip(3), tmp_path / "frames", "png", 8, "old")
    replace = os.replace

    def locked(source, target):
        if source.suffix == ".part":
            raise PermissionError("locked")
        replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(PermissionError, match="locked"):
        write_clip(moving_clip(2), tmp_path / "frames", "png", 8, "new")
    frames, _, text = read(path, "png")
    assert (len(frames), text, names(tmp_path)) == (3, "old", ["frames"])


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="wedding.png"):
        write_clip(moving_clip(2), tmp_path / "photos", "png", 8)
    assert (tmp_path / "photos" / "wedding.png").read_bytes() == b"precious"

    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(FileExistsError, match="clip.mp4"):
        write_clip(moving_clip(2), tmp_path / "clip", "mp4", 8)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="file"):
        write_clip(moving_clip(2), tmp_path / "file", "png", 8)
    assert names(tmp_path) == ["clip.mp4", "file", "photos"]


def test_clip_bytes(tmp_path):
    clip = moving_clip(3)
    gif = write_clip(clip, tmp_path / "clip", "gif", 8)
    assert clip_bytes(gif) == gif.read_bytes()

    folder = write_clip(clip, tmp_path / "frames", "png", 8)
    with zipfile.ZipFile(io.BytesIO(clip_bytes(folder))) as archive:
        assert archive.namelist() == ["00001.png", "00002.png", "00003.png"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("00002.png") == (folder / "00002.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        clip_bytes(tmp_path / "missing.mp4")


@pytest.mark.parametrize(("format", "worse"), [("mp4", 45), ("webm", 55), ("webp", 10)])
def test_quality(tmp_path, format, worse):
    """Less is smaller; the default is what it was; a number beyond the limits, or of a format without, is refused."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(3)]
    usual = write_clip(frames, tmp_path / "usual", format, 8).read_bytes()
    default, _, high = FORMATS[format].quality
    same = write_clip(frames, tmp_path / "same", format, 8, quality=default).read_bytes()
    assert len(same) == len(usual)  # a WebM has a number of its own
    assert len(write_clip(frames, tmp_path / "worse", format, 8, quality=worse).read_bytes()) < len(usual) / 2
    with pytest.raises(ValueError, match=f"quality is {high + 1}, but {format} takes"):
        write_clip(frames, tmp_path / "none", format, 8, quality=high + 1)
    with pytest.raises(ValueError, match="gif has none"):
        write_clip(frames, tmp_path / "none", "gif", 8, quality=default)
