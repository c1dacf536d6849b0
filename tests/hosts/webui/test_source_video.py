"""A video as the source of img2img: each of its frames is edited as if it were the init image of a still."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

import clipfiles
from host import BAR, EULER_A, KIND, SDE, change, difference, save_sheet, without
from sources import EDIT, FRAMES, animation, edit, faded, folder, mask, rotated, scene, video
from webui import HostError
from zs2_lib.core.clip import SEGMENT
from zs2_lib.media.read import open_source

SCENES = [scene(number) for number in range(FRAMES)]
SCENE_MASKS = [mask(number) for number in range(FRAMES)]

# --- sources ---------------------------------------------------------------------------------------------------

SOURCES = {
    "folder": folder,
    "MP4": lambda path: video(path.with_suffix(".mp4")),
    "MKV, variable rate": lambda path: video(path.with_suffix(".mkv"), times=[0, 0.1, 0.15, 0.5, 0.7, 0.75]),
    "MOV, rotated": lambda path: rotated(path.with_suffix(".mov")),
    "MKV, odd size": lambda path: video(path.with_suffix(".mkv"), size=(129, 97), codec="ffv1", pix_fmt="yuv444p"),
    "MKV, 10 bit": lambda path: video(path.with_suffix(".mkv"), codec="ffv1", pix_fmt="yuv420p10le"),
    "MP4, variable rate": lambda path: video(path.with_suffix(".mp4"), times=[0, 0.04, 0.08, 0.5, 0.52, 1.2]),
    "MP4, interlaced": lambda path: video(path.with_suffix(".mp4"), options={"x264-params": "tff=1"}),
    "WebM": lambda path: video(path.with_suffix(".webm"), codec="libvpx-vp9"),
    "MOV, transparent": lambda path: video(path.with_suffix(".mov"), codec="qtrle", pix_fmt="argb", draw=faded),
    "PNG, transparent": lambda path: folder(path, faded),
    "MP4 with sound": lambda path: video(path.with_suffix(".mp4"), sound=True),
    "GIF": lambda path: animation(path.with_suffix(".gif")),
    "WebP": lambda path: animation(path.with_suffix(".webp"), lossless=True),
    "APNG": lambda path: animation(path.with_suffix(".png")),
}


@pytest.fixture(scope="module")
def sources(host) -> Path:
    """A folder that requests may name files in."""
    path = host.data / "sources"
    path.mkdir()
    return path


def stills(host, frames, masks=None, **payload) -> np.ndarray:
    """What the host makes of each frame alone."""
    payload = {**EDIT, **payload}
    results = []
    for number, frame in enumerate(frames):
        payload["init_images"] = [np.asarray(frame)]
        if masks:
            payload["mask"] = np.asarray(masks[number].convert("RGB"))
        results.append(host.generate(**payload).frames[0])
    return np.stack(results)


# --- the frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_every_frame_is_the_still_of_its_source_frame(host, sources, kind):
    path = SOURCES[kind](sources / kind)
    frames = [picture for _, picture in open_source(path).frames()]
    assert len(frames) == FRAMES
    if kind == "MOV, rotated":
        assert frames[0].size == (96, 128)
    if "transparent" in kind:  # laid on white
        assert np.asarray(frames[0])[:20].min() > 250
    result = edit(host, path).frames
    assert difference(result, stills(host, frames)) <= BAR
    assert change(result) > 1


@pytest.fixture(scope="module")
def frames(sources):
    return folder(sources / "frames")


@pytest.mark.parametrize(
    "payload",
    [EULER_A, SDE, {"prompt": "a red circle <lora:zs2_lora:1>"}],
    ids=["Euler a", "DPM++ SDE", "LoRA"],
)
def test_with_other_settings_of_the_tab(host, frames, payload):
    result = edit(host, frames, **payload).frames
    assert difference(result, stills(host, SCENES, **payload)) <= BAR


@pytest.mark.parametrize("mode", range(4), ids=["resize", "crop and resize", "resize and fill", "latent"])
def test_resize_modes(host, frames, mode):
    payload = {"resize_mode": mode, "width": 128, "height": 64, "steps": 4}
    result = edit(host, frames, **payload).frames
    assert result.shape[1:3] == (64, 128)
    assert difference(result, stills(host, SCENES, **payload)) <= BAR


trained = pytest.mark.skipif(KIND.full_shape, reason="needs a trained checkpoint; here it has random weights")


@trained
def test_frames_that_look_alike_are_all_there(host, sources):
    path = video(sources / "alike.mp4", count=10, draw=lambda number, size: scene(number // 5, size))
    result = edit(host, path, steps=2).frames
    assert len(result) == 10
    assert change(result[:5]) <= 1 and change(result[4:6]) > 1


def test_prompts_by_frame(host, frames):
    """Every frame has its own prompt and its own source frame."""
    shapes = ("a red circle", "a yellow star")
    payload = {"prompt": "", "denoising_strength": 0.8}
    result = edit(host, frames, {"prompts": f"0: {shapes[0]}\n5: {shapes[1]}"}, **payload).frames
    for number, prompt in zip((0, 5), shapes):
        expected = stills(host, [scene(number)], **{**payload, "prompt": prompt})
        assert difference(result[number : number + 1], expected) <= BAR


def test_colour_correction(host, frames):
    """It matches histograms, which makes a rounding error of 1 large in a few pixels."""
    corrected = {"override_settings": {"img2img_color_correction": True}}
    result, expected = edit(host, frames, **corrected).frames, stills(host, SCENES, **corrected)
    assert np.mean(np.abs(result - expected) > BAR) < 1e-4
    assert np.abs(result - edit(host, frames).frames).mean() > BAR


def test_passes_of_any_size(host, frames):
    settings = {"motion": 0.05, "momentum": 0.75}
    whole, parts = (edit(host, frames, {**settings, "frames_per_pass": number}).frames for number in (FRAMES, 2))
    assert difference(whole, parts) <= BAR
    separate = edit(host, frames).frames
    assert difference(whole[:1], separate[:1]) <= BAR
    assert difference(whole, separate) > BAR


def test_base64(host, sources, frames):
    file = SOURCES["GIF"](sources / "as base64").read_bytes()
    by_path = edit(host, sources / "as base64.gif").frames
    for text in (base64.b64encode(file).decode(), "data:image/gif;base64," + base64.b64encode(file).decode()):
        assert difference(edit(host, text).frames, by_path) == 0


@pytest.mark.parametrize(
    "settings, numbers",
    [
        ({"source_start": 0.25}, [2, 3, 4, 5]),
        ({"source_end": 0.5}, [0, 1, 2, 3]),
        ({"source_every": 2}, [0, 2, 4]),
        ({"frames": 3}, [0, 1, 2]),
        ({"source_fps": 4}, [0, 2, 4]),
        ({"source_fps": 12, "frames": 4}, [0, 0, 1, 2]),
        ({"source_start": 0.25, "source_end": 0.5}, [2, 3]),
    ],
    ids=str,
)
def test_selection(host, frames, settings, numbers):
    result = edit(host, frames, settings, steps=2)
    assert difference(result.frames, stills(host, map(scene, numbers), steps=2)) <= BAR
    assert f"ZS2 frames: {len(numbers)}," in result.infotext


def test_rate_of_the_clip(host, sources, frames):
    """As fast as the source, unless `fps` says otherwise."""
    for settings, seconds in (({}, 6 / 8), ({"source_every": 2}, 6 / 8), ({"fps": 12}, 6 / 12)):
        (file,) = edit(host, frames, {"return": "video", **settings}, steps=2).clips
        assert clipfiles.seconds(file) == pytest.approx(seconds, abs=0.02)


def test_more_frames_asked_for_than_there_are(host, frames):
    result = edit(host, frames, {"frames": 9}, steps=2)
    assert len(result.files) == FRAMES
    assert "6 frames where 9 were asked for" in result.info["extra_generation_params"]["ZS2 notes"]


def test_batch_count(host, frames):
    result = edit(host, frames, n_iter=2, steps=4)
    assert difference(result.frames[:FRAMES], stills(host, SCENES, steps=4)) <= BAR
    assert difference(result.frames[FRAMES:], stills(host, SCENES, steps=4, seed=12)) <= BAR


def test_infotext_names_the_source_without_its_folder(host, frames):
    infotext = edit(host, frames, {"source_start": 0.25}, steps=2).infotext
    assert "ZS2 source: frames," in infotext and "ZS2 source start: 0.25," in infotext
    assert str(frames) not in infotext


def test_leaves_no_trace(host, frames):
    with host.no_trace(**{**EDIT, "init_images": [np.asarray(scene(0))]}):
        edit(host, frames, {"motion": 0.05, "momentum": 0.9})


def rolling(number: int, size=(128, 128)) -> Image.Image:
    """A red circle on blue that crosses the picture in 8 frames."""
    image = Image.new("RGB", size, (40, 60, 220))
    x = 34 + 60 * number / 7
    ImageDraw.Draw(image).ellipse((x - 24, 40, x + 24, 88), fill=(220, 40, 40))
    return image


def centre(picture: np.ndarray) -> np.ndarray:
    """(y, x) of what is red or yellow on blue or green."""
    return np.argwhere(picture[..., 0] > 150).mean(0)


@trained
def test_contact_sheet(host, sources, tmp_path):
    """The sheet of README: source, edit, and frame by frame; the star is where the circle was, in every frame."""
    drawn = [np.asarray(rolling(number)).astype(int) for number in range(8)]
    path = folder(sources / "rolling", rolling, count=8)
    payload = {"denoising_strength": 0.7, "steps": 20, "seed": 7}
    result = edit(host, path, {"motion": 0.02, "momentum": 0.75}, **payload).frames
    separate = edit(host, path, {"noise_model": "independent"}, **payload).frames
    for source_frame, frame in zip(drawn, result):
        assert np.abs(centre(frame) - centre(source_frame)).max() < 16
    assert change(result) < change(separate)

    save_sheet((drawn, result, separate), "source_and_result.png", tmp_path)


# --- masks ------------------------------------------------------------------------------------------------------

INPAINT = {"inpainting_fill": 1, "mask_blur": 2, "denoising_strength": 0.75, "inpaint_full_res": False}
SOFT = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}


@pytest.fixture(scope="module")
def masks(sources):
    return folder(sources / "masks", mask)


@pytest.mark.parametrize(
    "payload",
    [{}, {"inpaint_full_res": True}, {"inpainting_fill": 2}, {"inpainting_mask_invert": 1}],
    ids=["whole picture", "only masked", "latent noise", "inverted"],
)
def test_one_mask_for_all_frames(host, frames, payload):
    payload = {**INPAINT, **payload}
    result = edit(host, frames, mask=np.asarray(mask(2).convert("RGB")), **payload).frames
    assert difference(result, stills(host, SCENES, [mask(2)] * FRAMES, **payload)) <= BAR


@pytest.mark.parametrize(
    "payload", [{}, {"inpainting_fill": 0}, {"inpainting_mask_invert": 1}], ids=["original", "fill", "inverted"]
)
def test_mask_video(host, frames, masks, payload):
    payload = {**INPAINT, **payload}
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    assert difference(result, stills(host, SCENES, SCENE_MASKS, **payload)) <= BAR


def test_soft_inpainting(host, frames, masks):
    payload = {**INPAINT, "mask_blur": 4}
    expected = stills(host, SCENES, SCENE_MASKS, **payload, alwayson_scripts=SOFT)
    hard = stills(host, [scene(0)], [mask(0)], **payload)
    clip = edit(host, frames, {"mask": str(masks)}, **payload, alwayson_scripts=SOFT).frames
    assert difference(clip, expected) <= BAR
    assert difference(expected[:1], hard) > BAR


def test_mask_video_with_a_part_of_the_source(host, frames, masks):
    """The mask belongs to the frame of the source, not to that of the clip."""
    result = edit(host, frames, {"mask": str(masks), "source_start": 0.25}, **INPAINT).frames
    expected = stills(host, SCENES[2:], SCENE_MASKS[2:], **INPAINT)
    assert difference(result, expected) <= BAR


def cornered_mask(number: int) -> Image.Image:
    """`mask` with two dots, the same in all frames, that span what all masks cover."""
    image = mask(number)
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 28, 24, 32), fill=255)
    draw.rectangle((120, 96, 124, 100), fill=255)
    return image


@pytest.mark.parametrize("padding", [0, 8])
def test_only_masked(host, sources, frames, padding):
    """Where the masks of all frames span the same area, each frame is the still with its mask."""
    payload = {**INPAINT, "inpaint_full_res": True, "inpaint_full_res_padding": padding}
    masks = folder(sources / f"cornered masks {padding}", cornered_mask)
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    expected = stills(host, SCENES, list(map(cornered_mask, range(FRAMES))), **payload)
    assert difference(result, expected) <= BAR


def test_only_masked_stays_put(host, frames, masks):
    """All frames are cropped to where any of them is masked: a large area, so frame 1 is no still with a small one."""
    payload = {**INPAINT, "mask_blur": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0}
    result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    for number in range(FRAMES):
        outside = np.asarray(mask(number)) == 0
        assert difference(result[number][outside], np.asarray(scene(number)).astype(int)[outside]) <= BAR
    assert difference(result[:1], stills(host, [scene(0)], [mask(0)], **payload)) > BAR


@pytest.mark.parametrize("payload", [{}, {"inpaint_full_res": True}], ids=["whole picture", "only masked"])
@pytest.mark.parametrize("as_video", [True, False], ids=["mask video", "the tab's mask"])
def test_nothing_masked(host, sources, frames, payload, as_video):
    """As in the still: the source stays, but with "only masked" the host edits the whole picture."""
    payload, blank = {**INPAINT, **payload}, Image.new("L", (128, 128))
    expected = stills(host, SCENES, [blank] * FRAMES, **payload)
    if as_video:
        masks = folder(sources / f"blank masks {len(payload)} {payload['inpaint_full_res']}", lambda number: blank)
        result = edit(host, frames, {"mask": str(masks)}, **payload).frames
    else:
        result = edit(host, frames, mask=np.zeros((128, 128, 3)), **payload).frames
    assert difference(result, expected) <= BAR


def test_masks_that_are_transparent_where_nothing_is_masked(host, sources, frames, masks):
    def cut_out(number: int) -> Image.Image:
        image = Image.new("RGBA", (128, 128), (255, 255, 255, 0))
        image.putalpha(mask(number))
        return image

    result = edit(host, frames, {"mask": str(folder(sources / "transparent masks", cut_out))}, **INPAINT).frames
    assert difference(result, edit(host, frames, {"mask": str(masks)}, **INPAINT).frames) == 0


@pytest.mark.parametrize("per_pass", [FRAMES, 2])
def test_mask_video_in_passes_of_any_size(host, frames, masks, per_pass):
    """With a checkpoint for inpainting, which sees each frame's mask."""
    payload = {**INPAINT, "override_settings": {"sd_model_checkpoint": "inpainting.safetensors"}}
    with host.client.options_set(sd_model_checkpoint="inpainting.safetensors"):
        result = edit(host, frames, {"mask": str(masks), "frames_per_pass": per_pass}, **payload).frames
        assert difference(result, stills(host, SCENES, SCENE_MASKS, **payload)) <= BAR


