"""The panel in a real browser: its controls, a clip made with it, and settings that survive being pasted.

Needs Chromium (or Chrome) with its driver, and `selenium`. ZS2_SCREENSHOTS, a folder, keeps pictures of the panel and
the gallery.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request

import pytest

import clipfiles
from browser import needs_browser
from host import STILL
from panel_page import Page
from test_source_video import video
from zs2_lib.settings.speeds import SPEEDS

pytestmark = needs_browser

CONTROLS = (
    "frames",
    "per second",
    "motion λ",
    "inertia β",
    "momentum μ",
    "loop",
    "noise model",
    "α",
    "candidates",
    "solver",
    "keyframes",
    "unet pass",
    "anchor stride",
    "anchor depth",
    "anchor start",
    "formats",
    "prompts by frame",
    "in-betweens ×",
    "retakes",
    "extended at",
    "json",
)
"""What the labels of the controls speak of."""
TABS = ("txt2img", "img2img")
PROMPTS = '0: on a blue background\n4: on a "green" background, dark: very'


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    page = Page(host.client.url, tmp_path_factory.mktemp("profile"))
    yield page
    page.browser.quit()


@pytest.mark.parametrize("tab", TABS)
def test_panel_has_all_controls_with_tooltips(page, tab):
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Advanced")
    labels = page.run("return zs2.labels(zs2.panel(arguments[0]))", tab)
    page.screenshot(f"panel-{tab}", page.panel(tab))
    page.enable(tab, False)
    texts = " | ".join(label["text"].lower() for label in labels)
    assert not [control for control in CONTROLS if control not in texts], texts
    silent = [label["text"] for label in labels if len(label["tooltip"]) < 20]
    assert not silent, f"controls without a tooltip: {silent}"


@pytest.mark.parametrize("tab", TABS)
def test_speed_buttons_set_what_decides_it(page, tab):
    """The steps too, which are the host's."""
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Advanced")
    for name in ("fast", "fine", "exact"):
        preset = SPEEDS[name]
        page.run(
            "[...zs2.panel(arguments[0]).querySelectorAll('button')]"
            ".find(e => e.textContent.trim().startsWith(`Speed: ${arguments[1]}`)).click()",
            tab,
            name,
        )
        page.wait(
            "return zs2.input(arguments[0], 'Anchor stride').value === arguments[1] && "
            "zs2.input(arguments[0], 'Anchor start').value === arguments[2]",
            20,
            tab,
            str(preset.anchor_stride),
            str(preset.anchor_start),
        )
        page.wait(f"return document.querySelector('#{tab}_steps input[type=number]').value === '14'", 20)
    page.set_field(f"#{tab}_steps input[type=number]", 20)
    page.enable(tab, False)


def test_img2img_without_a_picture(page):
    page.show_tab("img2img")
    page.enable("img2img")
    page.click("#img2img_generate")
    log = "document.querySelector('#html_log_img2img').innerText"
    page.wait(f"return {log}.includes('neither an init image nor a source video')", 60)
    assert "NoneType" not in page.run(f"return {log}")
    page.enable("img2img", False)


@pytest.fixture(scope="module")
def clip(page):
    """A short clip made with the panel: its infotext, and the first item of the gallery as (file name, bytes)."""
    tab = "txt2img"
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Advanced")
    for selector, value in {
        "prompt textarea": STILL["prompt"],
        "steps input[type=number]": 8,
        "width input[type=number]": STILL["width"],
        "height input[type=number]": STILL["height"],
        "seed input": STILL["seed"],
    }.items():
        page.set_field(f"#{tab}_{selector}", value)
    page.set_value(tab, "Frames", 5)
    page.set_value(tab, "Motion λ", 0.07)
    page.set_value(tab, "Momentum μ keyframes", "0:0.5, 4:0.9")
    page.set_value(tab, "Prompts by frame", PROMPTS)
    time.sleep(1)
    page.click(f"#{tab}_generate")
    page.wait(f"return document.querySelector('#html_info_{tab}').textContent.includes('ZS2')", 120)
    page.wait(f"return document.querySelectorAll('#{tab}_gallery img').length > 0", 20)
    time.sleep(1)
    page.screenshot("gallery", page.run(f"return document.querySelector('#{tab}_gallery')"))
    infotext = page.run(f"return document.querySelector('#html_info_{tab}').innerText")
    # the gallery draws an item up to three times: large, in the grid and as a thumbnail
    sources = page.run(
        f"return [...new Set([...document.querySelectorAll('#{tab}_gallery img')].map(i => i.src.split('?')[0]))]"
    )
    with urllib.request.urlopen(sources[0]) as response:
        return infotext, sources, response.read()


def test_first_item_of_the_gallery_plays(clip):
    _, sources, first = clip
    assert len(sources) == 6, "the clip and its five frames"
    assert clipfiles.kind(first) in ("gif", "webp", "apng")
    assert len(clipfiles.frames(first)) == 5


