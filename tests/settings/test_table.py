"""What a user may set, and what is said of everything else."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from zs2_lib.media.source import Selection
from zs2_lib.settings.schedule import Schedule
from zs2_lib.settings.table import Settings, SettingsError
from zs2_lib.settings.travel import PromptKeyframes

# --- schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (0.05, [0.05] * 7),
        (3, [3] * 7),
        ("0.05", [0.05] * 7),
        (" 5e-2 ", [0.05] * 7),
        ("0:0.01, 4:0.05", [0.01, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05]),
        ("4 : 0.05,0:0.01,", [0.01, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05]),
        ("2:1, 3:0, 5:1", [1, 1, 1, 0, 0.5, 1, 1]),
        ("3:0.7", [0.7] * 7),
        (Schedule(((0, 0.0), (6, 6.0))), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_schedules_are_linear_between_keyframes_and_held_outside(text, values):
    schedule = Schedule.parse(text)
    assert schedule.values(7) == pytest.approx(values)
    assert schedule.bounds == (min(values), max(values))
    assert schedule.is_constant == (len(set(values)) == 1)
    again = Schedule.parse(str(schedule))
    assert again.values(7) == schedule.values(7)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0123456789, 1e-7, 123456789.0])
def test_schedules_are_written_exactly(value):
    assert Schedule.parse(str(Schedule.parse(value))).at(0) == value
    assert Schedule.parse(str(Schedule.parse(f"0:{value!r}, 3:1"))).at(0) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "no value given"),
        (" , ", "no value given"),
        ("fast", "'fast' is not a number"),
        ("0.1, 0.2", "cannot read '0.1'"),
        ("0:0.1, 0.2", "cannot read '0.2'"),
        ("a:0.1", "cannot read 'a:0.1'"),
        ("-1:0.1", "cannot read '-1:0.1'"),
        ("1.5:0.1", "cannot read '1.5:0.1'"),
        (":0.1", "cannot read ':0.1'"),
        ("0:", "'' is not a number"),
        ("0:0.1:0.2", "'0.1:0.2' is not a number"),
        ("3:0.1, 03:0.2", "frame 3 has two values"),
        ("nan", "not a finite number"),
        ("0:inf", "not a finite number"),
        (math.nan, "not a finite number"),
        (-math.inf, "not a finite number"),
        pytest.param(10**400, "not a finite number", id="huge"),
        (True, "neither a number nor keyframes"),
        (None, "neither a number nor keyframes"),
        ([0.1], "neither a number nor keyframes"),
        ({"0": 0.1}, "neither a number nor keyframes"),
    ],
)
def test_schedules_that_cannot_be_read(value, words):
    with pytest.raises(ValueError, match=words):
        Schedule.parse(value)


# --- values: those allowed, and the nearest ones that are not -----------------------------------------

NO_NUMBER = [True, None, "8", [8], math.nan, math.inf, -math.inf]
NO_SCHEDULE = [True, None, [0.1], math.nan, math.inf, 10**400, "fast", "", "0:0.1, 0:0.2", "-1:0.5", "0:0.1, 8"]
NO_BOOLEAN = [1, 0, "true", None]

ALLOWED = {
    "enabled": [True, False],
    "frames": [1, 8, 8.0, 1024],
    "fps": [0.1, 8, 29.97, 120],
    "motion": [0, 0.05, 100, "0", "0:0.01, 8:0.05"],
    "inertia": [0, 0.5, 1, "0:0, 8:1"],
    "momentum": [0, 0.98, 1, "0:1, 8:0.9"],
    "loop": [True, False],
    "prompts": ["0: a red circle", "0: a red circle\n12: a blue square", "3:", "", " \n"],
    "noise_model": ["dependency", "mixed", "progressive", "independent"],
    "alpha": [0, 0.9, 1],
    "candidates": [1, 10, 1000],
    "solver": ["exact", "search"],
    "frames_per_pass": [0, 1, 1024],
    "anchor_stride": [1, 4, 4.0, 16],
    "anchor_depth": ["gentle", "medium", "strong"],
    "anchor_start": [0, 0.15, 1],
    "formats": [["mp4"], ("gif", "png"), ["mp4", "gif", "webp", "apng", "webm", "png"]],
    "return": ["frames", "video", "both"],
    "source": ["", "clip.mp4"],
    "source_start": [0, 1.5, 360000],
    "source_end": [0, 1.5, 360000],
    "source_fps": [0, 12, 29.97, 120],
    "source_every": [1, 2.0, 1000],
    "source_audio": [True, False],
    "mask": ["", "mask.png"],
    "control": [[], ["source", "", "clip.mp4"], ("source",)],
    "control_fit": ["hold", "loop", "stretch"],
    "control_momentum": [True, False],
}
NEEDS = {"mask": {"source": "clip.mp4"}}
"""What a setting needs beside it."""
REFUSED = {
    "enabled": NO_BOOLEAN,
    "frames": [0, -1, 1025, 7.5, *NO_NUMBER],
    "fps": [0, 0.09, 120.1, *NO_NUMBER],
    "motion": [-0.001, "-1", "0:0.1, 8:-0.1", *NO_SCHEDULE],
    "inertia": [-0.001, 1.001, "0:0, 8:1.1", *NO_SCHEDULE],
    "momentum": [-0.001, 1.001, "0:-0.1, 8:1", *NO_SCHEDULE],
    "loop": NO_BOOLEAN,
    "prompts": [7, True, ["0: a"], {"0": "a"}, "a red circle", "0: a\n0: b", "0: a\nb", "-1: a", "1.5: a", "0 a"],
    "noise_model": ["", "Mixed", "dependent", None, 1, ["mixed"]],
    "alpha": [-0.001, 1.001, *NO_NUMBER],
    "candidates": [0, 1001, 1.5, *NO_NUMBER],
    "solver": ["", "Exact", None, ["exact"]],
    "frames_per_pass": [-1, 1025, 0.5, *NO_NUMBER],
    "anchor_stride": [0, 17, 1.5, *NO_NUMBER],
    "anchor_start": [-0.1, 1.5, *NO_NUMBER],
    "anchor_depth": ["", "Medium", "deep", None, 1, ["strong"]],
    "formats": [[], (), "mp4", None, {"mp4": True}, ["mp4", "avi"], [["mp4"]], [None]],
    "return": ["", "videos", None, True],
    "source": [None, 1, True, ["clip.mp4"]],
    "source_start": [-0.1, 400000, *NO_NUMBER],
    "source_end": [-0.1, 400000, *NO_NUMBER],
    "source_fps": [-1, 120.1, *NO_NUMBER],
    "source_every": [0, 1001, 1.5, *NO_NUMBER],
    "source_audio": NO_BOOLEAN,
    "mask": [None, 1, ["mask.png"]],
    "control": [None, "source", {"0": "source"}, [1], [None], [["source"]]],
    "control_fit": ["", "Hold", None, True],
    "control_momentum": NO_BOOLEAN,
}


def each(table):
    pairs = [(key, value) for key, values in table.items() for value in values]
    return pytest.mark.parametrize(("key", "value"), pairs, ids=[f"{key}-{value!r:.40}" for key, value in pairs])


@each(ALLOWED)
def test_allowed_values(key, value):
    settings = Settings.from_mapping({key: value, **NEEDS.get(key, {})})
    kept = getattr(settings, "returns" if key == "return" else key)
    if key in ("motion", "inertia", "momentum"):
        assert kept == Schedule.parse(value)
    elif key in ("formats", "control"):
        assert kept == tuple(value)
    elif key == "prompts":
        assert kept == (PromptKeyframes.parse(value) if value.strip() else None)
    else:
        assert kept == value
        assert type(kept) is type(getattr(Settings(), "returns" if key == "return" else key))


@each(REFUSED)
def test_refused_values(key, value):
    """The message begins with the key, says the value (or the list's item) and what would be right."""
    with pytest.raises(SettingsError) as refused:
        Settings.from_mapping({key: value})
    wrong = (
        next((item for item in value if item != "mp4"), value)
        if key == "formats" and isinstance(value, list)
        else value
    )
    assert re.match(rf"{key}: {re.escape(repr(wrong))} is not allowed.*(give|may hold) ", str(refused.value))


def test_the_tables_above_have_every_setting():
    assert ALLOWED.keys() == REFUSED.keys()
    assert len(ALLOWED) == len(dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("frames", 0, "a whole number from 1 to 1024"),
        ("fps", 0, "a number from 0.1 to 120"),
        ("motion", -1, "a number of 0 or more, or keyframes of such numbers such as '0:0.01, 8:0.05'"),
        ("momentum", 2, "a number from 0 to 1, or keyframes"),
        ("momentum", "0:1, 0:0", "frame 0 has two values"),
        ("loop", 1, "true or false"),
        ("solver", "exakt", 'one of "exact", "search"; did you mean "exact"?'),
        ("noise_model", "progresive", 'did you mean "progressive"?'),
        ("formats", ["mp4", "wepb"], 'did you mean "webp"?'),
        ("formats", "mp4", 'a list of one or more of "mp4", "gif"'),
        ("return", "videos", 'did you mean "video"?'),
    ],
)
def test_what_is_allowed_is_said(key, value, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        Settings.from_mapping({key: value})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("momentun", "momentum"),
        ("Frames", "frames"),
        ("frame", "frames"),
        ("noise", "noise_model"),
        ("returns", "return"),
        ("frames_per_batch", "frames_per_pass"),
        ("format", "formats"),
    ],
)
def test_unknown_keys_name_the_nearest(key, nearest):
    with pytest.raises(SettingsError, match=f"'{key}' is not a setting of ZS².*did you mean \"{nearest}\"") as refused:
        Settings.from_mapping({"frames": 8, key: 1})
    assert all(valid in str(refused.value) for valid in ALLOWED)


