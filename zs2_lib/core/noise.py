"""The noise that the sampling of a clip draws, correlated over its frames by a noise model, whole or in segments."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence

import torch

from .noise_models import (
    SOLVERS,
    Dependency,
    Loop,
    Mixed,
    Recursion,
    SearchTrace,
    State,
    on_great_circle,
    progressive,
)
from .timeline import Timeline

MODELS = ("dependency", "mixed", "progressive", "independent")
CPU = torch.device("cpu")
Retakes = Sequence[tuple[int, int]]
"""(frame, number), frames rising: from this frame on a clip has the innovations of that take, before it those of 0."""


def frame_seeds(seed: int, frames: int, first: int = 0, retakes: Retakes = ()) -> list[int]:
    """A seed for the noise of each of `frames` frames from `first` on: `seed` itself for frame 0, then ones derived
    from it.

    The derived seeds (63 bit) depend on `seed`, the frame's number and its take alone, and are unlike the seeds of
    neighbouring clips.
    """
    return [frame_seed(seed, frame, retakes) for frame in range(first, first + frames)]


def frame_seed(seed: int, frame: int, retakes: Retakes = ()) -> int:
    """The seed of one frame, as `frame_seeds` gives it."""
    if not frame:
        return seed
    take = next((take for begin, take in reversed(retakes) if begin <= frame), 0)
    digest = hashlib.sha256(f"zs2 {seed} {frame}{f' {take}' if take else ''}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@functools.cache
def exact_device(device: torch.device) -> torch.device:
    """`device` if it computes in float64, which is tried, else the CPU."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).add_(1)
    except (RuntimeError, TypeError):  # TypeError from Apple's GPUs
        return CPU
    return device


