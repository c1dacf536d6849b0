"""Presets, forecast and preflight: what is said before is what the host then does; the page follows what is set.

In a browser as `test_panel.py`.
"""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import pytest

import clipfiles
from browser import needs_browser
from host import CLIP, FRAMES, HIRES, KIND, STILL, HostError
from panel_page import Keys, Page
from test_axes import section_set
from test_source_video import video
from zs2_lib.settings.presets import SHIPPED

SECOND_ORDER = [sampler for sampler in ("Heun", "DPM2", "DPM++ 2S a", "DPM++ SDE") if sampler in KIND.samplers]
SETTINGS = {**CLIP, "return": "video"}
QUICK = {"steps": 3}


def asked(host, settings: dict | None = None, **of_tab) -> dict:
    """The forecast for what `host.clip` would make."""
    known = {key: STILL[key] for key in ("width", "height", "steps", "cfg_scale", "sampler_name")}
    return host.client.post("/zs2/v1/forecast", {"settings": settings or SETTINGS, **known, **of_tab})


def rows_of(host, settings: dict | None = None, **payload) -> int:
    """The UNet rows that the host really computes for a clip."""
    host.arm()
    try:
        host.clip({**SETTINGS, **(settings or {})}, **payload)
    finally:
        calls = host.disarm()
    return sum(call["rows"] for call in calls)


# --- forecast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["Euler", *SECOND_ORDER, "Restart"])
def test_unet_calls_of_samplers(host, sampler):
    """By the host's table before the first run, and as they were after it."""
    plan = {"sampler_name": sampler, "steps": 6}
    first = asked(host, **plan)["unet_rows"]
    real = rows_of(host, **plan)
    assert asked(host, **plan)["unet_rows"] == real
    if sampler != "Restart":  # which goes back and forth as it likes
        assert first == real


@pytest.mark.parametrize("more", [{"n_iter": 2}, {"cfg_scale": 1}, HIRES])
def test_unet_rows_of_a_job(host, more):
    of_tab = {key: value for key, value in more.items() if key not in ("hr_upscaler", *KIND.hires)}
    if KIND.is_family and "enable_hr" in more:
        of_tab["hr_cfg"] = 1  # what these hosts take if the request has none
    said = asked(host, **QUICK, **of_tab)
    assert said["unet_rows"] == rows_of(host, **{**QUICK, **more})
    assert said["clips"] == more.get("n_iter", 1) and len(said["steps"]) == 1 + ("enable_hr" in more)


def test_unet_rows_of_img2img(host):
    picture = np.full((STILL["height"], STILL["width"], 3), 90, np.uint8)
    said = asked(host, img2img=True, denoising_strength=0.5, steps=8)
    assert said["unet_rows"] == rows_of(host, init_images=[picture], denoising_strength=0.5, steps=8)


def test_what_is_known_after_a_clip(host):
    settings = {**SETTINGS, "formats": ["mp4", "gif"]}
    made = host.clip(settings, **QUICK, save_images=True)
    said = asked(host, settings, **QUICK)
    assert said["seconds"] > 0 and said["known_from_jobs"] > 0
    assert set(said["bytes"]) == {"mp4", "gif"}
    longer = asked(host, {**settings, "frames": 10 * FRAMES}, **QUICK)
    assert longer["bytes"]["mp4"] == pytest.approx(10 * said["bytes"]["mp4"], abs=10)
    for clip in made.info["zs2_clips"]:
        assert 0.3 < said["bytes"][clip["format"]] / len(made.clips[made.info["zs2_clips"].index(clip)]) < 3
    assert said["memory"] == {"pictures": FRAMES * STILL["width"] * STILL["height"] * 4, "between_segments": 0}
    assert asked(host, {"frames": 300})["memory"]["between_segments"] > 0


def test_time_after_a_preflight_alone(host):
    settings = {**SETTINGS, "anchor_stride": 5, "anchor_depth": "gentle"}
    assert asked(host, settings)["seconds"] is None
    host.clip({**settings, "preflight": True})
    said = asked(host, settings)
    assert said["seconds"] > 0 and said["known_from_jobs"] == 1


