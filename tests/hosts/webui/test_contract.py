"""The API of ZS², `alwayson_scripts: {"ZS2": {"args": [{…}]}}`, literally: keys, answers, refusals, repeats."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

import clipfiles
from host import BAR, CLIP, EULER_A, HIRES, KIND, PLAIN, STILL, change, difference, without
from webui import HostError, picture

CHECKPOINT = {"sd_model_checkpoint": f"{PLAIN}.safetensors"}
FORMATS = {"mp4": "mp4", "gif": "gif", "webp": "webp", "apng": "apng", "webm": "webm", "png": "zip"}
"""Output formats, and what the returned file is."""
SETTINGS = {
    "frames": 5,
    "fps": 6,
    "motion": 0.07,
    "inertia": 0.4,
    "momentum": 0.6,
    "loop": "off",
    "in_betweens": 2,
    "retakes": "2:1",
    "extended": "2",
    "noise_model": "progressive",
    "alpha": 0.7,
    "prompts": "3: on a green background, dark",
    "candidates": 3,
    "solver": "search",
    "frames_per_pass": 2,
    "anchor_stride": 2,
    "anchor_depth": "strong",
    "anchor_start": 0.5,
    "formats": ["gif", "webp"],
}
"""A value other than the default for each key, where one is allowed."""
QUICK = {"steps": 2}
SDE = {"sampler_name": "DPM++ SDE", "steps": 4}


# --- keys and defaults ---------------------------------------------------------------------------------------


def test_listed_in_both_tabs(host):
    scripts = host.client.get("/sdapi/v1/scripts")
    assert "zs2" in scripts["txt2img"] and "zs2" in scripts["img2img"]


@pytest.mark.parametrize(
    "settings",
    [{key: value} for key, value in SETTINGS.items()]
    + [
        {"return": "frames"},
        {"return": "video"},
        {"return": "both"},
        {"noise_model": "independent"},
        {"noise_model": "mixed", "alpha": 0.5},
        {"noise_model": "dependency", "solver": "exact"},
        {"motion": 0},
        {"motion": "0.1"},
        {"momentum": 1},
        {"loop": True},
        {"motion": "0:0.01, 2:0.05"},
        {"inertia": "0:0, 2:1"},
        {"momentum": "0:0.5,2:1"},
        {"formats": list(FORMATS)},
    ],
    ids=str,
)
def test_every_setting_is_accepted(host, settings):
    host.generate(**QUICK, alwayson_scripts={"ZS2": {"args": [{"enabled": True, "frames": 3, **settings}]}})


def test_defaults(host):
    """With nothing but `enabled`: the frames, and one MP4 of them in `info`."""
    result = host.generate(**QUICK, alwayson_scripts={"ZS2": {"args": [{"enabled": True}]}})
    assert [clipfiles.kind(file) for file in result.files] == ["png"] * 8
    assert [clipfiles.kind(file) for file in result.clips] == ["mp4"]
    assert len(clipfiles.frames(result.clips[0])) == 8


# --- what is returned ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(host):
    """A clip in all formats, files, frames and an animated picture."""
    return host.clip({"return": "both", "formats": list(FORMATS), "frames": 5, "fps": 8})


def test_return_both_is_an_animation_frames_and_files(both):
    assert [clipfiles.kind(file) for file in both.files] == ["gif"] + ["png"] * 5
    assert [clipfiles.kind(file) for file in both.clips] == list(FORMATS.values())
    for clip, format in zip(both.info["zs2_clips"], FORMATS):
        assert clip["format"] == format and clip["path"].endswith("" if format == "png" else f".{format}")
        assert (clip["frames"], clip["fps"], clip["seed"]) == (5, 8, STILL["seed"])


def test_return_frames_and_video(host, both):
    settings = {"formats": list(FORMATS), "frames": 5, "fps": 8}
    frames, video = (host.clip({"return": returns, **settings}) for returns in ("frames", "video"))
    assert frames.files == video.files == both.files[1:]
    assert video.clips[1:4] == both.clips[1:4]  # the others tell the time, or a number of their own
    movies = [clipfiles.frames(result.clips[0]) for result in (video, both)]  # whose bytes differ with x264's threads
    assert np.abs(movies[0] - movies[1]).mean() < 1
    assert [{**clip, "data": None} for clip in video.info["zs2_clips"]] == [
        {**clip, "data": None} for clip in frames.info["zs2_clips"]
    ]
    assert not any("data" in clip for clip in frames.info["zs2_clips"])


@pytest.mark.parametrize("returns", ["frames", "video", "both"])
def test_lists_are_parallel(host, returns):
    """As clients and Agent Scheduler read them: a text for each picture, seed and prompt from the first sample on."""
    result = host.clip({"return": returns, "frames": 3}, n_iter=2, **QUICK)
    info, first = result.info, 2 if returns == "both" else 0
    assert info["index_of_first_image"] == first
    assert len(info["infotexts"]) == len(result.files) == first + 6
    assert all(len(info[name]) == 6 for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"))
    assert [clip["seed"] for clip in info["zs2_clips"]] == [STILL["seed"], STILL["seed"] + 1]


@pytest.mark.parametrize("number, format", list(enumerate(FORMATS)))
def test_files_hold_the_frames(both, number, format):
    frames = np.stack([picture(file) for file in both.files[-5:]])
    stored = clipfiles.frames(both.clips[number])
    assert stored.shape == frames.shape
    noisy = 8 if KIND.full_shape else 6  # 256 colours for random pictures
    assert np.abs(stored - frames).mean() < {"png": 1e-9, "apng": 1e-9, "gif": noisy}.get(format, 6)
    if format != "png":
        assert clipfiles.seconds(both.clips[number]) == pytest.approx(5 / 8, abs=0.02)


def test_mp4_plays_everywhere(both):
    """H.264 in 4:2:0, and its index before its pictures, so that a browser can begin at once."""
    assert clipfiles.codec(both.clips[0]) == ("h264", "yuv420p")
    assert both.clips[0].index(b"moov") < both.clips[0].index(b"mdat")


def test_one_file_per_format_in_their_order(host):
    files = host.clip({"return": "video", "formats": ["webp", "mp4"], "frames": 2}, **QUICK).clips
    assert [clipfiles.kind(file) for file in files] == ["webp", "mp4"]


def test_clips_and_frames_are_saved(host):
    """Frames where the host saves images, clips in a folder of their own, nothing unfinished."""
    outputs = host.outputs
    before = set(outputs.rglob("*")) if outputs.exists() else set()
    host.clip({"return": "both", "formats": ["mp4", "gif"], "frames": 3}, **QUICK, save_images=True)
    new = [path for path in set(outputs.rglob("*")) - before if path.is_file()]
    suffixes = sorted(path.suffix for path in new)
    assert suffixes == [".gif", ".mp4", ".png", ".png", ".png"]
    folders = {path.suffix: path.parent for path in new}
    assert folders[".mp4"] == folders[".gif"] != folders[".png"]
    assert str(STILL["seed"]) in next(path.name for path in new if path.suffix == ".mp4")


NOISE = ("mixed", "progressive", "independent")


# --- wrong settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"motoin": 0.1}, ["motoin", '"motion"']),
        ({"Frames": 8}, ["Frames", '"frames"']),
        ({"format": "mp4"}, ["format", '"formats"']),
        ({"frames": 0}, ["frames", "0", "100000"]),
        ({"frames": 100001}, ["frames", "100001", "100000"]),
        ({"frames": 2.5}, ["frames", "2.5", "whole"]),
        ({"frames": "8"}, ["frames", "'8'"]),
        ({"frames": True}, ["frames", "True"]),
        ({"frames": None}, ["frames", "None"]),
        ({"fps": 0}, ["fps", "0"]),
        ({"fps": "fast"}, ["fps", "fast"]),
        ({"motion": -0.1}, ["motion", "-0.1"]),
        ({"motion": "0:0.1, x"}, ["motion", "x", "0:0.01, 8:0.05"]),
        ({"motion": "0:0.1, 0:0.2"}, ["motion", "0"]),
        ({"motion": [0.1]}, ["motion", "0.1"]),
        ({"inertia": 2}, ["inertia", "2", "0", "1"]),
        ({"momentum": 1.5}, ["momentum", "1.5", "0", "1"]),
        ({"momentum": "0:0.5, 4:1.5"}, ["momentum", "1.5"]),
        ({"loop": "yes"}, ["loop", "yes", "ping-pong", "seamless"]),
        ({"in_betweens": 5}, ["in_betweens", "5", "1 to 4"]),
        ({"retakes": "0:1"}, ["retakes", "0:1", "the still"]),
        ({"extended": "x"}, ["extended", "x", "whole numbers"]),
        ({"prompts": "0: a\n4 b"}, ["prompts", "4 b", "frame: prompt"]),
        ({"prompts": {"0": "a"}}, ["prompts", "{'0': 'a'}", "frame: prompt"]),
        ({"noise_model": "dependancy"}, ["noise_model", "dependancy", *NOISE, "did you mean", '"dependency"']),
        ({"alpha": 2}, ["alpha", "2"]),
        ({"candidates": 0}, ["candidates", "0"]),
        ({"solver": "exakt"}, ["solver", "exakt", "search", '"exact"']),
        ({"frames_per_pass": -1}, ["frames_per_pass", "-1"]),
        ({"formats": []}, ["formats", "[]", "mp4", "webm"]),
        ({"formats": "mp4"}, ["formats", "mp4", "list"]),
        ({"formats": ["mp5"]}, ["formats", "mp5", '"mp4"']),
        ({"return": "all"}, ["return", "all", "frames", "video", "both"]),
        ({"control": "source"}, ["control", "source", "list"]),
        pytest.param(
            {"control": ["source"]},
            ["control", "source", "sd-webui-controlnet is not installed", "Extensions"],
            marks=without("a WebUI without ControlNet"),
        ),
        ({"control_fit": "cut"}, ["control_fit", "cut", '"hold"', '"loop"', '"stretch"']),
        ({"enabled": "yes"}, ["enabled", "yes"]),
    ],
    ids=str,
)
def test_wrong_settings_stop_the_job(host, settings, words):
    """The answer says the key, the value, what is allowed and the nearest key; the UNet has not been called."""
    host.refusal(settings, words)


def test_the_host_goes_on_after_wrong_settings(host):
    still = host.generate().frames
    with pytest.raises(HostError):
        host.clip({"frames": -1})
    assert not host.state()["job"]["running"]
    assert difference(host.generate().frames, still) == 0


@without("alternative UNet")
def test_alternative_unet_is_refused_in_words(host):
    label = host.about()["unet"]
    still = host.generate().frames
    with pytest.raises(HostError) as error:
        host.clip(override_settings={"sd_unet": label})
    assert error.value.status == 422 and label in error.value.message and "None" in error.value.message
    assert difference(host.generate().frames, still) == 0


@pytest.mark.skipif(KIND.name != "neo", reason="another host loads other models than Lumina 2")
def test_models_without_a_unet_are_refused_in_words(host):
    other = {"override_settings": {"sd_model_checkpoint": "lumina2.safetensors"}}
    still = host.generate().frames
    host.refusal({}, ["SD 1.x, SD 2.x and SDXL", "Lumina2"], **other)
    assert difference(host.generate(override_settings=CHECKPOINT).frames, still) == 0


# --- seeds and determinism -----------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{}, SDE], ids=["Euler", "DPM++ SDE"])
def test_batch_count_makes_clips_of_the_next_seeds(host, payload):
    seed, frames = STILL["seed"], CLIP["frames"]
    clips = host.clip(n_iter=2, **payload)
    assert len(clips.files) == 2 * frames
    assert clips.info["all_seeds"] == [seed] * frames + [seed + 1] * frames
    assert f"Seed: {seed + 1}," in clips.info["infotexts"][frames]
    alone = host.clip(seed=seed + 1, **payload)
    assert difference(clips.frames[frames:], alone.frames) == 0


def test_batch_count_returns_all_animations_first(host):
    result = host.clip({"return": "both", "frames": 2}, n_iter=2, **QUICK)
    assert [clipfiles.kind(file) for file in result.files] == ["webp"] * 2 + ["png"] * 4
    assert [clipfiles.kind(file) for file in result.clips] == ["mp4"] * 2


def test_repeats_bit_for_bit(host):
    assert difference(host.clip(**SDE).frames, host.clip(**SDE).frames) == 0


@pytest.mark.parametrize("payload", [{}, SDE, EULER_A], ids=["Euler", "DPM++ SDE", "Euler a"])
def test_more_frames_leave_those_before_as_they_were(host, payload):
    few, more = (host.clip({"frames": frames, "frames_per_pass": 2}, **payload).frames for frames in (4, 6))
    assert difference(few, more[:4]) <= BAR


# --- off and one frame ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host_without(start):
    """A WebUI that does not have the extension."""
    with start(extension=False) as host:
        yield host


@pytest.mark.slow
@pytest.mark.parametrize(
    "payload",
    [
        {},
        SDE,
        {"sampler_name": "Euler a", "n_iter": 2, "batch_size": 2},
        {**HIRES, "hr_second_pass_steps": 0, "sampler_name": "DPM++ 2M SDE"},
        {"init": True, "denoising_strength": 0.6},
        pytest.param({"override_settings": {"token_merging_ratio": 0.5}}, marks=without("ToMe")),
    ],
    ids=["Euler", "DPM++ SDE", "batches", "hires.fix", "img2img", "ToMe"],
)
def test_off_is_the_host_without_it(host, host_without, payload):
    if payload.pop("init", False):
        payload["init_images"] = [host.generate(seed=3).frames[0]]
    plain = host_without.generate(**payload)
    for name, scripts in {
        "not mentioned": {},
        "enabled false": {"ZS2": {"args": [{"enabled": False, "frames": 6, "motion": 0.3}]}},
        "frames 1": {"ZS2": {"args": [{"enabled": True, "frames": 1, "return": "frames"}]}},
    }.items():
        if name == "frames 1" and (payload.get("batch_size") or "override_settings" in payload):
            continue  # a batch is one clip; token merging is switched off for clips
        result = host.generate(alwayson_scripts=scripts, **payload)
        assert difference(result.frames, plain.frames) == 0, name


# --- what the settings do ------------------------------------------------------------------------------------


def test_motion_zero_is_the_still(host):
    frames = host.clip({"motion": 0}, **EULER_A).frames
    assert difference(frames, np.repeat(host.generate(**EULER_A).frames, len(frames), axis=0)) <= BAR


def test_more_motion_moves_more(host):
    calm, lively = (change(host.clip({"motion": motion, "momentum": 0}).frames) for motion in (0.01, 0.3))
    assert lively > 1.2 * calm


@pytest.mark.parametrize("model", ["dependency", "mixed", "progressive", "independent"])
def test_every_noise_model_begins_with_the_still(host, model):
    frames = host.clip({"noise_model": model}).frames
    assert difference(frames[:1], host.generate().frames) <= BAR
    assert all(difference(frames[i : i + 1], frames[i + 1 : i + 2]) > BAR for i in range(len(frames) - 1))


def test_keyframes_of_motion(host):
    """No motion up to frame 3 (frames count from 0), then some."""
    frames = host.clip({"frames": 6, "motion": "0:0, 3:0, 4:0.3", "momentum": 0}).frames
    assert difference(frames[1:4], frames[:3]) <= BAR
    assert difference(frames[4], frames[3]) > BAR


def test_a_single_keyframe_is_the_number(host):
    numbers = {"motion": 0.07, "inertia": 0.5, "momentum": 0.6}
    strings = {key: f"0:{value}" for key, value in numbers.items()}
    assert difference(host.clip(numbers).frames, host.clip(strings).frames) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"inertia": 0.9},
        {"momentum": 0.2},
        {"candidates": 10},
        {"solver": "search"},
        {"noise_model": "mixed", "alpha": 0.5},
    ],
    ids=str,
)
def test_every_setting_changes_the_clip_but_not_frame_1(host, settings):
    frames, other = host.clip().frames, host.clip(settings).frames
    assert difference(frames[0], other[0]) <= BAR
    assert difference(frames[1:], other[1:]) > 0


def test_loop_closes(host):
    """The step from the last frame to the first is like the others; without `loop` it is not."""
    open_clip, loop = (
        host.clip({"frames": 8, "frames_per_pass": 8, "motion": 0.15, "momentum": 0, "loop": loop}).frames
        for loop in (False, True)
    )

    def gap(frames):
        return np.abs(frames[-1] - frames[0]).mean() / change(frames)

    assert gap(loop) < 1.5
    assert gap(open_clip) > gap(loop)
    assert difference(loop[:1], host.generate().frames) <= BAR


KEYFRAMES = {**SETTINGS, "motion": "0:0.01, 3:0.2", "momentum": "0:0.2, 4:0.9", "inertia": "0:0, 2:0.5"}
KEYFRAMES |= {"prompts": '0: a, b\n3: "c"'}


# --- infotext ------------------------------------------------------------------------------------------------


def test_one_infotext_key_per_setting(host):
    """Keys begin with "ZS2", and every setting that makes the clip what it is has one of its own."""
    infotext = host.clip(SETTINGS, **QUICK).infotext
    found = dict(re.findall(r'ZS2 ([^:,]+): ("[^"]*"|[^,\n]*)', infotext))
    assert len(found) >= len(SETTINGS)
    for key, value in SETTINGS.items():
        name = key.replace("_", " ")
        assert name in found, infotext
        text = " ".join(value) if isinstance(value, list) else str(value)
        assert found[name].strip('"') == text


@without("infotext in a request")
@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        KEYFRAMES,
        {"frames": 4, "loop": True, "noise_model": "dependency"},
    ],
    ids=["numbers", "keyframes", "loop"],
)
def test_infotext_makes_the_clip_again(host, settings):
    """The settings survive the infotext: what the host pastes from it makes the same frames."""
    first = host.clip(settings, **QUICK)
    again = host.generate(**QUICK, infotext=first.infotext)
    assert difference(again.frames, first.frames) == 0
    assert [clipfiles.kind(file) for file in again.clips] == settings.get("formats", ["mp4"])


@pytest.mark.parametrize("number, format", [(i, f) for i, f in enumerate(FORMATS) if f in ("gif", "webp", "apng")])
def test_png_info_reads_the_clip(host, both, number, format):
    assert host.client.infotext(both.clips[number]) == both.infotext


def test_png_info_reads_the_pngs(host, both):
    for file in clipfiles.members(both.clips[list(FORMATS).index("png")]):
        assert host.client.infotext(file) == both.infotext


@pytest.mark.parametrize("number, format", [(i, f) for i, f in enumerate(FORMATS) if f in ("mp4", "webm")])
def test_videos_carry_the_infotext(both, number, format):
    assert clipfiles.comment(both.clips[number]) == both.infotext


# --- while it runs -------------------------------------------------------------------------------------------


def test_progress_per_pass(host):
    """Within a step of the sampler the progress goes on from pass to pass, and its text names the frames."""
    job = host.in_background(host.clip, {"frames": 16, "frames_per_pass": 1}, steps=2)
    seen, texts = [], []
    while job.is_alive():
        progress = host.client.progress()
        if progress["state"]["job"]:
            seen.append(progress["progress"])
            texts.append(progress["textinfo"])
        time.sleep(0.03)
    assert len(job.result().files) == 16
    assert any(text and re.search(r"frames \d+ to \d+ of 16", text) for text in texts), texts
    within = [value for value in seen if (value - 0.01) * 2 % 1 > 1e-6]  # between steps the host's own number shows
    assert len(set(within)) > 3, seen
    assert within == sorted(within)
