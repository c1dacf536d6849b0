"""Larger frames on the command line: hires. fix, and upscalers, also of clips that are there."""

import importlib.util

import pytest
import torch
from PIL import Image

import small_models
import test_cli
from test_cli import PROMPT, picture_with, pictures, refused, surroundings
from zs2_lib import cli
from zs2_lib.batch.identity import checkpoint, identity
from zs2_lib.batch.jobs import read_jobs
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.hires import Hires
from zs2_lib.hosts.diffusers.upscalers import load_upscaler
from zs2_lib.media.read import open_source
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

pipe, short_segments, _ = test_cli.pipe, test_cli.short_segments, surroundings
QUICK = ["--steps", "3", "--size", "64", "--seed", "1", "--quiet"]


def made(tmp_path, *arguments, name="made", prompt=(PROMPT,), quick=QUICK) -> list[bytes]:
    """The pictures of the clip that the command line makes."""
    assert cli.main([*prompt, "-o", str(tmp_path / f"{name}.png"), *quick, *map(str, arguments)]) == 0
    return pictures(tmp_path / name)


@pytest.fixture
def model(tmp_path):
    """The file of an upscaler model, which makes pictures twice as large."""
    pytest.importorskip("spandrel")
    load_upscaler.cache_clear()
    return small_models.upscaler(tmp_path / "x2.safetensors")


# --- hires. fix ----------------------------------------------------------------------------------------


def test_the_clip_is_that_of_the_library(pipe, tmp_path):
    how = ["--hires-upscaler", "Latent (bicubic)", "--hires-steps", 4, "--hires-denoising", 0.5, "--hires-cfg", 3]
    got = made(tmp_path, "--frames", 2, "--hires", 1.5, *how)
    settings, how = Settings(frames=2), Hires(1.5, None, "Latent (bicubic)", 4, 0.5, 3.0)
    frames = host.sample_clip(pipe, PROMPT, settings, 1, steps=3, width=64, height=64, hires=how)
    assert got == [frame.tobytes() for frame in frames] and len(got[0]) == 96 * 96 * 3
    assert (
        "Size: 64x64, Model: tiny-sd, Denoising strength: 0.5, Hires upscale: 1.5, Hires CFG Scale: 3, Hires steps: 4, "
        "Hires upscaler: Latent (bicubic), ZS2 frames: 2"
    ) in read_text(tmp_path / "made")


def test_the_recipe_has_it(pipe, tmp_path, capsys):
    first = made(tmp_path, "--frames", 2, "--hires", "96x128", "--hires-denoising", 0.4)
    assert made(tmp_path, "--recipe", tmp_path / "made", name="again", prompt=(), quick=[]) == first
    assert "frames of 96x128" in capsys.readouterr().out and "Hires resize: 96x128" in read_text(tmp_path / "again")
    plain = made(tmp_path, "--recipe", tmp_path / "made", "--hires", "off", name="off", prompt=(), quick=["--quiet"])
    assert plain == made(tmp_path, "--frames", 2, name="plain")
    text = read_text(tmp_path / "off")
    assert "Size: 64x64" in text and "Hires" not in text and "Denoising" not in text


def test_going_on_keeps_the_frames(pipe, tmp_path, short_segments):
    """Of a folder they are taken, of a video computed again: the same bit for bit."""
    how = ["--frames", 3, "--hires", 1.5]
    first = made(tmp_path, *how, "-o", tmp_path / "made.mp4")
    for clip in ("made", "made.mp4"):
        for step, kept in (("--retake", 2), ("--extend", 3)):
            got = made(tmp_path, step, f"{tmp_path / clip}@2", name="more", prompt=(), quick=["--quiet"])
            assert got[:kept] == first[:kept] and first[kept:] != got[kept:] and len(got[-1]) == 96 * 96 * 3
    between = made(tmp_path, "--recipe", tmp_path / "made", "--in-betweens", 2, name="more", prompt=(), quick=[])
    assert between[::2] == first and len(between) == 5