def test_what_applies_right_now(host):
    settings = {"motion": 0.2, "loop": "seamless", "inertia": 0.5}
    notes = asked(host, settings, sampler_name="Euler a", steps=20, batch_size=3)["notes"]
    assert any("no effect on a loop" in note for note in notes)
    assert any("batch size is not used" in note for note in notes)
    assert any(note.startswith("With Euler a, 20 steps and CFG 5, λ 0.2 is about 14 of 255") for note in notes)
    assert not any("merging" in note for note in notes)
    if "token_merging_ratio" in host.client.options():
        with host.client.options_set(token_merging_ratio=0.4):
            assert any("Token merging is off" in note for note in asked(host)["notes"])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"script_name": "SD upscale", "img2img": True}, "SD upscale"),
        ({"settings": {"framez": 3}}, "frames"),
        ({"sampler": "Euler"}, "sampler_name"),
        ({"steps": 0}, "steps"),
        ({"settings": 5}, "settings"),
        ({"settings": {"frames": 100_001}}, "100000"),
    ],
)
def test_what_would_be_refused(host, request_, words):
    with pytest.raises(HostError) as refused:
        host.client.post("/zs2/v1/forecast", request_)
    assert refused.value.status == 422 and words in refused.value.message


# --- preflight -------------------------------------------------------------------------------------------------------


def test_preflight(host):
    """Small, in few steps, not saved; honest in its infotext; the same for the same seed; nothing is left behind."""
    large = {"width": 512, "height": 256, "steps": 15, "n_iter": 2, "seed": -1}
    large |= {key: value for key, value in HIRES.items() if key.startswith("hr_") or key == "denoising_strength"}
    saved = set(host.outputs.rglob("*"))
    with host.no_trace():
        made = host.clip({**SETTINGS, "preflight": True, "formats": ["gif"]}, **large, enable_hr=True, save_images=True)
    assert set(host.outputs.rglob("*")) == saved
    assert len(made.info["zs2_clips"]) == 1 and made.info["zs2_clips"][0]["format"] == "mp4"
    assert clipfiles.frames(made.clips[0]).shape == (FRAMES, 128, 256, 3)
    assert "Steps: 8," in made.infotext and "Size: 256x128" in made.infotext and "Hires" not in made.infotext
    assert "preflight" not in made.infotext.partition("ZS2 notes")[0].lower()
    seed = made.info["seed"]
    assert seed >= 0 and f"Seed: {seed}," in made.infotext and f"seed {seed}" in json.dumps(made.info)
    again = host.clip({**SETTINGS, "preflight": True}, **{**large, "seed": seed}, enable_hr=True)
    assert np.array_equal(again.frames, made.frames)


def test_preflight_by_the_settings_section(host):
    with section_set(host, zs2_preflight_steps=2, zs2_preflight_size=128):
        made = host.clip({**SETTINGS, "preflight": True}, width=256, height=256, steps=5)
    assert "Steps: 2," in made.infotext and "Size: 128x128" in made.infotext


def test_preflight_of_what_is_small_already(host):
    plain = host.clip(SETTINGS, **QUICK)
    made = host.clip({**SETTINGS, "preflight": True}, **QUICK)
    assert np.array_equal(made.frames, plain.frames)


def test_preflight_of_a_source_video(host, tmp_path):
    """All of its frames."""
    file = video(tmp_path / "walk.mp4", count=3)
    source = {"source": base64.b64encode(file.read_bytes()).decode(), "preflight": True, "frames": 0, "fps": 0}
    made = host.clip({**SETTINGS, **source}, init_images=[], width=512, height=512, steps=9, denoising_strength=0.5)
    assert made.frames.shape[1:3] == (256, 256) and len(made.frames) == len(clipfiles.frames(file.read_bytes()))


# --- presets and the page --------------------------------------------------------------------------------------------


