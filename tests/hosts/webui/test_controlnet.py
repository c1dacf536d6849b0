"""ControlNet units with an image for each frame: at λ = 0, μ = 0 every frame is the still of its own control image."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image, ImageDraw

from control_images import enabled, make_folder, mask, scene
from host import AND, BAR, LONG, SDE, UNBATCHED, difference, left_behind, save_sheet, zs2
from host import HIRES as HIRES_OF_FOUR
from host import STILL as TINY_STILL
from webui import HostError, png_base64

FRAMES = 5
SD15 = {"sd_model_checkpoint": "sd15.safetensors"}
STILL = {**TINY_STILL, "steps": 4, "cfg_scale": 4, "override_settings": SD15}
SEPARATE = {"motion": 0, "momentum": 0, "frames": FRAMES, "return": "frames"}
HIRES = {**HIRES_OF_FOUR, "hr_second_pass_steps": 3}

NET = {"module": "none", "model": "control_sd15_zs2"}
ADAPTER = {"module": "none", "model": "t2iadapter_sd15_zs2"}
UNITS = {
    "ControlNet": NET,
    "ControlNet, canny": {**NET, "module": "canny", "processor_res": 128, "threshold_a": 40, "threshold_b": 90},
    "ControlNet, pixel perfect": {**NET, "module": "canny", "pixel_perfect": True},
    "ControlNet, weight and last step": {**NET, "weight": 0.6, "guidance_end": 0.8},
    "ControlNet, first step": {**NET, "guidance_start": 0.3},
    "ControlNet, prompt more important": {**NET, "control_mode": "My prompt is more important"},
    "ControlNet, control more important": {**NET, "control_mode": "ControlNet is more important"},
    "ControlNet, inpaint": {**NET, "module": "inpaint"},
    "ControlNet, inpaint only": {**NET, "module": "inpaint_only"},
    "ControlNet, tile with colour fix": {**NET, "module": "tile_colorfix"},
    "ControlNet, shuffle": {**NET, "module": "shuffle"},
    "T2I-Adapter": ADAPTER,
    "T2I-Adapter, control more important": {**ADAPTER, "control_mode": "ControlNet is more important"},
    "Control-LoRA": {"module": "none", "model": "controllora_sd15_zs2"},
    "IP-Adapter": {"module": "ip-adapter_zs2", "model": "ip-adapter_sd15_zs2"},
    "reference only": {"module": "reference_only", "threshold_a": 0.5},
    "reference, adain and attention": {"module": "reference_adain+attn", "threshold_a": 1.0},
    "recolor": {**NET, "module": "recolor_luminance"},
}
MASKED = ("ControlNet, inpaint", "ControlNet, inpaint only")
LAYOUTS = {
    "AND": {"prompt": AND},
    "unequal lengths": {"prompt": LONG},
    "unequal lengths, AND": {"prompt": LONG + " AND a yellow star"},
    "batch_cond_uncond off": {"override_settings": {**SD15, **UNBATCHED}},
    "NGMS": {"s_min_uncond": 30},
    "CFG 1": {"cfg_scale": 1},
    "DPM++ SDE": SDE,
}


@pytest.fixture(scope="module")
def host(controlnet_host):
    return controlnet_host


@pytest.fixture(scope="module")
def folder(host):
    return make_folder(host, FRAMES)


def still(host, units: list[dict], **payload) -> np.ndarray:
    return host.generate(**{**STILL, **payload}, alwayson_scripts={"ControlNet": {"args": units}}).frames[0]


def clip(host, units: list[dict], settings: dict, **payload):
    scripts = {"ControlNet": {"args": units}, **zs2({**SEPARATE, **settings})}
    return host.generate(**{**STILL, **payload}, alwayson_scripts=scripts)


def stills(host, units: list[dict], **payload) -> np.ndarray:
    """For each frame the still with its scene as the units' control image."""
    return np.stack([still(host, [enabled(unit, scene(n)) for unit in units], **payload) for n in range(FRAMES)])