def test_keys_that_are_no_text_are_refused():
    with pytest.raises(SettingsError, match="^1 is not a setting"):
        Settings.from_mapping({1: 2})


def test_defaults():
    settings = Settings.from_mapping({})
    assert settings == Settings()
    assert (settings.enabled, settings.frames, settings.fps, settings.loop) == (False, 8, 8.0, False)
    assert (str(settings.motion), str(settings.inertia), str(settings.momentum)) == ("0.05", "0", "0.98")
    assert (settings.noise_model, settings.candidates, settings.solver) == ("dependency", 1, "exact")
    assert (settings.frames_per_pass, settings.formats, settings.returns) == (0, ("mp4",), "both")


def test_repeated_formats_are_written_once():
    assert Settings(formats=["gif", "mp4", "gif"]).formats == ("gif", "mp4")


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().frames = 9


# --- settings together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(formats=["mp4", "gif"], fps=60), "fps: 60 is not allowed with the format 'gif': "),
        (dict(formats=["webp"], fps=100), "fps: 100 is not allowed with the format 'webp': "),
        (dict(loop=True, noise_model="mixed"), 'loop: true is not allowed with noise_model "mixed"'),
        (dict(loop=True, motion="0:0.1, 4:0.2"), "loop: true is not allowed with motion keyframes '0:0.1, 4:0.2'"),
    ],
)
def test_values_that_exclude_each_other(values, words):
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}"):
        Settings(**values)
    for key in values:  # each alone is fine
        Settings(**{key: values[key]})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(mask="mask.png"), "mask: a mask video is not allowed without a source"),
        (dict(source="clip.mp4", source_start=3, source_end=2), "source_end is 2"),
        (dict(source="clip.mp4", formats=["gif"], fps=60), "fps: 60 is not allowed with the format 'gif': "),
        (dict(source="clip.mp4", frames=1025), "frames: 1025 is not allowed"),
    ],
)
def test_settings_of_a_source_that_do_not_go_together(values, words):
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}"):
        Settings(**values)


