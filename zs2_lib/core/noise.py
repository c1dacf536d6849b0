"""The noise that the sampling of a clip draws, correlated over its frames by a noise model, whole or in segments."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence

import torch

from .noise_models import SOLVERS, Dependency, Loop, Mixed, Recursion, SearchTrace, State, progressive

MODELS = ("dependency", "mixed", "progressive", "independent")
CPU = torch.device("cpu")


def frame_seeds(seed: int, frames: int, first: int = 0) -> list[int]:
    """A seed for the noise of each of `frames` frames from `first` on: `seed` itself for frame 0, then ones derived
    from it.

    The derived seeds (63 bit) depend on `seed` and the frame's number alone, and are unlike the seeds of
    neighbouring clips.
    """

    def derive(frame: int) -> int:
        digest = hashlib.sha256(f"zs2 {seed} {frame}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    return [derive(frame) if frame else seed for frame in range(first, first + frames)]


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
    """

    def __init__(
        self,
        model: Recursion | Loop,
        seed: int,
        first: int,
        frames: int,
        before: dict[tuple[str, int], State],
        after: dict[tuple[str, int], State] | None,
    ):
        self.first, self.frames = first, frames
        self._model, self._seed = model, seed
        self._before, self._after = before, after
        self._generators: dict[int, torch.Generator] = {}
        self._draws, self._mixes = itertools.count(), itertools.count()

    @functools.cached_property
    def seeds(self) -> list[int]:
        """The seed of each frame's innovations."""
        return frame_seeds(self._seed, self.frames, self.first)

    def draw(self, still: torch.Tensor) -> torch.Tensor:
        """The next noise of all frames (frames, channels, height, width), like `still` in dtype and device.

        `still` (1, channels, height, width) is what the host draws for frame 0 of the clip, and becomes frame 0; other
        segments take its shape alone. The first draw fixes the angles of dependency noise, on the CPU; the following
        ones (ancestral and SDE steps, the second pass of hires.fix, which has another height and width) are mixed by
        them.
        """
        number = next(self._draws)

        def innovation(frame: int) -> torch.Tensor:
            return torch.randn(still.shape[1:], generator=self._generator(frame)) if frame else still[0].detach()

        device = self._device(still.device) if number else CPU
        out = torch.empty(self.frames, *still.shape[1:], dtype=still.dtype, device=device)
        return self._fill(out, ("draw", number), innovation).to(still.device)

    def mix(self, innovations: torch.Tensor) -> torch.Tensor:
        """Independent noises (frames, …) of any kind correlated as the drawn ones are, like them in dtype and device;
        after the first draw.
        """
        call = ("mix", next(self._mixes))
        out = torch.empty_like(innovations, device=self._device(innovations.device))
        return self._fill(out, call, lambda frame: innovations[frame - self.first]).to(innovations.device)

    def _device(self, device: torch.device) -> torch.device:
        """Where noise for `device` is mixed; that of a loop on the CPU, as all its frames are held in float64."""
        return CPU if isinstance(self._model, Loop) else exact_device(device)

    def _generator(self, frame: int) -> torch.Generator:
        """Made when it is needed, and gone with the segment: each holds 5 kB."""
        if frame not in self._generators:
            self._generators[frame] = torch.Generator().manual_seed(self.seeds[frame - self.first])
        return self._generators[frame]

    def _fill(
        self, out: torch.Tensor, call: tuple[str, int], innovation: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """`out` (frames, …), filled with the noises that follow from `innovation(frame)`, and computed on its device.

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

        def draw(frame: int) -> torch.Tensor:
            drawn = innovation(frame)
            return drawn.to(out.device, non_blocking=drawn.device == CPU).double()

        states = self._model.follow(self.first, self.frames, state, draw, find=call == ("draw", 0))
        for row, state in zip(out, states):
            row.copy_(state.frame)
        if self._after is not None:
            self._after[call] = state
        return out


class ClipNoise(SegmentNoise):
    """All noise that the sampling of one clip draws, correlated over its frames.

    `motion`, `inertia` hold λ and β of every frame; `model` is one of `MODELS`, `alpha` belongs to "mixed"
    and "progressive", `inertia`, `loop`, `candidates`, `solver` and `traces` to "dependency". Longer clips begin like
    shorter ones (loops aside). A clip is drawn as a whole, by this object, or by those that `segment` returns.
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
    ):
        if model not in MODELS:
            raise ValueError(f"noise model {model!r} is none of {', '.join(MODELS)}")
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is none of {', '.join(SOLVERS)}")
        frames = len(motion)
        if model == "mixed":
            recursion = Mixed(alpha)
        elif model in ("progressive", "independent"):
            recursion = progressive(frames, alpha if model == "progressive" else 0.0)
        elif loop and frames > 1:
            recursion = Loop(frames, motion[0])
        else:
            recursion = Dependency(list(motion), inertia, candidates, solver, traces)
        super().__init__(recursion, seed, 0, frames, {}, None)
        self._kept: dict[int, dict[tuple[str, int], State]] = {0: {}}  # by the frame that goes on from it

    @property
    def mixing(self) -> torch.Tensor | None:
        """L (frames, frames), float64, built anew each time; None while the angles of dependency noise are not known,
        before the first draw.
        """
        return self._model.matrix(self.frames) if self._model.found else None

    def segment(self, first: int, count: int) -> SegmentNoise:
        """The noise of the frames first, …, first + count - 1, for one who samples them after those before.

        What the next segment goes on from is kept, one or two float64 tensors of a frame's size per draw, and that of
        the segment before given up. The last segment may be asked for again, and draws the same again. Raises
        ValueError for frames that are not the clip's, that do not go on from frames of a segment, and for a part of a
        loop.
        """
        end = first + count
        if not 0 <= first < end <= self.frames:
            raise ValueError(f"frames {first} to {end - 1} are no frames of a clip of {self.frames}")
        if isinstance(self._model, Loop) and count < self.frames:
            raise ValueError(f"frames {first} to {end - 1} of a loop of {self.frames}: loops are drawn as a whole")
        if first not in self._kept:
            begins = " or ".join(map(str, self._kept))
            raise ValueError(f"a segment from frame {first} on does not follow another; it can begin at frame {begins}")
        before, after = self._kept[first], {} if end < self.frames else None
        self._kept = {first: before} if after is None else {first: before, end: after}
        return SegmentNoise(self._model, self._seed, first, count, before, after)
