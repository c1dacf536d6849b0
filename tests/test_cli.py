"""The command line, from its arguments to the files it writes."""

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("diffusers")

from zs2_lib import __main__ as program
from zs2_lib import cli
from zs2_lib.hosts.diffusers import checkpoints
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe, table
from zs2_lib.settings.presets import PRESETS
from zs2_lib.settings.table import Settings

ROOT = Path(__file__).parent.parent
PROMPT = "a red circle on a blue background"
QUICK = ["--steps", "2", "--size", "64", "--frames", "3", "--seed", "1"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """What the command line sets for its process is undone."""
    for name in ("HF_HUB_OFFLINE", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "error" if "VERBOSITY" in name else "1"))


@pytest.fixture
def pipe(monkeypatch):
    """The tiny checkpoint, loaded once for all tests."""
    loaded = tiny_pipe()
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda model, config: loaded)
    return loaded


tiny_pipe = functools.cache(functools.partial(checkpoints.load_pipeline, device="cpu"))


def refused(capsys, *arguments, main=cli.main) -> str:
    """The one line with which the command line refuses `arguments`."""
    assert main([PROMPT, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *notes, line = err.splitlines()
    assert all(note.startswith("zs2: loading") for note in notes)
    assert line.startswith("zs2: error: ")
    return line.removeprefix("zs2: error: ")


# --- clips ---------------------------------------------------------------------------------------------


def make(*arguments, prompt=PROMPT) -> None:
    assert cli.main([prompt, *map(str, arguments)]) == 0


def assert_clip_of_the_library(folder: Path, pipe, prompt: str, settings: Settings, **how) -> None:
    """The images in `folder` are the frames that the library gives for QUICK and `settings`."""
    frames = host.sample_clip(pipe, prompt, settings, 1, steps=2, width=64, height=64, **how)
    for number, frame in enumerate(frames, start=1):
        with Image.open(folder / f"{number:05}.png") as image:
            assert max(abs(a - b) for a, b in zip(image.tobytes(), frame.tobytes())) <= 2


def test_every_format(pipe, tmp_path, capsys):
    files = [tmp_path / f"new/{format}.{format}" for format in FORMATS]
    outputs = [argument for file in files for argument in ("-o", str(file))]
    make(*outputs, *QUICK, "--negative", "green: dark, small", "--motion", "0:0.01, 2:0.05", "--fps", "5")
    out = capsys.readouterr().out
    av = pytest.importorskip("av")
    text = (
        f"{PROMPT}\nNegative prompt: green: dark, small\nSteps: 2, Sampler: DDIM, CFG scale: 5, Seed: 1, Size: 64x64, "
        'Model: tiny-sd, ZS2 frames: 3, ZS2 fps: 5, ZS2 motion: "0:0.01, 2:0.05", ZS2 inertia: 0, ZS2 momentum: 0.98, '
        "ZS2 loop: off, ZS2 in betweens: 1, ZS2 noise model: dependency, ZS2 alpha: 0.9, ZS2 candidates: 1, "
        "ZS2 solver: exact, ZS2 frames per pass: 0, ZS2 anchor stride: 1, ZS2 anchor depth: medium, "
        "ZS2 anchor start: 0.18, ZS2 formats: mp4 gif webp apng webm png"
    )
    for format, file in zip(FORMATS, files):
        if format in ("mp4", "webm"):
            with av.open(str(file)) as container:
                assert len(list(container.decode(video=0))) == 3
                assert dict((key.lower(), value) for key, value in container.metadata.items())["comment"] == text
        elif format == "png":
            images = sorted(file.with_suffix("").iterdir())
            assert [image.name for image in images] == ["00001.png", "00002.png", "00003.png"]
            assert Image.open(images[0]).info["parameters"] == text
        else:
            image = Image.open(file)
            assert image.n_frames == 3 and image.size == (64, 64)
        written = file.with_suffix("") if format == "png" else file
        assert f"{written}: 3 frames of 64x64, 0.6 s, seed 1" in out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        file.stem if file.suffix == ".png" else file.name for file in files
    )


def test_a_sidecar(pipe, tmp_path, capsys):
    outputs = ["-o", str(tmp_path / "a.gif"), "-o", str(tmp_path / "a.apng")]
    assert cli.main([PROMPT, *QUICK, "--sidecar", "--prompts", "0: a, b", *outputs]) == 0
    about = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    text = read_text(tmp_path / "a.gif")
    assert about["files"] == {"gif": "a.gif", "apng": "a.apng"} and about["infotext"] == text
    settings = Settings.from_mapping(about["settings"])
    prompt, _, values = recipe.parsed(text)
    assert (prompt, values["Seed"], recipe.texts(settings)["ZS2 prompts"]) == (PROMPT, "1", values["ZS2 prompts"])
    assert (settings.frames, settings.formats, about["seed"], about["fps"]) == (3, ("gif", "apng"), 1, 8)
    (tmp_path / "b.json").mkdir()
    assert cli.main([PROMPT, *QUICK, "--sidecar", "-o", str(tmp_path / "b.gif")]) == 0
    assert "could not be written" in capsys.readouterr().err and (tmp_path / "b.gif").exists()


def test_the_clip_is_that_of_the_library(pipe, tmp_path):
    make("-o", tmp_path / "a.png", *QUICK, "--cfg", "1", "--loop", "--frames-per-pass", "2")
    assert_clip_of_the_library(tmp_path / "a", pipe, PROMPT, Settings(frames=3, loop=True), guidance=1.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], PRESETS["exact"]),
        (["--speed", "fast"], PRESETS["fast"]),
        (
            ["--speed", "fast", "--anchor-stride", "3", "--steps", "6"],
            PRESETS["fast"]._replace(anchor_stride=3, steps=6),
        ),
        (["--anchor-depth", "gentle", "--speed", "balanced"], PRESETS["balanced"]._replace(anchor_depth="gentle")),
    ],
)
def test_speed_sets_what_is_not_given(arguments, expected):
    job = cli.read_job(cli.parser().parse_args([PROMPT, "-o", "clip.png", *arguments]))
    assert {name: getattr(job.settings, name) for name in expected.settings} == expected.settings
    assert job.steps == expected.steps or (expected.steps is None and job.steps == 20)


