"""The playing grid of an X/Y/Z plot: one clip of the clips of its cells, arranged and labelled as the host's grid."""

from __future__ import annotations

import base64
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from modules import images, shared
from modules.shared import opts
from PIL import Image

from zs2_lib.hosts.undo import wrap
from zs2_lib.media.formats import FORMATS, MAX_FPS, clip_path, exact_rate
from zs2_lib.media.on_disk import OnDisk, Part
from zs2_lib.media.read import open_source
from zs2_lib.media.side_by_side import Cell, common_rate, frames_of_longest, side_by_side
from zs2_lib.media.write import clip_bytes, write_clip

from . import axes, options
from .answer import Clip, Request
from .files import temporary_folder
from .library import name_of, previews_folder
from .limits import max_frames
from .names import GRID, grid_target

log = logging.getLogger(__name__)

READ_BACK = ("png", "apng", "mp4", "webm", "webp")
"""The formats of files that cells are read from again, best first; without one their frames are kept meanwhile."""
MOST_PIXELS = 4096
"""The longest side: a larger one many players do not play."""
LEAST_CELL = 32
"""Pixels of the shorter side of a cell."""
MOST_CELLS = 256
"""All of them are open at once."""
NOT_KNOWN = "this WebUI draws its X/Y/Z plot in another way than those which ZS² knows"
Place = tuple[int, int, int]
"""The number of a cell along x, y and z."""


@dataclass
class Plan:
    """What the host is told to draw: the labels along x, y and z, and how."""

    labels: tuple[list[str], list[str], list[str]]
    legend: bool
    margin: int


@dataclass
class Shown:
    """A cell's clip, and how its pictures are read."""

    clip: Clip
    pictures: Callable[[], Iterator[Image.Image]]


@dataclass
class Layout:
    """The picture that the cells are put on, and where; each has the `size` (width, height)."""

    ground: Image.Image
    size: tuple[int, int]
    places: dict[Place, tuple[int, int]] = field(default_factory=dict)


