"""The command line, from its arguments to the files it writes."""

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("diffusers")

from diffusers import DPMSolverMultistepScheduler

from zs2_lib import __main__ as program
from zs2_lib import cli
from zs2_lib.hosts.diffusers import adapters, checkpoints
from zs2_lib.hosts.diffusers import pictures as host_pictures
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.media import interpolators
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.read import open_source
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe, table
from zs2_lib.settings.speeds import SPEEDS
from zs2_lib.settings.table import Settings

av = pytest.importorskip("av")

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
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda *arguments: loaded)
    return loaded


tiny_pipe = functools.cache(functools.partial(checkpoints.load_pipeline, device="cpu"))


def refused(capsys, *arguments, main=cli.main, prompt=(PROMPT,), status=2) -> str:
    """The one line with which the command line refuses `arguments`."""
    assert main([*prompt, *arguments]) == status
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
    text = (
        f"{PROMPT}\nNegative prompt: green: dark, small\nSteps: 2, Sampler: DDIM, RNG: CPU, CFG scale: 5, Seed: 1, "
        'Size: 64x64, Model: tiny-sd, ZS2 frames: 3, ZS2 fps: 5, ZS2 motion: "0:0.01, 2:0.05", ZS2 inertia: 0, '
        "ZS2 momentum: 0.98, ZS2 loop: off, ZS2 in betweens: 1, ZS2 noise model: dependency, ZS2 alpha: 0.9, "
        "ZS2 candidates: 1, "
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
        ([], SPEEDS["exact"]),
        (["--speed", "fast"], SPEEDS["fast"]),
        (
            ["--speed", "fast", "--anchor-stride", "3", "--steps", "6"],
            SPEEDS["fast"]._replace(anchor_stride=3, steps=6),
        ),
        (["--anchor-depth", "gentle", "--speed", "balanced"], SPEEDS["balanced"]._replace(anchor_depth="gentle")),
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
    """What is finished gets a name of its own."""
    target = tmp_path / "clip.webp"
    target.write_bytes(b"old")
    decode, decoded = host_pictures.decode, []

    def interrupted(*args):
        decoded.append(args)
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(host_pictures, "decode", interrupted)
    assert cli.main([PROMPT, "-o", str(target), *QUICK]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-stopped.webp", "clip.webp"]
    assert target.read_bytes() == b"old"
    assert open_source(tmp_path / "clip-stopped.webp").info.frames == 2
    assert capsys.readouterr().err.endswith("zs2: interrupted; the files have 2 of 3 frames\n")


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


def test_the_frames_of_finished_segments_become_the_files(pipe, tmp_path, short_segments, monkeypatch, capsys):
    segments = []
    whole = pipe.encode_prompt

    def third_fails(*args, **kwargs):
        segments.append(1)
        if len(segments) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", third_fails)
    assert cli.main([PROMPT, "-o", str(tmp_path / "clip.mp4"), *QUICK, "--frames", "5"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["clip-stopped.mp4"]
    assert open_source(tmp_path / "clip-stopped.mp4").info.frames == 4
    assert recipe.parsed(read_text(tmp_path / "clip-stopped.mp4"))[2]["ZS2 stopped"] == "before the end"
    assert "zs2: interrupted: the 4 finished frames become the files" in capsys.readouterr().err


def test_progress_in_json(pipe, tmp_path, capsys):
    make("-o", tmp_path / "a.gif", *QUICK, "--progress", "json", "--loop", "--inertia", "0.5")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    steps = [line for line in lines if "step" in line]
    assert (steps[0]["step"], steps[0]["steps"], steps[0]["frames"], steps[0]["done"]) == (1, 2, [1, 3], 0)
    assert steps[0]["seconds_left"] is None and steps[-1]["seconds_left"] >= 0
    assert lines[-1] == {"decoded": 3, "of": 3, "done": 1.0, "seconds_left": 0.0}
    assert any("Inertia 0.5" in line.get("note", "") for line in lines)
    assert cli.main([PROMPT, "-o", str(tmp_path / "a.gif"), "--progress", "json", "--size", "3"]) == 2
    assert "size" in json.loads(capsys.readouterr().err)["error"]
    assert cli.main([PROMPT, "--progress=json", "--unknown"]) == 2
    assert "--output" in json.loads(capsys.readouterr().err)["error"]


def test_an_interruption_among_frames_between_leaves_those_that_were_sampled(pipe, tmp_path, monkeypatch, capsys):
    def stops(self, frames):
        yield next(iter(frames))
        raise KeyboardInterrupt

    monkeypatch.setattr("zs2_lib.cli_job.Faster.pictures", stops)
    assert cli.main([PROMPT, "-o", str(tmp_path / "a.gif"), *QUICK, "--interpolate", "x2"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a-stopped.gif"]
    assert open_source(tmp_path / "a-stopped.gif").info.frames == 3
    assert "interpolated" not in read_text(tmp_path / "a-stopped.gif")
    assert "the files have no frames between" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--progress", "json"]])
def test_quiet(pipe, tmp_path, capsys, more):
    make("-o", tmp_path / "a.gif", *QUICK, "--quiet", "--loop", "--inertia", "0.5", *more)
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(str(tmp_path / "a.gif"))


CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), RuntimeError(CPU)])
def test_out_of_memory_has_a_status(pipe, tmp_path, monkeypatch, capsys, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipe, "encode_prompt", fails)
    assert cli.main([PROMPT, "-o", str(tmp_path / "a.gif"), *QUICK]) == 4
    assert "out of memory" in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- going on from a clip ------------------------------------------------------------------------------


def go_on(*arguments) -> None:
    assert cli.main([*map(str, arguments)]) == 0


def pictures(folder: Path) -> list[bytes]:
    found = []
    for file in sorted(folder.iterdir()):
        with Image.open(file) as image:
            found.append(image.convert("RGB").tobytes())
    return found


def picture_with(path: Path, text: str, image: Image.Image | None = None) -> Path:
    """A picture that carries `text`, as the WebUI writes it."""
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", text)
    (image or Image.new("RGB", (8, 8))).save(path, pnginfo=about)
    return path


@pytest.fixture
def clip(pipe, tmp_path) -> Path:
    """The frames of a clip, in a folder whose name is hard to read; beside them are an MP4 and a GIF."""
    prompt = 'a "red" circle,\nNegative prompt: none, at: all 🙂'
    path = tmp_path / "it's @1, 50%"
    more = ["--negative", "dark: green,\nblue", "--motion", "0.2", "--prompts", "0: left\n2: right", "--cfg", "3"]
    make(*(f"-o{path}.{format}" for format in ("png", "mp4", "gif")), *QUICK, *more, prompt=prompt)
    return path


@pytest.mark.parametrize("end", ["", ".mp4", ".gif", "/00002.png"])
def test_the_recipe_makes_the_same_clip(clip, tmp_path, end):
    go_on("--recipe", f"{clip}{end}", "-o", tmp_path / "again.png")
    assert pictures(tmp_path / "again") == pictures(clip)
    assert read_text(tmp_path / "again").split("ZS2 formats")[0] == read_text(clip).split("ZS2 formats")[0]


def test_what_is_given_takes_the_place_of_the_recipe(clip, pipe, tmp_path):
    more = ["--seed", "1", "--negative", "", "--cfg", "1", "--prompts", "", "--motion", "0.05", "--fps", "4"]
    go_on("--recipe", clip, "-o", tmp_path / "a.png", *more, PROMPT)
    assert_clip_of_the_library(tmp_path / "a", pipe, PROMPT, Settings(frames=3), guidance=1.0)
    assert recipe.parsed(read_text(tmp_path / "a"))[2]["ZS2 fps"] == "4"


def test_an_extended_clip_keeps_its_frames(clip, tmp_path):
    go_on("--extend", f"{clip}.mp4@2", "-o", tmp_path / "once.png")
    go_on("--extend", f"{tmp_path / 'once'}@1", "-o", tmp_path / "twice.png")
    go_on("--recipe", tmp_path / "twice", "--in-betweens", "2", "-o", tmp_path / "finer.png")
    once, twice, finer = (pictures(tmp_path / name) for name in ("once", "twice", "finer"))
    assert once[:3] == pictures(clip) and len(set(once)) == 5
    assert twice[:5] == once and len(set(twice)) == 6
    assert finer[::2] == twice and len(set(finer)) == 11


def test_a_retake_keeps_the_frames_before(clip, tmp_path):
    go_on("--retake", f"{clip}@1", "-o", tmp_path / "one.png")
    go_on("--retake", f"{tmp_path / 'one'}@2", "-o", tmp_path / "two.png")
    go_on("--retake", f"{clip}.gif@1:1", "-o", tmp_path / "the first.png", "-o", tmp_path / "a.gif")
    first, one, two = pictures(clip), pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert one[0] == first[0] and two[:2] == one[:2]
    assert len({first[1], one[1]}) == 2 and len({first[2], one[2], two[2]}) == 3
    assert pictures(tmp_path / "the first") == one


@pytest.mark.parametrize("end", ["", ".apng"])
def test_between_anchors_the_frames_before_a_retake_are_taken_over(pipe, tmp_path, end):
    """Computed again they would follow from the other anchors behind them; with another prompt they are others."""
    more = ["--frames", "6", "--motion", "0.2", "--anchor-stride", "4", "--anchor-start", "0", "--steps", "4"]
    make("-o", tmp_path / "a.png", "-o", tmp_path / "a.apng", *QUICK, *more)
    go_on("--retake", f"{tmp_path / 'a'}{end}@3", "-o", tmp_path / "b.png")
    go_on("--retake", f"{tmp_path / 'a'}{end}@3", "-o", tmp_path / "c.png", "a blue square")
    before, after, others = (pictures(tmp_path / name) for name in "abc")
    assert after[:3] == before[:3] and not {*after[3:]} & {*before[3:]}
    assert not {*others} & {*before}


def test_kept_pictures_are_compared_with_what_is_made(clip, tmp_path, capsys):
    """A clip by another checkpoint, or whose pictures were changed, is told from the one of its recipe."""
    with Image.open(clip / "00002.png") as image:
        changed = picture_with(clip / "00002.png", image.info["parameters"], image.rotate(90))
    go_on("--extend", f"{clip}@1", "-o", tmp_path / "a.png")
    assert "zs2: The frames that were kept are up to " in capsys.readouterr().err
    assert pictures(tmp_path / "a")[1] == pictures(changed.parent)[1]


def test_a_recipe_of_a_webui(pipe, tmp_path, capsys, monkeypatch):
    values = {
        "Steps": 2,
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": 7.0,
        "Seed": 1,
        "Size": "64x64",
    }
    values |= {"Model hash": "abc", "Model": "tiny-sd", "Clip skip": 2, "RNG": "CPU", "NGMS": 1, "Version": "v1.10.1"}
    text = recipe.parameters(PROMPT, "dark", {**values, **recipe.texts(Settings(frames=3, formats=("webp",)))})
    go_on("--recipe", picture_with(tmp_path / "00001-1.png", text), "-o", tmp_path / "a.png")
    how = {"guidance": 7.0, "negative_prompt": "dark"}
    karras = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    monkeypatch.setattr(pipe, "scheduler", karras)
    with adapters.clip_skip(pipe, 2):
        assert_clip_of_the_library(tmp_path / "a", pipe, PROMPT, Settings(frames=3), **how)
    said = capsys.readouterr().err
    assert "zs2: not followed of the recipe: NGMS\n" in said and "other" not in said
    assert "Sampler: DPM++ 2M, Schedule type: Karras, Clip skip: 2, RNG: CPU, CFG scale: 7" in read_text(tmp_path / "a")
    still = recipe.parameters(PROMPT, "dark", {**values, "Model": "dream"})
    model = ["--model", tmp_path / "tiny.safetensors"]
    go_on("--recipe", picture_with(tmp_path / "still.png", still), "-o", tmp_path / "b.png", "--frames", "2", *model)
    assert "zs2: the clip was made with the model dream, not tiny\n" in capsys.readouterr().err
    with adapters.clip_skip(pipe, 2):
        assert_clip_of_the_library(tmp_path / "b", pipe, PROMPT, Settings(frames=2), **how)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--extend", "clip"], "--extend: 'clip' is not allowed; give a clip and a number, such as clip.mp4@8"),
        (["--extend", "@3"], "--extend: '@3' is not allowed"),
        (["--extend", "{clip}@0"], "--extend: frames: 0 is not allowed; give a whole number from 1"),
        (["--extend", "{clip}@2", "--frames", "9"], "--frames is not allowed with --extend, which decides it"),
        (["--extend", "{clip}@2", "--loop"], 'extended: 3 is not allowed with loop "seamless"'),
        (["--extend", "{clip}@2", "--recipe", "{clip}"], "argument --recipe: not allowed with argument --extend"),
        (["--extend", "{still}@2"], "--extend: {still} does not say how it was made; give a file that ZS² wrote"),
        (
            ["--retake", "{clip}@0"],
            "--retake: frame: 0 is not allowed; give a whole number from 1 to 2, the last of the clip",
        ),
        (["--retake", "{clip}@3"], "--retake: frame: 3 is not allowed"),
        (["--retake", "clip@1:x"], "--retake: 'clip@1:x' is not allowed; give a clip and a number, such as clip.mp4@4"),
        (["--retake", "{clip}.mkv@1"], "--retake: there is no file or folder {clip}.mkv"),
        (["--recipe", "{clip}.txt"], "--recipe: it's @1, 50%.txt is no video, or it is damaged"),
        (["--recipe", "{empty}"], "--recipe: {empty} does not say how it was made"),
        (
            ["--recipe", "{still}"],
            "--recipe: the clip was made with the model 'sd_xl', which is not searched for; give",
        ),
        (
            ["--recipe", "{edit}"],
            "--recipe: the clip was made of an image, which its file does not carry; give it again by",
        ),
        (["--recipe", "{odd}"], "Seed of the recipe: 'x' is not allowed"),
        ([], "there is no prompt; give one, or a clip that has one"),
    ],
)
def test_wrong_clips_to_go_on_from(clip, tmp_path, capsys, arguments, words):
    Path(f"{clip}.txt").write_text("not a clip")
    values = {"Steps": 2, "Seed": 1, "Size": "64x64"}
    texts = {"still": {**values, "Model": "sd_xl"}, "edit": {**values, "Denoising strength": 0.7}}
    texts |= {"odd": {**values, "Seed": "x"}}
    files = {
        name: picture_with(tmp_path / f"{name}.png", recipe.parameters(PROMPT, "", about))
        for name, about in texts.items()
    }
    files |= {"clip": clip, "empty": picture_with(tmp_path / "empty.png", "")}
    capsys.readouterr()
    output = ["-o", str(tmp_path / "out.gif")]
    given = [argument.format(**files) for argument in arguments]
    assert refused(capsys, *output, *given, prompt=()).startswith(words.format(**files))
    assert not (tmp_path / "out.gif").exists()


def test_nothing_goes_on_from_a_loop(pipe, tmp_path, capsys):
    make("-o", tmp_path / "a.gif", *QUICK, "--loop")
    capsys.readouterr()
    for step in ("--extend", "--retake"):
        line = refused(capsys, step, f"{tmp_path / 'a.gif'}@2", "-o", str(tmp_path / "b.gif"), prompt=())
        assert 'it is a loop ("seamless")' in line
    go_on("--recipe", tmp_path / "a.gif", "--in-betweens", "2", "-o", tmp_path / "b.png")
    go_on("--recipe", tmp_path / "a.gif", "-o", tmp_path / "a.png")
    assert pictures(tmp_path / "b")[::2] == pictures(tmp_path / "a") and len(pictures(tmp_path / "b")) == 6


# --- more frames per second ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "played", "count"),
    [("off", [0, 1, 2], 5), ("seamless", [0, 1, 2], 6), ("ping-pong", [0, 1, 2, 1], 8)],
)
def test_frames_are_interpolated(pipe, tmp_path, capsys, loop, played, count):
    """The frames that are there stay as they are; of a clip that repeats, those after the last lead to the first."""
    outputs = ["-o", tmp_path / "a.png", "-o", tmp_path / "a.webp"]
    make(*QUICK, *outputs, "--loop", loop, "--motion", "0.2", "--interpolate", "x2", "--sidecar")
    assert f"a: {count} frames of 64x64, {count / 16:.3g} s, seed 1" in capsys.readouterr().out
    make(*QUICK, "-o", tmp_path / "b.png", "--loop", loop if loop == "seamless" else "off", "--motion", "0.2")
    few, more = pictures(tmp_path / "b"), pictures(tmp_path / "a")
    assert more[::2] == [few[number] for number in played] and len(more) == count
    assert read_text(tmp_path / "a.webp").endswith(f"ZS2 interpolated to: {count} frames at 16 fps")
    about = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (about["frames"], about["fps"]) == (count, 16)
    assert open_source(tmp_path / "a.webp").info.frames == count and open_source(tmp_path / "a.webp").clip_fps() == 16
    if loop != "ping-pong":  # so does one that is there, of which the folder's text tells rate and loop
        go_on("--input", tmp_path / "b", "-o", tmp_path / "c.png", "--interpolate", "16")
        assert pictures(tmp_path / "c") == more
        go_on("--input", tmp_path / "c", "-o", tmp_path / "d.png", "--interpolate", "24")
        assert len(pictures(tmp_path / "d")) == {5: 7, 6: 9}[count]
        assert read_text(tmp_path / "d").startswith(PROMPT) and read_text(tmp_path / "d").endswith("at 24 fps")
    assert not [path for path in tmp_path.iterdir() if "frames" in path.name]


