"""The player in the real WebUI: a clip that was just made plays in the place of the gallery's picture, the gallery goes
on working, and each button does with the clip, or with the frame, what it says.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from browser import needs_browser
from host import FRAMES, STILL
from panel_page import Page

pytestmark = needs_browser

TAB = "txt2img"
PLAYER = f"#tab_{TAB} .zs2-player:not(.zs2-live)"
GALLERY = f"#{TAB}_gallery"
LARGE = f"{GALLERY} .preview img:not(.thumbnails img)"
PLACES = {
    # button: where the picture is shown
    "img2img": "#img2img_image",
    "Inpaint": "#img2maskimg",
    "Extras": "#extras_image",
    "ControlNet": "#txt2img_controlnet_ControlNet-0_input_image",
}
STEPS = {
    # button: the frames of the clip that it makes
    "Extend": FRAMES + 8,
    "Retake from here": FRAMES,
    "In-betweens": 2 * FRAMES - 1,
}
ASYNC = """
const done = arguments[arguments.length - 1];
(async() => { %s })().then(done, error => done({error: String(error)}));
"""
COLOURS = """
const colours = source => {
    const context = Object.assign(document.createElement('canvas'), {width: 4, height: 4}).getContext('2d');
    context.drawImage(source, 0, 0, 4, 4);
    return [...context.getImageData(0, 0, 4, 4).data];
};
"""


class PlayerPage(Page):
    """The page, and the player of the tab txt2img."""

    def generate(self, on: bool = True) -> None:
        self.show_tab(TAB)
        self.enable(TAB, on)
        for selector, value in {
            "prompt textarea": STILL["prompt"],
            "steps input[type=number]": STILL["steps"],
            "width input[type=number]": STILL["width"],
            "height input[type=number]": STILL["height"],
            "seed input": STILL["seed"],
        }.items():
            self.set_field(f"#{TAB}_{selector}", value)
        if on:
            self.set_value(TAB, "Frames", FRAMES)
        time.sleep(1)
        before = self.run(f"return document.querySelector('#generation_info_{TAB} textarea').value")
        self.click(f"#{TAB}_generate")
        self.wait(
            f"return document.querySelector('#generation_info_{TAB} textarea').value !== arguments[0] && "
            f"!document.querySelector('#tab_{TAB} .progressDiv')",
            120,
            before,
        )

    def button(self, text: str, real: bool = False) -> None:
        """Clicks on a button of the player, which is enabled by then; `real`, as a user does."""
        button = self.wait(
            f"return [...document.querySelectorAll('{PLAYER} button')].find("
            "b => [b.textContent, b.getAttribute('aria-label')].includes(arguments[0]) && !b.disabled)",
            20,
            text,
        )
        if real:
            self.run("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
        else:
            self.run("arguments[0].click()", button)

    def says(self, *words: str, seconds: float = 20) -> str:
        """What stands under the player, as soon as it has these words."""
        status = f"document.querySelector('{PLAYER} .zs2-status').textContent"
        return self.wait(
            f"return arguments[0].every(word => {status}.includes(word)) && {status}", seconds, list(words)
        )

    def counter(self, frame: int, of: int) -> None:
        """Waits for a frame, counted from 1."""
        count = f"document.querySelector('{PLAYER} .zs2-count').textContent"
        self.wait(f"return {count} === arguments[0]", 10, f"frame {frame} of {of}")

    def choose_thumbnail(self, place: int) -> None:
        self.run(f"document.querySelectorAll('{GALLERY} .thumbnail-small')[arguments[0]].click()", place)

    def at_frame(self, frame: int) -> None:
        """The clip of the job, at a frame that was chosen in the gallery, counted from 1."""
        self.show_tab(TAB)
        self.choose_thumbnail(frame)
        self.counter(frame, FRAMES)

    def asynchronous(self, script: str, *arguments):
        result = self.browser.execute_async_script(ASYNC % script, *arguments)
        assert not (isinstance(result, dict) and "error" in result), result
        return result

    def frame_colours(self, frame: int) -> np.ndarray:
        """Of the player's clip, counted from 1, as the server gives it."""
        script = COLOURS + "const [name, k] = arguments; const image = new Image();"
        script += "image.src = zs2ClipAddress(name, 'frames', k - 1); await image.decode(); return colours(image);"
        name = self.run(f"return document.querySelector('{PLAYER} .zs2-head select').value")
        return np.array(self.asynchronous(script, name, frame))

    def shown(self, selector: str) -> bool:
        return self.run(f'const e = document.querySelector("{selector}"); return !!e && e.offsetParent !== null')


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    page = PlayerPage(host.client.url, tmp_path_factory.mktemp("profile"))
    page.generate()
    yield page
    errors = page.errors()
    page.browser.quit()
    assert [error for error in errors if "zs2" in error.lower()] == []


