"""The panel's part that the page's player uses: hidden controls for what a browser cannot do with a clip."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
from modules import shared, util

from zs2_lib.hosts.webui import library, names

from . import postprocess_part, work
from .controls import ElemId


def build(elem_id: ElemId) -> None:
    """Makes the controls, none of which is an argument of the script: a request as JSON, a button for each kind of it,
    and the answer as HTML.
    """
    request = gr.Textbox(visible=False, elem_id=elem_id("player_request"))
    result = gr.HTML(visible=False, elem_id=elem_id("player_result"))
    kinds = {"save": _save, "open": _open, "upscale": _upscale}
    if getattr(shared.cmd_opts, "hide_ui_dir_config", False):
        del kinds["open"]
    for name, answer in kinds.items():
        button = gr.Button(name, visible=False, elem_id=elem_id(f"player_{name}"))
        work.on_click(button, _answering(answer), [request], result)


def _answering(answer: Callable[[dict], Iterator[str]]) -> Callable[[str], Iterator[str]]:
    """`answer` to a request, marked with the time by which the page knows it; errors are answers in words."""

    def answered(text: str) -> Iterator[str]:
        request = json.loads(text)
        for words in _in_words(answer, request):
            yield f'<div data-time="{int(request["time"])}">{words}</div>'

    return answered


def _in_words(answer: Callable[[dict], Iterator[str]], request: dict) -> Iterator[str]:
    try:
        yield from answer(request)
    except library.UnknownClip as error:
        yield html.escape(f"there is no clip {str(error)!r}")
    except Exception as error:
        yield work.failure(error)


def _save(request: dict) -> Iterator[str]:
    """Copies the files of a clip to where the host's Save button saves to; nothing there is overwritten."""
    files = [library.find(name) for name in request["clips"]]
    first = files[0]
    target = names.beside(Path(os.path.abspath(shared.opts.outdir_save)), _stem(first), "")
    copies = [target.with_name(target.name + ("" if file.is_dir() else file.suffix)) for file in files]
    for file, copy in zip(files, copies):
        (shutil.copytree if file.is_dir() else shutil.copy2)(file, copy)
    yield work.shown([], [f"Saved: {copy}" for copy in copies])


def _open(request: dict) -> Iterator[str]:
    """Shows the folder of a clip on the machine of the WebUI."""
    folder = library.find(request["clip"]).parent
    util.open_folder(str(folder))
    yield work.shown([], [f"Opened: {folder}"])


def _upscale(request: dict) -> Iterator[str]:
    values = {name: request[name] for name in ("clip", "upscaler", "scale")}
    return postprocess_part.made(values)


def _stem(file: Path) -> str:
    return file.name if file.is_dir() else file.stem
