"""The panel's part on finished clips: upscaled and interpolated by a button of its own, apart from any generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import gradio as gr

from zs2_lib.hosts.webui import library, postprocess
from zs2_lib.media import interpolators
from zs2_lib.media.formats import FORMATS
from zs2_lib.settings.postprocessing import NO_UPSCALER, ROWS, Postprocessing

from . import work
from .controls import FORMS, ElemId, file_controls, path_of

OFF, RATE = "off", "to a rate"
FACTORS = {OFF: 1, "×2": 2, "×3": 3, "×4": 4, RATE: 1}


def build(elem_id: ElemId) -> None:
    """Makes the controls, none of which is an argument of the script, and what the buttons do."""

    def control(name: str, make=None, **more):
        row = ROWS[name]
        make = make or FORMS[type(row.kind)].make
        about = {"label": row.label, "elem_id": elem_id(f"postprocess_{name}"), "tooltip": row.tooltip}
        return make(row, **about, **{"value": row.default, **more})

    def dropdown(_, **about):
        return gr.Dropdown(**about)

    with gr.Accordion("Upscale and interpolate a clip", open=False, elem_id=elem_id("postprocess_part")):
        with gr.Row():
            clip = ROWS["clip"]
            tooltip = f"{clip.tooltip} Without one, the last clip that was made."
            names = ("postprocess_clip_file", "postprocess_clip")
            clips = file_controls(names, clip.label, tooltip, elem_id, visible=True)
        with gr.Row():
            upscaler = control("upscaler", dropdown, choices=_with(NO_UPSCALER, postprocess.upscalers()))
            scale = control("scale")
        with gr.Row():
            interpolate = control("interpolate", dropdown, choices=list(FACTORS), value=OFF)
            fps = control("fps", value=24, visible=False)
            interpolator = control("interpolator", dropdown, choices=interpolators.names())
        with gr.Row():
            order = control("order")
            formats = control("formats", dropdown, choices=list(FORMATS), multiselect=True, value=[])
        with gr.Row():
            make = gr.Button("Make", variant="primary", elem_id=elem_id("postprocess_make"))
            stop = gr.Button("Stop", elem_id=elem_id("postprocess_stop"))
        result = gr.HTML(elem_id=elem_id("postprocess_result"))
    interpolate.change(lambda chosen: gr.update(visible=chosen == RATE), [interpolate], [fps], show_progress=False)
    inputs = [*clips, upscaler, scale, interpolate, fps, interpolator, order, formats]
    work.on_click(make, _make, inputs, result)
    stop.click(postprocess.stop, [], [], show_progress=False)


def _with(first: str, others: list[str]) -> list[str]:
    return list(dict.fromkeys([first, *others]))


def _make(upload, path, upscaler, scale, interpolate, fps, interpolator, order, formats) -> Iterator[str]:
    return made(
        {
            "clip": path_of(upload, path) or str(library.latest() or ""),
            "upscaler": upscaler or NO_UPSCALER,
            "scale": scale,
            "interpolate": FACTORS.get(interpolate, 1),
            "fps": fps if interpolate == RATE else 0,
            "interpolator": interpolator,
            "order": order,
            "formats": formats or (),
        }
    )


def made(values: dict) -> Iterator[str]:
    """What the page shows: how far it is, and in the end the result, or why there is none."""
    try:
        with ExitStack() as undo:
            job = postprocess.Work(Postprocessing(**values), undo, is_api=False)
            yield from work.followed(lambda: _shown(job.run()), lambda: _progress(job))
    except Exception as error:
        yield work.failure(error)


def _progress(job: postprocess.Work) -> str:
    done, of = job.made, job.count
    text = "waiting for the WebUI" if not done else "writing the files" if done == of else f"frame {done} of {of}"
    return work.bar(done / of, text)


def _shown(result: postprocess.Result) -> str:
    lines = [f"{result.frames} frames of {result.size[0]}x{result.size[1]}, {result.fps:g} per second"]
    lines += ["Stopped before the end."] * result.stopped
    lines += [f"Saved: {path}" for path in result.files.values()] + result.notes
    return work.shown([*result.files.values()], lines)
