"""The command line's --control: what it reads, what it refuses, and the frames that come of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("av")

import test_cli
from small_models import net_for
from test_cli import PROMPT, QUICK, make, pictures, refused
from zs2_lib import cli, cli_control
from zs2_lib.hosts.diffusers import control, editing, preprocessors
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

surroundings, pipe = test_cli.surroundings, test_cli.pipe
ALONE = ["--motion", "0", "--momentum", "0"]


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """A ControlNet for the tiny checkpoint, with an effect."""
    path = tmp_path_factory.mktemp("models") / "a=b, c:d"
    net_for(test_cli.tiny_pipe().unet).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, wider than high."""
    rng = np.random.default_rng(0)
    path = tmp_path / "im=a:ges@1"
    path.mkdir()
    for number in range(3):
        small = Image.fromarray(rng.integers(0, 256, (2, 4, 3), dtype=np.uint8))
        small.resize((192, 96), Image.Resampling.NEAREST).save(path / f"{number}.png")
    return path


def shown(path: Path) -> list[Image.Image]:
    """What the clips of `QUICK` see of those pictures."""
    whole = (Image.open(file).convert("RGB") for file in sorted(path.iterdir()))
    return [image.resize((64, 64), Image.Resampling.LANCZOS, box=(48, 0, 144, 96)) for image in whole]


def assert_frames_follow(frames: Path, net: Path, images: list[Image.Image], *numbers) -> None:
    """Frame k is the still of image k."""
    pipe = control.with_controls(test_cli.tiny_pipe(), [net])
    for image, frame in zip(images, pictures(frames), strict=True):
        unit = control.Unit(lambda _, size, image=image: [image], *numbers)
        (still,) = host.sample_clip(pipe, PROMPT, Settings(frames=1), 1, steps=2, width=64, height=64, control=[unit])
        assert_alike(frame, still)


def assert_alike(frame: bytes, still: Image.Image) -> None:
    difference = np.frombuffer(frame, np.uint8).astype(int) - np.frombuffer(still.tobytes(), np.uint8)
    assert abs(difference).max() <= 2


def test_every_frame_follows_its_image(pipe, net, folder, tmp_path):
    make("-o", tmp_path / "a.png", *QUICK, *ALONE, "--control", f"{net}={folder}@0.5,0,0.6")
    assert_frames_follow(tmp_path / "a", net, shown(folder), 0.5, 0.0, 0.6)
    assert len(set(pictures(tmp_path / "a"))) == 3


def test_one_image_for_all_and_in_betweens(pipe, net, folder, tmp_path):
    make("-o", tmp_path / "a.png", *QUICK, *ALONE, "--control", f"{net}={folder / '1.png'}")
    assert_frames_follow(tmp_path / "a", net, [shown(folder)[1]] * 3)
    make("-o", tmp_path / "b.png", *QUICK, *ALONE, "--control", f"{net}={folder}", "--in-betweens", "2")
    first, second, third = shown(folder)
    assert_frames_follow(tmp_path / "b", net, [first, first, second, second, third])


def test_canny(pipe, net, folder, tmp_path):
    cv2 = pytest.importorskip("cv2")
    make("-o", tmp_path / "a.png", *QUICK, *ALONE, "--control", f"{net}={folder}:canny")
    edges = [Image.fromarray(cv2.Canny(np.asarray(image), 100, 200)).convert("RGB") for image in shown(folder)]
    assert_frames_follow(tmp_path / "a", net, edges)


def test_the_source_video(pipe, net, folder, tmp_path):
    """Its frames are edited, and followed: picked, fitted and finer alike."""
    more = ["--motion", "0", "--momentum", "0", "--steps", "4", "--strength", "0.5", "--seed", "1", "--size", "64"]
    more += ["--source", folder, "--every", "2", "--in-betweens", "2"]
    make("-o", tmp_path / "a.png", *more, "--control", f"{net}=source")
    shown = [Image.open(file).convert("RGB") for file in sorted(folder.iterdir())]
    shown = [image.resize((64, 64), Image.Resampling.LANCZOS) for image in shown]
    frames = pictures(tmp_path / "a")
    assert len(frames) == 3  # those with the numbers 0 and 2, and what lies between
    for image, frame in zip(shown, frames):
        edit = editing.Editing(lambda _, image=image: [image], (64, 64), strength=0.5)
        edited = control.with_controls(edit.pipeline(test_cli.tiny_pipe()), [net])
        units = [control.Unit(lambda _, size, image=image: [image])]
        how = {"steps": 4, "editing": edit, "control": units}
        (still,) = host.sample_clip(edited, PROMPT, Settings(frames=1), 1, **how)
        assert_alike(frame, still)
    assert "Resize Mode: Just Resize" in recipe.parsed(read_text(tmp_path / "a"))[2]["ControlNet 0"]


@pytest.mark.parametrize(
    ("fit", "expected"), [("hold", [0, 1, 2, 2, 2]), ("loop", [0, 1, 2, 0, 1]), ("stretch", [0, 0, 1, 2, 2])]
)
def test_too_few_images(net, folder, fit, expected):
    arguments = [PROMPT, "-o", "a.png", "--frames", "5", "--control", f"{net}={folder}", "--control-fit", fit]
    job = cli.read_job(cli.parser().parse_args(arguments))
    assert list(job.control[0].pictures.picks) == expected
    assert "3 images for 5 frames" in job.notes[0] and job.notes[0].endswith(f"(--control-fit {fit})")
    got = list(job.control[0].pictures(range(3, 5), (64, 64)))
    assert [image.tobytes() for image in got] == [shown(folder)[each].tobytes() for each in expected[3:]]