def test_presets_by_the_route(host):
    answer = host.client.get("/zs2/v1/presets")
    assert answer["shipped"] == {name: preset.mapping() for name, preset in SHIPPED.items()}
    assert answer["speeds"]["fast"]["steps"] == 14


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    page = Page(host.client.url, tmp_path_factory.mktemp("profile"))
    yield page
    page.browser.quit()


def id_of(tab: str, name: str) -> str:
    return f"#script_{tab}_zs2_{name}"


def words(page, tab: str, name: str) -> str:
    return page.run("return document.querySelector(arguments[0])?.innerText", id_of(tab, name))


def wait_for(page, tab: str, name: str, text: str, seconds: float = 30) -> str:
    page.wait(
        "return document.querySelector(arguments[0])?.innerText.includes(arguments[1])", seconds, id_of(tab, name), text
    )
    return words(page, tab, name)


@needs_browser
def test_presets_on_the_page(host, page):
    """Applied, saved, there in the other tab, renamed, deleted; a broken one is put aside with a note."""
    tab, file = "txt2img", host.data / "zs2-presets.json"
    page.show_tab(tab)
    page.enable(tab)
    page.set_value(tab, "Motion λ keyframes", "0:0.1, 8:0.2")
    for name in ("morph", "lively"):
        page.choose(tab, "Preset", name)
        wait_for(page, tab, "preset_about", SHIPPED[name].about)
        page.click(id_of(tab, "preset_apply"))
        motion, inertia = (str(SHIPPED[name].settings[key]).removesuffix(".0") for key in ("motion", "inertia"))
        page.wait("return zs2.input('txt2img', 'Motion λ').value === arguments[0]", 20, motion)
        page.wait("return zs2.input('txt2img', 'Inertia β').value === arguments[0]", 20, inertia)
        page.wait("return zs2.input('txt2img', 'Motion λ keyframes').value === ''", 20)
    page.set_value(tab, "Motion λ", 0.15)
    page.click(id_of(tab, "preset_save"))
    page.wait("return document.querySelector(arguments[0])?.offsetParent", 20, id_of(tab, "preset_do"))
    field = f"{id_of(tab, 'preset_name')} textarea, {id_of(tab, 'preset_name')} input"
    page.set_field(field, "mine")
    time.sleep(0.5)
    page.screenshot("presets", page.panel(tab))
    page.click(id_of(tab, "preset_do"))
    wait_for(page, tab, "preset_about", "Saved: mine")
    assert json.loads(file.read_text())["presets"]["mine"]["settings"]["motion"] == 0.15
    time.sleep(2)

    page.show_tab("img2img")
    page.enable("img2img")
    page.choose("img2img", "Preset", "mine")
    page.click(id_of("img2img", "preset_apply"))
    page.wait("return zs2.input('img2img', 'Motion λ').value === '0.15'", 20)
    page.choose("img2img", "Preset", "edit: keep")
    page.click(id_of("img2img", "preset_apply"))
    page.wait("return document.querySelector('#img2img_denoising_strength input[type=number]').value === '0.4'", 20)
    page.enable("img2img", False)

    page.show_tab(tab)
    page.click(id_of(tab, "preset_rename"))
    wait_for(page, tab, "preset_do", "Rename")
    assert page.run("return document.querySelector(arguments[0]).value", field) == "mine"
    page.set_field(field, "yours")
    time.sleep(0.5)
    page.click(id_of(tab, "preset_do"))
    wait_for(page, tab, "preset_about", "Renamed: yours")

    whole = json.loads(file.read_text())
    whole["presets"]["<b>broken</b>"] = {"settings": {"motion": -1}}
    file.write_text(json.dumps(whole))
    page.click(id_of(tab, "preset_delete"))
    time.sleep(1)
    page.click(id_of(tab, "preset_do"))
    said = wait_for(page, tab, "preset_about", "Deleted: yours")
    assert "<b>broken</b>" in said and "broken-1.json" in said
    assert json.loads(file.read_text())["presets"] == {} and (host.data / "zs2-presets.broken-1.json").exists()