class PlayingGrid:
    """Follows the plot that a script draws for `p`, until `undo` is closed; `make` writes the grid."""

    def __init__(self, p, request: Request, undo: ExitStack):
        self.p, self.request, self.undo = p, request, undo
        self.plan: Plan | None = None
        self.cells: dict[Place, Shown] = {}
        self._cell: Place | None = None
        self._drawn = False
        self._written = 0
        self._failed: Exception | None = None
        plot = axes.module()
        if plot is not None and hasattr(plot, "draw_xyz_grid"):
            wrap(undo, plot, "draw_xyz_grid", self._draw)

    def _draw(self, draw: Callable, *args, **kwargs):
        """The host's function, which calls the function `cell` that it is given for each cell."""
        axes.check_together(self.request, self.p.is_api)
        self._drawn = True
        if not options.value("zs2_playing_grid"):
            return draw(*args, **kwargs)
        given = inspect.signature(draw).bind(*args, **kwargs)
        known, cell = given.arguments, given.arguments.get("cell")
        labels = [known.get(f"{axis}_labels") for axis in "xyz"]
        if cell is None or None in labels:
            self._note(f"There is no playing grid: {NOT_KNOWN}.")
            return draw(*args, **kwargs)
        self.plan = Plan(
            tuple([str(label) for label in of_axis] for of_axis in labels),
            bool(known.get("draw_legend", True)),
            int(known.get("margin_size") or 0),
        )

        def followed(*of_cell):
            self._cell = of_cell[-3:]
            try:
                return cell(*of_cell)
            finally:
                self._cell = None

        known["cell"] = followed
        self.request.keep = self._keep
        self.undo.callback(setattr, self.request, "keep", None)
        return draw(*given.args, **given.kwargs)

    def _keep(self, clip: Clip, frames: Sequence[Image.Image], saved: Mapping[str, Path]) -> None:
        """Takes a clip as its cell's, as the host takes the first picture of one."""
        if self._cell is None or self._cell in self.cells or self._failed:
            return
        try:
            best = next((saved[format] for format in READ_BACK if format in saved), None)
            pictures = _of_file(best) if best else _of_frames(frames, OnDisk(temporary_folder(self.undo)))
            self.cells[self._cell] = Shown(clip, pictures)
        except Exception as error:  # a full disk
            log.error("a cell of the playing grid could not be kept", exc_info=error)
            self._failed = error

    # --- afterwards ----------------------------------------------------------------------------------------------

    def make(self, processed) -> None:
        """Writes the grid of the cells that there are, and tells of it in the request and on `processed`; what goes
        wrong is noted.
        """
        if not self._drawn:
            return
        try:
            if self._failed:
                raise self._failed
            if self.plan is not None and len(self.cells) > 1:
                self._write(processed)
        except Exception as error:
            log.error("the playing grid could not be made", exc_info=error)
            self._note(f"The playing grid could not be made: {type(error).__name__}: {error}")
        # the host's result has those of the first cell
        processed.comments = "".join(f"{comment}\n" for comment in self.p.comments)

    def _write(self, processed) -> None:
        if len(self.cells) > MOST_CELLS:
            self._note(
                f"There is no playing grid: it would have {len(self.cells)} cells, and has at most {MOST_CELLS}."
            )
            return
        layout, scale = self._layout(processed.images[0].height if processed.images else 0)
        if layout is None:
            self._note(
                f"There is no playing grid: made to fit {MOST_PIXELS} pixels its cells would be smaller than "
                f"{LEAST_CELL}; plot fewer values at once."
            )
            return
        if scale < 1:
            self._note(f"The playing grid is drawn at {scale:.0%}: it has at most {MOST_PIXELS} pixels a side.")
        cells = [
            Cell(
                cell.pictures,
                cell.clip.frames,
                exact_rate(cell.clip.fps),
                layout.places[place],
                layout.size,
            )
            for place, cell in self.cells.items()
        ]
        rate = min(common_rate([cell.rate for cell in cells]), Fraction(MAX_FPS))
        count = min(frames_of_longest(cells, rate), max_frames())
        first = next(iter(self.cells.values())).clip
        infotext = (processed.infotexts or [first.infotext])[0]
        about = (first.prompt, first.negative_prompt, first.seed, first.subseed, infotext, shared.state.interrupted)
        grid = Clip(count, float(rate), *about, layout.ground, is_grid=True)
        with ExitStack() as temporary:
            format, target, saved = self._format(), *self._target(grid, temporary)
            text = infotext if opts.enable_pnginfo else None
            frames = self._told(side_by_side(layout.ground, cells, rate, count), count)
            file = write_clip(frames, target, format, rate, text, quality=options.quality(format))
            grid.frames = self._written
            self._tell(grid, file, format, saved)

    def _format(self) -> str:
        """The first of the panel's formats that is a video."""
        formats = self.request.settings.formats
        return next((format for format in formats if FORMATS[format].encoding), "mp4")

    def _target(self, grid: Clip, temporary: ExitStack) -> tuple[Path, bool]:
        """Its path without suffix, and whether that is among the clips: beside the first that is saved."""
        files = (file for cell in self.cells.values() for file in cell.clip.files.values())
        beside = next((file for file in files if file.is_absolute()), None)
        if beside is not None and opts.grid_save:
            return grid_target(beside.parent, grid.seed, grid.stopped), True
        if self.request.is_api:
            return Path(temporary_folder(temporary), GRID), False
        folder = previews_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(8), False

    def _tell(self, grid: Clip, file: Path, format: str, saved: bool) -> None:
        is_api = self.request.is_api
        grid.files[format] = file if saved or not is_api else clip_path(f"{GRID}-{grid.seed}", format)
        if is_api and self.request.settings.returns != "frames":
            grid.data[format] = base64.b64encode(clip_bytes(file)).decode()
        if not is_api:
            grid.plays = name_of(file)
            if saved:
                self.p.comment(f"ZS²: saved the playing grid {file}")
        self.request.clips.append(grid)

    def _told(self, frames: Iterator[Image.Image], count: int) -> Iterator[Image.Image]:
        stopped = shared.state.interrupted  # before
        for number, frame in enumerate(frames, start=1):
            self._written = number
            shared.state.textinfo = f"ZS²: playing grid, frame {number} of {count}"
            yield frame
            if shared.state.interrupted and not stopped:
                break
        shared.state.textinfo = None

    def _note(self, text: str) -> None:
        self.request.note(self.p, text)

    # --- its picture -----------------------------------------------------------------------------------------------

    def _layout(self, height_of_host: int) -> tuple[Layout | None, float]:
        """The layout, and by how much cells are made smaller for it; no layout where they would be too small.

        A host whose grid is as many times as high has laid its only row out in so many.
        """
        sizes = [cell.clip.first_frame.size for cell in self.cells.values()]
        width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
        scale, rows = 1.0, height_of_host // self._layout_of((width, height)).ground.height
        while True:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if min(size) < min(LEAST_CELL, width, height):
                return None, scale
            layout = self._layout_of(size)
            if rows > 1 and all(len(labels) == 1 for labels in self.plan.labels[1:]):
                layout = _in_rows(layout, rows, len(self.plan.labels[0]))
            longest = max(layout.ground.size)
            if longest <= MOST_PIXELS:
                return layout, scale
            scale *= min(MOST_PIXELS / longest, 0.98)

    def _layout_of(self, size: tuple[int, int]) -> Layout:
        """As the host draws it: a grid of x and y for each z, labelled, and these in a row, labelled with z."""
        x_labels, y_labels, z_labels = self.plan.labels
        columns, rows = len(x_labels), len(y_labels)
        sub = Image.new("RGB", (size[0] * columns, size[1] * rows))
        gap = self.plan.margin if self.plan.legend else 0
        sub_left = sub_top = top = 0
        if self.plan.legend:
            labelled = images.draw_grid_annotations(sub, *size, _annotations(x_labels), _annotations(y_labels), gap)
            sub_left = labelled.width - sub.width - gap * (columns - 1)
            sub_top = labelled.height - sub.height - gap * (rows - 1)
            sub = labelled
        ground = Image.new("RGB", (sub.width * len(z_labels), sub.height))
        for number in range(len(z_labels)):
            ground.paste(sub, (sub.width * number, 0))
        if self.plan.legend:
            labelled = images.draw_grid_annotations(ground, *sub.size, _annotations(z_labels), _annotations([""]))
            top, ground = labelled.height - ground.height, labelled
        layout = Layout(ground, size)
        for z in range(len(z_labels)):
            for y in range(rows):
                for x in range(columns):
                    left = sub.width * z + sub_left + (size[0] + gap) * x
                    layout.places[x, y, z] = left, top + sub_top + (size[1] + gap) * y
        return layout


