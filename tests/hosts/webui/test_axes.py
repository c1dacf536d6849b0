"""X/Y/Z plot: axes for the settings of clips, checked before the first cell, and the playing grid of its clips."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path

import av
import numpy as np
import pytest

import clipfiles
from host import CLIP, KIND, STILL, save_sheet, zs2
from webui import HostError, picture

FRAMES = 3
SETTINGS = {**CLIP, "frames": FRAMES, "return": "video"}
SIDE = STILL["width"]
LOSSY = 8
"""How far, of 255, the mean of a cell may be from its clip's frame: both are H.264."""


@pytest.fixture(scope="module")
def axes(host) -> list[str]:
    """The labels of the axes that the host offers, in their order."""
    scripts = host.client.get("/sdapi/v1/script-info")
    plot = next(script for script in scripts if script["name"] == "x/y/z plot" and not script["is_img2img"])
    choices = plot["args"][0]["choices"]
    return [choice if isinstance(choice, str) else choice[0] for choice in choices]


@pytest.fixture(scope="module")
def plotted(host, axes):
    """Runs X/Y/Z plot: `plotted({"[ZS2] Frames": "2,3"}, settings)`, the axes in the order x, y, z."""

    def plot(values: dict[str, str], settings: dict | None = SETTINGS, lone=True, margin=0, **payload):
        args = [part for label, text in values.items() for part in (axes.index(label), text, [])]
        args += [0, "", []] * (3 - len(values))
        args += [True, lone, False, False, False, False, False, margin, True]
        before, more = KIND.xyz_more
        script = {"script_name": "x/y/z plot", "script_args": args[:before] + more + args[before:]}
        scripts = {"alwayson_scripts": zs2(settings)} if settings is not None else {}
        return host.client._generate("/sdapi/v1/txt2img", {**STILL, "steps": 4, **scripts, **script, **payload})

    return plot


@contextlib.contextmanager
def section_set(host, **options):
    """Values of the section ZS² of the settings, which the host's API takes and does not tell; in the end its own."""
    usual = {"zs2_folder": "zs2-videos", "zs2_filename_pattern": "", "zs2_mp4_crf": 17, "zs2_frames_per_pass": 8}
    usual |= {"zs2_playing_grid": True, "zs2_preflight_steps": 8, "zs2_preflight_size": 256}
    try:
        host.client.post("/sdapi/v1/options", options)
        yield
    finally:
        host.client.post("/sdapi/v1/options", {name: usual[name] for name in options})


def value(infotext: str, key: str) -> str:
    return infotext.partition(f"{key}: ")[2].partition(",")[0]


def places(ground: np.ndarray, still: np.ndarray) -> list[tuple[int, int]]:
    """Where the picture `still` is on the host's grid, (top, left) of each place, row by row."""
    height, width = (whole - part + 1 for whole, part in zip(ground.shape[:2], still.shape[:2]))
    candidates = np.argwhere((ground[:height, :width] == still[0, 0]).all(-1))
    found = [(int(top), int(left)) for top, left in candidates if (at(ground, (top, left)) == still).all()]
    assert found, "the cell is not on the grid"
    return found


