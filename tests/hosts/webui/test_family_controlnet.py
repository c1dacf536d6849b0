"""Units of the ControlNet that hosts of the Forge family have built in, with an image for each frame: at λ = 0, μ = 0
every frame is the still of its own control image.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from control_images import enabled, make_folder, mask, scene
from host import AND, BAR, HIRES, INSTALLATION, KIND, LONG, SDE, difference, left_behind, zs2
from host import STILL as PLAIN_STILL
from webui import HostError, png_base64

FRAMES = 4
STILL = {**PLAIN_STILL, "cfg_scale": 4}
SEPARATE = {"motion": 0, "momentum": 0, "frames": FRAMES, "return": "frames"}
MOVING = {"motion": 0.05, "momentum": 0.75}
SD15 = {"override_settings": {"sd_model_checkpoint": "sd15.safetensors"}}
"""For T2I-Adapters, which have as many levels as SD 1.5."""

NET = {"module": "None", "model": "controlnet_zs2"}
CANNY = {**NET, "module": "canny", "processor_res": 64, "threshold_a": 40, "threshold_b": 90}
ADAPTER = {"module": "None", "model": "t2i_adapter_zs2"}
PROMPT = {"module": "ip-adapter_zs2", "model": "ip_adapter_zs2"}
UNITS = {
    "ControlNet": NET,
    "ControlNet, canny": CANNY,
    "ControlNet, pixel perfect": {**CANNY, "pixel_perfect": True},
    "ControlNet, invert": {**NET, "module": "invert (from white bg & black line)"},
    "ControlNet, tile": {**NET, "module": "tile_resample"},
    "ControlNet, weight and last step": {**NET, "weight": 0.6, "guidance_end": 0.6},
    "ControlNet, first step": {**NET, "guidance_start": 0.3},
    "ControlNet, prompt more important": {**NET, "control_mode": "My prompt is more important"},
    "ControlNet, control more important": {**NET, "control_mode": "ControlNet is more important"},
    "ControlNet, resize and fill": {**NET, "resize_mode": "Resize and Fill"},
    "ControlNet, inpaint": {**NET, "module": "inpaint_global_harmonious"},
    "ControlNet, inpaint only": {**NET, "module": "inpaint_only"},
    "ControlNet, recolor": {**NET, "module": "recolor_luminance"},
    "Control-LoRA": {"module": "None", "model": "control_lora_zs2"},
    "T2I-Adapter": ADAPTER,
    "IP-Adapter": PROMPT,
    "IP-Adapter, weight and last step": {**PROMPT, "weight": 0.7, "guidance_end": 0.8},
}
LACKS = {"neo": {"ControlNet, recolor": "the host has no such preprocessor"}}
"""Units that a host does not have, by its kind."""
KINDS = ("ControlNet, canny", "T2I-Adapter", "IP-Adapter")
LAYOUTS = {
    "AND": {"prompt": AND},
    "unequal lengths": {"prompt": LONG},
    "unequal lengths, AND": {"prompt": LONG + " AND a yellow star"},
    "NGMS": {"s_min_uncond": 30},
    "CFG 1": {"cfg_scale": 1},
    "DPM++ SDE": SDE,
}

pytestmark = pytest.mark.skipif(INSTALLATION is not None and not KIND.is_family, reason="ControlNet is an extension")


@pytest.fixture(scope="module")
def folder(host):
    return make_folder(host, FRAMES)


def known(host, unit: dict) -> dict:
    """The unit with its model's name as the host has it, with a hash."""
    names = host.client.get("/controlnet/model_list")["model_list"]
    return {**unit, "model": next((name for name in names if name.startswith(unit["model"] + " [")), unit["model"])}


def still(host, units: list[dict], **payload) -> np.ndarray:
    units = [known(host, unit) for unit in units]
    return host.generate(**{**STILL, **payload}, alwayson_scripts={"ControlNet": {"args": units}}).frames[0]


def clip(host, units: list[dict], settings: dict, **payload):
    units = [known(host, unit) for unit in units]
    scripts = {"ControlNet": {"args": units}, **zs2({**SEPARATE, **settings})}
    return host.generate(**{**STILL, **payload}, alwayson_scripts=scripts)


def payload_of(units: list[dict], payload: dict) -> dict:
    return {**SD15, **payload} if any(unit["model"] == ADAPTER["model"] for unit in units) else payload


