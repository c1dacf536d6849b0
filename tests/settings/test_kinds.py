"""Kinds of values: a text that is printed is parsed, and what is refused is told to the host."""

import copy

import pytest

from zs2_lib.settings.kinds import Choice, Choices, Number, NumberSchedule, Prompts, SettingsError, WholeNumber, YesNo


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (YesNo(), "True", True),
        (WholeNumber(0, 2**63 - 1), "9223372036854775807", 2**63 - 1),
        (WholeNumber(1, 9, or_zero=True), "0", 0),
        (Number(0.1, 120, or_zero=True), "0", 0.0),
        (Choices(("a", "b")), "b a", ("b", "a")),
        (Prompts(), "", None),
    ],
)
def test_texts_and_values(kind, text, value):
    read = kind.read("key", text)
    assert (read, type(read)) == (value, type(value))
    assert kind.print(value) == text


@pytest.mark.parametrize("kind", [WholeNumber(1, 2**63), Number(1, 9), YesNo(), NumberSchedule(1), Choice(("a",))])
@pytest.mark.parametrize("text", ["0", "1.5e-3", "nan", "yes", ""])
def test_texts_that_are_no_value(kind, text):
    with pytest.raises(SettingsError, match="^key: .* is not allowed.*; give "):
        kind.read("key", text)


def test_a_refusal_is_the_requests_fault():
    """The WebUI's API reads `vars(error)`, not attributes of the class; so does what copies the error."""
    error = copy.copy(SettingsError("frames: 0 is not allowed"))
    assert vars(error) == {"status_code": 422, "detail": "frames: 0 is not allowed"} and str(error) == error.detail
