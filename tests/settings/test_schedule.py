"""Values and prompts by keyframes: what is read, and what each frame gets."""

import math
from fractions import Fraction

import pytest

from zs2_lib.settings.schedule import PromptKeyframes, Schedule, join


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


# --- prompts ------------------------------------------------------------------------------------------

A, B, C = "a red circle", "a blue square", "a green star"


@pytest.mark.parametrize(
    ("text", "keyframes"),
    [
        ("0: a red circle", ((0, A),)),
        ("0: a red circle\n12: a blue square", ((0, A), (12, B))),
        ("\n 12 :a blue square  \r\n\n\t0:a red circle\n", ((0, A), (12, B))),
        ("007: (a:1.2), [b:c:0.5] AND d :0.6, <lora:x:1>", ((7, "(a:1.2), [b:c:0.5] AND d :0.6, <lora:x:1>"),)),
        ("0:\n4: a red circle", ((0, ""), (4, A))),
        ("3: 4: a red circle", ((3, "4: a red circle"),)),
        ('0: ein Bär, 赤い円, "quoted"', ((0, 'ein Bär, 赤い円, "quoted"'),)),
    ],
)
def test_keyframes_are_read_and_written(text, keyframes):
    prompts = PromptKeyframes.parse(text)
    assert prompts.keyframes == keyframes
    assert PromptKeyframes.parse(str(prompts)) == prompts
    assert PromptKeyframes.parse(prompts) is prompts


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "no prompt given"),
        (" \n\t\n", "no prompt given"),
        (A, "cannot read the line 'a red circle'.* a frame and a colon first"),
        ("0: a\nb", "cannot read the line 'b'"),
        ("0: a\n: b", "cannot read the line ': b'"),
        ("-1: a", "cannot read the line '-1: a'"),
        ("1.5: a", "cannot read the line '1.5: a'"),
        ("²: a", "cannot read the line '²: a'"),
        ("1" * 10 + ": a", "cannot read the line '1111111111: a'"),
        ("3: a\n03: b", "frame 3 has two prompts"),
        (None, "None is not a text of lines"),
        (7, "7 is not a text of lines"),
        (["0: a"], "is not a text of lines"),
    ],
)
def test_keyframes_that_cannot_be_read(value, words):
    with pytest.raises(ValueError, match=words):
        PromptKeyframes.parse(value)


@pytest.mark.parametrize(
    "keyframes",
    [((0, A), (8, B)), ((2, A), (5, B), (6, C), (9, A)), ((4, A),), ((0, A), (1, B)), ((20, A), (30, B))],
)
def test_each_frame_is_between_its_neighbouring_keyframes(keyframes):
    """Against the piecewise linear share of every keyframe, each a triangle with its top at the keyframe."""
    prompts = PromptKeyframes(keyframes)
    frames = [frame for frame, _ in keyframes]
    for frame in range(40):
        shares = {}
        for i, (top, _) in enumerate(keyframes):
            left = frames[i - 1] if i else None
            right = frames[i + 1] if i + 1 < len(frames) else None
            if frame <= top:
                share = Fraction(1) if left is None else Fraction(max(frame - left, 0), top - left)
            else:
                share = Fraction(1) if right is None else Fraction(max(right - frame, 0), right - top)
            if share:
                shares[i] = share
        assert sum(shares.values()) == 1
        before, after, weight = prompts.at(frame)
        first, *rest = sorted(shares)
        assert before == keyframes[first][1]
        assert after == (keyframes[rest[0]][1] if rest else before)
        assert weight == pytest.approx(float(shares[rest[0]]) if rest else 0, abs=1e-15)
        assert 0 <= weight < 1


def test_at_a_keyframe_its_prompt_stands_alone():
    prompts = PromptKeyframes(((0, A), (3, B), (7, C)))
    assert [prompts.at(frame) for frame in (0, 3, 7, 100)] == [(A, A, 0.0), (B, B, 0.0), (C, C, 0.0), (C, C, 0.0)]


def test_texts_come_once_and_know_their_first_frame():
    prompts = PromptKeyframes(((1, A), (4, B), (9, A)))
    assert prompts.texts == (A, B)
    assert [prompts.frame_of(text) for text in prompts.texts] == [1, 4]


@pytest.mark.parametrize(("frames", "beyond"), [(1, [4, 8]), (4, [4, 8]), (5, [8]), (8, [8]), (9, []), (100, [])])
def test_keyframes_beyond_the_clip(frames, beyond):
    assert PromptKeyframes(((0, A), (4, B), (8, C))).beyond(frames) == beyond


@pytest.mark.parametrize(
    ("common", "text", "whole"),
    [
        ("a cat", "in snow", "a cat, in snow"),
        ("a cat, ", " in snow ", "a cat, in snow"),
        ("a cat,\n", "in snow", "a cat, in snow"),
        ("", "in snow", "in snow"),
        (" ,", "in snow", "in snow"),
        ("a cat", "", "a cat"),
        ("", "", ""),
    ],
)
def test_the_common_part_comes_first(common, text, whole):
    assert join(common, text) == whole