def test_a_recipe_asks_for_the_images_again(pipe, net, folder, tmp_path, capsys):
    more = ["--control-momentum", "--control-fit", "loop", "--frames", "4"]
    make("-o", tmp_path / "a.png", *QUICK, *more, "--control", f"{net}={folder}:canny@0.5,0,0.6")
    values = recipe.parsed(read_text(tmp_path / "a"))[2]
    assert values["ControlNet 0"] == (
        "Module: canny, Model: a=b_ c_d, Weight: 0.5, Resize Mode: Crop and Resize, Processor Res: -1, "
        "Threshold A: 100, Threshold B: 200, Guidance Start: 0, Guidance End: 0.6, Pixel Perfect: True, "
        "Control Mode: Balanced"
    )
    assert (values["ZS2 control fit"], values["ZS2 control momentum"]) == ("loop", "True")
    capsys.readouterr()
    line = refused(capsys, "--recipe", str(tmp_path / "a"), "-o", str(tmp_path / "b.png"), prompt=())
    assert "give --control MODEL=IMAGES" in line and "ControlNet 0 (Module: canny, Model: a=b_ c_d, Weight: 0.5" in line
    given = ["--control", f"{net}={folder}:canny@0.5,0,0.6"]
    assert cli.main(["--recipe", str(tmp_path / "a"), *given, "-o", str(tmp_path / "b.png")]) == 0
    assert "not followed" not in capsys.readouterr().err
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


@pytest.mark.parametrize("images", ["clip.mp4", "a=b", "a:canny", "a:canny@1", "a@1,0,1", "source"])
@pytest.mark.parametrize("behind", ["", ":canny", "@0.5", ":canny@0.5,0,1"])
def test_names_of_any_kind(tmp_path, monkeypatch, images, behind):
    monkeypatch.chdir(tmp_path)
    for name in ("net", "net=a", images):
        Path(name).touch()
    name, _, numbers = behind.removeprefix(":").partition("@")
    for model in ("net", "net=a"):
        assert cli_control.split(f"{model}={images}{behind}") == (model, images, name or "none", numbers)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("net", "is not allowed; give MODEL=IMAGES"),
        ("none={images}", "names 'none', which is not there"),
        ("{net}=none.mp4:canny@1", "names 'none.mp4', which is not there"),
        ("{net}=source", "takes the frames of the source video, but there is none"),
        ("{net}={images}@3", "'3' in .* is not allowed; behind @ give a weight from 0 to 2"),
        ("{net}={images}@1,0.5", "is not allowed; behind @"),
        ("{net}={images}@1,0.5,0.2", "is not allowed; behind @"),
        ("{net}={images}:openpose", "'openpose' is no preprocessor here; there are none, canny"),
        ("{net}={text}", "--control: "),
    ],
)
def test_what_is_refused(net, folder, tmp_path, form, message):
    (tmp_path / "text.txt").write_text("text")
    text = form.format(net=net, images=folder, text=tmp_path / "text.txt")
    options = cli.parser().parse_args([PROMPT, "-o", "a.png", "--control", text])
    with pytest.raises(SettingsError, match=message):
        cli_control.read(options, Settings(frames=3))


def test_refusals_of_the_command_line(pipe, net, folder, tmp_path, capsys, monkeypatch):
    output = ["-o", str(tmp_path / "a.png"), "--frames", "3"]
    assert "there is no ControlNet; give --control" in refused(capsys, *output, "--control-fit", "loop")
    model = tmp_path / "a.pth"
    model.touch()
    assert "can run code" in refused(capsys, *output, "--control", f"{model}={folder}", status=3)
    find = preprocessors.importlib.util.find_spec
    missing = lambda name, *more: None if name in ("cv2", "controlnet_aux") else find(name, *more)  # noqa: E731
    monkeypatch.setattr(preprocessors.importlib.util, "find_spec", missing)
    line = refused(capsys, *output, "--control", f"{net}={folder}:canny")
    assert "canny needs opencv-python-headless; install it with" in line
    assert "needs controlnet_aux" in refused(capsys, *output, "--control", f"{net}={folder}:lineart_standard")


def test_a_damaged_image_ends_in_words(pipe, net, folder, tmp_path, capsys):
    """The picture's name, and status 1, as those of a damaged source; what it can be asked at first is in order."""
    file = folder / "1.png"
    file.write_bytes(file.read_bytes()[:-60])
    control = f"{net}={folder}"
    assert cli.main([PROMPT, "-o", str(tmp_path / "a.png"), *QUICK, "--control", control]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("zs2: error: --control: 1.png is damaged (")


def test_preprocessors_of_controlnet_aux():
    pytest.importorskip("controlnet_aux")
    picture = Image.new("RGB", (96, 64), "white")
    picture.paste("black", (40, 20, 60, 40))
    shown = preprocessors.preprocessor("lineart_standard")(picture)
    assert shown.size == (96, 64) and shown.mode == "RGB" and np.asarray(shown).std() > 1
