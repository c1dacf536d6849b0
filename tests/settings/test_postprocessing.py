"""Protects what can be asked of a finished clip: what is allowed, what is refused, and the schema of it."""

import pytest

from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.postprocessing import ROWS, Postprocessing
from zs2_lib.settings.schema import postprocessing_schema

CLIP = {"clip": "walk.mp4"}


@pytest.mark.parametrize(
    "values, upscales, interpolates",
    [
        ({"upscaler": "Lanczos"}, True, False),
        ({"upscaler": "None", "interpolate": 2}, False, True),
        ({"upscaler": "", "fps": 60}, False, True),
        ({"upscaler": " R-ESRGAN 4x+ ", "scale": 1.5, "interpolate": 4, "formats": ["gif", "mp4", "gif"]}, True, True),
    ],
)
def test_what_is_allowed(values, upscales, interpolates):
    settings = Postprocessing.from_mapping({**CLIP, **values})
    assert (settings.upscales, settings.interpolates) == (upscales, interpolates)
    assert settings.upscaler == values["upscaler"].strip() if "upscaler" in values else True
    assert settings.formats == tuple(dict.fromkeys(values.get("formats", ())))


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "nothing to do"),
        ({"interpolate": 1, "fps": 0}, "nothing to do"),
        ({"interpolate": 3, "fps": 24}, "fps: 24 is not allowed with interpolate 3"),
        ({"interpolate": 2.5}, "interpolate: 2.5 .* whole number from 1 to 4"),
        ({"fps": 241}, "fps: 241 .* 0.1 to 240"),
        ({"upscaler": 4}, "upscaler: 4"),
        ({"upscaler": "Lanczos", "scale": 0.5}, "scale: 0.5 .* 1 to 8"),
        ({"interpolate": 2, "order": "upscale last"}, 'order: .* did you mean "upscale first"'),
        ({"interpolate": 2, "formats": "mp4"}, "formats: 'mp4' is not allowed"),
        ({"interpolate": 2, "clip": ""}, "clip: none is given"),
        ({"interpolate": 2, "clip": None}, "clip: None is not allowed"),
        ({"interpolat": 2}, "'interpolat' is not known .* did you mean \"interpolate\""),
    ],
)
def test_what_is_refused(values, words):
    with pytest.raises(SettingsError, match=words) as raised:
        Postprocessing.from_mapping({**CLIP, **values})
    assert raised.value.status_code == 422


def test_schema():
    schema = postprocessing_schema()
    assert schema["required"] == ["clip"] and list(schema["properties"]) == list(ROWS)
    assert schema["properties"]["formats"]["minItems"] == 0 and schema["properties"]["formats"]["default"] == []
    assert schema["properties"]["interpolate"] | {"minimum": 1, "maximum": 4} == schema["properties"]["interpolate"]


def test_a_recipe_with_more_values():
    values = {"Steps": 20, "Seed": 7, "ZS2 frames": 8}
    more = {"ZS2 upscaler": "R-ESRGAN 4x+, anime", "ZS2 upscaled by": 2}
    text = recipe.parameters("a circle", "blue\nand green", values)
    longer = recipe.with_values(text, more)
    assert longer.startswith(text)
    assert recipe.parsed(longer) == ("a circle", "blue\nand green", {k: str(v) for k, v in (values | more).items()})
    assert recipe.with_values("", {"ZS2 upscaled by": 2}) == "ZS2 upscaled by: 2"
    assert recipe.with_values("a circle", {"ZS2 upscaled by": 2}) == "a circle\nZS2 upscaled by: 2"
