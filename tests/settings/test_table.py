"""What a user may set, and what is said of everything else."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from zs2_lib.media.source import Selection
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.schedule import PromptKeyframes, Schedule
from zs2_lib.settings.schema import schema
from zs2_lib.settings.table import ROWS, Settings

ROOT = Path(__file__).resolve().parents[2]

# --- values: those allowed, and the nearest ones that are not -----------------------------------------

NO_NUMBER = [True, None, "8", [8], math.nan, math.inf, -math.inf]
NO_SCHEDULE = [True, None, [0.1], math.nan, math.inf, 10**400, "fast", "", "0:0.1, 0:0.2", "-1:0.5", "0:0.1, 8"]
NO_BOOLEAN = (1, 0, "true", None)
YES_NO = ("enabled", "preflight", "sidecar", "source_audio", "control_momentum")

ALLOWED = {
    **dict.fromkeys(YES_NO, (True, False)),
    "frames": [1, 8, 8.0, 100_000],
    "fps": [0.1, 8, 29.97, 120],
    "motion": [0, 0.05, 100, "0", "0:0.01, 8:0.05"],
    "inertia": [0, 0.5, 1, "0:0, 8:1"],
    "momentum": [0, 0.98, 1, "0:1, 8:0.9"],
    "loop": ["off", "ping-pong", "seamless", True, False],
    "in_betweens": [1, 2, 4],
    "prompts": ["0: a red circle", "0: a red circle\n12: a blue square", "3:", "", " \n"],
    "noise_model": ["dependency", "mixed", "progressive", "independent"],
    "alpha": [0, 0.9, 1],
    "candidates": [1, 10, 1000],
    "solver": ["exact", "search"],
    "frames_per_pass": [0, 1, 1024],
    "anchor_stride": [1, 4, 4.0, 16],
    "anchor_depth": ["gentle", "medium", "strong"],
    "anchor_start": [0, 0.15, 1],
    "retakes": ["9:1", "12:2, 3:1", "", None, [[9, 1]], ((9, 0),)],
    "extended": ["8", "16, 8", "", None, [8, 16], 8 * [3]],
    "formats": [["mp4"], ("gif", "png"), ["mp4", "gif", "webp", "apng", "webm", "png"]],
    "return": ["frames", "video", "both"],
    "source": ["", "clip.mp4"],
    "clip": ["", "clip.mp4"],
    **dict.fromkeys(("source_start", "source_end"), (0, 1.5, 360000)),
    "source_fps": [0, 12, 29.97, 120],
    "source_every": [1, 2.0, 1000],
    "mask": ["", "mask.png"],
    "control": [[], ["source", "", "clip.mp4"], ("source",)],
    "control_fit": ["hold", "loop", "stretch"],
}
FIELDS = {"return": "returns", "clip": "kept_clip"}
NEEDS = {"mask": {"source": "clip.mp4"}}
"""What a setting needs beside it."""
REFUSED = {
    **dict.fromkeys(YES_NO, NO_BOOLEAN),
    "frames": [0, -1, 100_001, 7.5, *NO_NUMBER],
    "fps": [0, 0.09, 120.1, *NO_NUMBER],
    "motion": [-0.001, "-1", "0:0.1, 8:-0.1", *NO_SCHEDULE],
    "inertia": [-0.001, 1.001, "0:0, 8:1.1", *NO_SCHEDULE],
    "momentum": [-0.001, 1.001, "0:-0.1, 8:1", *NO_SCHEDULE],
    "loop": ["on", "", None, 1, 0],
    "in_betweens": [0, 5, 1.5, *NO_NUMBER],
    "prompts": [7, True, ["0: a"], {"0": "a"}, "a red circle", "0: a\n0: b", "0: a\nb", "-1: a", "1.5: a", "0 a"],
    "noise_model": ["", "Mixed", "dependent", None, 1, ["mixed"]],
    "alpha": [-0.001, 1.001, *NO_NUMBER],
    "candidates": [0, 1001, 1.5, *NO_NUMBER],
    "solver": ["", "Exact", None, ["exact"]],
    "frames_per_pass": [-1, 1025, 0.5, *NO_NUMBER],
    "anchor_stride": [0, 17, 1.5, *NO_NUMBER],
    "anchor_start": [-0.1, 1.5, *NO_NUMBER],
    "anchor_depth": ["", "Medium", "deep", None, 1, ["strong"]],
    "retakes": ["0:1", "9", "9:-1", "9:1, 9:2", [9, 1], [[9, True]], [[9, 1.0]], 9, True],
    "extended": ["0", "-1", "a", [0], [True], ["8"], 8, 100_001],
    "formats": [[], (), "mp4", None, {"mp4": True}, ["mp4", "avi"], [["mp4"]], [None]],
    "return": ["", "videos", None, True],
    "source": [None, 1, True, ["clip.mp4"]],
    "clip": [None, 1, True, ["clip.mp4"]],
    **dict.fromkeys(("source_start", "source_end"), (-0.1, 400000, *NO_NUMBER)),
    "source_fps": [-1, 120.1, *NO_NUMBER],
    "source_every": [0, 1001, 1.5, *NO_NUMBER],
    "mask": [None, 1, ["mask.png"]],
    "control": [None, "source", {"0": "source"}, [1], [None], [["source"]]],
    "control_fit": ["", "Hold", None, True],
}


def each(table):
    pairs = [(key, value) for key, values in table.items() for value in values]
    return pytest.mark.parametrize(("key", "value"), pairs, ids=[f"{key}-{value!r:.40}" for key, value in pairs])


@each(ALLOWED)
def test_allowed_values(key, value):
    settings = Settings.from_mapping({key: value, **NEEDS.get(key, {})})
    kept = getattr(settings, FIELDS.get(key, key))
    if key in ("motion", "inertia", "momentum"):
        assert kept == Schedule.parse(value)
    elif key in ("formats", "control"):
        assert kept == tuple(value)
    elif key == "prompts":
        assert kept == (PromptKeyframes.parse(value) if value.strip() else None)
    elif key in ("retakes", "extended", "loop"):  # in one form, whatever it was given as
        assert kept == ROWS[key].kind.read(key, ROWS[key].kind.print(kept))
    else:
        assert kept == value and type(kept) is type(getattr(Settings(), FIELDS.get(key, key)))


@each(REFUSED)
def test_refused_values(key, value):
    """The message begins with the key, says the value (or the list's item) and what would be right."""
    with pytest.raises(SettingsError) as refused:
        Settings.from_mapping({key: value})
    is_list = key == "formats" and isinstance(value, list)
    wrong = next((item for item in value if item != "mp4"), value) if is_list else value
    assert re.match(rf"{key}: {re.escape(repr(wrong))} is not allowed.*(give|may hold) ", str(refused.value))


def test_the_tables_above_have_every_setting():
    assert ALLOWED.keys() == REFUSED.keys()
    assert len(ALLOWED) == len(dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("frames", 0, "a whole number from 1 to 100000"),
        ("fps", 0, "a number from 0.1 to 120"),
        ("motion", -1, "a number of 0 or more, or keyframes of such numbers such as '0:0.01, 8:0.05'"),
        ("momentum", 2, "a number from 0 to 1, or keyframes"),
        ("momentum", "0:1, 0:0", "frame 0 has two values"),
        ("source_audio", 1, "true or false"),
        ("loop", 1, 'one of "off", "ping-pong", "seamless"'),
        ("retakes", "0:1", "frame 0 is the still: choose another seed"),
        ("extended", "0", "whole numbers from 1 to 100000"),
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
    assert (settings.enabled, settings.frames, settings.fps, settings.loop) == (False, 8, 8.0, "off")
    assert (str(settings.motion), str(settings.inertia), str(settings.momentum)) == ("0.05", "0", "0.98")
    assert (settings.noise_model, settings.candidates, settings.solver) == ("dependency", 1, "exact")
    assert (settings.frames_per_pass, settings.formats, settings.returns) == (0, ("mp4",), "video")


def changes_by_sampler(document):
    """The table "sampler" of a document: for each the change in each column, None where it was not measured."""
    table = (ROOT / document).read_text(encoding="utf-8").split("| sampler |")[1].split("\n\n")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()[2:]]
    return {row[0]: [None if cell == "–" else float(cell.split()[0]) for cell in row[1:]] for row in rows}


def test_tooltip_of_motion_says_what_to_expect():
    """λ moves the picture differently with each sampler; the figures are the measured ones."""
    measured = changes_by_sampler("docs/motion.md")
    assert changes_by_sampler("README.md").items() <= measured.items()
    few_steps, _, _, _, strong = measured["DPM2 a"]
    others = [x for changes in measured.values() for x in changes if x not in (None, few_steps, strong)]
    tooltip = ROWS["motion"].tooltip
    assert f"by {min(others):.0f} to {max(others):.0f} of 255" in tooltip
    assert f"DPM2 a at 10 steps or CFG 9 by {strong:.0f} to {few_steps:.0f}" in tooltip


@each(ALLOWED)
def test_settings_as_json(key, value):
    """Which are read back as they were."""
    settings = Settings.from_mapping({key: value, **NEEDS.get(key, {})})
    assert Settings.from_mapping(json.loads(json.dumps(recipe.by_key(settings)))) == settings


def test_the_schema_takes_what_is_allowed_and_no_wrong_types():
    """What a text has to look like, it does not say; 0 is what some settings are with a source."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    for key, values in ALLOWED.items():
        for value in values:
            settings = Settings.from_mapping({key: value, **NEEDS.get(key, {})})
            for mapping in ({key: value}, recipe.by_key(settings)):
                validator.validate(json.loads(json.dumps(mapping)))
    for key, values in REFUSED.items():
        is_text = "string" in json.dumps(schema()["properties"][key])
        for value in values:
            unknown_to_json = isinstance(value, (int, float)) and not abs(value) < 1e300
            if unknown_to_json or value == 0 or (is_text and isinstance(value, (str, list))):
                continue
            assert not validator.is_valid(json.loads(json.dumps({key: value}))), (key, value)


def test_repeated_formats_are_written_once():
    assert Settings(formats=["gif", "mp4", "gif"]).formats == ("gif", "mp4")


@pytest.mark.parametrize(
    ("values", "length", "played"),
    [
        (dict(frames=5), 5, [0, 1, 2, 3, 4]),
        (dict(frames=3, in_betweens=2), 5, [0, 1, 2, 3, 4]),
        (dict(frames=3, in_betweens=2, loop="seamless"), 6, [0, 1, 2, 3, 4, 5]),
        (dict(frames=4, loop="ping-pong"), 4, [0, 1, 2, 3, 2, 1]),
        (dict(frames=1, in_betweens=4, loop="seamless"), 1, [0]),
        (dict(frames=2, loop="ping-pong"), 2, [0, 1]),
    ],
)
def test_frames_in_all_and_in_the_files(values, length, played):
    settings = Settings(**values)
    assert settings.length == settings.clip(1).frames == length
    assert list(settings.played(range(length))) == played
    assert settings.rate == settings.fps * settings.in_betweens


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().frames = 9


# --- settings together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(formats=["mp4", "gif"], fps=60), "fps: 60 is not allowed with the format 'gif': "),
        (dict(formats=["webp"], fps=100), "fps: 100 is not allowed with the format 'webp': "),
        (dict(loop=True, noise_model="mixed"), 'loop: "seamless" is not allowed with noise_model "mixed"'),
        (
            dict(loop=True, motion="0:0.1, 4:0.2"),
            "loop: \"seamless\" is not allowed with motion keyframes '0:0.1, 4:0.2'",
        ),
        (dict(loop="seamless", retakes="3:1"), 'retakes: 3:1 is not allowed with loop "seamless": every frame'),
        (dict(loop="seamless", extended="3"), 'extended: 3 is not allowed with loop "seamless": every frame'),
        (
            dict(fps=30, in_betweens=2, formats=["gif"]),
            "fps: 30 is not allowed with in_betweens 2 and the format 'gif'",
        ),
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
        (dict(source="clip.mp4", frames=100_001), "frames: 100001 is not allowed"),
        (dict(loop=True, frames=1025), 'loop: "seamless" is not allowed with 1025 frames'),
    ],
)
def test_settings_of_a_source_that_do_not_go_together(values, words):
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}"):
        Settings(**values)


def test_a_source_decides_what_is_left_open():
    settings = Settings.from_mapping({"source": "clip.mp4"})
    assert (settings.frames, settings.fps) == (0, 0)
    assert settings.selection == Selection()
    values = {"frames": 5, "fps": 6, "source_start": 1, "source_end": 2, "source_every": 2}
    settings = Settings.from_mapping({"source": "clip.mp4", **values})
    assert (settings.frames, settings.fps) == (5, 6)
    assert settings.selection == Selection(start=1, end=2, every=2, frames=5)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({}, None),
        (dict(inertia=0.5), None),
        (dict(loop=True), None),
        (dict(loop=True, inertia="0:0, 8:0.5"), "Inertia 0:0, 8:0.5 has no effect on a loop"),
        (dict(prompts="0: a\n7: b"), None),
        (dict(prompts="0: a\n8: b\n12: c"), "Prompts at frame 8, 12 are not reached: the last of 8 frames is frame 7."),
        (dict(prompts="0: a\n4: b\n8: a", loop=True), None),
        (
            dict(prompts="0: a\n7: b", loop=True),
            "The loop jumps from its last prompt to its first; to lead back, end the prompts with '8: a'.",
        ),
        (dict(frames=1, in_betweens=2), "A clip of 1 frame has no in-betweens."),
        (dict(motion=0, retakes="3:1"), "Retakes have no effect with motion 0: all frames have the same noise."),
        (dict(retakes="3:1", anchor_stride=4), "With anchors the frames just before a retake follow from those behind"),
        (dict(retakes="3:1", anchor_stride=4, kept_clip="clip.png"), None),
        (dict(retakes="3:1, 8:1"), "The retake at frame 8 is not reached: the last of 8 frames is frame 7."),
        (dict(noise_model="progressive", inertia=0.5), 'Inertia 0.5 has no effect with the noise model "progressive"'),
    ],
)
def test_notes(values, note):
    said = Settings(**values).notes
    assert len(said) == (note is not None) and all(each.startswith(note) for each in said)
