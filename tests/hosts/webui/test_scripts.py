"""Scripts that are selected beside ZS²: each of their jobs is a clip, or they are refused before sampling."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

import clipfiles
from host import BAR, CLIP, KIND, STILL, difference, without, zs2
from report import write_section
from webui import HostError, picture, png_base64

FRAMES = 3
SETTINGS = {**CLIP, "frames": FRAMES, "return": "video"}
RED, STAR = STILL["prompt"], "a yellow star on a green background"


@dataclass(frozen=True)
class Case:
    """A script of the host with its arguments; what becomes of it."""

    script: str
    args: list
    tab: str = "txt2img"
    payload: dict = field(default_factory=dict)
    clips: int = 0
    """How many it makes; 0 if it is refused."""
    grid: bool = False
    """Whether the first picture is a grid."""
    says: str = ""


def xyz(*values: str, lone: bool = True) -> list:
    """The arguments of X/Y/Z plot with so many steps along x."""
    axes = [KIND.xyz_steps, ",".join(values), [], 0, "", [], 0, "", []]
    arguments = [*axes, True, lone, False, False, False, False, False, 0, False]
    before, more = KIND.xyz_more
    return arguments[:before] + more + arguments[before:]


HALF = {"denoising_strength": 0.5}
DRAWN = ["left", "right"]
CASES = (
    Case("X/Y/Z plot", xyz("3", "5"), clips=2, grid=True, says="a clip for each cell; the grid shows first frames"),
    Case(
        "Prompt matrix",
        [False, False, "positive", "comma", 0],
        payload={"prompt": "a red circle|striped"},
        clips=2,
        grid=True,
        says="a clip for each combination; the grid shows first frames",
    ),
    Case(
        "Prompt matrix",
        [False, True, "negative", "comma", 0],
        payload={"negative_prompt": "blue|striped", "batch_size": 2},
        clips=2,
        grid=True,
        says="the same of the negative prompt",
    ),
    Case("Prompts from file or textbox", [False, False, "start", f"{RED}\n{STAR}"], clips=2, says="a clip for each"),
    Case(
        "Loopback",
        [2, 0.5, "Linear", "None"],
        "img2img",
        HALF,
        2,
        True,
        "a clip for each loop, of the last's frame 1",
    ),
    Case("SD upscale", list(KIND.sd_upscale), "img2img", HALF, says="refused: it samples tiles"),
    Case("ZS2 tiles", [False], "img2img", HALF, says="refused, as any script that hands over pictures of its own"),
)
OUTPAINTING = (
    Case("Poor man's outpainting", [32, 4, 0, DRAWN], "img2img", HALF, says="refused: it samples borders"),
    Case("Outpainting mk2", [None, 32, 4, DRAWN, 1.0, 0.05], "img2img", HALF, says="refused: it samples borders"),
)
if "outpainting" not in KIND.lacks:
    CASES += OUTPAINTING


@pytest.fixture(scope="module")
def init_image(host):
    return png_base64(host.generate(seed=3).frames[0])


@pytest.fixture(scope="module")
def answered(host, init_image):
    """Runs a script with ZS²'s settings, or without ZS²; gives the pictures, and `info`."""

    def answer(case: Case, settings: dict | None) -> tuple[list[bytes], dict]:
        payload = {**STILL, "steps": 4, **case.payload, "script_name": case.script.lower(), "script_args": case.args}
        if case.tab == "img2img":
            payload["init_images"] = [init_image]
        if settings is not None:
            payload["alwayson_scripts"] = zs2(settings)
        result = host.client._generate(f"/sdapi/v1/{case.tab}", payload)
        return result.files, result

    return answer


@pytest.fixture(scope="module")
def section():
    """Writes the scripts' section of the document when all cases have passed."""
    passed: list[Case] = []
    yield passed
    if len(passed) == len(CASES):
        rows = [
            f"| {case.script} | {case.tab} | {case.says} |\n" for case in CASES if not case.script.startswith("ZS2")
        ]
        write_section(KIND, "Scripts", TEXT, "| script | tab | with ZS² |\n|---|---|---|\n" + "".join(rows))