def at(frame: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """The cell at that place."""
    return frame[place[0] : place[0] + SIDE, place[1] : place[1] + SIDE]


def decoded(entry: dict) -> np.ndarray:
    return clipfiles.frames(base64.b64decode(entry["data"]))


def test_axes_are_there_once(axes):
    ours = [label for label in axes if label.startswith("[ZS2] ")]
    assert len(ours) == len(set(ours)) > 20
    assert {"[ZS2] Frames", "[ZS2] Motion λ", "[ZS2] Speed", "[ZS2] Retakes", "[ZS2] Loop"} <= set(ours)


@pytest.mark.parametrize(
    ("label", "text", "key", "expected"),
    [
        ("[ZS2] Frames", "2-4 [3]", "ZS2 frames", ["2", "3", "4"]),
        ("[ZS2] Inertia β", "0-1 (+0.5)", "ZS2 inertia", ["0", "0.5", "1"]),
        ("[ZS2] Motion λ", '0.02, "0:0.01, 2:0.3"', "ZS2 motion", ["0.02", '"0:0.01']),
        ("[ZS2] Loop", "off, seamless", "ZS2 loop", ["off", "seamless"]),
        ("[ZS2] Speed", "exact, fine", "ZS2 anchor stride", ["1", "8"]),
        ("[ZS2] Preset", "subtle, cinemagraph", "ZS2 loop", ["off", "seamless"]),
        ("[ZS2] Momentum in ControlNet", "true, False", "ZS2 frames", ["3", "3"]),
    ],
)
def test_an_axis_sets_its_setting(plotted, label, text, key, expected):
    result = plotted({label: text})
    texts = list(dict.fromkeys(result.info["infotexts"][1:]))
    assert list(dict.fromkeys(value(infotext, key) for infotext in texts)) == list(dict.fromkeys(expected))
    assert f"X Type: {label}" in result.info["infotexts"][0]
    assert len(result.clips) == len(expected)


def test_a_cell_is_the_clip_with_that_value(host, plotted):
    """And the fast speed takes its steps as well."""
    result = plotted({"[ZS2] Motion λ": "0.02, 0.3"})
    for text, file in zip(("0.02", "0.3"), result.clips):
        clip = host.clip({**SETTINGS, "motion": float(text)}, steps=4)
        assert clip.clips[0] == file
    assert value(plotted({"[ZS2] Speed": "fast"}, steps=16).info["infotexts"][1], "Steps") == "14"


@pytest.mark.parametrize("labels", [("[ZS2] Motion λ", "[ZS2] Preset"), ("[ZS2] Preset", "[ZS2] Motion λ")])
def test_a_setting_of_its_own_axis_is_what_the_cell_says(plotted, labels):
    """Whatever the preset on the other axis says of it."""
    texts = {"[ZS2] Motion λ": "0.02, 0.3", "[ZS2] Preset": "lively, cinemagraph"}
    result = plotted({label: texts[label] for label in labels})
    cells = {(value(text, "ZS2 motion"), value(text, "ZS2 loop")) for text in result.info["infotexts"][1:]}
    assert cells == {(motion, loop) for motion in ("0.02", "0.3") for loop in ("off", "seamless")}


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ({"[ZS2] Frames": "2, 0"}, SETTINGS, ["[ZS2] Frames", "0 is not allowed", "from 1"]),
        ({"[ZS2] Frames": "2, many"}, SETTINGS, ["'many'", "whole number"]),
        ({"[ZS2] Inertia β": "0.5, 1.5"}, SETTINGS, ["[ZS2] Inertia β", "1.5", "from 0 to 1"]),
        ({"[ZS2] Loop": "off, seemless"}, SETTINGS, ["seemless", 'did you mean "seamless"']),
        ({"[ZS2] Motion λ": "0:0.01, 2:0.3"}, SETTINGS, ["'0:0.01'", "in quotes"]),
        ({"[ZS2] Speed": "exact, quick"}, SETTINGS, ["[ZS2] Speed", "quick", "balanced"]),
        ({"[ZS2] Preset": "subtle, livly"}, SETTINGS, ["[ZS2] Preset", "livly", 'did you mean "lively"']),
        ({"[ZS2] Frames": "2,3"}, None, ["[ZS2] Frames", "ZS² is off"]),
        ({"[ZS2] Frames": ""}, SETTINGS, ["no value"]),
        ({"Steps": "2,3", "[ZS2] Prompts by frame": "a dog"}, SETTINGS, ["a dog", r"\n"]),
        (
            {"[ZS2] Loop": "off, seamless", "[ZS2] Noise model": "dependency, mixed"},
            SETTINGS,
            ["[ZS2] Loop: seamless, [ZS2] Noise model: mixed", "only the model"],
        ),
        ({"[ZS2] Source video": "/etc/passwd"}, SETTINGS, ["[ZS2] Source video", "/etc/passwd"]),
    ],
)
def test_wrong_values_are_refused_before_the_first_cell(host, plotted, values, settings, words):
    host.arm()
    with pytest.raises(HostError) as error:
        plotted(values, settings)
    assert host.disarm() == []
    assert error.value.status == 422
    assert [word for word in words if word not in error.value.message] == [], error.value.message