def with_sound(path: Path, frames: int, fps: int) -> Path:
    """A video whose frames get brighter, with a tone."""
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=fps), container.add_stream("aac", rate=44100)
        video.width = video.height = 64
        for number in range(frames):
            pixels = np.full((64, 64, 3), 10 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        samples = np.sin(np.arange(44100 * frames // fps) / 10).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def test_a_video_that_is_there_is_interpolated(tmp_path, monkeypatch, capsys):
    """With its sound, and without a checkpoint."""
    monkeypatch.setattr(checkpoints, "load_pipeline", None)
    video = with_sound(tmp_path / "a.mp4", frames=12, fps=6)
    outputs = [argument for name in ("b.mp4", "b.webm", "b.gif") for argument in ("-o", tmp_path / name)]
    go_on("--input", video, *outputs, "--interpolate", "x3")
    assert f"{tmp_path / 'b.mp4'}: 34 frames of 64x64, 1.89 s" in capsys.readouterr().out
    for name, sound in {"b.mp4": True, "b.webm": True, "b.gif": False}.items():
        source = open_source(tmp_path / name)
        assert (source.info.frames, source.info.has_audio) == (34, sound), name
        assert read_text(tmp_path / name) == "ZS2 interpolated to: 34 frames at 18 fps"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.gif", "b.mp4", "b.webm"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interpolate", "x5"], "--interpolate: 'x5' is not allowed; give x2 to x4, or more frames per second than"),
        (["--interpolate", "x1"], "--interpolate: 'x1' is not allowed"),
        (
            ["--interpolate", "6"],
            "--interpolate: '6' is not allowed; give x2 to x4, or more frames per second than the",
        ),
        (["--interpolate", "inf"], "--interpolate: 'inf' is not allowed"),
        (["--interpolate", "60"], "--interpolate: '60' is not allowed with gif: fps is 60, but gif takes"),
        (
            ["--interpolate", "x2", "--interpolator", "x"],
            "--interpolator: 'x' is not allowed; give one of minterpolate",
        ),
        (["--interpolate", "x2", "--seed", "1"], "--seed is not allowed with --input, which samples nothing"),
        (["--interpolate", "x2", "-o", "{video}"], "--output: {video} is the input; choose another name"),
        (
            ["--interpolator", "minterpolate"],
            "--input: there is nothing to do; give --upscale or --interpolate",
        ),
        (["--interpolate", "x2", "--input", "no.mp4"], "--input: there is no file or folder no.mp4"),
    ],
)
def test_wrong_interpolations(tmp_path, capsys, arguments, words):
    video = with_sound(tmp_path / "a.mp4", frames=6, fps=6)
    given = ["--input", str(video), "-o", str(tmp_path / "b.gif"), *(text.format(video=video) for text in arguments)]
    assert refused(capsys, *given, prompt=()).startswith(words.format(video=video))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interpolator_that_fails_leaves_the_frames(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(interpolators._registered, "broken", lambda before, after, time: None)
    arguments = [*QUICK, "-o", str(tmp_path / "a.mp4"), "--interpolate", "x2", "--interpolator", "broken"]
    assert cli.main([PROMPT, *arguments]) == 1
    (folder,) = tmp_path.iterdir()
    assert len(pictures(folder)) == 3
    said = capsys.readouterr().err
    assert f"the 3 finished frames are in {folder}" in said
    assert "error: the interpolator 'broken' has to give a PIL image" in said
    assert refused(capsys, "-o", str(tmp_path / "a.gif"), "--interpolator", "broken").startswith(
        "--interpolator: there"
    )


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
    assert "there is no 'owner/name'" in refused(capsys, *output, "--model", "owner/name", status=3)
    (tmp_path / "model.ckpt").touch()
    assert "no .safetensors file" in refused(capsys, *output, "--model", str(tmp_path / "model.ckpt"), status=3)


def test_missing_packages(capsys, tmp_path, monkeypatch):
    missing, find_spec = {"diffusers", "av"}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    command = f"missing packages; install them with: {sys.executable} -m pip install"
    assert refused(capsys, "-o", str(tmp_path / "clip.gif"), main=program.main) == f"{command} diffusers"
    missing.remove("diffusers")
    assert refused(capsys, "-o", str(tmp_path / "clip.mp4"), main=program.main) == f"{command} av"


def helped(capsys, *group) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help", *group])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_explains_every_setting(capsys):
    text = " ".join(helped(capsys, "all").split())
    for row in cli.clip_options():
        assert cli.flag(row) in text and row.tooltip.split()[0] in text
    assert "Default 8." in text and "Default 0.98." in text


def test_help_fits_a_screen(capsys):
    overview = helped(capsys)
    groups = cli.parser().groups
    assert len(overview.splitlines()) <= 36 and all(f"\n{name}: " in overview for name in groups)
    for name in groups:
        assert len(helped(capsys, name).splitlines()) <= 60, name
    assert refused(capsys, "--help", "me").startswith("--help: 'me' is not allowed; give basics, ")
