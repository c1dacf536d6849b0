"""The WebUI's page in a browser, and the panel in it."""

from __future__ import annotations

import time

from browser import Browser

try:
    from selenium.webdriver.common.keys import Keys
except ImportError:
    Keys = None

TITLE = "ZS² Video"
HELPERS = """
window.zs2 = {
  panel: tab => [...document.querySelectorAll(`#tab_${tab} .input-accordion`)]
      .find(e => e.textContent.includes('TITLE')),
  labels: panel => [...panel.querySelectorAll('label, fieldset, [data-testid=block-info]')]
      .filter(e => !e.closest('.gradio-image, .hidden, .hide')).map(e => e.closest('.block') || e)
      .filter((e, i, all) => all.indexOf(e) === i)
      .map(e => ({
        text: e.textContent.trim().replace(/\\s+/g, ' '), tooltip: (e.closest('[title]') || {title: ''}).title,
      })),
  open: (tab, part) => {
    const found = [...zs2.panel(tab).querySelectorAll('.label-wrap')].find(e => e.textContent.trim().startsWith(part));
    if (found && !found.classList.contains('open')) found.click();
  },
  input: (tab, label) => [...zs2.panel(tab).querySelectorAll('label, .block')]
      .filter(e => [...e.querySelectorAll('span')].some(s => s.textContent.trim() === label)).pop()
      .closest('.block').querySelector('input[type=number], input, textarea'),
  set: (element, value) => {
    element.value = value;
    element.dispatchEvent(new Event('input', {bubbles: true}));
    element.dispatchEvent(new Event('change', {bubbles: true}));
  },
};
""".replace("TITLE", TITLE)


class Page(Browser):
    """The WebUI's page in a browser."""

    def load(self) -> None:
        super().load()
        self.wait(
            "return !!document.querySelector('#txt2img_generate') && "
            "typeof opts === 'object' && Object.keys(opts).length > 0",
            180,
        )
        time.sleep(2)  # the page's own scripts run when it has loaded
        self.run(HELPERS)

    def show_tab(self, tab: str) -> None:
        label = {"pnginfo": "PNG Info"}.get(tab, tab)
        self.run(
            "[...document.querySelectorAll('#tabs > .tab-nav > button, #tabs button[role=tab]')]"
            ".find(b => b.getAttribute('aria-hidden') !== 'true' && "
            "b.textContent.trim().toLowerCase() === arguments[0].toLowerCase()).click()",
            label,
        )
        self.wait("return document.querySelector('#tab_' + arguments[0]).offsetParent !== null", 20, tab)

    def panel(self, tab: str):
        return self.wait("return zs2.panel(arguments[0])", 20, tab)

    def enabled(self, tab: str) -> bool:
        return self.run("return zs2.panel(arguments[0]).querySelector('.input-accordion-checkbox').checked", tab)

    def enable(self, tab: str, on: bool = True) -> None:
        """By a click on the accordion's head, which opens or closes it as well."""
        if self.enabled(tab) != on:
            self.run("zs2.panel(arguments[0]).querySelector('.label-wrap').click()", tab)
        self.wait(
            "return zs2.panel(arguments[0]).querySelector('.input-accordion-checkbox').checked === arguments[1]",
            20,
            tab,
            on,
        )

    def open_part(self, tab: str, part: str) -> None:
        """Opens an accordion inside the panel, "Advanced" or "Source"."""
        self.run("zs2.open(arguments[0], arguments[1])", tab, part)
        time.sleep(0.5)

    def value(self, tab: str, label: str):
        return self.run("return zs2.input(arguments[0], arguments[1]).value", tab, label)

    def set_value(self, tab: str, label: str, value) -> None:
        self.run("zs2.set(zs2.input(arguments[0], arguments[1]), arguments[2])", tab, label, value)

    def choose(self, tab: str, label: str, value: str) -> None:
        """Chooses from a dropdown, as a user does who types and presses Enter."""
        field = self.run("return zs2.input(arguments[0], arguments[1])", tab, label)
        self.run("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.ENTER)
        time.sleep(0.3)

    def set_field(self, selector: str, value) -> None:
        self.run("zs2.set(document.querySelector(arguments[0]), arguments[1])", selector, value)