# --- the playing grid ----------------------------------------------------------------------------------------------


def test_playing_grid(plotted, tmp_path):
    """Its cells lie where the host has their first frames, labels and all, and play what their clips play; a shorter
    one begins again.
    """
    values = {"[ZS2] Frames": "2, 4", "[ZS2] Motion λ": "0.1, 0.4", "Seed": "11, 12"}
    result = plotted(values, margin=6)
    (entry,) = result.entries(grid=True)
    assert (entry["format"], entry["frames"], entry["fps"], entry["grid"]) == ("mp4", 4, 8, True)
    with av.open(io.BytesIO(base64.b64decode(entry["data"]))) as container:
        assert all(f"{label}" in container.metadata["comment"] for label in values)
    frames, ground = decoded(entry), picture(result.files[0])
    height, width = ground.shape[:2]
    assert frames.shape == (4, height + height % 2, width + width % 2, 3)
    frames = frames[:, :height, :width]
    save_sheet([[ground], [frames[0]], [frames[3]]], "playing_grid.png", tmp_path)
    assert np.abs(frames[0] - ground).mean() < LOSSY
    clips = [clipfiles.frames(file) for file in result.clips]
    assert [len(clip) for clip in clips] == [2, 4] * 4
    still = 1
    for number, clip in enumerate(clips):  # x first, then y, then z; the first frame is the same but for the seed
        place = places(ground, picture(result.files[still]))[number % 4]
        still += len(clip)
        for time, frame in enumerate(frames):
            apart = [np.abs(at(frame, place) - shown).mean() for shown in clip]
            assert apart[time % len(clip)] == min(apart) < LOSSY