@pytest.mark.parametrize("as_file", [False, True], ids=["text", "file"])
def test_prompts_by_frame(pipe, tmp_path, as_file, capsys):
    prompts = "0: on a blue background\n2: on a green background, dark"
    (tmp_path / "prompts.txt").write_text(prompts + "\n", encoding="utf-8")
    given = str(tmp_path / "prompts.txt") if as_file else prompts
    make("-o", tmp_path / "a.png", "-o", tmp_path / "a.gif", *QUICK, "--prompts", given, prompt="a red circle")
    assert_clip_of_the_library(tmp_path / "a", pipe, "a red circle", Settings(frames=3, prompts=prompts))
    with Image.open(tmp_path / "a.gif") as image:
        text = image.info["comment"].decode()
    assert 'ZS2 prompts: "0: on a blue background\\n2: on a green background, dark"' in text
    make("-o", tmp_path / "a.gif", *QUICK, "--prompts", "0: a\n3: b")
    assert "zs2: Prompts at frame 3 are not reached" in capsys.readouterr().err


def test_size_and_seed(pipe, tmp_path, capsys):
    arguments = ["-o", tmp_path / "a.gif", "--steps", "1", "--frames", "1", "--size", "96x64"]
    make(*arguments)
    first = capsys.readouterr().out
    assert "1 frames of 96x64" in first
    make(*arguments)
    assert capsys.readouterr().out != first  # a new seed each time