# --- Instruct-Pix2Pix -------------------------------------------------------------------------------------------


@without("pix2pix")
@pytest.mark.parametrize("scale", [1.5, 3, 1])
@pytest.mark.parametrize("per_pass", [FRAMES, 2])
def test_instruct_pix2pix(host, frames, per_pass, scale):
    """Three guidance groups; with an image CFG scale of 1, two."""
    payload = {"image_cfg_scale": scale, "override_settings": {"sd_model_checkpoint": "pix2pix.safetensors"}}
    with host.client.options_set(sd_model_checkpoint="pix2pix.safetensors"):
        result = edit(host, frames, {"frames_per_pass": per_pass}, **payload).frames
        assert difference(result, stills(host, SCENES, **payload)) <= BAR


# --- sound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, seconds", [({}, 0.75), ({"source_start": 0.25}, 0.5)], ids=str)
def test_sound(host, sources, settings, seconds):
    path = sources / "sound.mp4"
    if not path.exists():
        video(path, sound=True)
    settings = {"return": "video", **settings}
    result = edit(host, path, {"source_audio": True, "formats": ["mp4", "webm", "gif"], **settings}, steps=2)
    for file in result.clips[:2]:
        with av.open(io.BytesIO(file)) as container:
            samples = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
            rate = container.streams.audio[0].rate
        assert len(samples) / rate == pytest.approx(seconds, abs=0.1)
        assert np.abs(samples).max() > 0.5
    silent = edit(host, path, settings, steps=2).clips[0]
    with av.open(io.BytesIO(silent)) as container:
        assert not container.streams.audio