def webui(**more) -> str:
    """What the WebUI writes of a clip with hires. fix."""
    values = {"Steps": 3, "Sampler": "Euler", "Schedule type": "Automatic", "CFG scale": 5, "Seed": 1, "Size": "64x64"}
    values |= {"Model": "tiny-sd", "Denoising strength": 0.7, "RNG": "CPU", "Hires upscale": 2, **more}
    return recipe.parameters(PROMPT, "", {**values, "Version": "v1.10.1", **recipe.texts(Settings(frames=2))})


def test_a_recipe_of_the_webui(pipe, tmp_path, capsys):
    second = {"Hires sampler": "DPM++ 2M", "Hires schedule type": "Karras", "Hires prompt": "a star <lora:it:1>"}
    text = webui(**{"Hires steps": 5, "Hires upscaler": "Latent", "Hires negative prompt": "dark", **second})
    file = picture_with(tmp_path / "it.png", text)
    got = made(tmp_path, "--recipe", file, prompt=(), quick=[])
    said = capsys.readouterr().err
    assert "not followed of the recipe" not in said and "zs2: LoRAs that the Hires prompt names are not" in said
    job = cli.read_job(cli.parser().parse_args(["-o", "a.png", "--recipe", str(file)]))
    how = job.hires.of_host(pipe)
    assert (how.prompt, how.negative, type(how.scheduler).__name__) == (
        "a star",
        "dark",
        "DPMSolverMultistepScheduler",
    )
    assert how.scheduler.config.use_karras_sigmas
    assert made(tmp_path, "--recipe", tmp_path / "made", prompt=(), name="again", quick=["--quiet"]) == got
    file = picture_with(tmp_path / "it.png", webui(**{"Hires upscaler": "Latent", "Hires sampler": "DPM adaptive"}))
    made(tmp_path, "--recipe", file, prompt=(), quick=[])
    assert "zs2: the second pass has the sampler of the first: Hires sampler of the" in capsys.readouterr().err


def test_prompts_by_frame(pipe, tmp_path):
    """In both passes."""
    settings = Settings(frames=2, prompts="0: a red circle\n1: a blue square")
    frames = host.sample_clip(pipe, "", settings, 1, steps=3, width=64, height=64, hires=Hires())
    got = made(tmp_path, "--frames", 2, "--prompts", str(settings.prompts), "--hires", 2, prompt=("",))
    assert got == [frame.tobytes() for frame in frames]


