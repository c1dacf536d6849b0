"""What the host serves under /zs2/v1/: the settings, the clips, what they carry, and what a job will cost."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.text import read_text
from zs2_lib.media.write import write_zip
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.schema import postprocessing_schema, schema
from zs2_lib.settings.table import Settings

from . import access, at_page, forecast, going_on, library, live, postprocess, presets, serving, tab
from .files import temporary_folder
from .limits import max_frames

log = logging.getLogger(__name__)

LARGEST_UPLOAD = 2**30
"""Bytes."""
UPLOAD = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
UPLOAD["requestBody"]["required"] = True

FORECAST = {"settings": {"type": "object", "description": "Those of ZS²."}}
FORECAST |= {key: kind.schema() for key, kind in tab.KINDS.items()}
FORECAST = {"type": "object", "additionalProperties": False, "properties": FORECAST}

router = APIRouter(prefix="/zs2/v1", tags=["ZS²"], dependencies=[Depends(access.checked)])
of_page = APIRouter(prefix="/zs2/v1", tags=["ZS²"], dependencies=[Depends(access.checked_or_of_page)])


def add(app: FastAPI) -> None:
    """Adds the routes to the host's app, beside its own API, whether it serves that or not."""
    app.include_router(router)
    app.include_router(of_page)
    app.openapi_schema = None  # which is made anew when it is asked for


@contextmanager
def in_words() -> Iterator[None]:
    """An error inside is answered with its message: 404 for what is not there, 422 for what is not allowed."""
    try:
        yield
    except library.UnknownClip as error:
        raise HTTPException(404, f"there is no clip {str(error)!r}: GET /zs2/v1/clips lists them") from error
    except (ValueError, FileNotFoundError, RuntimeError) as error:  # SettingsError is a ValueError
        raise HTTPException(422, str(error)) from error


# --- settings --------------------------------------------------------------------------------------------------------


@router.get("/settings", summary="The settings and their limits, as a JSON schema")
def get_settings() -> dict:
    return schema(max_frames())


@router.get(
    "/presets", summary="The presets: shipped, and the user's; the speeds, with sampling steps if they set them"
)
def get_presets() -> dict:
    return presets.answer()


@router.post(
    "/forecast",
    summary="What a clip will be and cost",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": FORECAST}}}},
)
def post_forecast(values: dict = Body(default={})) -> dict:
    """`seconds` are known from the last jobs of this machine with the same checkpoint and anchors, UNet calls from its
    last runs of the sampler, bytes from its last files; null if there were none.
    """
    with in_words():
        settings = values.get("settings", {})
        if not isinstance(settings, dict):
            raise SettingsError(f'settings: {settings!r} is not allowed; give an object such as {{"frames": 8}}')
        of_tab = tab.Tab.from_mapping({key: value for key, value in values.items() if key != "settings"})
        clip = Settings.from_mapping({"enabled": True, **settings})
        return forecast.forecast(clip, of_tab, is_api=True).answer()


@of_page.get("/live", summary="How far the job is that runs, and a filmstrip of its frames")
def get_live(strip: str = "") -> dict:
    """`strip` is the id of the last filmstrip that was seen: another one comes, if there is any."""
    return live.shown(strip)


# --- clips -----------------------------------------------------------------------------------------------------------


@of_page.get("/clips", summary="The clips that are there, newest first")
def get_clips(limit: int = Query(default=100, ge=1, le=100_000)) -> list:
    return [
        {"name": entry.name, "format": entry.format, "bytes": entry.bytes, "modified": entry.modified}
        for entry in library.clips()[:limit]
    ]


@of_page.get("/clips/{name:path}/recipe", summary="What a clip's file says of how it was made")
def get_recipe(name: str) -> dict:
    with in_words():
        return recipe_in(library.find(name))


@of_page.get("/clips/{name:path}/about", summary="A clip at a glance: rate, size, filmstrip, change and drift, recipe")
def get_about(name: str) -> dict:
    with in_words():
        return at_page.about(name)