def test_sound_that_would_drift_away(host, sources):
    path = sources / "drift.mp4"
    result = edit(host, video(path, sound=True), {"source_audio": True, "fps": 3, "return": "video"}, steps=2)
    assert len(clipfiles.frames(result.clips[0])) == FRAMES
    assert "the sound would drift away" in result.info["extra_generation_params"]["ZS2 notes"]


# --- faults ---------------------------------------------------------------------------------------------------


def test_a_frame_that_is_damaged_stops_the_job_in_words(host, sources):
    path = folder(sources / "one damaged")
    file = path / "frame3.png"
    file.write_bytes(file.read_bytes()[:200])
    with host.no_trace(), pytest.raises(HostError) as error:
        edit(host, path)
    assert error.value.status == 422 and "frame3.png is damaged" in error.value.message


# --- long sources -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"mask": True}], ids=["edit", "mask video"])
def test_memory_of_a_long_source(start, settings):
    """300 frames of 64×64 need at most 1.10 times the memory of 16; where the host encodes all pictures of a batch at
    once, of a segment.
    """
    short, peaks = SEGMENT if KIND.is_family else 16, {}
    for count in (short, 300):
        with start() as fresh:
            path = folder(fresh.data / "source", count=count, size=(64, 64))
            masks = {"mask": str(folder(fresh.data / "masks", mask, count=count, size=(64, 64)))} if settings else {}
            clip = {"frames_per_pass": 8, "motion": 0.05, "momentum": 0.9, "return": "video", **masks}
            result = edit(fresh, path, clip, **INPAINT, width=64, height=64, steps=2)
            assert len(clipfiles.frames(result.clips[0])) == count
            peaks[count] = fresh.about()["peak memory"]
    print(f"peak memory with {short} frames {peaks[short] / 2**20:.0f} MiB, with 300 {peaks[300] / 2**20:.0f} MiB")
    assert peaks[300] <= 1.10 * peaks[short], peaks
