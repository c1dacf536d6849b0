"""Larger frames on the command line: hires. fix."""

import pytest
from PIL import Image

import test_cli
from test_cli import PROMPT, picture_with, pictures, refused, surroundings
from zs2_lib import cli
from zs2_lib.batch.identity import checkpoint
from zs2_lib.batch.jobs import read_jobs
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.hires import Hires
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

pipe, short_segments, _ = test_cli.pipe, test_cli.short_segments, surroundings
QUICK = ["--steps", "3", "--size", "64", "--seed", "1", "--quiet"]


def made(tmp_path, *arguments, name="made", prompt=(PROMPT,), quick=QUICK) -> list[bytes]:
    """The pictures of the clip that the command line makes."""
    assert cli.main([*prompt, "-o", str(tmp_path / f"{name}.png"), *quick, *map(str, arguments)]) == 0
    return pictures(tmp_path / name)


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
    how = job.hires.of_host(pipe.scheduler)
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
        (["--hires", "0x0"], "--hires: '0x0' is not allowed; give WIDTHxHEIGHT of 64 to 16384 pixels, or 0 for one"),
        (["--hires", "32x0"], "--hires: '32x0' is not allowed; give WIDTHxHEIGHT of 64 to 16384 pixels"),
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
    ],
)
def test_wrong_values(tmp_path, capsys, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.apng"):
        picture_with(tmp_path / name, "", Image.new("RGB", (64, 64)))
    (tmp_path / "a.apng").rename(tmp_path / "a.mp4")
    assert refused(capsys, "-o", str(tmp_path / "b.gif"), *arguments).startswith(words)


def test_jobs_of_a_batch(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(
        '{"prompt": "a", "hires": 2}\n'
        '{"prompt": "a", "hires": 1.5, "hires_steps": 3, "seed": 1}\n'
        '{"prompt": "a", "hires": 9}\n',
        encoding="utf-8",
    )
    jobs, faults = read_jobs(str(tmp_path / "jobs.jsonl"), tmp_path / "out", {})
    assert [planned.job.hires.scale for planned in jobs] == [2, 1.5] and jobs[1].job.hires.steps == 3
    assert faults[0].endswith(
        "line 3: hires: 9 is not allowed; give a number from 1 to 4, or a size such as 1024x1536, or off"
    )
    assert len({planned.hash for planned in jobs}) == 2 and len({checkpoint(planned.job) for planned in jobs}) == 1
