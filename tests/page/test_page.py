"""The player in a bare page: what it shows, by frame, and how it is used. Needs Chromium, its driver, and selenium."""

from __future__ import annotations

import numpy as np
import pytest

from browser import Browser, needs_browser
from serving import Clip, served

try:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
except ImportError:
    ActionChains = Keys = None

pytestmark = needs_browser

MEAN = """
const video = document.querySelectorAll('.zs2-track video')[arguments[0]];
if (video.seeking || video.readyState < 2) return null;
const canvas = Object.assign(document.createElement('canvas'), {width: 8, height: 8});
const context = canvas.getContext('2d');
context.drawImage(video, 0, 0, 8, 8);
return [...context.getImageData(4, 4, 1, 1).data].slice(0, 3);
"""
TOLERANCE = 12
"""How far, of 255, a colour may be from the one that was written to the video."""


class Page(Browser):
    """The bare page, with a player that shows the clip `a`."""

    def show(self, clip: Clip, plays: bool = False) -> None:
        self.run("player.show({name: arguments[0]}, arguments[1])", clip.name, plays)
        self.wait("return player.about && player.about.name === arguments[0]", 10, clip.name)
        self.wait("return player.track.video.readyState >= 2", 10)

    def shown(self, clip: Clip, track: int = 0) -> int:
        """The frame of `clip` whose colour the video has; -1 if none."""
        mean = self.wait(f"return (() => {{{MEAN}}})()".replace("arguments[0]", str(track)), 10)
        apart = np.abs(np.array(clip.colours) - mean).max(1)
        return int(apart.argmin()) if apart.min() <= TOLERANCE else -1

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def focus(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).focus()", selector)

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def button(self, label: str) -> None:
        self.click(f'.zs2-player button[aria-label="{label}"]')

    def assert_at(self, clip: Clip, frame: int) -> None:
        text = f"frame {frame + 1} of {len(clip.colours)}"
        self.wait("return document.querySelector('.zs2-count').textContent === arguments[0]", 5, text)
        self.wait("return !player.track.video.seeking", 5)
        assert self.shown(clip) == frame

    def drag(self, selector: str, part: float) -> None:
        element = self.find(selector)
        x = round((part - 0.5) * element.size["width"])
        ActionChains(self.browser, duration=0).move_to_element_with_offset(element, x, 0).click().perform()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One of 8 frames, one of 5 at another rate, whose colours are others."""
    folder = tmp_path_factory.mktemp("clips")
    return Clip(folder, "images/00001 a#1.mp4", 8, 8), Clip(folder, "images/00002 b.webm", 5, 12, start=0.07)


@pytest.fixture(scope="module")
def page(clips, tmp_path_factory):
    broken = Clip(tmp_path_factory.mktemp("broken"), "images/broken.mp4", 2, 8)
    broken.path.write_bytes(b"no video at all" * 99)
    with served([*clips, broken]) as address:
        page = Page(address, tmp_path_factory.mktemp("profile"), size=(900, 1000))
        yield page
        errors = page.errors()
        page.browser.quit()
        assert errors == []


@pytest.fixture
def at_rest(page, clips):
    """The player stands at the first frame of the first clip."""
    page.resize(900, 1000)
    page.emulate(prefers_reduced_motion="no-preference")
    page.run("player.compare.stop(); player.clear()")
    page.show(clips[0])
    page.run("player.seek(0)")
    page.assert_at(clips[0], 0)
    return clips


def test_it_plays_and_loops(page, at_rest):
    a, _ = at_rest
    page.show(a, plays=True)
    page.wait("return player.track.playing && player.frame > 4", 10)
    page.wait("return player.frame < 3", 10)
    page.wait("return document.querySelector('.zs2-play').title === 'Pause'", 5)
    page.button("Pause")
    page.wait("return !player.track.playing && !player.track.video.seeking", 5)
    page.assert_at(a, page.run("return player.frame"))


def test_the_page_is_left_alone_while_it_plays(page, at_rest):
    """The WebUI's page looks out for nodes that come and go, and waits with much of its work until none does."""
    page.run(
        "window.changes = [];"
        "new MutationObserver(found => window.changes.push(...found)).observe(document.body, "
        "{childList: true, subtree: true}); player.play()"
    )
    page.wait("return player.frame > 2", 10)
    page.run("window.changes.length = 0")
    page.wait("return player.frame < 2", 10)
    page.wait("return player.frame > 5", 10)
    assert page.run("return window.changes.length") == 0


def test_another_clip_of_the_same_name(page, at_rest, tmp_path):
    """Whose file is in the place of the one before, that was deleted."""
    a, _ = at_rest
    other, before = Clip(tmp_path, a.name, 3, 8, start=0.5), dict(vars(a))
    try:
        vars(a).update(vars(other))
        page.run("player.show({name: arguments[0], made: 1}, false); player.seek(0)", a.name)
        page.wait("return player.about && player.frames === 3", 10)
        page.assert_at(a, 0)
        page.button("Next frame (.)")
        page.assert_at(a, 1)
    finally:
        vars(a).update(before)