def test_the_clip_plays_as_soon_as_the_job_ends(page):
    film = f"document.querySelector('{PLAYER} video')"
    page.wait(f"return {film}.readyState >= 2 && !{film}.paused && {film}.videoWidth === {STILL['width']}", 20)
    page.counter(FRAMES, FRAMES)
    page.counter(1, FRAMES)
    assert page.shown(PLAYER) and not page.shown(LARGE)
    assert page.run(f"return document.querySelectorAll('{GALLERY} .thumbnail-small').length") == FRAMES + 1
    assert page.shown(f"{GALLERY} .thumbnail-small")
    page.screenshot("player", page.run(f"return document.querySelector('{PLAYER}')"))


def test_a_frame_is_chosen_in_the_gallery(page):
    page.at_frame(3)
    assert page.shown(LARGE) and not page.shown(f"{PLAYER} video")
    page.button("Next frame (.)")
    page.counter(4, FRAMES)
    page.wait(f"return !document.querySelector('{PLAYER}').classList.contains('zs2-compact')", 5)
    assert page.shown(f"{PLAYER} video") and not page.shown(LARGE)


def test_save_takes_the_clip(page):
    page.choose_thumbnail(0)
    saved = []
    for _ in range(2):  # the second one overwrites nothing
        page.click(f"#save_{TAB}")
        saved.append(Path(page.says("Saved: ", ".mp4").removeprefix("Saved: ")))
        page.run(f"document.querySelector('{PLAYER} .zs2-status').textContent = ''")
    first, second = saved
    assert first != second and first.read_bytes() == second.read_bytes()
    page.wait(f"return document.querySelector('#html_log_{TAB}').innerText.includes('Saved: ')", 20)


@pytest.mark.parametrize("place", PLACES)
def test_a_frame_is_sent(page, place):
    """Twice, as the second one takes the place of the first."""
    if place == "ControlNet" and not page.run("return !!zs2ControlPicture('txt2img')"):
        pytest.skip("this WebUI has no ControlNet")
    page.button("Send frame")
    for frame in (2, FRAMES):
        page.at_frame(frame)
        wanted = page.frame_colours(frame)
        page.button(place)
        page.says(f"Frame {frame} was sent")
        script = COLOURS + (
            "const image = [...document.querySelectorAll(`${arguments[0]} img`)].find(i => i.naturalWidth > 32);"
            "return image && colours(image)"
        )
        deadline = time.monotonic() + 10
        while (found := page.run(script, PLACES[place])) is None or np.abs(np.array(found) - wanted).max() > 2:
            assert time.monotonic() < deadline, f"{found} instead of {wanted}"
            time.sleep(0.2)
        assert page.shown(PLACES[place])
    page.show_tab(TAB)


def test_the_clip_is_used_as_a_source(page):
    page.at_frame(1)
    page.button("Use as source")
    about = "[...document.querySelectorAll('#tab_img2img [id$=source_about]')].map(e => e.innerText).join('')"
    page.wait(f"return {about}.includes('{FRAMES} frames of {STILL['width']}x{STILL['height']}')", 30)
    assert page.enabled("img2img") and page.shown("#tab_img2img")
    page.set_field("#script_img2img_zs2_source textarea", "")
    page.enable("img2img", False)
    page.show_tab(TAB)


