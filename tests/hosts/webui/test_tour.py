"""The whole tour through the page, as a user takes it: a preset, the forecast, a preflight, a clip and all that is done
with it, a dropped MP4, X/Y/Z plot; wide and narrow, in light and in dark, without an error of ours in the console.

Needs Chromium with its driver, and `selenium`. ZS2_SCREENSHOTS, a folder, keeps pictures.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from browser import needs_browser
from host import STILL
from panel_page import Page
from test_files import BOX, DROP, drop
from zs2_lib.settings.presets import SHIPPED

try:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
except ImportError:
    ActionChains = Keys = None

pytestmark = [needs_browser, pytest.mark.slow]

TAB = "txt2img"
PROMPT = "a yellow star on a striped blue background"
STEPS, FRAMES = 12, 8
LOOKS = {"wide-light": (1400, "light"), "narrow-dark": (400, "dark")}
PLAYER = f"#{TAB}_gallery_container .zs2-place > .zs2-player:not(.zs2-live)"


class Tour(Page):
    """The page, and its player."""

    def __init__(self, url: str, profile: Path, width: int, theme: str):
        super().__init__(f"{url}/?__theme={theme}", profile)
        self.resize(width, 1600)
        self.errors()  # those of the page itself, before anything was done
        self.run(DROP)
        self.shots = f"tour-{width}-{theme}"

    def part(self, name: str) -> str:
        return f"#script_{TAB}_zs2_{name}"

    def shot(self, name: str, selector: str = PLAYER) -> None:
        """A picture of an element."""
        if folder := os.environ.get("ZS2_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            element = self.run("return document.querySelector(arguments[0])", selector)
            self.run("arguments[0].scrollIntoView({block: 'center'})", element)
            time.sleep(0.5)
            element.screenshot(str(Path(folder, f"{self.shots}-{name}.png")))

    def about(self) -> dict:
        """The player's counter, file name and state."""
        return self.run(
            "const p = document.querySelector(arguments[0]), v = p.querySelector('video');"
            "return {count: p.querySelector('.zs2-count').textContent, name: v.getAttribute('aria-label') || '',"
            " paused: v.paused, seconds: v.currentTime, width: v.videoWidth, status:"
            " p.querySelector('.zs2-status').textContent}",
            PLAYER,
        )

    def next_clip(self, before: str, seconds: float = 120) -> dict:
        """What the player shows as soon as it shows another clip than the one named `before`."""
        self.wait(
            "const v = document.querySelector(arguments[0] + ' video');"
            "return v && v.getAttribute('aria-label') && v.getAttribute('aria-label') !== arguments[1]"
            " && v.readyState >= 2 && v.offsetParent !== null",
            seconds,
            PLAYER,
            before,
        )
        self.wait(
            "return !document.querySelector(arguments[0] + ' .zs2-actions button').disabled",
            20,
            PLAYER,
        )
        return self.about()

    def button(self, text: str) -> None:
        """Clicks a button of the player by its text or its label."""
        found = self.wait(
            "return [...document.querySelectorAll(arguments[0] + ' button')].find(b => b.offsetParent !== null &&"
            " !b.disabled && [b.textContent.trim(), b.getAttribute('aria-label')].includes(arguments[1]))",
            20,
            PLAYER,
            text,
        )
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def choose_clip(self, name: str) -> None:
        self.run(
            "const c = document.querySelector(arguments[0] + ' select[aria-label=Clip]'); c.value = arguments[1];"
            "c.dispatchEvent(new Event('change'))",
            PLAYER,
            name,
        )
        shown = "return document.querySelector(arguments[0] + ' video').getAttribute('aria-label') === arguments[1]"
        self.wait(shown, 20, PLAYER, name)

    def go_on(self, button: str, label: str = "", value=None) -> dict:
        """Presses a button of the player's tray "Go on", and waits for the clip that it makes."""
        tray, before = "document.querySelector(arguments[0] + ' [aria-label=\"Go on\"].zs2-tray')", self.about()["name"]
        if self.run(f"return {tray}.hidden", PLAYER):
            self.button("Go on")
        if label:
            self.run(
                f"{tray}.querySelector('input[aria-label=\"' + arguments[1] + '\"]').value = arguments[2]",
                PLAYER,
                label,
                value,
            )
        self.button(button)
        return self.next_clip(before)

    def generate(self) -> None:
        self.click(f"#{TAB}_generate")

    def fits(self) -> bool:
        """Whether nothing sticks out of the player or the forecast."""
        return self.run(
            "const wide = e => e.getBoundingClientRect().right;"
            "return ['.zs2-player', '.zs2-forecast'].flatMap(s => [...document.querySelectorAll(s)]).every(whole =>"
            "[...whole.querySelectorAll('*')].filter(e => e.offsetParent).every(e => wide(e) <= wide(whole) + 1))"
        )