TEXT = """\
Scripts that are selected below the tab. A script gets one picture for a clip, its first frame, and makes its grids of
those; what it makes is that of the host without ZS². Every clip is in `info` as `zs2_clips`. A script that hands over
pictures of its own (not the request's init image, nor a result) is refused before sampling.

"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.script} {case.args[2] if case.grid else ''}".strip())
def test_script(host, answered, section, case):
    if not case.clips:
        host.arm()
        with pytest.raises(HostError) as error:
            answered(case, SETTINGS)
        assert host.disarm() == []
        assert error.value.status == 422 and f"the script {case.script!r}".lower() in error.value.message.lower()
        section.append(case)
        return
    (plain, _), (files, result) = answered(case, None), answered(case, SETTINGS)
    first, info = int(case.grid), result.info
    assert len(files) == len(info["infotexts"]) == first + case.clips * FRAMES
    for file, infotext in list(zip(files, info["infotexts"]))[first:]:
        assert host.client.infotext(file) == infotext and "ZS2 frames: 3" in infotext
    assert [clipfiles.kind(file) for file in result.clips] == ["mp4"] * case.clips
    assert all(len(clipfiles.frames(file)) == FRAMES for file in result.clips)
    seeds = [clip["seed"] for clip in result.entries() for _ in range(FRAMES)]
    assert info["all_seeds"][-len(seeds) :] == seeds
    assert len(info["all_seeds"]) == len(info["all_prompts"]) == len(files) - info["index_of_first_image"]
    for number, still in enumerate(plain):  # the grid, and the first frame of each clip
        assert difference(picture(files[number and first + (number - first) * FRAMES]), picture(still)) <= 2 * BAR
    section.append(case)


def test_selection_that_goes_on_after_an_error(host, answered):
    """Errors that a script swallows are the answer all the same."""
    for case in (Case("ZS2 tiles", [True], "img2img"), Case("X/Y/Z plot", xyz("3", "5"))):
        settings = SETTINGS if case.tab == "img2img" else {**SETTINGS, "frames": -1}
        host.arm()
        with pytest.raises(HostError) as error:
            answered(case, settings)
        assert host.disarm() == [] and error.value.status == 422


@pytest.mark.parametrize("returns", ["frames", "both"])
def test_return_with_a_script(answered, returns):
    """Animated pictures before the frames of each clip; with the cells left out, all clips are there still."""
    files, result = answered(CASES[3], {**SETTINGS, "return": returns})
    kinds = [clipfiles.kind(file) for file in files]
    assert kinds == (["webp"] * (returns == "both") + ["png"] * FRAMES) * 2
    assert len(result.info["infotexts"]) == len(result.info["all_seeds"]) == len(files)
    assert [("data" in clip) for clip in result.info["zs2_clips"]] == [returns == "both"] * 2
    files, result = answered(Case("X/Y/Z plot", xyz("3", "5", lone=False)), {**SETTINGS, "return": returns})
    assert len(files) == 1 and len(result.entries()) == 2


def test_notes_of_a_scripts_jobs(answered):
    _, result = answered(CASES[3], {**SETTINGS, "prompts": "0: __color__"})
    assert "__color__" in result.info["extra_generation_params"]["ZS2 notes"]


def test_paths_of_all_clips(host, answered):
    case = CASES[3]
    _, result = answered(Case(case.script, case.args, payload={"save_images": True}), {**SETTINGS, "formats": ["gif"]})
    paths = [clip["path"] for clip in result.info["zs2_clips"]]
    assert [Path(path).read_bytes() for path in paths] == result.clips and len(set(paths)) == 2


def test_source_video_with_a_script(host, answered, tmp_path):
    """X/Y/Z plot edits the source; Loopback would go on from another picture, and is refused."""
    folder = host.data / "script source"
    folder.mkdir()
    for number in range(FRAMES):
        Image.new("RGB", (128, 128), (80 * number, 40, 90)).save(folder / f"{number}.png")
    settings = {"source": str(folder), "return": "video"}
    payload = {**STILL, "steps": 4, **HALF, "init_images": [], "alwayson_scripts": zs2(settings)}
    script = {"script_name": "x/y/z plot", "script_args": xyz("3", "5")}
    result = host.client._generate("/sdapi/v1/img2img", {**payload, **script})
    assert [len(clipfiles.frames(file)) for file in result.clips] == [FRAMES] * 2
    for name, args in (("loopback", CASES[4].args), ("sd upscale", CASES[5].args)):
        with pytest.raises(HostError) as error:
            host.client.post("/sdapi/v1/img2img", {**payload, "script_name": name, "script_args": args})
        assert error.value.status == 422 and "script" in error.value.message


def test_the_script_is_as_before(host, answered):
    """After a clip and after a refusal the script gives what it gave without ZS²."""
    for case in (CASES[0], CASES[5]):
        before, _ = answered(case, None)
        try:
            answered(case, SETTINGS)
        except HostError:
            assert not case.clips
        assert answered(case, None)[0] == before


# --- the community's client ------------------------------------------------------------------------------------


def test_webuiapi(host, init_image):
    """It opens every picture with Pillow, also by default, and finds the clips in `info`."""
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(baseurl=f"{host.client.url}/sdapi/v1", sampler="Euler", steps=4)
    payload = {"prompt": RED, "seed": 11, "width": 128, "height": 128}
    still = Image.open(io.BytesIO(base64.b64decode(init_image)))
    for returns in ({}, {"return": "frames"}, {"return": "both"}):
        scripts = zs2({"frames": FRAMES, **returns})
        for result in (
            api.txt2img(**payload, alwayson_scripts=scripts),
            api.img2img([still], **payload, **HALF, alwayson_scripts=scripts),
            api.txt2img(
                **payload,
                alwayson_scripts=scripts,
                script_name="prompts from file or textbox",
                script_args=[False, False, "start", RED],
            ),
        ):
            assert [image.size for image in result.images] == [(128, 128)] * (FRAMES + (returns == {"return": "both"}))
            (clip,) = result.info["zs2_clips"]
            assert clip["frames"] == FRAMES and ("data" in clip) == (returns != {"return": "frames"})


@pytest.mark.slow
@without("agent scheduler")
@pytest.mark.parametrize("returns", ["frames", "video", "both"])
def test_agent_scheduler(scheduler_host, returns):
    """It gives an infotext for each picture that was saved, whatever the answer holds."""
    client = scheduler_host.client
    task = {**STILL, "steps": 2, "n_iter": 2, "alwayson_scripts": zs2({**SETTINGS, "return": returns})}
    while client.get("/agent-scheduler/v1/queue")["current_task_id"]:  # what comes while one ends may wait for the next
        time.sleep(0.5)
    time.sleep(2)
    task_id = client.post("/agent-scheduler/v1/queue/txt2img", {**task, "save_images": True})["task_id"]
    deadline = time.monotonic() + 120
    while not (results := client.get(f"/agent-scheduler/v1/task/{task_id}/results"))["success"]:
        assert time.monotonic() < deadline, results
        time.sleep(0.5)
    texts = [picture["infotext"] for picture in results["data"]]
    assert len(texts) == 2 * FRAMES and all("ZS2 frames: 3" in text for text in texts)


@pytest.fixture(scope="module")
def scheduler_host(beside):
    with beside("sd-webui-agent-scheduler") as host:
        yield host