def test_settings_are_used_and_copied(page):
    page.at_frame(1)
    page.set_value(TAB, "Frames", 3)
    page.set_field(f"#{TAB}_steps input[type=number]", 2)
    time.sleep(0.5)
    page.button("Settings")
    page.button("Use settings")
    page.wait(f"return zs2.input('{TAB}', 'Frames').value === '{FRAMES}'", 20)
    page.wait(f"return document.querySelector('#{TAB}_steps input[type=number]').value === '{STILL['steps']}'", 20)
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.button("Copy settings", real=True)
    page.says("copied")
    text = page.asynchronous("return navigator.clipboard.readText()")
    assert text.startswith(STILL["prompt"]) and f"ZS2 frames: {FRAMES}" in text


@pytest.mark.parametrize("step", STEPS)
def test_going_on(page, step):
    """The clip that is made plays in the end, with what the panel says of it."""
    page.at_frame(3)
    page.choose_thumbnail(0)
    page.button(step)
    page.says(f"{STEPS[step]} frames, ", seconds=180)
    page.wait(
        f"const p = document.querySelector('{PLAYER}'), v = p.querySelector('video');"
        f"return p.querySelector('.zs2-count').textContent.endsWith('of {STEPS[step]}') && v.readyState >= 2", 20
    )  # fmt: skip
    assert page.run(f"return document.querySelector('#script_{TAB}_zs2_going_on_clip textarea').value") == ""


def test_what_the_panel_makes_is_shown(page):
    """By its parts on finished clips, one after the other."""
    page.at_frame(1)
    for button, number in (("going_on_in-betweens", 2 * FRAMES - 1), ("postprocess_make", 2 * (2 * FRAMES - 1) - 1)):
        if button == "postprocess_make":
            page.open_part(TAB, "Upscale and interpolate")
            page.choose(TAB, "Interpolate", "×2")
            time.sleep(1)
        page.click(f"#script_{TAB}_zs2_{button}")
        count = f"document.querySelector('{PLAYER} .zs2-count').textContent"
        page.wait(f"return {count}.endsWith(' of {number}')", 120)
        assert page.shown(f"{PLAYER} video")
        page.at_frame(1)


def test_upscale_and_compare(page):
    """The clip made larger plays beside the one it was made of; its error is told in words."""
    page.at_frame(1)
    page.choose_thumbnail(0)
    page.button("Upscale")
    page.says(f"{FRAMES} frames of {2 * STILL['width']}x{2 * STILL['height']}", seconds=120)
    page.button("Compare two clips")
    page.wait(
        f"const [a, b] = [...document.querySelectorAll('{PLAYER} video')].map(v => v.videoWidth);"
        "return a === arguments[0] && b === arguments[1]",
        20,
        2 * STILL["width"],
        STILL["width"],
    )
    page.screenshot("player-compare", page.run(f"return document.querySelector('{PLAYER}')"))
    page.button("Compare two clips")


def test_an_error_is_told_in_words(host, page):
    page.at_frame(1)
    page.choose_thumbnail(0)
    page.button("Retake from here")
    page.says("the still", "seed")
    name = page.run(f"return document.querySelector('{PLAYER} .zs2-head select').value")
    file = next(path for path in host.outputs.rglob("*.mp4") if path.as_posix().endswith(name.partition("/")[2]))
    hidden = file.rename(file.with_suffix(".hidden"))
    try:
        page.button("Extend")
        page.says(file.name, seconds=60)
    finally:
        hidden.rename(file)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_it_fits(page, width, theme):
    page.resize(width)
    page.run("document.body.classList.toggle('dark', arguments[0])", theme == "dark")
    time.sleep(0.5)
    over = page.run(
        f"const player = document.querySelector('{PLAYER}'), box = player.getBoundingClientRect();"
        "return [...player.querySelectorAll('*')].filter(e => !e.closest('svg, option'))"
        ".filter(e => e.getBoundingClientRect().right > box.right + 1).map(e => e.className || e.tagName)"
    )
    page.screenshot(f"player-{width}-{theme}", page.run(f"return document.querySelector('{PLAYER}')"))
    page.run("document.body.classList.remove('dark')")
    page.resize(1400)
    assert over == []


def test_pictures_alone_are_the_gallerys(page):
    page.generate(on=False)
    page.wait(f"return document.querySelectorAll('{GALLERY} .thumbnail-small, {GALLERY} .preview img').length > 0", 20)
    page.wait(f"return document.querySelector('{PLAYER}').hidden", 10)
    assert page.shown(LARGE)