def test_a_source_decides_what_is_left_open():
    settings = Settings.from_mapping({"source": "clip.mp4"})
    assert (settings.frames, settings.fps) == (0, 0)
    assert settings.selection == Selection()
    settings = Settings.from_mapping(
        {"source": "clip.mp4", "frames": 5, "fps": 6, "source_start": 1, "source_end": 2, "source_every": 2}
    )
    assert (settings.frames, settings.fps) == (5, 6)
    assert settings.selection == Selection(start=1, end=2, every=2, frames=5)


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({}, []),
        (dict(inertia=0.5), []),
        (dict(loop=True), []),
        (dict(loop=True, inertia="0:0, 8:0.5"), ["Inertia 0:0, 8:0.5 has no effect on a loop"]),
        (dict(prompts="0: a\n7: b"), []),
        (
            dict(prompts="0: a\n8: b\n12: c"),
            ["Prompts at frame 8, 12 are not reached: the last of 8 frames is frame 7."],
        ),
        (dict(prompts="0: a\n4: b\n8: a", loop=True), []),
        (
            dict(prompts="0: a\n7: b", loop=True),
            ["The loop jumps from its last prompt to its first; to lead back, end the prompts with '8: a'."],
        ),
        (
            dict(noise_model="progressive", inertia=0.5),
            ['Inertia 0.5 has no effect with the noise model "progressive"'],
        ),
    ],
)
def test_notes(values, notes):
    said = Settings(**values).notes
    assert len(said) == len(notes) and all(map(str.startswith, said, notes))


# --- infotext -----------------------------------------------------------------------------------------


def test_infotext_has_one_key_for_each_setting_of_the_clip():
    settings = Settings(
        enabled=True,
        frames=12,
        fps=29.97,
        motion="0:0.01, 8:0.05",
        inertia=0.5,
        momentum=0.9,
        alpha=1 / 3,
        formats=["gif", "mp4"],
        returns="video",
    )
    assert settings.infotext == {
        "ZS2 frames": "12",
        "ZS2 fps": "29.97",
        "ZS2 motion": "0:0.01, 8:0.05",
        "ZS2 inertia": "0.5",
        "ZS2 momentum": "0.9",
        "ZS2 loop": "False",
        "ZS2 noise model": "dependency",
        "ZS2 alpha": "0.3333333333333333",
        "ZS2 candidates": "1",
        "ZS2 solver": "exact",
        "ZS2 frames per pass": "0",
        "ZS2 anchor stride": "1",
        "ZS2 anchor depth": "medium",
        "ZS2 anchor start": "0.18",
        "ZS2 formats": "gif mp4",
    }


def test_infotext_says_which_part_of_the_source_but_no_path():
    infotext = Settings(source="/home/me/clip.mp4", source_start=1.5, mask="/home/me/mask.png").infotext
    assert infotext["ZS2 source start"] == "1.5" and infotext["ZS2 source every"] == "1"
    assert not [value for value in infotext.values() if "home" in value]


def test_infotext_has_prompts_only_if_there_are_some():
    assert "ZS2 prompts" not in Settings(prompts=" ").infotext
    assert Settings(prompts=" 4:b, c \n0: a").infotext["ZS2 prompts"] == "0: a\n4: b, c"


def test_infotext_keys_are_ones_the_host_can_read():
    assert all(re.fullmatch(r"\w[\w \-/]+", key) for key in Settings(prompts="0: a").infotext)
