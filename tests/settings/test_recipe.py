"""Settings survive the infotext: what is written there, and what is read back."""

import json
import re

import pytest

from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings


def test_one_key_for_each_setting_of_the_clip():
    values = dict(frames=12, fps=29.97, motion="0:0.01, 8:0.05", inertia=0.5, momentum=0.9, alpha=1 / 3)
    texts = recipe.texts(Settings(enabled=True, formats=["gif", "mp4"], returns="video", **values))
    assert ", ".join(f"{key}: {text!r}" for key, text in texts.items()) == (
        "ZS2 frames: '12', ZS2 fps: '29.97', ZS2 motion: '0:0.01, 8:0.05', ZS2 inertia: '0.5', ZS2 momentum: '0.9', "
        "ZS2 loop: 'off', ZS2 in betweens: '1', ZS2 noise model: 'dependency', ZS2 alpha: '0.3333333333333333', "
        "ZS2 candidates: '1', ZS2 solver: 'exact', ZS2 frames per pass: '0', ZS2 anchor stride: '1', "
        "ZS2 anchor depth: 'medium', ZS2 anchor start: '0.18', ZS2 formats: 'gif mp4'"
    )


def test_which_part_of_the_source_but_no_path():
    texts = recipe.texts(Settings(source="/home/me/clip.mp4", source_start=1.5, mask="/home/me/mask.png"))
    assert texts["ZS2 source start"] == "1.5" and texts["ZS2 source every"] == "1"
    assert not [text for text in texts.values() if "home" in text]


def test_prompts_only_if_there_are_some():
    assert "ZS2 prompts" not in recipe.texts(Settings(prompts=" "))
    assert recipe.texts(Settings(prompts=" 4:b, c \n0: a"))["ZS2 prompts"] == "0: a\n4: b, c"


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict(frames=3, fps=29.97, motion="0:0.01, 8:0.05", loop=False, alpha=1 / 3, formats=["gif", "png"]),
        dict(prompts='0: a, "b"\n4: c\\d: e', solver="search", inertia=1, loop=True, anchor_depth="gentle"),
        dict(in_betweens=3, retakes="9:1, 12:2", extended="8", loop="ping-pong"),
    ],
)
def test_what_is_written_is_read_back(values):
    settings = Settings(**values)
    assert Settings(**recipe.read(recipe.texts(settings))) == settings
    # as the WebUI splits the last line of the whole text (modules/infotext_utils.py)
    text = recipe.parameters("a\nb", "c: d", {"Steps": 5, **recipe.texts(settings)})
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.splitlines()[-1])
    assert text.startswith("a\nb\nNegative prompt: c: d\nSteps: 5, ZS2 frames: ")
    infotext = {key: json.loads(text) if text.startswith('"') else text for key, text in found}
    assert infotext == {"Steps": "5", **recipe.texts(settings)}


MANY = {"Steps": "20", "Sampler": "Euler a", "Seed": "1", "ZS2 prompts": '0: a, "b"\n8: c\\d: e', "Model": '"m"'}


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a", ""),
        ("", "b"),
        (" a \n\n b\r\n", "  c\n\td "),
        ("a\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 8x8", "b\nSteps: 5, Sampler: DDIM, Seed: 2"),
        ("a\nNegative prompt: b", ""),
        ("a\nNegative prompt: b\nSteps: 20, Sampler: Euler a, Seed: 1", "c"),
        ('(a:1.2), "b", {"c": [1, "d"]}, \\(e\\) <lora:f:0.8> 😀', "Negative prompt"),
    ],
)
def test_the_whole_text_is_read_back(prompt, negative):
    assert recipe.parsed(recipe.parameters(prompt, negative, MANY)) == (prompt, negative, MANY)


def test_a_text_of_the_webui_or_of_nothing_known():
    text = (
        "a cat,\non a mat\nNegative prompt: dog: (big)\nSteps: 5, Sampler: DPM++ 2M, Size: 64x64, "
        'Hires prompt: "x, \\"y\\"\\nz", Lora hashes: "l: 1a2b, m: 3c", Version: v1.10.1'
    )
    prompt, negative, values = recipe.parsed(text)
    assert (prompt, negative) == ("a cat,\non a mat", "dog: (big)")
    assert values["Size"] == "64x64" and values["Hires prompt"] == 'x, "y"\nz' and values["Version"] == "v1.10.1"
    assert values["Lora hashes"] == "l: 1a2b, m: 3c" and list(values)[:2] == ["Steps", "Sampler"]
    assert recipe.parsed("a cat: sitting, by the sea") == ("a cat: sitting, by the sea", "", {})
    assert recipe.parsed("") == ("", "", {})


def test_an_infotext_speaks_of_what_it_has():
    assert not recipe.is_of_clip({"Steps": "20"}) and recipe.read({"Steps": "20"}) == {}
    assert recipe.read({"ZS2 frames": "3"}) == {"frames": 3, "prompts": None, "retakes": None, "extended": None}
    assert recipe.read({"ZS2 frames": "3", "ZS2 loop": "True"}, ("loop", "fps")) == {"loop": "seamless"}


@pytest.mark.parametrize(("key", "text"), [("frames", "many"), ("loop", "yes"), ("motion", "-1"), ("formats", "avi")])
def test_what_cannot_be_a_setting_is_refused(key, text):
    with pytest.raises(SettingsError, match=f"^ZS2 {key}: .* is not allowed"):
        recipe.read({f"ZS2 {key}": text})