@needs_browser
def test_forecast_follows_the_panel(host, page):
    tab = "txt2img"
    page.show_tab(tab)
    page.enable(tab)
    page.set_field(f"#{tab}_width input[type=number]", STILL["width"])
    page.set_field(f"#{tab}_height input[type=number]", STILL["height"])
    page.set_field(f"#{tab}_steps input[type=number]", 4)
    page.set_value(tab, "Frames", 5)
    wait_for(page, tab, "forecast", "5 frames")
    wait_for(page, tab, "forecast", "4 steps")
    page.set_value(tab, "Frames", 300)
    said = wait_for(page, tab, "forecast", "3 segments")
    assert "between segments" in said
    page.screenshot("forecast", page.panel(tab))
    page.set_value(tab, "Frames", 5)
    wait_for(page, tab, "forecast", "5 frames")
    page.run("document.querySelector('#txt2img_hr .label-wrap').click()")
    wait_for(page, tab, "forecast", "4 + ")
    page.run("document.querySelector('#txt2img_hr .label-wrap').click()")
    wait_for(page, tab, "forecast", "4 steps")
    page.choose(tab, "Loop", "seamless")
    page.set_value(tab, "Motion λ keyframes", "0:0.1, 4:0.2")
    wait_for(page, tab, "forecast", "all steps of a loop are alike: give one number")
    page.set_value(tab, "Motion λ keyframes", "")
    page.choose(tab, "Loop", "off")
    wait_for(page, tab, "forecast", "5 frames")


@needs_browser
def test_forecast_says_what_does_not_fit(page):
    """A script that cuts a picture into samples."""
    page.show_tab("img2img")
    page.enable("img2img")
    wait_for(page, "img2img", "forecast", "frames")
    field = page.run("return document.querySelector('#tab_img2img #script_list input')")
    page.run("arguments[0].scrollIntoView({block: 'center'})", field)
    for title, says in (("SD upscale", "choose no script"), ("None", "frames")):
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(title, Keys.ENTER)
        wait_for(page, "img2img", "forecast", says)
    page.enable("img2img", False)


@needs_browser
def test_preflight_on_the_page(host, page):
    """The box is ticked for one job alone, whose seed "reuse seed" gives; the next Generate makes the clip itself."""
    tab, info = "txt2img", "document.querySelector('#html_info_txt2img').textContent"
    box = f"document.querySelector('{id_of(tab, 'preflight')} input').checked"
    page.show_tab(tab)
    page.enable(tab)
    for selector, value in {"width": 320, "height": 320, "steps": 9}.items():
        page.set_field(f"#{tab}_{selector} input[type=number]", value)
    page.set_field(f"#{tab}_prompt textarea", STILL["prompt"])
    page.set_field(f"#{tab}_seed input", -1)
    page.set_value(tab, "Frames", 2)
    time.sleep(1)
    with section_set(host, zs2_preflight_steps=3, zs2_preflight_size=128):
        page.click(id_of(tab, "preflight_button"))
        page.wait(f"return {info}.includes('Steps: 3,') && {info}.includes('Size: 128x128')", 240)
    page.wait(f"return !{box}", 20)
    page.screenshot("preflight", page.panel(tab))
    seed = page.run(f"return {info}.match(/Seed: (\\d+)/)[1]")
    page.wait("return document.querySelector('#html_log_txt2img').innerText.includes(arguments[0])", 20, f"seed {seed}")
    page.click(f"#{tab}_reuse_seed")
    page.wait(f"return document.querySelector('#{tab}_seed input').value === arguments[0]", 20, seed)
    for side in ("width", "height"):
        page.set_field(f"#{tab}_{side} input[type=number]", STILL["width"])
    page.set_field(f"#{tab}_steps input[type=number]", 2)
    time.sleep(1)
    page.click(f"#{tab}_generate")
    page.wait(f"return {info}.includes('Steps: 2,')", 240)
    page.enable(tab, False)