@pytest.fixture(scope="module", params=LOOKS)
def tour(request, host, tmp_path_factory):
    width, theme = LOOKS[request.param]
    page = Tour(host.client.url, tmp_path_factory.mktemp("profile"), width, theme)
    yield page
    page.browser.quit()


@pytest.fixture(scope="module")
def clip(tour) -> dict:
    """The clip that the tour is about, made as a user makes it: preset, forecast, preflight, Generate."""
    page = tour
    page.show_tab(TAB)
    page.enable(TAB)
    for selector, value in {
        "prompt textarea": PROMPT,
        "steps input[type=number]": STEPS,
        "width input[type=number]": STILL["width"],
        "height input[type=number]": STILL["height"],
        "seed input": STILL["seed"],
    }.items():
        page.set_field(f"#{TAB}_{selector}", value)
    page.choose(TAB, "Preset", "lively")
    page.click(page.part("preset_apply"))
    motion = str(SHIPPED["lively"].settings["motion"])
    page.wait("return zs2.input(arguments[0], 'Motion λ').value === arguments[1]", 20, TAB, motion)

    forecast = f"document.querySelector('{page.part('forecast')}').innerText"
    page.set_value(TAB, "Frames", FRAMES)
    page.wait(f"return {forecast}.includes(arguments[0] + ' frames')", 20, str(FRAMES))
    page.set_value(TAB, "Frames per second", 10)
    page.wait(f"return {forecast}.includes('0.8 s')", 20)
    assert "about" in page.run(f"return {forecast}"), "how far this λ moves the picture"
    page.shot("panel", f"#tab_{TAB} .input-accordion:has({page.part('forecast')})")

    page.click(page.part("preflight_button"))
    preflight = page.next_clip("")
    assert "previews/" in preflight["name"]

    page.generate()
    page.wait("return document.querySelector('.zs2-live:not([hidden]) .zs2-live-strip:not([hidden])')", 60)
    words = page.run("return document.querySelector('.zs2-live:not([hidden]) .zs2-status').textContent")
    page.shot("live", ".zs2-live:not([hidden])")
    assert "step" in words or "decoding" in words, words
    found = page.next_clip(preflight["name"])
    assert f"of {FRAMES}" in found["count"] and found["name"].endswith(".mp4") and "previews/" not in found["name"]
    return found


def test_it_plays_in_the_place_of_the_picture(tour, clip):
    page = tour
    page.wait("return !document.querySelector(arguments[0] + ' video').paused", 20, PLAYER)
    page.shot("player")
    assert page.fits()
    seen = {page.about()["count"] for _ in range(40) if not time.sleep(0.05)}
    assert len(seen) > 2, "it plays"
    assert page.run(f"return document.querySelectorAll('#{TAB}_gallery .thumbnail-small').length") == FRAMES + 1