def compare(host, folder, units: list[dict], payload: dict, per_pass=(0, 2), bar=BAR, effect=1.5 * BAR) -> None:
    """Every frame against the still with its control images; each unit takes them from the folder."""
    masked = [{**unit, "mask": png_base64(mask())} if unit["module"].startswith("inpaint") else unit for unit in units]
    expected = stills(host, masked, **payload)
    assert difference(expected[0], expected[-1]) > effect, "the control images change nothing: the unit is not at work"
    given = [enabled(unit, scene(0)) if "mask" in unit else enabled(unit) for unit in masked]
    for frames_per_pass in per_pass:
        settings = {"control": [str(folder)] * len(units), "frames_per_pass": frames_per_pass}
        frames = clip(host, given, settings, **payload).frames
        assert difference(frames, expected) <= bar, f"{frames_per_pass} frames per pass"


@pytest.mark.parametrize("unit", UNITS)
def test_every_frame_is_the_still_of_its_control_image(host, folder, unit):
    # recolouring computes the colours of a finished frame anew, by which a level of difference becomes a few
    effect = 0 if unit == "ControlNet, first step" else 1.5 * BAR  # the last steps of four show little of a unit
    compare(host, folder, [UNITS[unit]], {}, bar=3 * BAR if unit == "recolor" else BAR, effect=effect)


NO_STILL = {
    "IP-Adapter": ("unequal lengths", "unequal lengths, AND", "batch_cond_uncond off"),
    "reference only": ("unequal lengths, AND", "NGMS", "CFG 1"),
}
"""Layouts in which the extension's own still is no measure: it keeps the prompt's image for the negative prompt's call
that follows, or the reference's rows of a call for one of other rows; and at CFG 1 the small checkpoint hardly sees it.
"""


KINDS = ("ControlNet, canny", "T2I-Adapter", "IP-Adapter", "reference only")


@pytest.mark.parametrize(
    "unit, layout", [(unit, name) for unit in KINDS for name in LAYOUTS if name not in NO_STILL.get(unit, ())]
)
def test_every_layout_of_the_unets_rows(host, folder, unit, layout):
    compare(host, folder, [UNITS[unit]], LAYOUTS[layout], per_pass=(2,))


@pytest.mark.parametrize("unit", [*KINDS, "ControlNet, inpaint only"])
@pytest.mark.parametrize("option", ["Both", "Low res only", "High res only"])
def test_hires_fix(host, folder, unit, option):
    effect = 0 if option == "High res only" else 1.5 * BAR  # three steps from a picture that is there show little
    compare(host, folder, [{**UNITS[unit], "hr_option": option}], HIRES, per_pass=(2,), effect=effect)


# --- where the images come from ----------------------------------------------------------------------------


def test_units_each_with_a_choice_of_its_own(host, folder):
    """One from a folder, one with its single image, one from the source."""
    reverse = host.data / "reverse"
    reverse.mkdir()
    for number in range(FRAMES):
        scene(FRAMES - 1 - number).save(reverse / f"{number}.png")
    units = [NET, UNITS["T2I-Adapter"], UNITS["IP-Adapter"]]
    shown = [(number, 2, FRAMES - 1 - number) for number in range(FRAMES)]
    given = [[enabled(unit, scene(number)) for unit, number in zip(units, each)] for each in shown]
    expected = np.stack([still(host, each) for each in given])
    given = [enabled(units[0]), enabled(units[1], scene(2)), enabled(units[2])]
    settings = {"control": ["source", "", str(reverse)], "source": str(folder), "frames_per_pass": 2}
    assert difference(clip(host, given, {**settings, "frames": 0}).frames, expected) <= BAR


def test_the_source_of_img2img_is_the_control_of_a_unit_without_an_image(host, folder):
    """As in a still; its masks go to an inpainting unit."""
    edit = {"denoising_strength": 0.7, "steps": 6}
    for unit, masks in ((UNITS["ControlNet, canny"], None), (NET, folder)):
        unit = enabled({**unit, "module": "inpaint"} if masks else unit)
        expected = []
        for number in range(FRAMES):
            own_mask = {"mask": np.asarray(scene(number).convert("L").convert("RGB"))} if masks else {}
            expected.append(still(host, [unit], init_images=[np.asarray(scene(number))], **edit, **own_mask))
        settings = {"source": str(folder), "frames": 0, "frames_per_pass": 2, **({"mask": str(masks)} if masks else {})}
        result = clip(host, [unit], settings, init_images=[], **edit)
        assert difference(result.frames, np.stack(expected)) <= BAR


