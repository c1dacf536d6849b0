"""Protects the user's presets: a file that is broken, edited meanwhile or cannot be written loses nothing; and what is
shipped.
"""

import errno
import json
import os

import pytest

from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.preset_file import PresetFile
from zs2_lib.settings.presets import KEPT, LOOK, SHIPPED, Preset
from zs2_lib.settings.table import ROWS

CALM = Preset.from_mapping({"settings": {"motion": 0.01, "prompts": "0: 猫\n4: a dog"}, "steps": 12, "about": "calm"})
WILD = Preset.from_mapping({"settings": {"motion": "0:0.1, 8:0.5", "formats": ["gif"]}, "denoising_strength": 0.5})


@pytest.fixture
def file(tmp_path):
    return PresetFile(tmp_path / "zs2-presets.json")


def beside(file) -> dict[str, str]:
    """The other files in its folder, by name."""
    return {path.name: path.read_text() for path in sorted(file.path.parent.iterdir()) if path != file.path}


def test_what_is_saved_is_read(file):
    file.save(" calm ", CALM)
    file.save("wild 😀", WILD)
    again = PresetFile(file.path)
    assert again.read() == {"calm": CALM, "wild 😀": WILD}
    assert again.get("calm") == CALM and again.get("subtle") == SHIPPED["subtle"]
    assert not again.notes and beside(file) == {}
    about = json.loads(file.path.read_text())
    assert about["version"] == 1 and "猫" in file.path.read_text(), "to be read and edited by hand"


def test_changes(file):
    for name in ("a", "b", "c"):
        file.save(name, CALM)
    assert file.rename("b", "d") == "d"
    assert list(file.read()) == ["a", "d", "c"], "in its place"
    file.save("a", WILD, replaces="a")
    file.delete("c")
    assert file.read() == {"a": WILD, "d": CALM}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.save("a", WILD), "taken"),
        (lambda file: file.save("a", WILD, replaces="b"), "taken"),
        (lambda file: file.rename("b", "a"), "taken"),
        (lambda file: file.save("Subtle", WILD), "shipped"),
        (lambda file: file.rename("a", "subtle"), "shipped"),
        (lambda file: file.delete("subtle"), "shipped"),
        (lambda file: file.delete("aa"), 'did you mean "a"'),
        (lambda file: file.rename("nobody", "x"), "none of yours"),
        (lambda file: file.get("livelyy"), 'did you mean "lively"'),
        (lambda file: file.save("  ", WILD), "1 to 60"),
        (lambda file: file.save("x" * 61, WILD), "1 to 60"),
        (lambda file: file.save("a\nb", WILD), "line breaks"),
        (lambda file: file.save("\ud800", WILD), "control"),
    ],
)
def test_what_is_refused_changes_nothing(file, change, words):
    file.save("a", CALM)
    file.save("b", CALM)
    before = file.path.read_bytes()
    with pytest.raises(SettingsError, match=words):
        change(file)
    assert file.path.read_bytes() == before and beside(file) == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"version": 1, "presets": {"a": {"settings"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "presets": {}}',
        b'{"version": 1, "presets": []}',
        b'{"presets": {"a": {"settings": {"motion": 0.1}}, "a": {"settings": {}}}}',  # of which one would be lost
    ],
)
def test_a_file_that_cannot_be_read_is_put_aside(file, text):
    for number in (1, 2):  # the second never takes the place of the first
        file.path.write_bytes(text)
        assert file.read() == {}
        file.save("new", CALM)
        assert file.path.with_name(f"zs2-presets.broken-{number}.json").read_bytes() == text
        assert f"zs2-presets.broken-{number}.json" in file.notes[-1]
    assert file.read() == {"new": CALM}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (7, "object"),
        ({}, "settings"),
        ({"settings": {"motion": -1}}, "motion"),
        ({"settings": {"motoin": 1}}, 'did you mean "motion"'),
        ({"settings": {"source": "x.mp4"}}, "one clip"),
        ({"settings": {"loop": "seamless", "motion": "0:0.1, 8:0.2"}}, "seamless"),
        ({"settings": {"prompts": "0: \ud800"}}, "half of a character"),
        ({"settings": {}, "steps": 0}, "steps"),
        ({"settings": {}, "denoising_strength": 1.5}, "denoising_strength"),
        ({"settings": {}, "denoising_strength": float("nan")}, "denoising_strength"),
        ({"settings": {}, "abuot": "x"}, 'did you mean "about"'),
        ({"settings": {}, "about": 5}, "about"),
    ],
)
def test_a_preset_that_is_not_allowed_is_put_aside_alone(file, entry, fault):
    file.save("good", CALM)
    whole = json.loads(file.path.read_text())
    whole["presets"] = {"bad": entry, **whole["presets"], "subtle": {"settings": {}}}
    file.path.write_text(json.dumps({**whole, "mine": "stays"}))
    assert file.read() == {"good": CALM}
    aside = json.loads(beside(file)["zs2-presets.broken-1.json"])
    assert list(aside["presets"]) == ["bad", "subtle"]
    assert json.dumps(aside["presets"]["bad"]) == json.dumps(entry)
    assert fault in aside["faults"]["bad"] and "shipped" in aside["faults"]["subtle"]
    assert any("'bad'" in note and fault in note and "broken-1" in note for note in file.notes)
    file.save("new", WILD)
    assert json.loads(file.path.read_text())["mine"] == "stays" and len(beside(file)) == 1