def test_each_step_shows_the_next_frame(page, at_rest):
    """Both formats, to the end and around, forwards and backwards."""
    for clip in at_rest:
        page.show(clip)
        page.run("player.seek(0)")
        count = len(clip.colours)
        for frame in [*range(1, count), 0]:
            page.button("Next frame (.)")
            page.assert_at(clip, frame)
        for frame in reversed(range(count)):
            page.button("Previous frame (,)")
            page.assert_at(clip, frame)


def test_keys(page, at_rest):
    a, _ = at_rest
    page.focus(".zs2-filmstrip")
    for keys, frame in (("...", 3), (",", 2), (Keys.END, 7), (Keys.HOME, 0), (Keys.ARROW_RIGHT * 2, 2)):
        page.press(*keys)
        page.assert_at(a, frame)
    page.press(" ")
    page.wait("return player.track.playing", 5)
    page.press(" ")
    page.wait("return !player.track.playing", 5)
    order = []
    page.focus(".zs2-head select")
    for _ in range(8):
        order.append(page.run("return document.activeElement.getAttribute('aria-label')"))
        page.press(Keys.TAB)
    assert order == [
        "Clip", "Frame", "Previous frame (,)", "Play", "Next frame (.)", "Speed", "Compare two clips", "Full screen",
    ]  # fmt: skip


def test_scrub_bar_has_the_frames_and_goes_to_them(page, at_rest):
    a, _ = at_rest
    for frame in (6, 1, 7):
        page.drag(".zs2-filmstrip", (frame + 0.5) / 8)
        page.assert_at(a, frame)
        slider = page.find(".zs2-filmstrip")
        assert slider.get_attribute("aria-valuetext") == f"frame {frame + 1} of 8"
        assert slider.get_attribute("role") == "slider"
    pixels = page.run(
        "const c = document.querySelector('.zs2-filmstrip canvas');"
        "return [0.02, 0.98].map(x => [...c.getContext('2d').getImageData(x * c.width, c.height / 2, 1, 1).data])"
    )
    assert np.abs(np.array(pixels)[:, :3] - np.array([a.colours[0], a.colours[-1]])).max() <= TOLERANCE


def test_speed(page, at_rest):
    page.run(
        "const s = document.querySelector('[aria-label=Speed]'); s.value = '0.25'; s.dispatchEvent(new Event('change'))"
    )
    assert page.run("return player.track.video.playbackRate") == 0.25
    page.show(at_rest[1])
    assert page.run("return player.track.video.playbackRate") == 0.25
    page.run("const s = player.speed; s.value = '1'; s.dispatchEvent(new Event('change'))")


def test_consistency_strip(page, at_rest):
    a, _ = at_rest
    page.drag(".zs2-chart", 4.5 / 8)
    page.assert_at(a, 4)
    about = a.about
    words = f"frame 5 of 8: change {about['change'][3]:.1f}, drift {about['drift'][4]:.1f}"
    assert page.find(".zs2-chart").get_attribute("aria-valuetext") == words
    page.focus(".zs2-chart")
    page.press(Keys.ARROW_LEFT)
    page.assert_at(a, 3)
    bars, line = page.run("return [...document.querySelectorAll('.zs2-chart path')].map(p => p.getAttribute('d'))")
    assert bars.count("M") == 7 and line.count("L") == 7


def test_compare_by_one_scrub_bar(page, at_rest):
    """Frames at the same part of the time, also of a clip of another length and rate; side by side, and a wipe."""
    a, b = at_rest
    page.run("player.offer([['This job', [{name: arguments[0]}]], ['Recent', [{name: arguments[1]}]]])", a.name, b.name)
    page.button("Compare two clips")
    page.wait("return player.compare.track.about && player.compare.track.video.readyState >= 2", 10)
    for frame in (0, 3, 7, 4):
        page.run("player.seek(arguments[0])", frame)
        page.assert_at(a, frame)
        page.wait("return !player.compare.track.video.seeking", 5)
        assert page.shown(b, 1) == int((frame + 0.5) / 8 * 5)
    boxes = "return [...document.querySelectorAll('.zs2-track')].map(t => t.getBoundingClientRect().x)"
    left, right = page.run(boxes)
    assert right > left + 100
    page.screenshot("page-beside")
    page.run("const m = player.compare.mode; m.value = 'wipe'; m.dispatchEvent(new Event('change'))")
    page.run("const w = player.compare.wipe; w.value = 25; w.dispatchEvent(new Event('input'))")
    left, right = page.run(boxes)
    assert left == right
    assert page.run("return player.compare.track.element.style.clipPath") == "inset(0px 0px 0px 25%)"
    page.screenshot("page-wipe")
    page.run("player.play()")
    page.wait("return player.track.playing && player.compare.track.playing", 5)
    page.wait("return player.track.part > 0.6", 5)
    page.wait("return Math.abs(player.track.part - player.compare.track.part) < 0.2", 5)
    page.run("player.pause()")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Swap A and B').click()")
    page.wait("return player.clip.name === arguments[0] && player.track.about", 5, b.name)
    page.button("Compare two clips")
    assert page.run("return getComputedStyle(player.compare.track.element).display") == "none"