def test_the_folder_of_a_units_batch_tab(host, folder):
    """By itself the extension would make a job of each file there."""
    expected = clip(host, [enabled(NET)], {"control": [str(folder)]}).frames
    unit = {**enabled(NET), "input_mode": "batch", "batch_images": str(folder)}
    assert difference(clip(host, [unit], {"frames_per_pass": 2}).frames, expected) <= BAR


def test_a_shorter_video_is_held_looped_or_stretched(host, folder):
    short = host.data / "short"
    short.mkdir()
    for number in range(3):
        scene(number).save(short / f"{number}.png")
    expected = [still(host, [enabled(NET, scene(number))]) for number in range(3)]
    for fit, shown in {"hold": (0, 1, 2, 2, 2), "loop": (0, 1, 2, 0, 1), "stretch": (0, 0, 1, 2, 2)}.items():
        result = clip(host, [enabled(NET)], {"control": [str(short)], "control_fit": fit, "frames_per_pass": 2})
        assert difference(result.frames, np.stack([expected[number] for number in shown])) <= BAR, fit
        notes = str(result.info["extra_generation_params"])
        assert "3 frames for 5" in notes and fit in notes


def test_a_longer_video_is_cut(host, folder):
    expected = np.stack([still(host, [enabled(NET, scene(number))]) for number in range(2)])
    result = clip(host, [enabled(NET)], {"control": [str(folder)], "frames": 2})
    assert difference(result.frames, expected) <= BAR
    assert "first 2 are used" in str(result.info["extra_generation_params"])


def test_several_images_of_an_ip_adapter(host, folder):
    """Their mean, for all frames, as in a still."""
    unit = enabled({**UNITS["IP-Adapter"], "image": [{"image": png_base64(scene(number))} for number in (0, 3)]})
    expected = still(host, [unit])
    assert difference(expected, still(host, [enabled(UNITS["IP-Adapter"], scene(0))])) > BAR
    assert difference(clip(host, [unit], {"frames_per_pass": 2}).frames, np.stack([expected] * FRAMES)) <= BAR


def test_one_image_for_all_frames(host):
    for unit in (
        "ControlNet, canny",
        "reference only",
        "T2I-Adapter, control more important",
        "ControlNet, tile with colour fix",
    ):
        given = [enabled(UNITS[unit], scene(1))]
        expected = still(host, given)
        assert difference(clip(host, given, {"frames_per_pass": 2}).frames, np.stack([expected] * FRAMES)) <= BAR, unit


# --- as a clip -----------------------------------------------------------------------------------------------

MOVING = {"motion": 0.05, "momentum": 0.75}


@pytest.mark.parametrize("unit", [*KINDS, "Control-LoRA"])
def test_passes_of_a_moving_clip_are_the_whole(host, folder, unit):
    given = [enabled(UNITS[unit])]
    for momentum in (False, True):
        settings = {**MOVING, "control": [str(folder)], "control_momentum": momentum}
        whole = clip(host, given, {**settings, "frames_per_pass": 5}).frames
        assert difference(clip(host, given, {**settings, "frames_per_pass": 2}).frames, whole) <= BAR
        assert difference(whole[0], still(host, [enabled(UNITS[unit], scene(0))])) <= BAR
    if unit == "ControlNet, canny":
        assert difference(whole, clip(host, given, {**settings, "control_momentum": False}).frames) > BAR


@pytest.mark.parametrize(
    "units", [["ControlNet, canny"], ["Control-LoRA"], ["ControlNet", "ControlNet, canny"], ["T2I-Adapter"]], ids=str
)
def test_anchors(host, folder, units):
    """Control models run their deep blocks on anchors as well: passes of any size and frame 1 stay what they are."""
    given = [enabled(UNITS[unit]) for unit in units]
    settings = {**MOVING, "control": [str(folder)] * len(units), "anchor_stride": 2, "anchor_start": 0}
    whole = clip(host, given, {**settings, "frames_per_pass": 5}).frames
    assert difference(clip(host, given, {**settings, "frames_per_pass": 2}).frames, whole) <= BAR
    assert difference(whole[0], still(host, [enabled(UNITS[unit], scene(0)) for unit in units])) <= BAR
    assert difference(whole, clip(host, given, {**settings, "anchor_stride": 1}).frames) > BAR