class SegmentNoise:
    """All noise that the sampling of the frames `first`, …, `first + frames - 1` of a clip draws.

    `draw` and `mix` count their calls, and call number k goes on from number k of the segment before: all segments are
    sampled with the same steps. The frames of a clip are the same, bit for bit, however it is cut. Innovations come
    from `seeds`, on the CPU in float32, the same on every device. They are mixed frame by frame in float64, on the
    host's device where that has it, and leave it within 1e-12 of what L gives.

    Only kept frames have innovations. The noise of an in-between lies on the great circle between those of the kept
    frames around it, in equal steps; that of the kept frame behind the segment is drawn ahead for it.
    """

    def __init__(
        self,
        model: Recursion | Loop,
        timeline: Timeline,
        seed_of: Callable[[int], int],
        first: int,
        frames: int,
        before: dict[tuple[str, int], State],
        after: dict[tuple[str, int], State] | None,
    ):
        self.first, self.frames = first, frames
        self._timeline = timeline
        self._model, self._seed_of = model, seed_of
        self._before, self._after = before, after
        self._generators: dict[int, torch.Generator] = {}
        self._draws, self._mixes = itertools.count(), itertools.count()
        self._sources = timeline.sources(first, frames)

    @functools.cached_property
    def seeds(self) -> list[int]:
        """For each frame the seed of the innovations that `mix` takes from its place."""
        seeds = {kept: self._seed_of(kept) for kept in set(self._sources)}
        return [seeds[kept] for kept in self._sources]

    def begin_pass(self) -> None:
        """The sampling begins, a second time for hires.fix: each frame's generator begins anew, as the host's own do,
        however much the sampler drew before.
        """
        self._generators = {}

    def draw(self, still: torch.Tensor) -> torch.Tensor:
        """The next noise of all frames (frames, channels, height, width), like `still` in dtype and device.

        `still` (1, channels, height, width) is what the host draws for frame 0 of the clip, and becomes frame 0; other
        segments take its shape alone. The first draw fixes the angles of dependency noise, on the CPU; the following
        ones (ancestral and SDE steps, the second pass of hires.fix, which has another height and width) are mixed by
        them.
        """
        number = next(self._draws)

        def innovation(kept: int) -> torch.Tensor:
            return torch.randn(still.shape[1:], generator=self._generator(kept)) if kept else still[0].detach()

        device = self._device(still.device) if number else CPU
        out = torch.empty(self.frames, *still.shape[1:], dtype=still.dtype, device=device)
        return self._fill(out, ("draw", number), innovation).to(still.device)

    def mix(self, innovations: torch.Tensor) -> torch.Tensor:
        """Independent noises (frames, …) of any kind, those of `seeds`, correlated as the drawn ones are, like them in
        dtype and device; after the first draw.
        """
        call = ("mix", next(self._mixes))
        out = torch.empty_like(innovations, device=self._device(innovations.device))
        places = {kept: place for place, kept in reversed(list(enumerate(self._sources)))}
        return self._fill(out, call, lambda kept: innovations[places[kept]]).to(innovations.device)

    def _device(self, device: torch.device) -> torch.device:
        """Where noise for `device` is mixed; that of a loop on the CPU, as all its frames are held in float64."""
        return CPU if isinstance(self._model, Loop) else exact_device(device)

    def _generator(self, kept: int) -> torch.Generator:
        """Made when it is needed, and gone with the segment: each holds 5 kB."""
        if kept not in self._generators:
            self._generators[kept] = torch.Generator().manual_seed(self._seed_of(kept))
        return self._generators[kept]

    def _fill(
        self, out: torch.Tensor, call: tuple[str, int], innovation: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """`out` (frames, …), filled with the noises that follow from `innovation(kept frame)`, and computed on its
        device.

        `call` names what is drawn: "draw" or "mix", and its number.
        """
        state = self._before.get(call)
        if state is not None:
            state = state.to(out.device)
        elif self.first:
            frames = f"frames {self.first} to {self.first + self.frames - 1}"
            raise RuntimeError(
                f"ZS²: {call[0]} number {call[1]} of {frames} has none of the frames before to go on from; sample each "
                "segment to its end before the next, all with the same steps"
            )

        def draw(kept: int) -> torch.Tensor:
            drawn = innovation(kept)
            return drawn.to(out.device, non_blocking=drawn.device == CPU).double()

        kept = self._timeline.kept(self._sources)
        states = self._model.follow(kept.start, len(kept), state, draw, find=call == ("draw", 0))
        steps, first, last = self._timeline.in_betweens, None, None
        for place, each in zip(itertools.count(0, steps), states):
            if last is not None:
                self._fill_between(out[place - steps + 1 : place], last, each.frame, kept.start + place // steps)
            if place < self.frames:
                out[place].copy_(each.frame)
                state = each
            first, last = each.frame if first is None else first, each.frame
        if self._timeline.closed:
            self._fill_between(out[place + 1 :], last, first, self._timeline.kept_frames)
        if self._after is not None:
            self._after[call] = state
        return out

    def _fill_between(self, out: torch.Tensor, before: torch.Tensor, after: torch.Tensor, kept: int) -> None:
        """`out` (in-betweens, …), filled with the noises of the in-betweens before the `kept` frame, as far as they are
        in the segment.
        """
        for place, between in enumerate(out, 1):
            a, b = on_great_circle(place / self._timeline.in_betweens, self._model.correlation(kept))
            between.copy_((a * before).add_(b * after))


class ClipNoise(SegmentNoise):
    """All noise that the sampling of one clip draws, correlated over its frames.

    `motion`, `inertia` hold λ and β of every kept frame; `model` is one of `MODELS`, `alpha` belongs to "mixed"
    and "progressive", `inertia`, `loop`, `candidates`, `solver` and `traces` to "dependency". Longer clips begin like
    shorter ones (loops aside), and retaken ones up to the first frame that is. With `in_betweens` n there are n - 1
    frames between kept frames; those stay what they are without. A clip is drawn as a whole, by this object, or by
    those that `segment` returns.
    """

    def __init__(
        self,
        seed: int,
        motion: Sequence[float],
        inertia: Sequence[float] | None = None,
        *,
        model: str = "dependency",
        alpha: float = 0.9,
        loop: bool = False,
        candidates: int = 1,
        solver: str = "exact",
        traces: list[SearchTrace] | None = None,
        in_betweens: int = 1,
        retakes: Retakes = (),
    ):
        if model not in MODELS:
            raise ValueError(f"noise model {model!r} is none of {', '.join(MODELS)}")
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is none of {', '.join(SOLVERS)}")
        kept = len(motion)
        loop = loop and kept > 1 and model == "dependency"
        if model == "mixed":
            recursion = Mixed(alpha)
        elif model in ("progressive", "independent"):
            recursion = progressive(kept, alpha if model == "progressive" else 0.0)
        elif loop:
            recursion = Loop(kept, motion[0])
        else:
            recursion = Dependency(list(motion), inertia, candidates, solver, traces)
        timeline = Timeline(kept, in_betweens, loop)
        seed_of = functools.partial(frame_seed, seed, retakes=retakes)
        super().__init__(recursion, timeline, seed_of, 0, timeline.frames, {}, None)
        self._states: dict[int, dict[tuple[str, int], State]] = {0: {}}  # by the frame that goes on from it

    @property
    def mixing(self) -> torch.Tensor | None:
        """L (frames, kept frames), float64, built anew each time; None while the angles of dependency noise are not
        known, before the first draw.
        """
        if not self._model.found:
            return None
        kept = self._model.matrix(self._timeline.kept_frames)
        rows = torch.empty(self.frames, kept.shape[1], dtype=torch.float64)
        steps = self._timeline.in_betweens
        for number, row in enumerate(kept):
            rows[number * steps] = row
            if number:
                self._fill_between(rows[(number - 1) * steps + 1 : number * steps], kept[number - 1], row, number)
        if self._timeline.closed:
            self._fill_between(rows[(len(kept) - 1) * steps + 1 :], kept[-1], kept[0], len(kept))
        return rows

    def segment(self, first: int, count: int) -> SegmentNoise:
        """The noise of the frames first, …, first + count - 1, for one who samples them after those before.

        What the next segment goes on from is kept, one or two float64 tensors of a frame's size per draw, and that of
        the segment before given up. The last segment may be asked for again, and draws the same again. Raises
        ValueError for frames that are not the clip's, that do not go on from frames of a segment, that begin or end
        between two kept frames, and for a part of a loop.
        """
        end = first + count
        if not 0 <= first < end <= self.frames:
            raise ValueError(f"frames {first} to {end - 1} are no frames of a clip of {self.frames}")
        if isinstance(self._model, Loop) and count < self.frames:
            raise ValueError(f"frames {first} to {end - 1} of a loop of {self.frames}: loops are drawn as a whole")
        if end < self.frames and end % self._timeline.in_betweens:
            raise ValueError(f"a segment of {count} frames ends between two kept frames: it can end before one")
        if first not in self._states:
            begins = " or ".join(map(str, self._states))
            raise ValueError(f"a segment from frame {first} on does not follow another; it can begin at frame {begins}")
        before, after = self._states[first], {} if end < self.frames else None
        self._states = {first: before} if after is None else {first: before, end: after}
        return SegmentNoise(self._model, self._timeline, self._seed_of, first, count, before, after)