def test_a_clip_that_was_removed(page, at_rest):
    page.run("player.show({name: 'images/gone.mp4'})")
    words = "return document.querySelector('.zs2-message').innerText"
    page.wait(f"{words} === 'The clip is no longer there.'", 10)
    page.show(at_rest[0])
    assert page.run("return document.querySelector('.zs2-message').hidden")


def test_a_clip_that_the_browser_cannot_decode(page, at_rest):
    page.run("player.show({name: 'images/broken.mp4'})")
    page.wait("return document.querySelector('.zs2-message').innerText.includes('cannot decode')", 10)


def test_less_motion_means_that_nothing_moves_by_itself(page, at_rest):
    page.emulate(prefers_reduced_motion="reduce")
    page.run("player.clear(); player.show({name: arguments[0]})", at_rest[0].name)
    page.wait("return player.about && player.track.video.readyState >= 2", 10)
    assert not page.run("return player.track.playing")
    page.button("Play")
    page.wait("return player.track.playing", 5)


def test_it_is_translated(page, at_rest):
    page.run("window.localization = {'frame {0} of {1}': '第 {0} / {1} 帧'}; player.seek(2)")
    assert page.run("return document.querySelector('.zs2-count').textContent") == "第 3 / 8 帧"
    page.run("delete window.localization; player.seek(0)")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [900, 400, 320])
def test_it_is_never_wider_than_its_place(page, at_rest, width, dark):
    page.resize(width, 900)
    page.run("document.body.classList.toggle('dark', arguments[0])", dark)
    page.run("player.seek(3)")
    wide = page.run(
        "const most = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > most + 0.5)"
        ".map(e => e.className || e.tagName)"
    )
    page.screenshot(f"page-{width}-{'dark' if dark else 'light'}")
    page.run("document.body.classList.remove('dark')")
    assert wide == []
    row = page.run("return [...document.querySelectorAll('.zs2-controls > *')].map(e => e.getBoundingClientRect())")
    middles = [round(box["top"] + box["height"] / 2) for box in row]
    assert max(middles) - min(middles) <= 2, "the main controls are in one row"


def job(first: int, *clips: dict) -> dict:
    entries = [
        {"format": "mp4", "frames": 3, "fps": 8, "path": f"/o/{c['name']}", "plays": c["name"], **c} for c in clips
    ]
    return {"index_of_first_image": first, "zs2_clips": entries}


A, B, GRID = {"name": "a.mp4"}, {"name": "b.mp4"}, {"name": "grid.mp4", "grid": True}
JOBS = {
    "one clip": (job(1, A), ["a", "a0", "a1", "a2"]),
    "in two formats": (job(1, A, {"name": "a.gif", "plays": "a.mp4"}), ["a", "a0", "a1", "a2"]),
    "control images behind": (job(1, A), ["a", "a0", "a1", "a2", "-"]),
    "two clips": (job(2, A, B), ["a", "b", "a0", "a1", "a2", "b0", "b1", "b2"]),
    "back and forth, fewer pictures than frames": (job(1, {**A, "frames": 4}), ["a", "a0", "a1", "a2"]),
    "a script": (job(0, A, B), ["a", "b"]),
    "a script with a grid of pictures": (job(1, A, B), ["-", "a", "b"]),
    "a plot": (job(1, A, B, GRID), ["grid", "a", "b"]),
    "a plot that shows its grid alone": (job(1, A, B, GRID), ["grid"]),
    "a plot with grids within": (job(3, A, B, GRID), ["grid", "-", "-", "a", "b"]),
    "one that was not kept": (job(0, {"name": None, "plays": None, "path": "x.mp4"}), []),
}


@pytest.mark.parametrize("name", JOBS)
def test_what_the_items_of_the_gallery_are(page, name):
    info, items = JOBS[name]
    found = page.run(
        "const made = new Zs2Job(arguments[0]), count = arguments[1];"
        "return [...Array(count).keys()].map(index => made.item(index, count))"
        ".map(item => item ? item.clip.name.split('.')[0] + (item.frame ?? '') : '-')",
        info,
        len(items),
    )
    assert found == items