@pytest.mark.parametrize("unit", ["IP-Adapter", "reference only"])
def test_units_that_need_all_frames(host, folder, unit):
    settings = {**MOVING, "control": [str(folder)], "frames_per_pass": 2}
    result = clip(host, [enabled(UNITS[unit])], {**settings, "anchor_stride": 2})
    assert "stride 2 was not used" in str(result.info["extra_generation_params"])
    assert difference(result.frames, clip(host, [enabled(UNITS[unit])], settings).frames) <= BAR


def test_the_answer_holds_the_clip_alone(host, folder):
    """The extension's pictures of the control images do not come along."""
    unit = {**UNITS["ControlNet, canny"], "enabled": True}
    assert len(clip(host, [unit], {"control": [str(folder)]}).files) == FRAMES
    result = clip(host, [unit], {"control": [str(folder)], "return": "both", "formats": ["gif"]})
    assert [file[:3] for file in result.clips] == [b"GIF"] and len(result.files) == 1 + FRAMES
    scripts = {"ControlNet": {"args": [{**unit, "image": png_base64(scene(0))}]}}
    assert len(host.generate(**STILL, alwayson_scripts=scripts).files) == 2


def test_batch_count(host, folder):
    two, first, second = (
        clip(host, [enabled(NET)], {"control": [str(folder)]}, **more).frames
        for more in ({"n_iter": 2}, {}, {"seed": STILL["seed"] + 1})
    )
    assert difference(two[:FRAMES], first) <= BAR
    assert difference(two[FRAMES:], second) <= BAR


# --- a control model that is trained --------------------------------------------------------------------------

CANNY = {"module": "canny", "model": "canny_tiny_zs2", "processor_res": 128, "threshold_a": 100, "threshold_b": 200}


def star(number: int) -> Image.Image:
    """A star that moves across the picture and turns."""
    image = Image.new("RGB", (384, 384), (20, 120, 60))
    angle = 0.15 * number + np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2, 45, 100)
    x, y = 115 + 22 * number + radius * np.sin(angle), 210 - 6 * number - radius * np.cos(angle)
    ImageDraw.Draw(image).polygon(list(zip(x, y)), fill=(240, 240, 240))
    return image.resize((128, 128), Image.Resampling.LANCZOS)


def centre(pictures: np.ndarray, color) -> np.ndarray:
    """Where the pixels near a colour are, in each picture: (row, column)."""
    near = np.abs(np.asarray(pictures).astype(int) - color).max(axis=-1) < 90
    return np.stack([np.argwhere(one).mean(0) for one in near])


def test_contact_sheet(host, tmp_path):
    """The sheet of README: source, control and result of a small Control-LoRA for edges; the star is where it was."""
    folder, tiny = host.data / "star", {"sd_model_checkpoint": "tiny.safetensors"}
    folder.mkdir()
    source = [star(number) for number in range(8)]
    for number, picture in enumerate(source):
        picture.save(folder / f"{number}.png")
    payload = {"prompt": "a red star on a blue background", "steps": 20, "cfg_scale": 5, "seed": 3}
    payload["override_settings"] = tiny
    settings = {"frames": 8, "motion": 0.05, "momentum": 0.75, "control": [str(folder)]}
    result = clip(host, [enabled(CANNY)], settings, **payload).frames
    edges = []
    for picture in source:
        scripts = {"ControlNet": {"args": [{**CANNY, "enabled": True, "image": png_base64(picture)}]}}
        edges.append(host.generate(**STILL | payload | {"steps": 1}, alwayson_scripts=scripts).frames[1])
    save_sheet((source, edges, result), "source_control_result.png", tmp_path)
    away = np.abs(centre(result, (222, 40, 40)) - centre(source, (240, 240, 240)))
    assert away.max() < 10
    free = clip(host, [], {**settings, "control": []}, **payload).frames
    assert np.abs(centre(free, (222, 40, 40)) - centre(source, (240, 240, 240))).max() > 2 * away.max()


# --- faults ----------------------------------------------------------------------------------------------------

