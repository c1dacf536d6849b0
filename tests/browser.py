"""A page in headless Chromium: what the tests of the panel, of the player, and of the player in a bare page share."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

try:
    from selenium import webdriver
except ImportError:
    webdriver = None

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [
    name for name, found in (("selenium", webdriver), ("Chromium", BROWSER), ("chromedriver", DRIVER)) if not found
]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"these tests need {' and '.join(MISSING)}")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


class Browser:
    """A page at `url` in a browser of its own, whose profile is kept in the folder `profile`."""

    def __init__(self, url: str, profile: Path, *flags: str, size: tuple[int, int] = (1400, 1600)):
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        options.page_load_strategy = "eager"
        for flag in (*FLAGS, *flags, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.url = url
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.load()

    def load(self) -> None:
        self.browser.get(self.url)

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: str, seconds: float = 60, *arguments):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := self.run(condition, *arguments):
                return result
            time.sleep(0.05)
        raise TimeoutError(f"not within {seconds} s: {condition}")

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def emulate(self, **features: str) -> None:
        """Media features, as `prefers_reduced_motion="reduce"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def resize(self, width: int, height: int = 1600) -> None:
        """The page's own width, which may be less than that of any window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def errors(self) -> list[str]:
        """What the console said since the last call, but for files that could not be loaded."""
        severe = (entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE")
        return [message for message in severe if "Failed to load resource" not in message]

    def screenshot(self, name: str, element=None) -> None:
        """Kept in the folder ZS2_SCREENSHOTS, if that is set."""
        if folder := os.environ.get("ZS2_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            if element:
                self.run("arguments[0].scrollIntoView({block: 'center'})", element)
                time.sleep(0.5)
            self.browser.save_screenshot(str(Path(folder, f"{name}.png")))
