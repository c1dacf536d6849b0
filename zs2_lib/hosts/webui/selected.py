"""The script that is selected beside ZS²: its jobs become clips, unless it cuts one picture into samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from modules import processing, shared

from zs2_lib.hosts.undo import wrap
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import errors, nesting
from .answer import Request
from .edit import Frames, SourceVideo
from .playing_grid import PlayingGrid

NO_INIT_IMAGE = (
    "source: img2img has neither an init image nor a source video; give an init image in the tab, which the clip "
    "animates, or a source, which it edits (API: `init_images` or `source`)"
)
CUTS = (
    "enabled: true is not allowed with the script {script!r}: it hands over pictures of its own, such as the tiles or "
    "borders of one picture, and puts the results together, where a clip of each would not fit; choose no script, or "
    "switch ZS² off"
)
OWN_INIT_IMAGES = (
    "source: a source video is not allowed with the script {script!r}, which goes on from the pictures that it gets; "
    "choose no script, or give an init image in place of the source"
)

CUTTING = ("sd upscale", "ultimate sd upscale", "outpainting mk2", "poor man's outpainting")
"""Titles of scripts that are known for that, in lower case: the others are found out when they run."""

_open: list[tuple[Request, ExitStack, float]] = []
"""The requests with a script that are not closed yet: how they are, and when the host began with them."""


def of(p) -> Request:
    """The request that `p` is a job of."""
    if "zs2_request" not in vars(p):  # the host has not set up its scripts for `p`
        p.zs2_request = Request(p.is_api)
    return p.zs2_request


def begin(p, read: Callable[[], Settings]) -> None:
    """Begins the request of `p`, to be called when the host sets up its scripts; `read` gives the settings.

    What is wrong with them stops `p` before the selected script runs.
    """
    for _, undo, began in list(_open):
        if began != shared.state.time_start:  # left by a request that was not closed
            undo.close()
    if nesting.being_processed():  # no clip, so no request
        return
    for request, _, _ in _open:
        if request.script:  # which has made `p` for a job
            p.zs2_request = request
            return
    p.zs2_request = request = Request(p.is_api)
    settings = Settings()
    with errors.kept(p):
        settings = request.settings = read()
    script = _selected(p)
    if script is None or not (settings.enabled or errors.is_kept(p)):
        return

    def run(original: Callable, of_p, *args):
        if vars(of_p).get("zs2_request") is not request:
            return original(of_p, *args)
        return _run(partial(original, of_p, *args), of_p, settings, script.title())

    def end_and_close(close: Callable[[], None]) -> None:
        undo.close()
        close()

    undo = ExitStack()
    _open.append((request, undo, shared.state.time_start))
    undo.callback(_open.remove, _open[-1])
    wrap(undo, script, "run", run)
    wrap(undo, p, "close", end_and_close)


def refusal(title: str, settings: Settings) -> str | None:
    """Why the script of that title, "" for none, does not fit, as far as that is known before it runs."""
    if title.lower() in CUTTING:
        return CUTS.format(script=title)
    return OWN_INIT_IMAGES.format(script=title) if title == "Loopback" and settings.source else None


def _selected(p):
    """The script that was chosen beside those which always run, or None."""
    number = p.script_args[0] if p.script_args else None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        return None
    return p.scripts.selectable_scripts[number - 1]


def _run(script: Callable, p, settings: Settings, title: str):
    """Runs the script on `p`, and makes of its result that of the request."""
    errors.raise_kept(p)
    check_init_images(p, settings)
    request = of(p)
    with ExitStack() as undo:
        if settings.source and _is_img2img(p) and not _init_images(p):
            p.init_images = Frames(SourceVideo(settings, undo, p.is_api))  # scripts look for one there
        request.script, request.init_images = title, _init_images(p) if _is_img2img(p) else []
        undo.callback(setattr, request, "script", "")
        grid = PlayingGrid(p, request, undo)
        processed = script()
        if processed is not None:
            grid.make(processed)
    if request.error and not request.clips:  # the script has swallowed it
        raise request.error
    if processed is not None:
        request.finish(processed)
    return processed


def check_init_images(p, settings: Settings) -> None:
    """Raises SettingsError if img2img has nothing to begin with, or if what it has comes from a script that cuts one
    picture into samples.
    """
    if not _is_img2img(p):
        return
    if not settings.source and not _init_images(p):
        raise SettingsError(NO_INIT_IMAGE)
    request = of(p)
    given = request.init_images
    if not request.script or p.init_images is given:  # a source's frames
        return
    for image in _init_images(p):
        if hasattr(image, "zs2_clip"):  # Loopback goes on from the last result
            if settings.source:
                raise SettingsError(OWN_INIT_IMAGES.format(script=request.script))
        elif not any(image is known for known in given):
            raise SettingsError(CUTS.format(script=request.script))


def _is_img2img(p) -> bool:
    return isinstance(p, processing.StableDiffusionProcessingImg2Img)


def _init_images(p) -> Sequence:
    """The init images, without the None that the page gives where there is none."""
    images = p.init_images
    return [image for image in images if image is not None] if isinstance(images, list) else images or ()
