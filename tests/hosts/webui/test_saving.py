"""What is saved, under which name: frames and clips as the host saves pictures; nothing is lost or left over."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipfiles
from host import CLIP, STILL

QUICK = {"steps": 2}
GIF = {**CLIP, "frames": 3, "formats": ["gif"], "return": "video"}
SAVED = {**QUICK, "save_images": True}
FLAT = {"save_to_dirs": False}
RED_CIRCLE = "赤い円" * 60
EMOJI = "a red circle 🔴" + "🔴🟥" * 80


def new_files(host, make) -> tuple[list[Path], object]:
    """The files that `make()` leaves in the host's output folder, by suffix and name; and what it gave."""
    outputs = host.outputs
    before = set(outputs.rglob("*"))
    result = make()
    files = [path for path in set(outputs.rglob("*")) - before if path.is_file()]
    return sorted(files, key=lambda path: (path.suffix, path.name)), result


@pytest.mark.parametrize("pattern", ["", "[seed]-[prompt_words]", "[seed]-[batch_number]"])
@pytest.mark.parametrize("payload", [{}, {"n_iter": 2}], ids=["one clip", "two clips"])
def test_frames_without_numbers_in_their_names(host, pattern, payload):
    """As many files as of the host's own batch, which has a seed for each picture."""
    options = {"save_images_add_number": False, "samples_filename_pattern": pattern}
    seed = 100 + 10 * len(pattern) + len(payload)
    files, _ = new_files(host, lambda: host.clip(GIF, **SAVED, **payload, seed=seed, override_settings=options))
    clips = payload.get("n_iter", 1)
    assert [path.suffix for path in files] == [".gif"] * clips + [".png"] * 3 * clips
    for number, path in enumerate(files[clips:]):
        assert host.client.infotext(path.read_bytes()).count(f"Seed: {seed + number // 3},")


@pytest.mark.parametrize(
    "payload, options",
    [
        ({}, {"samples_filename_pattern": "x" * 246}),
        ({}, {"samples_filename_pattern": "x" * 246, "save_images_add_number": False}),
        ({}, {"samples_filename_pattern": "[seed]" + "x" * 400, "save_images_add_number": False}),
        ({"prompt": RED_CIRCLE}, {**FLAT}),
        ({"prompt": RED_CIRCLE}, {**FLAT, "save_images_add_number": False}),
        ({"prompt": EMOJI}, {**FLAT, "samples_filename_pattern": "[prompt]"}),
        ({"prompt": EMOJI}, {"samples_filename_pattern": "[prompt]", "save_images_add_number": False}),
        ({"prompt": 'a "red": <circle>*? a/b\\c|d\t'}, {**FLAT, "samples_filename_pattern": "[prompt]"}),
        ({"prompt": RED_CIRCLE}, {"directories_filename_pattern": "[prompt_words]"}),
        ({}, {"samples_filename_pattern": "x" * 240, "save_incomplete_images": True, "stop": True}),
    ],
    ids=str,
)
def test_long_and_strange_names(host, payload, options):
    """The clip and its frames are there, their names cut to what the file system takes, no character cut in half."""
    options = dict(options)
    stop = options.pop("stop", False)
    for _ in range(2):  # under the same name
        host.arm("interrupt" if stop else None, 2)
        files, result = new_files(host, lambda: host.clip(GIF, **SAVED, **payload, override_settings=options))
        host.disarm()
        (clip,) = result.info["zs2_clips"]
        gif, *frames = [path for path in files if path.suffix != ".tmp"]
        assert Path(clip["path"]) == gif and gif.read_bytes() == result.clips[0]
        assert "ZS2 notes" not in result.info["extra_generation_params"]
        assert all(len(part.encode()) <= 255 for path in files for part in path.parts)
        assert "\ufffd" not in gif.name and gif.name.encode().decode() == gif.name
        options["save_images_replace_action"] = "Add number suffix"
        assert len(frames) == 3 and stop == gif.stem.endswith("-stopped")


@pytest.mark.parametrize("formats", [["mp4"], ["gif", "png", "webm"]], ids=str)
@pytest.mark.parametrize("returns", ["frames", "video", "both"])
def test_nothing_is_written_where_nothing_is_saved(host, tmp_path, formats, returns):
    """Not in the output folder, which cannot be written to here, nor is anything left in that for temporary files."""
    blocked, temporary = tmp_path / "a file where the folder should be", tmp_path / "temporary"
    blocked.write_text("")
    temporary.mkdir()
    settings = {**GIF, "formats": formats, "return": returns}
    with host.client.options_set(outdir_txt2img_samples=str(blocked), temp_dir=str(temporary)):
        files, result = new_files(host, lambda: host.clip(settings, **QUICK, n_iter=2))
    assert files == [] and list(temporary.rglob("*")) == []
    assert "ZS2 notes" not in result.info["extra_generation_params"]
    entries = result.info["zs2_clips"]
    assert [clip["format"] for clip in entries] == formats * 2
    assert all(Path(clip["path"]).name == clip["path"] for clip in entries)
    if returns != "frames":
        assert [clipfiles.kind(file).replace("zip", "png") for file in result.clips] == formats * 2


def test_numbers_in_a_clips_name_count_clips(host):
    options = {"samples_filename_pattern": "[seed]-[batch_number]-[generation_number]"}
    options |= {"save_images_add_number": False}
    seed = STILL["seed"] + 1000
    for count, names in ((2, [f"{seed}-1-1", f"{seed + 1}-2-2"]), (1, [f"{seed}"])):
        result = host.clip(GIF, **QUICK, n_iter=count, seed=seed, override_settings=options)
        assert [Path(clip["path"]).stem for clip in result.info["zs2_clips"]] == names


def test_a_clip_is_never_overwritten(host):
    options = {"samples_filename_pattern": "motion 0.05", "save_images_add_number": False, **FLAT}
    settings = {**GIF, "formats": ["gif", "png"]}
    first, second = (host.clip(settings, **SAVED, seed=seed, override_settings=options) for seed in (1, 2))
    paths = [clip["path"] for result in (first, second) for clip in result.info["zs2_clips"]]
    assert len(set(paths)) == 4 and Path(paths[0]).read_bytes() == first.clips[0]