def test_notes_are_said(pipe, tmp_path, capsys):
    make("-o", tmp_path / "a.gif", *QUICK, "--loop", "--inertia", "0.5")
    assert "zs2: Inertia 0.5 has no effect on a loop" in capsys.readouterr().err


def test_a_fresh_process_without_network(tmp_path):
    """The command of the README, with fewer steps; any use of the network is an error."""
    script = (
        "import socket, sys\n"
        "def no_network(*args, **kwargs): sys.exit('the network was used')\n"
        "socket.getaddrinfo = socket.create_connection = socket.socket.connect = no_network\n"
        "from zs2_lib.__main__ import main; sys.exit(main(sys.argv[1:]))\n"
    )
    ours = ("HF_", "TRANSFORMERS_", "DIFFUSERS_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment["HF_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", script, PROMPT, "-o", "clip.mp4", "--steps", "2", "--frames", "2"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("clip.mp4: 2 frames of 128x128")
    assert "Warning" not in ran.stderr and "Traceback" not in ran.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 1000


@pytest.mark.skipif(sys.platform == "win32", reason="needs a signal")
def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "zs2_lib", PROMPT, "-o", str(tmp_path / "out" / "clip.mp4"), "--frames", "64"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's processes ignore Ctrl-C
    )
    seen = b""
    while b"step 1/20" not in seen:
        part = os.read(process.stderr.fileno(), 4096)
        assert part, seen
        seen += part
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert rest.decode().splitlines()[-1] == "zs2: interrupted; the clip was not written"
    assert "Traceback" not in rest.decode()
    assert not (tmp_path / "out").exists()