def compare(host, folder, units: list[dict], payload: dict, per_pass=(3,), numbers=(0, 3), effect=BAR) -> None:
    """Frames `numbers` against the stills with their control images; each unit takes them from the folder."""
    payload = payload_of(units, payload)
    masked = [{**unit, "mask_image": png_base64(mask())} if "inpaint" in unit["module"] else unit for unit in units]
    expected = [still(host, [enabled(unit, scene(n)) for unit in masked], **payload) for n in numbers]
    assert difference(expected[0], expected[-1]) > effect, "the control images change nothing: the unit is not at work"
    for frames_per_pass in per_pass:
        settings = {"control": [str(folder)] * len(units), "frames_per_pass": frames_per_pass}
        frames = clip(host, [enabled(unit) for unit in masked], settings, **payload).frames
        assert difference(frames[list(numbers)], np.stack(expected)) <= BAR, f"{frames_per_pass} frames per pass"


@pytest.mark.parametrize("unit", UNITS)
def test_every_frame_is_the_still_of_its_control_image(host, folder, unit):
    if reason := LACKS.get(KIND.name, {}).get(unit):
        pytest.skip(f"the host cannot: {reason}")
    compare(host, folder, [UNITS[unit]], {}, per_pass=(0, 3) if unit in KINDS else (3,))


@pytest.mark.parametrize("unit, layout", [(unit, name) for unit in KINDS for name in LAYOUTS if unit != "T2I-Adapter"])
def test_every_layout_of_the_unets_rows(host, folder, unit, layout):
    compare(host, folder, [UNITS[unit]], LAYOUTS[layout])


@pytest.mark.parametrize("unit", [*KINDS, "ControlNet, inpaint only"])
@pytest.mark.parametrize("option", ["Both", "Low res only", "High res only"])
def test_hires_fix(host, folder, unit, option):
    if unit == "T2I-Adapter" and option != "Both":
        pytest.skip("as a ControlNet")
    effect = 0 if option == "High res only" else BAR  # few steps from a picture that is there show little
    compare(host, folder, [{**UNITS[unit], "hr_option": option}], HIRES, effect=effect)


# --- where the images come from ----------------------------------------------------------------------------


def test_units_each_with_a_choice_of_its_own(host, folder):
    """One from a folder, one with its single image, one from the source; two show them to the same model."""
    reverse = host.data / "reverse"
    reverse.mkdir()
    for number in range(FRAMES):
        scene(FRAMES - 1 - number).save(reverse / f"{number}.png")
    units = [NET, CANNY, PROMPT]
    shown = [(number, 2, FRAMES - 1 - number) for number in range(FRAMES)]
    given = [[enabled(unit, scene(number)) for unit, number in zip(units, each)] for each in shown]
    expected = np.stack([still(host, each) for each in given])
    given = [enabled(units[0]), enabled(units[1], scene(2)), enabled(units[2])]
    settings = {"control": ["source", "", str(reverse)], "source": str(folder), "frames_per_pass": 2, "frames": 0}
    assert difference(clip(host, given, settings).frames, expected) <= BAR


def test_the_source_of_img2img_is_the_control_of_a_unit_without_an_image(host, folder):
    """As in a still; its masks go to an inpainting unit."""
    edit = {"denoising_strength": 0.7}
    for module, masks in (("canny", None), ("inpaint_global_harmonious", folder)):
        unit, expected = enabled({**CANNY, "module": module}), []
        for number in (0, 3):
            own_mask = {"mask": np.asarray(scene(number).convert("L").convert("RGB"))} if masks else {}
            expected.append(still(host, [unit], init_images=[np.asarray(scene(number))], **edit, **own_mask))
        settings = {"source": str(folder), "frames": 0, "frames_per_pass": 3, **({"mask": str(masks)} if masks else {})}
        frames = clip(host, [unit], settings, init_images=[], **edit).frames
        assert difference(frames[[0, 3]], np.stack(expected)) <= BAR, module


def test_the_folder_of_a_units_batch_tab(host, folder):
    if KIND.name == "neo":
        pytest.skip("the host cannot: its units have no Batch tab")
    expected = clip(host, [enabled(NET)], {"control": [str(folder)]}).frames
    unit = {**enabled(NET), "input_mode": "batch", "batch_image_dir": str(folder)}
    assert difference(clip(host, [unit], {"frames_per_pass": 2}).frames, expected) <= BAR