def test_what_the_gallery_shows_is_decoded_by_the_browser(page, clip):
    loaded = page.run(
        "return [...document.querySelectorAll('#txt2img_gallery img')].map(i => i.complete && i.naturalWidth)"
    )
    assert set(loaded) == {STILL["width"]}


def assert_settings_of_the_clip(page, tab):
    page.wait("return zs2.panel(arguments[0]).querySelector('.input-accordion-checkbox').checked", 20, tab)
    page.open_part(tab, "Advanced")
    page.wait("return zs2.input(arguments[0], 'Frames').value === '5'", 20, tab)
    found = {
        label: page.value(tab, label) for label in ("Frames", "Motion λ", "Momentum μ keyframes", "Prompts by frame")
    }
    assert found == {
        "Frames": "5",
        "Motion λ": "0.07",
        "Momentum μ keyframes": "0:0.5, 4:0.9",
        "Prompts by frame": PROMPTS,
    }


@pytest.fixture
def reset(page, clip):
    """The panel switched off, with other values."""

    def reset_tab(tab):
        page.show_tab(tab)
        page.enable(tab)
        page.set_value(tab, "Frames", 9)
        page.set_value(tab, "Motion λ", 0.2)
        page.set_value(tab, "Momentum μ keyframes", "")
        page.set_value(tab, "Prompts by frame", "2: something else")
        page.enable(tab, False)
        time.sleep(0.5)

    return reset_tab


def test_paste_arrow_brings_the_settings_back(page, clip, reset):
    reset("txt2img")
    page.set_field("#txt2img_prompt textarea", clip[0])
    time.sleep(0.5)
    page.click("#txt2img_tools #paste")
    assert_settings_of_the_clip(page, "txt2img")


@pytest.mark.parametrize("tab", TABS)
def test_png_info_sends_the_settings(page, clip, reset, tmp_path, tab):
    reset(tab)
    kind = clipfiles.kind(clip[2])
    file = tmp_path / f"clip.{'png' if kind == 'apng' else kind}"
    file.write_bytes(clip[2])
    page.show_tab("pnginfo")
    page.run("const b = document.querySelector('#pnginfo_image button[aria-label=Clear]'); if (b) b.click()")
    time.sleep(1)
    page.browser.find_element("css selector", "#pnginfo_image input[type=file]").send_keys(str(file))
    page.wait("return document.querySelector('#tab_pnginfo').innerText.includes('ZS2')", 30)
    page.click(f"#tab_pnginfo #{tab}_tab")
    page.wait("return document.querySelector('#tab_' + arguments[0]).offsetParent !== null", 20, tab)
    assert_settings_of_the_clip(page, tab)


@pytest.mark.parametrize("tab", ["img2img"])
def test_gallery_sends_the_settings_to_img2img(page, clip, reset, tab):
    reset(tab)
    page.show_tab("txt2img")
    page.click("#txt2img_send_to_img2img")
    page.wait("return document.querySelector('#tab_' + arguments[0]).offsetParent !== null", 20, tab)
    assert_settings_of_the_clip(page, tab)


def test_what_is_not_saved(host, page, clip, tmp_path):
    """The gallery plays it from one folder for temporary files, which is cleared; nothing lies anywhere else."""
    previews = tmp_path / "zs2-previews"
    previews.mkdir()
    old = previews / "old.webp"
    old.write_text("")
    os.utime(old, (0, 0))
    saved = set(host.outputs.rglob("*"))
    page.show_tab("txt2img")
    page.enable("txt2img")
    with host.client.options_set(samples_save=False, temp_dir=str(tmp_path)):
        page.click("#txt2img_generate")
        first = "(document.querySelector('#txt2img_gallery img') || {src: ''}).src"
        page.wait(f"return {first}.includes(arguments[0])", 120, f"{tmp_path.name}/zs2-previews")
        with urllib.request.urlopen(page.run(f"return {first}")) as response:
            assert clipfiles.kind(response.read()) == "webp"
    assert set(host.outputs.rglob("*")) == saved
    assert sorted(path.suffix for path in previews.iterdir()) == [".mp4", ".webp"], "for the player, and the gallery"
    assert [path for path in tmp_path.iterdir() if path.suffix != ".png"] == [previews]  # the host's own are PNGs