@of_page.get(
    "/clips/{name:path}/frames/{frame}",
    summary="A frame of a clip, counted from 0, as a PNG that carries the clip's text",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def get_frame(name: str, frame: int) -> Response:
    with in_words():
        return Response(at_page.png_of(library.find(name), frame), media_type="image/png")


@of_page.get("/clips/{name:path}/video", summary="A clip as a video that browsers play, made of it if it is none")
def get_video(name: str, request: Request) -> Response:
    with in_words():
        path = at_page.video_of(library.find(name))
        return serving.answer_file(request, path, _media_type(path))


of_page.head("/clips/{name:path}/video", include_in_schema=False)(get_video)


@of_page.get(
    "/clips/{name:path}", summary="A clip's file, or a range of it; a folder of PNG files as ZIP, or one of it"
)
def get_clip(name: str, request: Request) -> Response:
    with in_words():
        path = library.find(name)
        if path.is_file():
            return serving.answer_file(request, path, _media_type(path))
        with ExitStack() as undo:
            file = undo.enter_context(tempfile.TemporaryFile())
            write_zip(path, file)
            undo.pop_all()  # the answer closes it
            return serving.answer(request, file, "application/zip", f"{path.name}.zip", path.stat().st_mtime)


of_page.head("/clips/{name:path}", include_in_schema=False)(get_clip)


@router.post(
    "/postprocess",
    summary="A finished clip made larger, or given more frames, as a new clip",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": postprocessing_schema()}}}},
)
def post_postprocess(settings: dict = Body()) -> dict:
    """Waits for the host's queue; its progress is the host's, and so is its Interrupt."""
    return _worked(postprocess.postprocess, settings)


def _go_on(step: str, number: str) -> None:
    """Adds the route of a step."""
    properties = {
        "clip": {"type": "string", "description": "A clip by name or path, or the base64 of its file."},
        number: {"type": "integer", "minimum": 1},
        **{key: {"type": "integer", "minimum": 1} for key in going_on.MORE.get(step, ())},
        "settings": {"type": "object", "description": "Settings of ZS² other than those of the recipe; a source."},
        "request": {"type": "object", "description": "Fields of the host's request; init images, ControlNet units."},
    }
    about = {"type": "object", "required": ["clip", number], "properties": properties}

    @router.post(
        f"/{step}",
        summary=f"{step.capitalize()}: a finished clip made anew with {number}, what is kept of it the same",
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": about}}}},
        name=step,
    )
    def post(values: dict = Body()) -> dict:
        return _worked(going_on.go_on, step, values)


for step, (number, _) in going_on.STEPS.items():
    _go_on(step, number)


def _worked(work: Callable, *values) -> dict:
    """work(*values), whose errors are answered with their message."""
    try:
        return work(*values)
    except SettingsError as error:
        raise HTTPException(422, str(error)) from error
    except HTTPException:
        raise
    except Exception as error:
        log.exception("the clip could not be made")
        raise HTTPException(500, f"{type(error).__name__}: {error}") from error


def _media_type(path: Path) -> str:
    return FORMATS[path.suffix[1:]].media_type


@of_page.post("/recipe", summary="What an uploaded clip says of how it was made", openapi_extra=UPLOAD)
async def post_recipe(request: Request) -> dict:
    return await _of_upload(request, recipe_in)


@of_page.post(
    "/still",
    summary="The first frame of an uploaded clip as a PNG that carries the clip's text",
    openapi_extra=UPLOAD,
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def post_still(request: Request) -> Response:
    return Response(await _of_upload(request, still_of), media_type="image/png")


async def _of_upload(request: Request, function: Callable[[Path], object]):
    """function(path) of the clip that is the body of the request."""
    too_large = HTTPException(413, f"the clip has more than {LARGEST_UPLOAD} bytes, which are allowed")
    if int(request.headers.get("content-length") or 0) > LARGEST_UPLOAD:
        raise too_large
    with ExitStack() as undo:
        path = Path(temporary_folder(undo), "the clip")
        with open(path, "wb") as file:
            async for piece in request.stream():
                file.write(piece)
                if file.tell() > LARGEST_UPLOAD:
                    raise too_large
        with in_words():
            return await run_in_threadpool(function, path)


def recipe_in(path: Path) -> dict:
    """What the file of a clip carries: its text, and the settings of ZS² by their keys in API requests.

    Raises ValueError where there is no text, or one with values that are not allowed.
    """
    text = _text_of(path)
    prompt, negative, values = recipe.parsed(text)
    about = {"infotext": text, "prompt": prompt, "negative_prompt": negative, "values": values}
    return {**about, "settings": at_page.settings_in(values)}


def still_of(path: Path) -> bytes:
    """The first frame of a clip as a PNG that carries the clip's text. Raises ValueError."""
    _text_of(path)
    return at_page.png_of(path, 0)


def _text_of(path: Path) -> str:
    text = read_text(path)
    if text is None:
        raise ValueError(f"{path.name} carries no generation parameters")
    return text