def test_an_interrupt_while_writing_leaves_the_old_clip(pipe, tmp_path, monkeypatch, capsys):
    target = tmp_path / "clip.webp"
    target.write_bytes(b"old")
    decode, decoded = host._decode, []

    def interrupted(*args):
        decoded.append(args)
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(host, "_decode", interrupted)
    assert cli.main([PROMPT, "-o", str(target), *QUICK]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["clip.webp"]
    assert target.read_bytes() == b"old"


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of two frames."""
    monkeypatch.setattr(table, "SEGMENT", 2)


@pytest.mark.parametrize("more", [[], ["--anchor-stride", "2", "--prompts", "0: small\n4: large"]])
def test_a_clip_of_several_segments(pipe, tmp_path, short_segments, monkeypatch, more):
    make("-o", tmp_path / "chained.png", "-o", tmp_path / "chained.mp4", *QUICK, "--frames", "5", *more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chained", "chained.mp4"]
    if not more:
        monkeypatch.setattr(table, "SEGMENT", 5)
        assert_clip_of_the_library(tmp_path / "chained", pipe, PROMPT, Settings(frames=5))


def test_the_frames_of_finished_segments_stay(pipe, tmp_path, short_segments, monkeypatch, capsys):
    segments = []
    whole = pipe.encode_prompt

    def third_fails(*args, **kwargs):
        segments.append(1)
        if len(segments) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", third_fails)
    assert cli.main([PROMPT, "-o", str(tmp_path / "clip.mp4"), *QUICK, "--frames", "5"]) == 130
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:05}.png" for number in range(1, 5)]
    assert f"the 4 finished frames are in {folder}" in capsys.readouterr().err


# --- wrong values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--frames", "0", "0 is not allowed; give a whole number from 1 to 100000"),
        ("--frames", "2.5", "2.5 is not allowed; give a whole number from 1 to 100000"),
        ("--frames", "many", "'many' is not allowed; give a whole number from 1 to 100000"),
        ("--fps", "nan", "nan is not allowed; give a number from 0.1 to 120"),
        ("--motion", "-1", "'-1' is not allowed; give a number of 0 or more, or keyframes"),
        ("--motion", "0:a", "'0:a' is not allowed: 'a' is not a number; give a number"),
        ("--momentum", "1.5", "'1.5' is not allowed; give a number from 0 to 1"),
        ("--inertia", "", "'' is not allowed: no value given"),
        ("--noise-model", "depend", "'depend' is not allowed; give one of \"dependency\""),
        ("--alpha", "2", "2 is not allowed; give a number from 0 to 1"),
        ("--frames-per-pass", "-1", "-1 is not allowed; give a whole number from 0 to 1024"),
        ("--anchor-stride", "17", "17 is not allowed; give a whole number from 1 to 16"),
        ("--anchor-depth", "strongest", '\'strongest\' is not allowed; give one of "gentle", "medium", "strong"'),
        (
            "--speed",
            "Fast",
            '\'Fast\' is not allowed; give one of "exact", "fine", "balanced", "fast"; did you mean "fast"?',
        ),
        ("--prompts", "0: a\n0: b", "'0: a\\n0: b' is not allowed: frame 0 has two prompts; give each frame once"),
        ("--prompts", "no-such-file", "'no-such-file' is not allowed: it is no line 'frame: prompt', and no text file"),
        ("--steps", "0", "0 is not allowed; give a whole number from 1 to 999"),
        ("--cfg", "x", "'x' is not allowed; give a number from 0 to 100"),
        ("--seed", "-1", "-1 is not allowed; give a whole number from 0"),
        ("--size", "100", "'100' is not allowed; give one number or WIDTHxHEIGHT, multiples of 8"),
        ("--size", "0x64", "'0x64' is not allowed"),
    ],
)
def test_wrong_values(capsys, tmp_path, flag, value, words):
    assert refused(capsys, "-o", str(tmp_path / "clip.mp4"), flag, value).startswith(f"{flag}: {words}")
    assert not list(tmp_path.iterdir())


def test_wrong_flags(capsys):
    loop = refused(capsys, "-o", "clip.mp4", "--loop", "--noise-model", "mixed")
    assert loop.startswith('loop: "seamless" is not allowed with noise_model "mixed"')
    assert refused(capsys, "-o", "clip.mp4", "--frame", "3") == "unrecognized arguments: --frame 3"
    assert refused(capsys, "-o", "clip.mp4", "--frames") == "argument --frames: expected one argument"


def test_wrong_outputs(capsys, tmp_path):
    assert refused(capsys) == "the following arguments are required: -o/--output"
    assert refused(capsys, "-o", "clip.avi").startswith("--output: cannot tell the clip format of 'clip.avi'")
    assert refused(capsys, "-o", "clip.gif", "--fps", "60").startswith("fps: 60 is not allowed with the format 'gif'")
    (tmp_path / "clip.mp4").mkdir()
    assert "a folder has this name" in refused(capsys, "-o", str(tmp_path / "clip.mp4"))
    (tmp_path / "file").touch()
    assert "cannot write into" in refused(capsys, "-o", str(tmp_path / "file" / "clip.mp4"))


def test_wrong_models(capsys, tmp_path):
    output = ["-o", str(tmp_path / "clip.mp4")]
    assert "there is no 'owner/name'" in refused(capsys, *output, "--model", "owner/name")
    (tmp_path / "model.ckpt").touch()
    assert "no .safetensors file" in refused(capsys, *output, "--model", str(tmp_path / "model.ckpt"))


def test_missing_packages(capsys, tmp_path, monkeypatch):
    missing, find_spec = {"diffusers", "av"}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    command = f"missing packages; install them with: {sys.executable} -m pip install"
    assert refused(capsys, "-o", str(tmp_path / "clip.gif"), main=program.main) == f"{command} diffusers"
    missing.remove("diffusers")
    assert refused(capsys, "-o", str(tmp_path / "clip.mp4"), main=program.main) == f"{command} av"


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for row in cli.clip_options():
        assert cli.flag(row) in text and row.tooltip.split()[0] in text
    assert "Default 8." in text and "Default 0.98." in text