def test_a_stopped_second_pass(pipe, tmp_path, short_segments, monkeypatch, capsys):
    """What is finished becomes the files; the checkpoint is as it was."""
    enlarged, calls = Hires.enlarged, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return enlarged(*arguments)

    whole = made(tmp_path, "--frames", 4, "--hires", 1.5, name="whole")
    monkeypatch.setattr(Hires, "enlarged", interrupted)
    arguments = [PROMPT, "-o", str(tmp_path / "a.png"), *QUICK, "--frames", "4", "--hires", "1.5"]
    assert cli.main(arguments) == 130
    assert pictures(tmp_path / "a-stopped") == whole[:2]
    monkeypatch.undo()
    assert not pipe.unet._forward_hooks and "forward" not in vars(pipe.unet)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hires", "5"], "--hires: 5 is not allowed; give a number from 1 to 4, or a size such as 1024x1536, or off"),
        (["--hires", "much"], "--hires: 'much' is not allowed; give a number from 1 to 4, or a size"),
        (["--hires", "0x0"], "--hires: '0x0' is not allowed; give WIDTHxHEIGHT of 64 to 8192 pixels, or 0 for one"),
        (["--hires", "32x0"], "--hires: '32x0' is not allowed; give WIDTHxHEIGHT of 64 to 8192 pixels"),
        (["--hires-steps", "3"], "--hires-steps: there is no second pass; give --hires SCALE as well"),
        (["--hires", "off", "--hires-cfg", "3"], "--hires-cfg: there is no second pass; give --hires SCALE as well"),
        (["--hires", "2", "--hires-steps", "1.5"], "--hires-steps: 1.5 is not allowed; give a whole number from 0 to"),
        (["--hires", "2", "--hires-denoising", "1.1"], "--hires-denoising: 1.1 is not allowed; give a number from 0 "),
        (
            ["--hires", "2", "--hires-denoising", "0"],
            "--hires-denoising: 0 is not allowed with 20 steps, which are then a part of more than 999; give 0.03 to 1",
        ),
        (
            ["--hires", "2", "--hires-denoising", "0.3", "--sampler", "LCM"],
            "--hires-denoising: 0.3 is not allowed with 20 steps, which are then a part of more than 50; give 0.4 to 1",
        ),
        (
            ["--hires", "2", "--image", "a.png"],
            "--hires is not allowed with --image: hires. fix is for clips made of text alone, as in the WebUI; leave",
        ),
        (["--hires-steps", "2", "--source", "a.mp4"], "--hires-steps is not allowed with --source: hires. fix is for"),
        (
            ["--hires", "2", "--hires-upscaler", "Latents"],
            "--hires-upscaler: 'Latents' is not allowed; give one of La",
        ),
        (["--hires", "2", "--hires-upscaler", "b.safetensors"], "--hires-upscaler: there is no file 'b.safetensors'"),
        (["--hires", "2", "--hires-upscaler", "a.pth"], "--hires-upscaler: 'a.pth' is no .safetensors file (others, s"),
        (["--upscale", "9"], "--upscale: 9 is not allowed; give a number from 1 to 8"),
        (["--upscale", "Lanczos"], "--upscale: 'Lanczos' is not allowed; give a number from 1 to 8"),
        (
            ["--upscale", "2:Latent"],
            "--upscale: 'Latent' is not allowed; give one of Lanczos, Nearest, or the .safete",
        ),
        (["--upscale", "2:a.pth"], "--upscale: 'a.pth' is no .safetensors file (others, such as"),
    ],
)
def test_wrong_values(tmp_path, capsys, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.apng"):
        picture_with(tmp_path / name, "", Image.new("RGB", (64, 64)))
    (tmp_path / "a.apng").rename(tmp_path / "a.mp4")
    (tmp_path / "a.pth").touch()
    assert refused(capsys, "-o", str(tmp_path / "b.gif"), *arguments).startswith(words)


def test_by_an_upscaler_model(pipe, tmp_path, model, capsys):
    """A recipe has its name, and it is asked for."""
    got = made(tmp_path, "--frames", 2, "--hires", 1.5, "--hires-upscaler", model)
    upscale = load_upscaler(str(model), torch.device("cpu"), torch.float32)
    how, sizes = {"steps": 3, "width": 64, "height": 64}, []

    def larger(picture, size):
        sizes.append((picture.size, size))
        return upscale(picture, size)

    frames = host.sample_clip(pipe, PROMPT, Settings(frames=2), 1, hires=Hires(1.5, upscaler=larger), **how)
    assert got == [frame.tobytes() for frame in frames] and sizes == [((64, 64), (96, 96))] * 2
    assert "Hires upscaler: x2" in read_text(tmp_path / "made") and capsys.readouterr().out
    arguments = ["-o", str(tmp_path / "b.png"), "--recipe", str(tmp_path / "made")]
    words = "Hires upscaler of the recipe: 'x2' is not searched for; give its file by --hires-upscaler FILE.safe"
    assert refused(capsys, *arguments, prompt=()).startswith(words)
    again = ["--recipe", tmp_path / "made", "--hires-upscaler", model]
    assert made(tmp_path, *again, name="again", prompt=(), quick=["--quiet"]) == got
    capsys.readouterr()
    file = picture_with(tmp_path / "it.png", webui(**{"Hires upscaler": "R-ESRGAN 4x+"}))
    line = refused(capsys, *arguments[:3], str(file), prompt=())
    assert line.startswith("Hires upscaler of the recipe: 'R-ESRGAN 4x+' is not searched for; give its file by")
    assert made(tmp_path, "--recipe", file, "--hires-upscaler", "lanczos", prompt=(), quick=["--quiet"])
    assert "Hires upscaler: Lanczos" in read_text(tmp_path / "made")


# --- finished frames -----------------------------------------------------------------------------------


def large(frames: list[bytes], width: int, how=Image.Resampling.LANCZOS, size=64) -> list[bytes]:
    frames = [Image.frombytes("RGB", (size, size), frame) for frame in frames]
    return [frame.resize((width, width), how).tobytes() for frame in frames]


def test_frames_are_made_larger(pipe, tmp_path, capsys):
    plain = made(tmp_path, "--frames", 3)
    got = made(tmp_path, "--frames", 3, "--upscale", "1.3", "-o", tmp_path / "b.mp4", name="b", quick=[*QUICK[:-1]])
    assert got == large(plain, 80) and "3 frames of 80x80" in capsys.readouterr().out
    assert open_source(tmp_path / "b.mp4").info.size == (80, 80)
    assert "Size: 64x64" in read_text(tmp_path / "b")
    assert read_text(tmp_path / "b").endswith("ZS2 formats: png mp4, ZS2 upscaler: Lanczos, ZS2 upscaled by: 1.3")
    assert made(tmp_path, "--frames", 3, "--upscale", "2:nearest") == large(plain, 128, Image.Resampling.NEAREST)
    assert made(tmp_path, "--recipe", tmp_path / "b", name="again", prompt=(), quick=[]) == plain
    assert "zs2: the clip was made larger 1.3 times by Lanczos; --upscale does so again" in capsys.readouterr().err


def test_going_on_makes_all_frames_larger(pipe, tmp_path):
    """Of a clip that is not, its pictures are kept."""
    plain = made(tmp_path, "--frames", 3)
    marked = Image.frombytes("RGB", (64, 64), plain[0])
    marked.putpixel((0, 0), (1, 2, 3))
    with Image.open(tmp_path / "made/00001.png") as image:
        picture_with(tmp_path / "made/00001.png", image.info["parameters"], marked)
    again = ["--upscale", "2:Nearest", "--retake", f"{tmp_path / 'made'}@2"]
    got = made(tmp_path, *again, name="more", prompt=(), quick=["--quiet"])
    assert got[:2] == large([marked.tobytes(), plain[1]], 128, Image.Resampling.NEAREST)
    assert got[2] != large(plain, 128, Image.Resampling.NEAREST)[2]
    again = ["--extend", f"{tmp_path / 'more'}@1", "--upscale", "2:Nearest"]
    more = made(tmp_path, *again, name="longer", prompt=(), quick=["--quiet"])
    assert len(more) == 4 and more[1:3] == got[1:]


def test_a_clip_that_is_there(pipe, tmp_path, model, capsys):
    plain = made(tmp_path, "--frames", 3)
    clip = str(tmp_path / "made")
    upscale = load_upscaler(str(model), torch.device("cpu"), torch.float32)
    arguments = ["--input", clip, "--upscale", f"2:{model}", "--device", "cpu"]
    assert cli.main([*arguments, "-o", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.mp4")]) == 0
    expected = [upscale(Image.frombytes("RGB", (64, 64), frame), (128, 128)).tobytes() for frame in plain]
    assert pictures(tmp_path / "a") == expected
    out, err = capsys.readouterr()
    assert "a: 3 frames of 128x128, 0.375 s" in out and "upscaled frame 3 of 3" in err
    text = read_text(clip) + ", ZS2 upscaler: x2, ZS2 upscaled by: 2"
    assert read_text(tmp_path / "a") == read_text(tmp_path / "a.mp4") == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.mp4", "made", "x2.safetensors"]


def test_larger_and_more_frames(pipe, tmp_path):
    """Upscaled first, and then interpolated, as in the WebUI's order, in one run or two."""
    made(tmp_path, "--frames", 3)
    how = ["--upscale", "1.5", "--interpolate", "x2", "--quiet"]
    assert cli.main(["--input", str(tmp_path / "made"), "-o", str(tmp_path / "both.png"), *how]) == 0
    got = made(tmp_path, "--frames", 3, *how[:-1], name="at-once")
    assert len(got) == 5 and pictures(tmp_path / "both") == got
    for name in ("both", "at-once"):
        text = read_text(tmp_path / name)
        assert text.endswith("ZS2 upscaled by: 1.5, ZS2 interpolated to: 5 frames at 16 fps")
    made(tmp_path, "--frames", 3, *how[:2], name="larger")
    assert cli.main(["--input", str(tmp_path / "larger"), "-o", str(tmp_path / "two.png"), *how[2:]]) == 0
    assert pictures(tmp_path / "two") == got


def test_the_sound_stays(pipe, tmp_path):
    video = test_cli.with_sound(tmp_path / "it.mp4", 6, 6)
    assert cli.main(["--input", str(video), "--upscale", "2", "-o", str(tmp_path / "a.mp4"), "--quiet"]) == 0
    before, after = open_source(video).info, open_source(tmp_path / "a.mp4").info
    assert after.has_audio and after.frames == before.frames and after.size == tuple(2 * side for side in before.size)


def test_an_edited_clip(pipe, tmp_path):
    picture_with(tmp_path / "it.png", "", Image.new("RGB", (64, 64), "red"))
    how = ["--image", tmp_path / "it.png", "--frames", 2, "--strength", 0.5]
    quick = ["--steps", "3", "--seed", "1", "--quiet"]
    plain = made(tmp_path, *how, quick=quick)
    assert made(tmp_path, *how, "--upscale", 2, name="b", quick=quick) == large(plain, 128)


def test_jobs_of_a_batch(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(
        '{"prompt": "a", "hires": 2}\n'
        '{"prompt": "a", "hires": 1.5, "hires_steps": 3, "seed": 1}\n'
        '{"prompt": "a", "hires": 9}\n',
        encoding="utf-8",
    )
    lines = tmp_path / "jobs.jsonl"
    jobs, faults = read_jobs(str(lines), tmp_path / "out", {})
    assert [planned.job.hires.scale for planned in jobs] == [2, 1.5] and jobs[1].job.hires.steps == 3
    assert faults[0].endswith(
        "line 3: hires: 9 is not allowed; give a number from 1 to 4, or a size such as 1024x1536, or off"
    )
    assert len({planned.hash for planned in jobs}) == 2 and len({checkpoint(planned.job) for planned in jobs}) == 1


def test_jobs_with_other_upscaler_models(tmp_path, model):
    """Whatever their names; the loaded checkpoint is the same."""
    lines = tmp_path / "jobs.jsonl"
    lines.write_text(f'{{"prompt": "a", "upscale": "2:{model}"}}\n{{"prompt": "a"}}\n', encoding="utf-8")

    def planned() -> list:
        identity.cache_clear()
        jobs, faults = read_jobs(str(lines), tmp_path / "out", {})
        assert not faults
        return jobs

    before = planned()
    small_models.upscaler(model, features=4)
    after = planned()
    assert before[0].hash != after[0].hash and before[1].hash == after[1].hash
    assert len({checkpoint(each.job) for each in after}) == 1


def test_without_spandrel_models_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spandrel" else find(name))
    given = ["-o", str(tmp_path / "a.gif"), "--upscale", f"2:{tmp_path / 'a.safetensors'}"]
    assert refused(capsys, *given).startswith("--upscale: it needs spandrel; install it with: ")
