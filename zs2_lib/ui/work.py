"""Work on a finished clip that a button of the panel begins: how far it is, and what came of it, on the page."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from modules import shared, ui_tempdir

from zs2_lib.hosts.webui.library import name_of
from zs2_lib.media.formats import FORMATS
from zs2_lib.settings.kinds import SettingsError

log = logging.getLogger(__name__)

STYLE = "max-width: 100%; max-height: 60vh"
INTERVAL = 0.5
"""Seconds between two looks at how far it is."""


def on_click(button: gr.Button, work: Callable[..., Iterator[str]], inputs: list, result: gr.HTML) -> None:
    """A click on the `button` shows in `result` what `work` yields; in the end alone where the page has no queue."""

    def at_once(*values) -> str:
        *_, last = work(*values)
        return last

    no_queue = getattr(shared.cmd_opts, "no_gradio_queue", False)  # which progress needs
    button.click(at_once if no_queue else work, inputs, [result], show_progress=False)


def followed(work: Callable[[], str], progress: Callable[[], str]) -> Iterator[str]:
    """What the page shows of `work()`: `progress()` while it goes on, then what it returns, or why it failed."""
    try:
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(work)
            while not wait([running], timeout=INTERVAL).done:
                yield progress()
            yield running.result()
    except Exception as error:
        yield failure(error)


def failure(error: Exception) -> str:
    """What the page shows of an error."""
    if isinstance(error, SettingsError):
        return html.escape(str(error))
    log.error("the clip could not be made", exc_info=error)
    return html.escape(f"{type(error).__name__}: {error}")


def bar(part: float, text: str) -> str:
    """How far it is, 0 to 1, and what it does."""
    return f'<progress value="{part}" style="width: 100%"></progress><p>{html.escape(text)}</p>'


def shown(files: Sequence[Path], lines: Iterable[str]) -> str:
    """The first of the files that a browser plays, lines about them, and the files' names for the page's player."""
    playable = next((path for path in files if path.suffix[1:] in FORMATS and not path.is_dir()), None)
    named = [{"name": name, "format": path.suffix[1:] or "png"} for path in files if (name := name_of(path))]
    made = f'<div class="zs2-made" hidden data-clips="{html.escape(json.dumps(named))}"></div>'
    return (_player(playable) if playable else "") + "".join(f"<p>{html.escape(line)}</p>" for line in lines) + made


def _player(path: Path) -> str:
    ui_tempdir.register_tmp_file(shared.demo, str(path))  # which lets the page have it
    source = f'src="file={html.escape(quote(str(path)))}" style="{STYLE}"'
    if FORMATS[path.suffix[1:]].plays_in_gallery:
        return f'<img {source} alt="the clip">'
    return f"<video {source} controls loop autoplay muted></video>"
