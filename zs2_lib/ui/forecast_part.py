"""The panel's part on what the clip will be and cost, live as values change, and the button for a preflight."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import gradio as gr
from modules import scripts

from zs2_lib.hosts.webui import forecast
from zs2_lib.hosts.webui.forecast import Forecast
from zs2_lib.hosts.webui.tab import KINDS, Tab
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import ROWS, Settings

from .controls import Controls, ElemId
from .host_controls import HostControls

log = logging.getLogger(__name__)

UNKNOWN = "not known yet"
"""Of what no job has shown."""


class Part(NamedTuple):
    """The part's controls."""

    shown: gr.HTML
    now: gr.Button
    preflight: gr.Checkbox


def build(elem_id: ElemId, tab: str) -> Part:
    """Makes the controls. The script on the page (zs2_forecast.js) clicks `now` when a value has changed; it ticks
    `preflight`, which is an argument of the script, for one click on Generate.
    """
    row = ROWS["preflight"]
    with gr.Row():
        with gr.Column(scale=5, min_width=200):
            shown = gr.HTML(elem_id=elem_id("forecast"))
        button = gr.Button(
            row.label,
            elem_id=elem_id("preflight_button"),
            size="sm",
            min_width=90,
            scale=0,
            elem_classes="zs2-preflight",
            tooltip=row.tooltip,
        )
    now = gr.Button("Forecast", visible=False, elem_id=elem_id("forecast_now"))
    preflight = gr.Checkbox(False, visible=False, label=row.label, elem_id=elem_id("preflight"))
    button.click(fn=None, inputs=[], outputs=[], _js=f"() => zs2Preflight('{tab}')")
    return Part(shown, now, preflight)


def connect(part: Part, controls: Controls, host: HostControls, read: Callable, is_img2img: bool) -> None:
    """A click on the hidden button shows the forecast for the panel's `controls` and the host's; `read` makes settings
    of the script's arguments.
    """
    panel = list(controls.values())

    def complete(of_host: Mapping) -> None:
        def show(*values) -> str:
            by_key = dict(zip(of_host, values[len(panel) :]))
            return _shown(lambda: read((True, *values[: len(panel)])), by_key, is_img2img)

        part.now.click(show, [*panel, *of_host.values()], [part.shown], show_progress=False, queue=False)

    host.then(complete)


# --- what is shown ---------------------------------------------------------------------------------------------------


def _shown(read: Callable[[], Settings], of_host: Mapping, is_img2img: bool) -> str:
    """The forecast, or why the job would be refused; each with another text, so that the page sees that it came."""
    try:
        inside = _lines(forecast.forecast(read(), _tab(of_host, is_img2img), is_api=False))
    except (SettingsError, ValueError) as error:
        inside = f'<p role="alert" class="zs2-error">{html.escape(str(error))}</p>'
    except Exception as error:
        log.exception("no forecast")
        inside = f'<p role="alert" class="zs2-error">{html.escape(f"{type(error).__name__}: {error}")}</p>'
    return f'<div class="zs2-forecast" data-at="{time.time()}">{inside}</div>'


def _tab(of_host: Mapping, is_img2img: bool) -> Tab:
    """What the host's controls hold; what is no number, as a cleared field is, is left out."""
    values = {key: value for key, value in of_host.items() if value not in (None, "")}
    number = values.pop("script_name", 0)
    runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
    if isinstance(number, int) and 0 < number <= len(runner.titles):
        values["script_name"] = runner.titles[number - 1]
    if not values.get("enable_hr") and not is_img2img:
        values = {key: value for key, value in values.items() if not key.startswith("hr_")}
    return Tab(img2img=is_img2img, **{key: value for key, value in values.items() if key in KINDS})


def _lines(of: Forecast) -> str:
    seconds, _ = of.seconds()
    figures = [
        _figure("Clip", [(str(of.frames), "frames"), (f"{of.frames / of.settings.rate:.3g}", "s")], of.tab.n_iter),
        _figure("Work", _work(of)),
        _figure("Time", _duration(seconds)),
        _figure("Memory", _memory(of)),
        *(_figure(format, _bytes(size)) for format, size in of.sizes().items()),
    ]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in forecast.notes(of))
    return f"<dl>{''.join(figures)}</dl>{notes}"


def _figure(label: str, values: Iterable[tuple[str, str]], times: int = 1) -> str:
    """A label, and numbers with their units; each a text of its own, which the host may translate."""
    texts = [f"<b>{number}</b> <span>{unit}</span>" if number else f"<span>{unit}</span>" for number, unit in values]
    more = f"<b>{times}</b> × " if times > 1 else ""
    return f"<div><dt>{html.escape(label)}</dt> <dd>{more}{', '.join(texts)}</dd></div>"


def _work(of: Forecast) -> list[tuple[str, str]]:
    steps = " + ".join(str(sampling.steps) for sampling in of.samplings)
    found = [(steps, "steps"), (str(of.passes), "passes each" if of.passes > 1 else "pass each")]
    return found + [(str(of.segments), "segments")] * (of.segments > 1)


def _duration(seconds: float | None) -> list[tuple[str, str]]:
    if seconds is None:
        return [("", UNKNOWN)]
    if seconds < 90:
        return [(f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}", "s")]
    minutes = round(seconds / 60)
    return [(f"{minutes}", "min")] if minutes < 90 else [(f"{seconds / 3600:.1f}", "h")]


def _memory(of: Forecast) -> list[tuple[str, str]]:
    carried = of.carried()
    between = [] if carried == 0 else [("", UNKNOWN)] if carried is None else [_size(carried, "between segments")]
    return [_size(of.pictures(), "for pictures"), *between]


def _bytes(size: int | None) -> list[tuple[str, str]]:
    return [("", UNKNOWN)] if size is None else [_size(size, "")]


def _size(size: int, end: str) -> tuple[str, str]:
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if size >= of:
            return f"{size / of:.3g}" if size < 100 * of else f"{size / of:.0f}", f"{unit} {end}".strip()
    return f"{max(round(size / 1e3), 1)}", f"kB {end}".strip()