def _in_rows(layout: Layout, rows: int, columns: int) -> Layout:
    """A layout of one row of `columns` cells in so many rows, as Forge Neo does it."""
    each, width, height = -(-columns // rows), layout.ground.width // columns, layout.ground.height
    ground = Image.new("RGB", (each * width, rows * height), "white")
    for row in range(rows):
        box = (row * each * width, 0, min((row + 1) * each * width, layout.ground.width), height)
        ground.paste(layout.ground.crop(box), (0, row * height))
    places = {
        (x, y, z): (left - x // each * each * width, top + x // each * height)
        for (x, y, z), (left, top) in layout.places.items()
    }
    return Layout(ground, layout.size, places)


def _annotations(labels: Sequence[str]) -> list[list]:
    return [[images.GridAnnotation(label)] for label in labels]


def _of_file(path: Path) -> Callable[[], Iterator[Image.Image]]:
    def pictures() -> Iterator[Image.Image]:
        for _, picture in open_source(path).frames():
            yield picture

    return pictures


def _of_frames(frames: Sequence[Image.Image], kept: OnDisk) -> Callable[[], Iterator[Image.Image]]:
    """Keeps each of the `frames` once, also where the clip plays it forth and back."""
    once = frames.values if isinstance(frames, Part) else frames
    for frame in once:
        kept.append(frame)
    return lambda: iter(Part(kept, frames.frames) if isinstance(frames, Part) else kept)
