"""A job while it runs, for the page: how far it is, how long it will take, its frames as they come out of the noise."""

from __future__ import annotations

import base64
import io
import itertools
import logging
import re
import threading
import time

import numpy as np
from modules import sd_samplers_common, shared
from PIL import Image

from zs2_lib.core.clip import Clip
from zs2_lib.media.pictures import contact_sheet

from . import pace
from .estimate import Estimate
from .segments import Segments

log = logging.getLogger(__name__)

MOST_COLUMNS = 64
"""Frames of a strip; of more, so many of them."""
LARGEST = 96
"""Pixels of the longer side of a frame in a strip."""
COST = 0.02
"""The part of the time that strips may take."""
CHEAP = 2
"""The host's number for making a picture of latents by a matrix alone, without a model."""

PARTS = {
    "cell": "cell {0} of {1}",
    "clip": "clip {0} of {1}",
    "segment": "segment {0} of {1}",
    "preparing": "preparing",
    "hires.fix": "hires.fix",
    "step": "step {0} of {1}",
    "pass": "pass {0} of {1}",
    "writing": "decoding and writing",
}
"""What is said of a job, in this order; the page has them in its language."""

_running: list[Live] = []


def shown(seen: str) -> dict:
    """What the page shows of the job that runs; `seen` is the id of the last strip that it has."""
    running = list(_running)
    return running[-1].shown(seen) if running else {"running": False}