REFUSED = {
    "no such file": ({"control": ["/nowhere.mp4"]}, r"control\[0\]: .*not allowed"),
    "missing in an allowed folder": ({"control": ["control/99.mp4"]}, r"control\[0\]: .*99\.mp4"),
    "no source": ({"control": ["source"]}, "there is no source"),
    "too many entries": ({"control": ["", "", "", "", ""]}, "5 entries for 3 ControlNet units"),
    "no list": ({"control": "source"}, "give a list"),
    "wrong fit": ({"control": ["control"], "control_fit": "cut"}, '"hold", "loop", "stretch"'),
    "corrupt base64": ({"control": ["data:video/mp4;base64,AAAA!"]}, r"control\[0\]"),
    "no video": ({"control": ["data:video/mp4;base64," + base64.b64encode(b"text " * 40).decode()]}, r"control\[0\]"),
    "source that no unit uses": ({"source": "control"}, "in txt2img"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(host, folder, name):
    settings, words = REFUSED[name]
    unit = enabled(NET, scene(0) if name == "source that no unit uses" else None)
    before, clean = still(host, [enabled(NET, scene(0))]), host.state()
    with pytest.raises(HostError, match=words) as refused:
        clip(host, [unit], settings)
    assert refused.value.status == 422
    assert difference(still(host, [enabled(NET, scene(0))]), before) == 0
    assert left_behind(clean, host.state()) == []


@pytest.mark.parametrize(
    "unit, words",
    [
        ({**NET, "model": "control_sd15_missing"}, "ControlNet: .*not found"),
        ({**NET, "module": "inpaint_only+lama"}, "choose 'inpaint_only'"),
        (NET, "ControlNet: .*no input image"),
    ],
    ids=["unknown model", "lama", "no image"],
)
def test_what_the_extension_would_only_print_stops_the_clip(host, unit, words):
    image = None if unit is NET else scene(0)
    with pytest.raises(HostError, match=words):
        clip(host, [enabled({**unit, **({"mask": png_base64(mask())} if "lama" in unit["module"] else {})}, image)], {})


def test_without_an_enabled_unit(host, folder):
    """The clip is made, and a note says that its control images are not used."""
    result = clip(host, [{**enabled(NET), "enabled": False}], {"control": [str(folder)]})
    assert len(result.files) == FRAMES
    assert "unit 0 is not enabled" in str(result.info["extra_generation_params"])


@pytest.mark.parametrize(
    "kind, site",
    [("exception", "unet block"), ("interrupt", "unet block"), ("exception", "vae"), ("oom", "unet block")],
)
@pytest.mark.parametrize("unit", ["ControlNet, canny", "IP-Adapter", "reference only"])
def test_faults_leave_no_trace(host, folder, unit, kind, site):
    own = [enabled(UNITS[unit], scene(0))]
    before = still(host, own)
    settings = {"control": [str(folder)], **MOVING, "frames_per_pass": 4}
    with host.no_trace(**STILL):
        whole = clip(host, [enabled(UNITS[unit])], settings).frames
        host.arm(kind, 1 if kind == "oom" else 3, site=site)
        try:
            result = clip(host, [enabled(UNITS[unit])], settings)
            assert kind != "exception"
            if kind == "oom":
                assert difference(result.frames, whole) <= BAR
        except HostError as error:
            assert kind == "exception" and "failed as asked" in str(error)
    assert difference(still(host, own), before) == 0


# --- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["ControlNet", "T2I-Adapter", "ControlNet, canny"])
def test_going_on_from_a_clip_with_control_images(host, folder, unit):
    """Kept frames have their images and are the same, in-betweens have what lies between, in passes as well."""
    units, settings = [enabled(UNITS[unit])], {"control": [str(folder)], "motion": 0.05, "momentum": 0.75}
    for passes in ({}, {"frames_per_pass": 2}):
        kept = clip(host, units, {**settings, **passes}).frames
        finer = clip(host, units, {**settings, **passes, "in_betweens": 2}).frames
        assert len(finer) == 2 * FRAMES - 1 and difference(finer[::2], kept) == 0
        shorter = clip(host, units, {**settings, **passes, "frames": 3}).frames
        longer = clip(host, units, {**settings, **passes, "extended": "3"}).frames
        assert difference(longer[:3], shorter) == 0
        taken = clip(host, units, {**settings, **passes, "retakes": "2:1"}).frames
        assert difference(taken[:2], kept[:2]) == 0 and difference(taken[2:], kept[2:]) > 0
    alone = clip(host, units, {"control": [str(folder)], "in_betweens": 2}).frames
    steps = np.abs(np.diff(alone, axis=0)).mean((1, 2, 3))
    if unit == "ControlNet, canny":  # whose edges of what lies between are others
        return
    assert steps.min() > 0 and steps.max() < np.abs(np.diff(alone[::2], axis=0)).mean((1, 2, 3)).max()