def test_source_video(page, clip, tmp_path):
    """An uploaded video is shown as a strip, decides frames and rate, and is edited without any other init image."""
    tab, file = "img2img", video(tmp_path / "walk.mp4", fps=12)
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Source")
    about = "[...zs2.panel('img2img').querySelectorAll('[id$=source_about]')].map(e => e.innerText).join('')"
    page.browser.find_element("css selector", "#tab_img2img [id$=source_file] input[type=file]").send_keys(str(file))
    page.wait(f"return {about}.includes('6 frames of 128x128, 12 per second')", 30)
    page.wait(
        "return ['Frames', 'Frames per second'].every(name => zs2.input('img2img', name).value === '0')",
        20,
    )
    page.run("document.querySelector('#tab_img2img [id$=source_strip]').scrollIntoView()")  # gradio 4 loads it then
    page.wait(
        "return [...document.querySelectorAll('#tab_img2img [id$=source_strip] img')].some(i => i.naturalWidth > 500)",
        20,
    )
    page.set_value(tab, "Every n-th frame", 2)
    page.wait(f"return {about}.includes('3 frames of 128x128, 6 per second')", 30)
    page.screenshot("source", page.run("return document.querySelector('#tab_img2img [id$=source_strip]')"))
    for selector, value in {
        "prompt textarea": "a yellow star on a green background",
        "steps input[type=number]": 6,
        "width input[type=number]": STILL["width"],
        "height input[type=number]": STILL["height"],
        "seed input": 5,
    }.items():
        page.set_field(f"#{tab}_{selector}", value)
    time.sleep(1)
    page.click(f"#{tab}_generate")
    page.wait(f"return document.querySelector('#html_info_{tab}').textContent.includes('ZS2 frames: 3')", 120)
    page.wait(
        f"return new Set([...document.querySelectorAll('#{tab}_gallery img')].map(i => i.src.split('?')[0])).size"
        " === 4",
        20,
    )
    saved = page.run(f"return document.querySelector('#html_log_{tab}').innerText")
    assert "ZS²: saved" in saved and ".mp4" in saved
    page.set_value(tab, "Start", 9)
    page.wait(f"return {about}.includes('ends at 0.5')", 30)


def test_a_finished_clip_is_made_larger(host, page, tmp_path):
    """The last clip of the session, then one that is uploaded, by the part's own button; the result plays."""
    tab, part = "txt2img", "document.querySelector('#tab_txt2img [id$=postprocess_{}]')"
    result, film = part.format("result"), part.format("result") + ".querySelector('video')"
    host.clip({"frames": 4, "formats": ["mp4"]}, save_images=True)
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Upscale and interpolate")
    make = page.run(f"return {part.format('make')}")
    page.choose(tab, "Interpolate", "×2")
    time.sleep(1)
    page.run("arguments[0].click()", make)
    page.wait(f"return {result}.innerText.includes('7 frames of {STILL['width']}x')", 60)

    upload = page.browser.find_element("css selector", f"#tab_{tab} [id$=postprocess_clip_file] input[type=file]")
    upload.send_keys(str(video(tmp_path / "walk.mp4")))
    page.wait(f"return {part.format('clip_file')}.innerText.includes('walk')", 20)
    page.choose(tab, "Upscaler", "Lanczos")
    time.sleep(1)
    page.screenshot("postprocess", make)
    page.run("arguments[0].click()", make)
    page.wait(f"return {film} && {film}.videoWidth === 256 && {film}.readyState > 2", 60)
    text = page.run(f"return {result}.innerText")
    page.screenshot("postprocess-result", make)
    assert "11 frames of 256x256, 16 per second" in text and "walk-x2-16fps.mp4" in text

    page.choose(tab, "Upscaler", "None")
    page.choose(tab, "Interpolate", "off")
    time.sleep(1)
    page.run("arguments[0].click()", make)
    page.wait(f"return {result}.innerText.includes('there is nothing to do')", 30)
    page.enable(tab, False)


@pytest.mark.parametrize(
    ("step", "frames"), [("extend", "12 frames"), ("retake", "4 frames"), ("in-betweens", "7 frames")]
)
def test_going_on_from_the_last_clip(host, page, step, frames):
    """By the part's own button, with what its controls hold at first; the result plays."""
    tab, part = "txt2img", "document.querySelector('#tab_txt2img [id$=\"going_on_{}\"]')"
    result = part.format("result")
    host.clip({"frames": 4, "formats": ["mp4"]}, save_images=True)
    page.show_tab(tab)
    page.enable(tab)
    page.open_part(tab, "Go on from a clip")
    if step == "retake":
        page.set_value(tab, "From frame", 2)
    button = page.run(f"return {part.format(step)}")
    page.run("arguments[0].click()", button)
    page.wait(f"return {result}.innerText.includes('{frames}')", 120)
    page.wait(f"const film = {result}.querySelector('video'); return film && film.readyState > 2", 60)
    page.screenshot(f"going-on-{step}", button)
    if step == "retake":
        page.set_value(tab, "From frame", 9)
        time.sleep(1)
        page.run("arguments[0].click()", button)
        page.wait(f"return {result}.innerText.includes('from 1 to 3')", 30)
    page.enable(tab, False)


def test_page_shows_no_errors(page, clip):
    """No message of a failed callback on the page."""
    text = page.run("return document.body.innerText")
    assert not re.findall(r"Traceback|Error: .*zs2", text)