class Live:
    """A job of `p` whose clips are sampled in `segments`; to be ended by `end`. A `preflight` has a pace of its own."""

    def __init__(self, p, segments: Segments, preflight: bool = False):
        self._p, self._segments, self._preflight = p, segments, preflight
        self._kind = ""
        self._cell = cell_of(shared.state.job) if p.zs2_request.script else None
        """Which job of a script it is, and of how many."""
        self._estimate: Estimate | None = None
        self._step = self._steps = self._pass = self._passes = 0
        self._second = False
        self._positions = 0
        """Latent positions of a frame in its first sampling."""
        self._began = time.perf_counter()
        self._strips = Strips()
        _running.append(self)

    def end(self) -> None:
        """The job has ended, however it has."""
        if self in _running:
            _running.remove(self)

    # --- what happens ------------------------------------------------------------------------------------------------

    def sampling(self, clip: Clip) -> None:
        """The sampling of a batch, a segment of `clip`, begins."""
        self._kind = pace.kind_of(clip.anchors.stride, clip.anchors.depth, self._preflight)
        if self._estimate is None:
            start = None if clip.anchors.is_identity else clip.anchors.start
            frames = [self._segments.of(number) for number in range(self._p.n_iter)]
            frames = [len(each) for each in frames]
            self._estimate = Estimate(frames, self._known, second_sampling(self._p), start)

    def _known(self, name: str) -> float | None:
        return pace.rate(self._kind, name, self._positions)

    def call(self, number: int, calls: int, work: float, positions: int, time: float) -> None:
        """A call of the denoiser begins: see `Estimate.call`."""
        if number == 0:
            self._second = self._steps > 0
        if not self._second:
            self._positions = positions
        self._step, self._steps = number + 1, calls
        self._passes, self._pass = max(self._pass, 1), 0
        self._estimate.call(number, calls, work, positions, time)

    def before_pass(self, done: float) -> None:
        """A pass begins, when `done`, from 0 to 1, of the call is done."""
        self._pass += 1
        if done and self._passes == 1:  # the first call: as large as the passes until now
            self._passes = round((self._pass - 1) / done)
        self._passes = max(self._passes, self._pass)

    def sampled(self) -> None:
        """The batch is sampled; what is known of an interrupted one is not kept."""
        rates = self._estimate.sampled()
        self._keep(rates)

    def batch_done(self) -> None:
        """All that follows the sampling of the batch is done."""
        if self._estimate is None:
            return
        rates = self._estimate.batch_done()
        self._step = self._steps = self._pass = 0
        self._keep(rates)

    def _keep(self, rates: dict[str, float]) -> None:
        if rates and not (shared.state.interrupted or shared.state.skipped):
            pace.record(self._kind, rates, self._positions)

    # --- what is shown -----------------------------------------------------------------------------------------------

    def shown(self, seen: str) -> dict:
        """See `shown`: `parts` are texts with places, and the numbers for them."""
        left = self._estimate.seconds_left() if self._estimate else None
        elapsed = time.perf_counter() - self._began
        if self._cell and left is not None:  # the others are like this one
            number, of = self._cell
            left, elapsed = left + (of - number) * (elapsed + left), elapsed + (number - 1) * (elapsed + left)
        parts = self._parts()
        return {
            "running": True,
            "text": ", ".join(text.format(*numbers) for text, *numbers in parts),
            "parts": parts,
            "progress": round(elapsed / (elapsed + left), 4) if left is not None else 0.0,
            "seconds_left": None if left is None else round(left, 1),
            "strip": self._strips.newer(seen, self._segments.now),
        }

    def _parts(self) -> list[tuple]:
        segments, batch = self._segments, self._p.iteration if hasattr(self._p, "iteration") else 0
        parts = [(PARTS["cell"], *self._cell)] if self._cell else []
        if segments.clips > 1:
            parts.append((PARTS["clip"], batch // segments.of_clip + 1, segments.clips))
        if segments.of_clip > 1:
            parts.append((PARTS["segment"], batch % segments.of_clip + 1, segments.of_clip))
        if not self._steps:
            return [*parts, (PARTS["preparing"],)]
        if self._estimate.is_sampled:
            return [*parts, (PARTS["writing"],)]
        parts += [(PARTS["hires.fix"],)] * self._second
        parts.append((PARTS["step"], self._step, self._steps))
        if self._passes > 1:
            parts.append((PARTS["pass"], max(self._pass, 1), max(self._passes, self._pass)))
        return parts


def cell_of(job: str | None) -> tuple[int, int] | None:
    """(number, of how many) as the host's scripts say it of their jobs; None where they do not."""
    found = re.fullmatch(r"(\d+) out of (\d+)", job or "")
    return (int(found[1]), int(found[2])) if found else None


def second_sampling(p) -> tuple[float, float, float] | None:
    """What hires.fix adds to the job of `p`, as `Estimate` takes it."""
    if not getattr(p, "enable_hr", False):
        return None
    part = (p.hr_second_pass_steps or p.steps) / p.steps  # all of them, whatever the denoising strength
    positions = p.hr_upscale_to_x * p.hr_upscale_to_y / (p.width * p.height)
    return part, positions, 1 - min(p.denoising_strength or 0, 0.999)


class Strips:
    """Filmstrips of the latents that are sampled, made when they are asked for, as seldom as `COST` wants it."""

    _ids = itertools.count(1)

    def __init__(self):
        self._lock = threading.Lock()
        self._of: object = None
        self._last: dict | None = None
        self._not_before = 0.0

    def newer(self, seen: str, frames: range) -> dict | None:
        """The strip of `frames`, if there is another one than that with the id `seen`."""
        latents = shared.state.current_latent
        if self._lock.acquire(blocking=False):
            try:
                began = time.perf_counter()
                if latents is not None and latents is not self._of and began >= self._not_before:
                    if latents.ndim == 4 and len(latents) == len(frames):
                        self._last, self._of = _strip(latents, frames, str(next(self._ids))), latents
                    ended = time.perf_counter()
                    self._not_before = ended + (ended - began) / COST
            except Exception as error:  # the host may unload what makes pictures at any time
                log.warning("no filmstrip of the frames while they are sampled: %s", error)
                self._not_before = time.perf_counter() + 60
            finally:
                self._lock.release()
        return self._last if self._last and self._last["id"] != seen else None


def _strip(latents, frames: range, id: str) -> dict:
    chosen = np.linspace(0, len(frames) - 1, min(MOST_COLUMNS, len(frames))).round().astype(int).tolist()
    pictures = [sd_samplers_common.single_sample_to_image(latents[frame], CHEAP) for frame in chosen]
    width, height = pictures[0].size
    scale = min(1, LARGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = contact_sheet([each.resize(size, Image.Resampling.BILINEAR) for each in pictures], len(pictures))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=80)
    image = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    numbers = [frames.start + frame for frame in chosen]
    return {"id": id, "image": image, "frames": numbers, "width": size[0], "height": size[1], "columns": len(chosen)}