@pytest.mark.parametrize("unit", ["ControlNet", "IP-Adapter"])
def test_a_shorter_video_is_held_looped_or_stretched(host, folder, unit):
    short = host.data / f"short {unit}"
    short.mkdir()
    for number in range(2):
        scene(number).save(short / f"{number}.png")
    expected = [still(host, [enabled(UNITS[unit], scene(number))]) for number in range(2)]
    for fit, shown in {"hold": (0, 1, 1, 1), "loop": (0, 1, 0, 1), "stretch": (0, 0, 1, 1)}.items():
        settings = {"control": [str(short)], "control_fit": fit, "frames_per_pass": 3}
        frames = clip(host, [enabled(UNITS[unit])], settings).frames
        assert difference(frames, np.stack([expected[number] for number in shown])) <= BAR, fit


def test_a_black_picture_is_a_picture(host):
    """Where the host would take what is drawn on it for the image."""
    dark = host.data / "dark"
    dark.mkdir()
    for number, image in enumerate((Image.new("RGB", (64, 64)), scene(1))):
        image.save(dark / f"{number}.png")
    frames = clip(host, [enabled(NET)], {"control": [str(dark)], "frames": 2}).frames
    assert difference(frames[1], still(host, [enabled(NET, scene(1))])) <= BAR
    nearly = still(host, [enabled(NET, Image.new("RGB", (64, 64), (5, 5, 5)))])
    assert difference(frames[0], nearly) < difference(frames[1], nearly) / 3


def test_one_image_for_all_frames(host):
    for unit in ("ControlNet, canny", "IP-Adapter"):
        given = [enabled(UNITS[unit], scene(1))]
        expected = still(host, given)
        assert difference(clip(host, given, {"frames_per_pass": 3}).frames, np.stack([expected] * FRAMES)) <= BAR, unit


# --- as a clip -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [*KINDS, "Control-LoRA"])
@pytest.mark.parametrize("momentum", [False, True], ids=["", "control_momentum"])
def test_passes_of_a_moving_clip_are_the_whole(host, folder, unit, momentum):
    if momentum and unit in ("T2I-Adapter", "IP-Adapter"):
        pytest.skip("has no self-attention")
    given, payload = [enabled(UNITS[unit])], payload_of([UNITS[unit]], {})
    settings = {**MOVING, "control": [str(folder)], "control_momentum": momentum}
    whole = clip(host, given, {**settings, "frames_per_pass": FRAMES}, **payload).frames
    assert difference(clip(host, given, {**settings, "frames_per_pass": 3}, **payload).frames, whole) <= BAR
    assert difference(whole[0], still(host, [enabled(UNITS[unit], scene(0))], **payload)) <= BAR
    if momentum:
        plain = clip(host, given, {**settings, "control_momentum": False, "frames_per_pass": FRAMES}).frames
        assert difference(whole, plain) > BAR


@pytest.mark.parametrize("unit", ["ControlNet, canny", "Control-LoRA"])
def test_control_models_run_in_passes(host, folder, unit):
    """On the rows of a pass, two guidance groups of two frames, as the UNet does."""
    host.arm(site="control")
    clip(host, [enabled(UNITS[unit])], {**MOVING, "control": [str(folder)], "frames_per_pass": 2})
    assert [call["rows"] for call in host.disarm()] == [4] * 2 * STILL["steps"]


@pytest.mark.parametrize(
    "units", [["ControlNet, canny"], ["Control-LoRA"], ["ControlNet", "ControlNet, canny"]], ids=str
)
def test_anchors(host, folder, units):
    """Control models run their deep blocks on anchors as well: passes of any size and frame 1 stay what they are."""
    given = [enabled(UNITS[unit]) for unit in units]
    settings = {**MOVING, "control": [str(folder)] * len(units), "anchor_stride": 2, "anchor_start": 0}
    whole = clip(host, given, {**settings, "frames_per_pass": FRAMES}).frames
    assert difference(clip(host, given, {**settings, "frames_per_pass": 2}).frames, whole) <= BAR
    assert difference(whole[0], still(host, [enabled(UNITS[unit], scene(0)) for unit in units])) <= BAR
    assert difference(whole, clip(host, given, {**settings, "anchor_stride": 1}).frames) > 0  # one level, three steps


def test_units_that_need_all_frames(host, folder):
    settings = {**MOVING, "control": [str(folder)], "frames_per_pass": 2}
    result = clip(host, [enabled(PROMPT)], {**settings, "anchor_stride": 2})
    assert "stride 2 was not used" in str(result.info["extra_generation_params"])
    assert difference(result.frames, clip(host, [enabled(PROMPT)], settings).frames) <= BAR


