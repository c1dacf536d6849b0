"""The command line with a source video or an image: which pictures and masks each frame begins with, and its sound."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

pytest.importorskip("diffusers")
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)

from small_models import CONFIG, net_for, single_file
from zs2_lib import cli
from zs2_lib.hosts.diffusers import checkpoints
from zs2_lib.media.read import open_source
from zs2_lib.media.text import read_text
from zs2_lib.media.write import write_clip
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

av = pytest.importorskip("av")

PROMPT = "a yellow star on a green background"
STEPS, SEED, STRENGTH, FRAMES = 4, 1, 0.6, 6
ALONE = ["--motion", "0", "--momentum", "0", "--steps", STEPS, "--seed", SEED]
"""Each frame is the still of its own picture."""
HOW = {"num_inference_steps": STEPS, "guidance_scale": 5.0}

tiny = functools.cache(functools.partial(checkpoints.load_pipeline, device="cpu"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """What the command line sets for its process is undone, and it has the checkpoints of these tests on the CPU."""
    for name in ("HF_HUB_OFFLINE", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "error" if "VERBOSITY" in name else "1"))
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda model, config, *where: tiny(model, config))


def scene(number: int, size=(64, 64)) -> Image.Image:
    """Blocks that are others in each frame."""
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def mask(number: int, size=(64, 64)) -> Image.Image:
    """White to the right of a line that moves."""
    columns = np.where(np.arange(size[0]) >= 8 * number, 255, 0).astype(np.uint8)
    return Image.fromarray(np.tile(columns, (size[1], 1)))


def folder(path: Path, draw=scene, count=FRAMES, **how) -> Path:
    path.mkdir()
    for number in range(count):
        draw(number, **how).save(path / f"{number:02}.png")
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return folder(tmp_path / "source")


@pytest.fixture
def talking(tmp_path) -> Path:
    """A video of 6 frames, 8 per second, with a tone."""
    silent = write_clip([scene(number) for number in range(FRAMES)], tmp_path / "silent", "mp4", 8)
    path = tmp_path / "talking.mp4"
    with av.open(str(silent)) as pictures, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(pictures.streams.video[0])
        tone = container.add_stream("aac", rate=44100, layout="mono")
        for packet in pictures.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
        wave = np.sin(np.arange(44100) * 0.06).astype(np.float32)
        for start in range(0, len(wave) - 1023, 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = 44100, start
            container.mux(tone.encode(block))
        container.mux(tone.encode())
    return path


def run(*arguments) -> int:
    return cli.main([*map(str, arguments)])


def make(output: Path, *arguments, prompt=PROMPT) -> list[Image.Image]:
    """The frames of the clip, written as PNGs at `output`."""
    assert run(*([prompt] if prompt else []), "-o", f"{output}.png", *arguments) == 0
    frames = []
    for file in sorted(output.iterdir()):
        with Image.open(file) as image:
            frames.append(image.convert("RGB"))
    return frames


def alone(cls, picture: Image.Image, model=None, **more) -> Image.Image:
    """The still by `diffusers` alone."""
    pipe = tiny(*model) if model else tiny()
    pipe = pipe if isinstance(pipe, cls) else cls(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, image=picture, generator=torch.Generator().manual_seed(SEED), **HOW, **more).images[0]


def assert_same(frames: list[Image.Image], stills: list[Image.Image]) -> None:
    assert len(frames) == len(stills)
    for frame, still in zip(frames, stills):
        assert abs(np.asarray(frame).astype(int) - np.asarray(still)).max() <= 2


def stills(numbers, size=(64, 64)) -> list[Image.Image]:
    resized = [scene(number).resize(size, Image.Resampling.LANCZOS) for number in numbers]
    return [alone(StableDiffusionImg2ImgPipeline, picture, strength=STRENGTH) for picture in resized]


# --- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ([], range(6)),
        (["--frames", "2", "--start", "0.25"], (2, 3)),
        (["--every", "2", "--end", "0.5"], (0, 2)),
        (["--source-fps", "16", "--frames", "4", "--size", "96x64"], (0, 0, 1, 1)),
        (["--every", "3", "--in-betweens", "3"], (0, 1, 2, 3)),
        (["--every", "4", "--in-betweens", "2"], (0, 2, 4)),
        (["--frames", "2", "--in-betweens", "2"], (0, 0, 1)),
    ],
)
def test_frames_are_the_stills_of_the_source(source, tmp_path, arguments, numbers):
    frames = make(tmp_path / "a", "--source", source, "--strength", STRENGTH, *ALONE, *arguments)
    assert_same(frames, stills(numbers, (96, 64) if "--size" in arguments else (64, 64)))
    values = recipe.parsed(read_text(tmp_path / "a"))[2]
    assert (values["Denoising strength"], values["ZS2 source"]) == ("0.6", "source")


def test_the_clip_plays_as_fast_as_the_source(talking, tmp_path, capsys):
    arguments = ["--source", talking, *ALONE, "--strength", "0.3", "--every", "2", "--start", "0.125", "--audio"]
    assert run(PROMPT, "-o", tmp_path / "a.mp4", "-o", tmp_path / "a.gif", *arguments) == 0
    assert "a.mp4: 3 frames of 64x64, 0.75 s" in capsys.readouterr().out
    info = open_source(tmp_path / "a.mp4").info
    assert (info.frames, info.fps, info.has_audio) == (3, 4, True)
    assert run(PROMPT, "-o", tmp_path / "b.mp4", *arguments, "--fps", "2") == 0
    assert "b.mp4 has no sound: " in capsys.readouterr().err
    assert not open_source(tmp_path / "b.mp4").info.has_audio


def test_notes_on_the_source(source, tmp_path, capsys):
    make(tmp_path / "a", "--source", source, "--start", "0.5", "--frames", "4", "--in-betweens", "2", *ALONE)
    said = capsys.readouterr().err
    assert "zs2: the source has 2 frames where 4 were asked for: so many has the clip\n" in said
    assert "several in-betweens begin with the same one; a higher --every" in said


def test_an_image_is_animated(source, tmp_path):
    given = ["--image", source / "02.png", "--strength", STRENGTH, *ALONE, "--frames", "3"]
    frames = make(tmp_path / "a", *given)
    assert_same(frames, stills((2, 2, 2)))
    lively = make(tmp_path / "b", *given, "--motion", "0.3")
    assert lively[0].tobytes() == frames[0].tobytes() and len({frame.tobytes() for frame in lively}) == 3


def test_large_pictures_are_cut_to_multiples_of_8(tmp_path, capsys):
    picture = scene(0, (99, 75))
    picture.save(tmp_path / "a.png")
    (frame,) = make(tmp_path / "b", "--image", tmp_path / "a.png", "--strength", STRENGTH, "--frames", "1", *ALONE)
    resized = picture.resize((96, 72), Image.Resampling.LANCZOS)
    assert_same([frame], [alone(StableDiffusionImg2ImgPipeline, resized, strength=STRENGTH)])


# --- masks, and checkpoints for editing ----------------------------------------------------------------


@pytest.mark.parametrize(("count", "numbers"), [(6, (1, 3, 5)), (3, (0, 1, 2)), (1, (2, 2, 2))])
def test_frames_are_the_stills_of_their_masks(source, tmp_path, count, numbers):
    masks = folder(tmp_path / "masks", mask, count) if count > 1 else tmp_path / "mask.png"
    if count == 1:
        mask(2).save(masks)
    given = ["--source", source, "--start", "0.125", "--every", "2", "--mask", masks, "--strength", STRENGTH]
    frames = make(tmp_path / "a", *given, *ALONE)
    size = {"width": 64, "height": 64}
    cls = StableDiffusionInpaintPipeline
    expected = [
        alone(cls, scene(number), mask_image=mask(of), strength=STRENGTH, **size)
        for number, of in zip((1, 3, 5), numbers)
    ]
    assert_same(frames, expected)
    assert recipe.parsed(read_text(tmp_path / "a"))[2]["ZS2 mask"] == masks.name


def test_masks_of_an_image(source, tmp_path):
    masks = folder(tmp_path / "masks", mask, 3)
    given = ["--image", source / "00.png", "--mask", masks, "--strength", STRENGTH, "--frames", "3"]
    frames = make(tmp_path / "a", *given, *ALONE)
    more = {"strength": STRENGTH, "width": 64, "height": 64}
    assert_same(frames, [alone(StableDiffusionInpaintPipeline, scene(0), mask_image=mask(k), **more) for k in range(3)])


@pytest.mark.parametrize(
    ("channels", "cls", "options", "more", "said"),
    [
        (8, StableDiffusionInstructPix2PixPipeline, ["--image-cfg", "1.3"], {"image_guidance_scale": 1.3}, "1.3"),
        (8, StableDiffusionInstructPix2PixPipeline, [], {"image_guidance_scale": 1.5}, "1.5"),
        (
            9,
            StableDiffusionInpaintPipeline,
            ["--mask", "{mask}"],
            {"strength": 0.75, "width": 64, "height": 64},
            "0.75",
        ),
    ],
)
def test_checkpoints_for_editing(source, tmp_path, channels, cls, options, more, said, capsys):
    model = (str(single_file(tmp_path / "model.safetensors", channels)), str(CONFIG))
    mask(3).save(tmp_path / "mask.png")
    if channels == 9:
        more = {**more, "mask_image": mask(3)}
    given = ["--model", model[0], "--config", model[1], *(text.format(mask=tmp_path / "mask.png") for text in options)]
    frames = make(tmp_path / "a", "--source", source, "--frames", "2", *given, *ALONE)
    assert_same(frames, [alone(cls, scene(number), model, **more) for number in range(2)])
    values = recipe.parsed(read_text(tmp_path / "a"))[2]
    assert values["Denoising strength" if channels == 9 else "Image CFG scale"] == said
    again = make(tmp_path / "b", "--recipe", tmp_path / "a", "--source", source, *given[:4], *given[4:][:2], prompt="")
    assert [frame.tobytes() for frame in again] == [frame.tobytes() for frame in frames]
    capsys.readouterr()
    assert run(PROMPT, "-o", tmp_path / "c.gif", *given[:4]) == 3
    assert "give a source video or an image to edit" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--mask", "{mask}"]])
def test_a_controlnet_follows_the_source(source, tmp_path, more):
    """With `source` each frame's control image is the picture that it is made of, fitted alike."""
    net_for(tiny().unet).save_pretrained(tmp_path / "net")
    mask(3).save(tmp_path / "mask.png")
    more = [text.format(mask=tmp_path / "mask.png") for text in more]
    given = ["--source", source, "--every", "2", "--size", "96x64", "--strength", STRENGTH, *ALONE, *more]
    frames = make(tmp_path / "a", *given, "--control", f"{tmp_path / 'net'}=source@0.7")
    cls = StableDiffusionControlNetInpaintPipeline if more else StableDiffusionControlNetImg2ImgPipeline
    pipe = cls(
        **tiny().components, controlnet=ControlNetModel.from_pretrained(tmp_path / "net"), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    how = {**HOW, "strength": STRENGTH, "controlnet_conditioning_scale": 0.7, "width": 96, "height": 64}
    how |= {"mask_image": mask(3)} if more else {}
    expected = []
    for number in (0, 2, 4):
        picture = scene(number).resize((96, 64), Image.Resampling.LANCZOS)
        generator = torch.Generator().manual_seed(SEED)
        expected += pipe(PROMPT, image=picture, control_image=picture, generator=generator, **how).images
    assert_same(frames, expected)


# --- recipes -------------------------------------------------------------------------------------------


def test_the_recipe_makes_the_same_clip(source, tmp_path, capsys):
    mask(2).save(tmp_path / "mask.png")
    given = ["--source", source, "--mask", tmp_path / "mask.png"]
    first = make(tmp_path / "a", *given, *ALONE, "--strength", STRENGTH, "--start", "0.125", "--every", "2")
    again = make(tmp_path / "b", "--recipe", tmp_path / "a", *given, prompt="")
    assert [frame.tobytes() for frame in again] == [frame.tobytes() for frame in first]
    assert "not followed" not in capsys.readouterr().err
    longer = make(tmp_path / "c", "--extend", f"{tmp_path / 'b'}@1", "--source", source, "--every", "1", prompt="")
    assert "the clip was made with the mask mask.png; --mask FILE gives it again" in capsys.readouterr().err
    assert_same(longer, stills((1, 2, 3, 4)))
    assert run("--recipe", tmp_path / "a", "-o", tmp_path / "d.gif") == 2
    assert (
        "made of the source 'source', which its file does not carry; give it again by --source"
        in capsys.readouterr().err
    )


def test_a_recipe_of_a_webui(source, tmp_path, capsys):
    values = {"Steps": STEPS, "Sampler": "DDIM", "CFG scale": 5, "Seed": SEED, "Size": "96x64", "Model": "tiny-sd"}
    values |= {"Denoising strength": STRENGTH, "RNG": "CPU", "ZS2 source": "holiday.mp4"}
    settings = Settings(frames=2, fps=4, motion=0, momentum=0, source="holiday.mp4", source_every=3)
    about = PngImagePlugin.PngInfo()
    text = recipe.parameters(PROMPT, "", {**values, **recipe.texts(settings), "Version": "v1.10.1"})
    about.add_text("parameters", text)
    scene(0).save(tmp_path / "webui.png", pnginfo=about)
    frames = make(tmp_path / "a", "--recipe", tmp_path / "webui.png", "--source", source, prompt="")
    assert_same(frames, stills((0, 3), (96, 64)))
    said = capsys.readouterr().err
    assert "of the steps of an edit the WebUI samples one more" in said and "not followed" not in said


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--strength", "0.5"], "--strength: there is nothing to edit; give --source or --image as well"),
        (["--mask", "{source}"], "--mask: there is nothing to edit"),
        (["--image-cfg", "2"], "--image-cfg: there is nothing to edit"),
        (["--every", "2"], "--every: there is no source; give --source FILE as well"),
        (["--source", "{none}"], "--source: there is no file or folder {none}"),
        (["--source", "{source}", "--image", "{image}"], "argument --image: not allowed with argument --source"),
        (["--image", "{gif}"], "--image: {gif} has 3 frames; give one image, or the video by --source"),
        (["--image", "{image}", "--start", "1"], "--start: there is no source"),
        (["--source", "{source}", "--start", "9"], "--source: start is 9.0 s, but source ends at"),
        (["--source", "{source}", "--start", "2", "--end", "1"], "--end is 1.0, but has to come after the start"),
        (["--source", "{source}", "--source-fps", "x"], "--source-fps: 'x' is not allowed; give a number"),
        (["--source", "{source}", "--every", "0"], "--every: 0 is not allowed; give a whole number from 1"),
        (["--source", "{source}", "--strength", "1.5"], "--strength: 1.5 is not allowed; give a number from 0 to 1"),
        (
            ["--source", "{source}", "--strength", "0.1", "--steps", "8"],
            "--strength: 0.1 is not allowed with --steps 8: it leaves none of them; give at least 0.13",
        ),
        (["--source", "{source}", "--image-cfg", "0.5"], "--image-cfg: 0.5 is not allowed; give a number from 1"),
        (["--source", "{source}", "--image-cfg", "2"], "image cfg: it is for Instruct-Pix2Pix checkpoints"),
        (["--source", "{source}", "--audio"], "--audio is not allowed: source has no sound; leave it out"),
        (["--source", "{source}", "--mask", "{gif}"], "--mask: it has 3 frames; give one mask, one for each of the 6"),
        (["--source", "{source}", "--mask", "{wide}"], "--mask: its pictures are 128x64, those to be edited 64x64"),
        (["--image", "{small}"], "--size: the pictures are 32x32; give the size of the clip"),
        (["--source", "{source}", "--fps", "200"], "--fps: 200 is not allowed"),
        (["--source", "{gif}", "-o", "{gif}"], "--output: {gif} is the input; choose another name"),
        (["--image", "{image}", "--mask", "{gif}", "--frames", "3", "-o", "{gif}"], "--output: {gif} is the input"),
    ],
)
def test_wrong_values(source, tmp_path, capsys, arguments, words):
    files = {name: tmp_path / f"{name}.png" for name in ("image", "small", "wide", "none")}
    files |= {"source": source, "gif": tmp_path / "b.gif"}
    for name, size in (("image", (64, 64)), ("small", (32, 32)), ("wide", (128, 64))):
        scene(0, size).save(files[name])
    scene(0).save(files["gif"], save_all=True, append_images=[scene(1), scene(2)], duration=100)
    status = 3 if words.startswith("image cfg") else 2  # known once the checkpoint is loaded
    assert run(PROMPT, "-o", tmp_path / "a.gif", *(text.format(**files) for text in arguments)) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("zs2: error: " + words.format(**files))
    assert not (tmp_path / "a.gif").exists()


def test_sound_needs_a_file_that_holds_it(talking, tmp_path, capsys):
    assert run(PROMPT, "-o", tmp_path / "a.gif", "--source", talking, "--audio") == 2
    assert "no --output holds sound; give a name that ends in .mp4 or .webm" in capsys.readouterr().err


def test_a_damaged_source_ends_in_words(tmp_path, capsys):
    video = write_clip([scene(number) for number in range(40)], tmp_path / "a", "mp4", 8)
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    video.write_bytes(data)
    assert run(PROMPT, "-o", tmp_path / "b.gif", "--source", video, "--start", "2", *ALONE) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("zs2: error: a.mp4 is damaged: the frame at")