def test_scrub_and_step(tour, clip):
    page = tour
    film = page.run("return document.querySelector(arguments[0] + ' .zs2-filmstrip')", PLAYER)
    page.run("arguments[0].scrollIntoView({block: 'center'})", film)
    offset = round(film.size["width"] * 0.5 - 3)
    ActionChains(page.browser).move_to_element_with_offset(film, offset, 0).click().perform()
    counter = "return document.querySelector(arguments[0] + ' .zs2-count').textContent === arguments[1]"
    page.wait(counter, 10, PLAYER, f"frame {FRAMES} of {FRAMES}")
    ActionChains(page.browser).send_keys(",").perform()
    page.wait(counter, 10, PLAYER, f"frame {FRAMES - 1} of {FRAMES}")
    ActionChains(page.browser).send_keys(Keys.HOME, ".").perform()
    page.wait(counter, 10, PLAYER, f"frame 2 of {FRAMES}")


def test_going_on(tour, clip):
    """In-betweens, extend, retake, upscale: each a new clip in the player, the ones before still to be chosen."""
    page = tour
    finer = page.go_on("In-betweens")
    assert f"of {2 * FRAMES - 1}" in finer["count"]
    page.shot("going-on")
    page.choose_clip(clip["name"])
    longer = page.go_on("Extend", "More frames", 3)
    assert f"of {FRAMES + 3}" in longer["count"]
    page.choose_clip(clip["name"])
    page.button("Next frame (.)")
    retaken = page.go_on("Retake from here")
    assert f"of {FRAMES}" in retaken["count"]
    larger = page.go_on("Upscale")
    assert larger["width"] == 2 * STILL["width"]
    page.shot("upscaled")
    assert page.fits()


def test_side_by_side_and_under_a_wipe(tour, clip):
    page = tour
    page.button("Compare two clips")
    page.wait(
        "return [...document.querySelectorAll(arguments[0] + ' video')].filter(v => v.offsetParent && "
        "v.readyState >= 2).length === 2",
        20,
        PLAYER,
    )
    page.shot("beside")
    assert page.fits()
    page.run(
        "const s = document.querySelector(arguments[0] + ' select[aria-label=View]'); s.value = 'wipe';"
        "s.dispatchEvent(new Event('change'))",
        PLAYER,
    )
    page.wait("return document.querySelector(arguments[0] + ' .zs2-wipe').offsetParent !== null", 10, PLAYER)
    page.shot("wipe")
    page.button("Compare two clips")


def test_a_dropped_mp4(tour, clip, host):
    page = tour
    path = next(host.outputs.rglob(Path(clip["name"]).name))
    page.show_tab("pnginfo")
    drop(page, BOX, path, "video/mp4")
    page.wait("return document.querySelector('#tab_pnginfo').innerText.includes('ZS2 frames')", 30)
    page.show_tab(TAB)


def test_a_plot_plays(tour, clip):
    """X/Y/Z plot over an axis of ZS²: the player shows the playing grid."""
    page = tour
    before = page.about()["name"]
    scripts = page.run(f"return document.querySelector('#tab_{TAB} #script_list input')")
    page.run("arguments[0].scrollIntoView({block: 'center'})", scripts)
    scripts.click()
    scripts.send_keys(Keys.CONTROL, "a")
    scripts.send_keys("X/Y/Z plot", Keys.ENTER)
    axis = page.wait(f"return document.querySelector('#script_{TAB}_xyz_plot_x_type input')", 20)
    page.wait("return arguments[0].offsetParent !== null", 20, axis)
    axis.click()
    axis.send_keys(Keys.CONTROL, "a")
    axis.send_keys("[ZS2] Motion λ", Keys.ENTER)
    time.sleep(2)  # the host empties the values when it has seen the new axis
    page.set_field(f"#script_{TAB}_xyz_plot_x_values textarea", "0, 0.3")
    time.sleep(1)
    page.generate()
    grid = page.next_clip(before)
    assert "grid" in grid["name"] and grid["width"] >= 2 * STILL["width"]
    page.shot("plot")


def test_after_a_reload(tour, clip):
    """The clips of the session are there again, the last one first."""
    page = tour
    last = page.about()["name"]
    page.load()
    again = page.next_clip("")
    assert again["name"] == last and again["paused"]
    page.choose_clip(clip["name"])


def test_the_console_is_silent(tour, clip):
    """After all that."""
    ours = [error for error in tour.errors() if "zs2" in error.lower()]
    assert ours == []