def test_the_answer_holds_the_clip_alone(host, folder):
    """The host's pictures of the control images do not come along."""
    unit = {**CANNY, "enabled": True}
    assert len(clip(host, [unit], {"control": [str(folder)]}).files) == FRAMES
    scripts = {"ControlNet": {"args": [known(host, {**unit, "image": png_base64(scene(0))})]}}
    assert len(host.generate(**STILL, alwayson_scripts=scripts).files) == 2


def test_batch_count(host, folder):
    two, first, second = (
        clip(host, [enabled(NET)], {"control": [str(folder)]}, **more).frames
        for more in ({"n_iter": 2}, {}, {"seed": STILL["seed"] + 1})
    )
    assert difference(two[:FRAMES], first) <= BAR
    assert difference(two[FRAMES:], second) <= BAR


# --- faults ----------------------------------------------------------------------------------------------------

REFUSED = {
    "unknown model": ({**NET, "model": "control_sd15_missing"}, "'control_sd15_missing' is no model"),
    "unknown preprocessor": ({**NET, "module": "cannyy"}, "'cannyy' is no preprocessor"),
    "no model": ({**NET, "model": "None"}, "not selected any control model"),
    "lama": ({**NET, "module": "inpaint_only+lama"}, "choose 'inpaint_only'"),
    "tile with colour fix": ({**NET, "module": "tile_colorfix"}, "choose 'tile_resample'"),
    "reference": ({"module": "reference_only", "model": "None"}, "choose an IP-Adapter"),
    "broken image": ({**NET, "image": "AAAA"}, "ControlNet unit 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(host, folder, name):
    unit, words = REFUSED[name]
    own = [enabled(NET, scene(0))]
    before, clean = still(host, own), host.state()
    with pytest.raises(HostError, match=words) as refused:
        clip(host, [enabled({"image": png_base64(scene(0)), **unit})], {})
    assert refused.value.status == 422
    assert left_behind(clean, host.state()) == []
    assert difference(still(host, own), before) == 0


def test_a_unit_without_a_picture_is_refused(host):
    with pytest.raises(HostError, match="ControlNet") as refused:
        clip(host, [enabled(NET)], {})
    assert refused.value.status == 422


@pytest.mark.parametrize("unit", ["ControlNet, canny", "IP-Adapter"])
@pytest.mark.parametrize(
    "kind, site",
    [
        ("exception", "unet"),
        ("interrupt", "unet"),
        ("oom", "unet"),
        ("exception", "vae"),
        ("exception", "control"),
        ("interrupt", "control"),
        ("oom", "control"),
    ],
)
def test_faults_leave_no_trace(host, folder, unit, kind, site):
    if site == "control" and unit == "IP-Adapter":
        pytest.skip("has no model of its own")
    own = [enabled(UNITS[unit], scene(0))]
    before = still(host, own)
    settings = {"control": [str(folder)], **MOVING, "control_momentum": True, "frames_per_pass": 3}
    with host.no_trace(**STILL):
        whole = clip(host, [enabled(UNITS[unit])], settings).frames
        host.arm(kind, 1 if kind == "oom" or site == "vae" else 3, site=site)
        try:
            result = clip(host, [enabled(UNITS[unit])], settings)
            assert kind != "exception"
            if kind == "oom":
                assert difference(result.frames, whole) <= BAR
        except HostError as error:
            assert kind == "exception" and "failed as asked" in str(error)
    assert difference(still(host, own), before) == 0


def test_interrupt_while_preprocessing(host):
    """The pictures that are left are not read, and nothing is left behind."""
    many = host.data / "many"
    many.mkdir()
    for number in range(300):
        scene(number % 4, (512, 512)).save(many / f"{number:03}.png", compress_level=1)
    settings = {"control": [str(many)], "frames": 300, "frames_per_pass": 1}
    unit = enabled({**CANNY, "processor_res": 2048})
    with host.no_trace(**STILL):
        job = host.in_background(clip, host, [unit], settings)
        while "picture" not in (host.client.progress()["textinfo"] or "") and job.is_alive():
            time.sleep(0.05)
        began = time.monotonic()
        host.client.interrupt()
        job.result(timeout=120)
        assert time.monotonic() - began < 100