@pytest.mark.parametrize("formats", [["gif"], ["png"]])
def test_playing_grid_of_other_rates_and_formats(host, plotted, formats):
    """Cells that are saved as no video; at a rate in which each frame of both lasts a whole number of frames; a file
    named as the host's grids.
    """
    settings = {**SETTINGS, "formats": formats, "motion": 0.4}
    result = plotted({"[ZS2] Frames per second": "4, 6"}, settings, save_images=True)
    (entry,) = result.entries(grid=True)
    path = Path(entry["path"])
    assert path.suffix == ".mp4" and path.name.startswith("xyz_grid-") and path.parent.parent.name == "zs2-videos"
    assert any(clip["name"].endswith(path.name) for clip in host.client.get("/zs2/v1/clips?limit=10"))
    assert (entry["fps"], entry["frames"]) == (12, 9)
    frames, ground = clipfiles.frames(path.read_bytes()), picture(result.files[0])
    stills = np.stack([picture(file) for file in result.files[1 : 1 + FRAMES]])
    for place, lasts in zip(places(ground, stills[0]), (3, 2)):
        for time, frame in enumerate(frames):
            apart = [np.abs(at(frame, place) - still).mean() for still in stills]
            assert apart[time // lasts % FRAMES] == min(apart)


def test_playing_grid_of_one_row(plotted):
    """Which a host may have laid out in several."""
    result = plotted({"Seed": "11, 12, 13, 14, 15"})
    (entry,) = result.entries(grid=True)
    frames, ground = decoded(entry), picture(result.files[0])
    assert np.abs(frames[0, : ground.shape[0], : ground.shape[1]] - ground).mean() < LOSSY


def test_playing_grid_switched_off(host, plotted):
    with section_set(host, zs2_playing_grid=False):
        assert plotted({"[ZS2] Frames": "2, 3"}).entries(grid=True) == []


def test_playing_grid_made_smaller(host, plotted):
    """It has no side that players refuse; a cell of a few pixels is none."""
    values = {"Seed": ",".join(map(str, range(8))), "[ZS2] Frames": "2"}
    result = plotted(values, width=640, height=64, steps=1)
    (entry,) = result.entries(grid=True)
    assert max(decoded(entry).shape[1:3]) <= 4096
    assert "The playing grid is drawn at" in result.info["extra_generation_params"]["ZS2 notes"]


def test_playing_grid_of_a_stopped_plot(host, plotted):
    """Of what there is, in the places that the whole would have."""
    seeds = {"Seed": "11, 12, 13, 14"}
    whole = plotted(seeds)
    host.arm("interrupt", at=host_calls(host, plotted, "11, 12") + 1)
    try:
        stopped = plotted(seeds)
    finally:
        host.disarm()
    (entry,), (of_whole,) = stopped.entries(grid=True), whole.entries(grid=True)
    frames, all_frames = decoded(entry), decoded(of_whole)
    assert frames.shape == all_frames.shape and entry["stopped"] and "stopped" not in of_whole
    stills = whole.files[1::FRAMES]
    at_place = [places(picture(whole.files[0]), picture(still))[0] for still in stills]
    apart = [np.abs(at(frames[1], place) - at(all_frames[1], place)).mean() for place in at_place]
    assert max(apart[:2]) < LOSSY and max(apart[:2]) * 2 < apart[2]
    assert at(frames[1], at_place[3]).mean() < LOSSY, "the cell that was not made is black"


def host_calls(host, plotted, seeds: str) -> int:
    """How many UNet calls a plot takes."""
    host.arm()
    plotted({"Seed": seeds})
    return len(host.disarm())


# --- the settings section -------------------------------------------------------------------------------------------


def test_settings_section(host):
    """Values of the section act; wrong ones are said, and the default is used."""
    usual = host.clip(SETTINGS).clips[0]
    with section_set(host, zs2_mp4_crf=40, zs2_folder="my clips", zs2_filename_pattern="[seed]-[steps]"):
        result = host.clip(SETTINGS, save_images=True)
        path = Path(result.entries()[0]["path"])
        assert len(result.clips[0]) < len(usual) / 1.5
        assert path.parent.parent.name == "my clips" and path.stem.startswith(f"00000-{STILL['seed']}-{STILL['steps']}")
    names = [clip["name"] for clip in host.client.get("/zs2/v1/clips?limit=50")]
    assert len(names) == len(set(names)) and any(name.endswith(f"/{path.name}") for name in names)
    wrong = {
        "zs2_mp4_crf": "fine",
        "zs2_folder": "../there",
        "zs2_filename_pattern": "../[seed]",
        "zs2_frames_per_pass": 0,
    }
    with section_set(host, **wrong):
        result = host.clip(SETTINGS, save_images=True)
        assert result.clips[0] == usual
        assert Path(result.entries()[0]["path"]).parent.parent.name == "zs2-videos"
        notes = result.info["extra_generation_params"]["ZS2 notes"]
        for words in ("CRF of MP4", "Folder of the clips", "File name pattern", "Automatic pass size"):
            assert words in notes
    assert "ZS2 notes" not in host.clip(SETTINGS).info["extra_generation_params"]


def test_automatic_pass_size(host):
    """Of 8 frames of 512x512 pixels, unless the section says otherwise; of 1, it holds 4 of 256x256."""
    job = {"settings": {**SETTINGS, "frames": 6, "frames_per_pass": 0}, "width": 256, "height": 256, "steps": 1}
    host.arm()
    host.clip(**job)
    usual = max(call["rows"] for call in host.disarm())
    host.arm()
    with section_set(host, zs2_frames_per_pass=1):
        host.clip(**job)
    assert max(call["rows"] for call in host.disarm()) == usual * 4 / 6