def test_edited_by_hand_between_two_saves(file):
    file.save("a", CALM)
    whole = json.loads(file.path.read_text())
    whole["presets"]["by hand"] = {"settings": {"motion": 0.3}}
    file.path.write_bytes(b"\xef\xbb\xbf" + json.dumps(whole).encode())  # as Windows' editor does
    file.save("b", WILD)
    assert list(file.read()) == ["a", "by hand", "b"]


@pytest.mark.parametrize("change", ["save", "rename", "delete"])
def test_a_full_disk_loses_nothing(file, monkeypatch, change):
    file.save("a", CALM)
    before = file.path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    arguments = {"save": ("b", WILD), "rename": ("a", "b"), "delete": ("a",)}[change]
    with pytest.raises(SettingsError, match="No space left.* as it was"):
        getattr(file, change)(*arguments)
    whole = json.loads(before)
    whole["presets"]["bad"] = {}
    file.path.write_text(json.dumps(whole))
    assert file.read() == {"a": CALM} and "stays where it is" in file.notes[-1]
    assert json.loads(file.path.read_text()) == whole and beside(file) == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_that_cannot_be_written(file):
    file.save("a", CALM)
    file.path.parent.chmod(0o500)
    try:
        with pytest.raises(SettingsError, match="make the folder writable"):
            file.save("b", WILD)
        assert file.read() == {"a": CALM}
    finally:
        file.path.parent.chmod(0o700)


def test_a_link_stays_one(file, tmp_path):
    elsewhere = tmp_path / "shared" / "presets.json"
    elsewhere.parent.mkdir()
    PresetFile(elsewhere).save("a", CALM)
    file.path.symlink_to(elsewhere)
    linked = PresetFile(file.path)
    linked.save("b", WILD)
    assert file.path.is_symlink() and list(PresetFile(elsewhere).read()) == ["a", "b"]


def test_shipped_presets():
    """One after another leaves nothing behind, and each says what it is for."""
    for preset in SHIPPED.values():
        assert set(preset.settings) == set(LOOK) and 10 < len(preset.about) < 90
        assert Preset.from_mapping(preset.mapping()) == preset
    assert len({json.dumps(preset.mapping()) for preset in SHIPPED.values()}) == len(SHIPPED)
    assert [name for name, preset in SHIPPED.items() if preset.denoising_strength] == ["edit: keep", "edit: restyle"]


def test_a_preset_may_hold_all_settings_but_those_of_one_clip():
    assert set(ROWS) - {row.name for row in KEPT.values()} == {
        "enabled", "returns", "source", "mask", "control", "source_start", "source_end", "retakes", "extended",
        "kept_clip", "preflight",
    }  # fmt: skip
    defaults = {key: row.kind.plain(row.default) for key, row in KEPT.items()}
    assert Preset.from_mapping({"settings": defaults}).settings == defaults
