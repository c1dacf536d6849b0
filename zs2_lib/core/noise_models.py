"""Noise models: how the noise of a frame follows from the frames before it (paper, section 3).

Every model is linear: the frames' noises are x = L n with independent innovations n and a mixing matrix L, lower
triangular with rows of unit norm, so that each frame alone is N(0, I) and frame 1 is n₁. Nothing but a `Loop`
multiplies by L: the others are a recursion whose state is one or two tensors, and a clip costs what its length costs.
States are float64: what float32 rounds off adds up from frame to frame, within a thousand to 2e-6 at λ = .05 and 1e-5
on a great circle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

SOLVERS = ("exact", "search")
SEARCH_ITERATIONS = 15
"""Iterations of the second stage of the `search` solver (paper, section 6.1)."""
INDEPENDENT = math.sqrt(math.e)
"""The expected λ between independent frames: E[eᵖ p] of a standard normal p."""


@dataclass(frozen=True)
class State:
    """What the next frame's noise follows from: the last frame's noise, and what a model has beside it; both float64,
    and alike in shape.
    """

    frame: torch.Tensor
    beside: torch.Tensor | None = None

    def to(self, device: torch.device) -> State:
        return State(self.frame.to(device), None if self.beside is None else self.beside.to(device))


class Recursion:
    """A noise model in which a frame follows from an innovation and the state after the frame before.

    Frames are counted from 0, innovations are float64 tensors of any one shape.
    """

    found = True
    """Whether all numbers of the recursion are known, as they are but for a `Dependency`."""

    def begin(self, noise: torch.Tensor) -> State:
        """The state after frame 0, whose noise is `noise`; a copy of it."""
        return State(noise.clone(memory_format=torch.contiguous_format))

    def step(self, i: int, state: State, innovation: torch.Tensor) -> State:
        """The state after frame i, from the `state` after the frame before."""
        raise NotImplementedError

    def find(self, i: int, state: State, draw: Callable[[], torch.Tensor]) -> State:
        """`step` in a clip's first draw; `draw()` returns one more innovation of frame i each time."""
        return self.step(i, state, draw())

    def correlation(self, i: int) -> float:
        """That of the noises of the frames i - 1 and i."""
        raise NotImplementedError

    def follow(
        self, first: int, count: int, state: State | None, draw: Callable[[int], torch.Tensor], find: bool
    ) -> Iterator[State]:
        """The states after the frames first, …, first + count - 1, from that after the frame before (None for frame 0).

        `draw(i)` returns one more innovation of frame i; with `find` they are of the clip's first draw.
        """
        for i in range(first, first + count):
            if i == 0:
                state = self.begin(draw(0))
            else:
                state = self.find(i, state, functools.partial(draw, i)) if find else self.step(i, state, draw(i))
            yield state

    def matrix(self, frames: int) -> torch.Tensor:
        """L (frames, frames), float64: what becomes of unit vectors as innovations. Only for checks and plots."""
        units = torch.eye(frames, dtype=torch.float64)  # (frames, innovations)
        return torch.stack([state.frame for state in self.follow(0, frames, None, units.__getitem__, find=False)])


class Walk(Recursion):
    """Each frame is a step from the one before: x = cos θ p + sin θ q in a direction q.

    `turns[i]` is (cos θ, sin θ) of the step into frame i. Beyond the paper, `inertia[i]` = β in [0, 1] lets it keep
    part of the last step's heading t = cos θ q - sin θ p, which is then in the state: q = β t + √(1 - β²) n. β = 0 is a
    random walk, the paper's; β = 1 a great circle.
    """

    def __init__(self, turns: list[tuple[float, float] | None], inertia: Sequence[float] | None = None):
        self._turns = turns
        self._inertia = inertia if inertia is not None else [0.0] * len(turns)

    def step(self, i: int, state: State, innovation: torch.Tensor) -> State:
        return self._turn(i, state.frame, self._direction(i, state, innovation))

    def correlation(self, i: int) -> float:
        """That of the noises of the frames i - 1 and i, cos θ."""
        return self._turns[i][0]

    def _direction(self, i: int, state: State, innovation: torch.Tensor) -> torch.Tensor:
        """q of the step into frame i."""
        if state.beside is None:
            return innovation
        kept = self._inertia[i]
        return (kept * state.beside).add_(math.sqrt(1 - kept**2) * innovation)

    def _turn(self, i: int, previous: torch.Tensor, direction: torch.Tensor) -> State:
        """The state after the step into frame i from `previous` in the `direction`."""
        cos, sin = self._turns[i]
        frame = (cos * previous).add_(sin * direction)
        if not any(self._inertia[i + 1 : i + 2]):  # the next step keeps nothing of this one
            return State(frame)
        return State(frame, (cos * direction).sub_(sin * previous))


def progressive(frames: int, alpha: float) -> Walk:
    """The progressive noise model (PYoCo; paper, section 3): xⁱ = √α xⁱ⁻¹ + √(1 - α) nⁱ. α = 0: independent frames."""
    return Walk([(math.sqrt(alpha), math.sqrt(1 - alpha))] * frames)


class Mixed(Recursion):
    """The mixed noise model (PYoCo; paper, section 3): √α n₀ + √(1 - α) nⁱ, so that any two frames have the
    correlation α.

    They are exchangeable, so all that i frames say of the next one is in their sum s: its expectation, which is in the
    state, is h = α s / (1 + (i - 1) α), and its variance around it d² = (1 - α) (1 + i α) / (1 + (i - 1) α). Frame i is
    h + d n, and adds α d n / (1 + i α) to h. The same process over other innovations: frame 1 is the first of them.
    """

    def __init__(self, alpha: float):
        self._alpha = alpha

    def begin(self, noise: torch.Tensor) -> State:
        return State(super().begin(noise).frame, self._alpha * noise)

    def step(self, i: int, state: State, innovation: torch.Tensor) -> State:
        alpha, expected = self._alpha, state.beside
        seen = 1 + i * alpha
        deviation = math.sqrt((1 - alpha) * seen / (seen - alpha))
        return State((deviation * innovation).add_(expected), (alpha * deviation / seen * innovation).add_(expected))

    def correlation(self, i: int) -> float:
        """That of any two frames, α."""
        return self._alpha


def on_great_circle(part: float, correlation: float) -> tuple[float, float]:
    """How much of two noises of this correlation lies at the `part` (0 to 1) of the great circle's arc from the first
    to the second: with cos θ the correlation, sin((1 - part) θ) / sin θ and sin(part θ) / sin θ, so that the noise
    between them is N(0, I) as they are.
    """
    theta = math.acos(min(max(correlation, -1.0), 1.0))
    if theta < 1e-6:
        return 1 - part, part
    return math.sin((1 - part) * theta) / math.sin(theta), math.sin(part * theta) / math.sin(theta)


# --- the dependency model (section 3.1) -----------------------------------------------------------------


def kl_divergence(frame: torch.Tensor, previous: torch.Tensor) -> float:
    """KL of the paper's listing 1: the mean of eᵖ (p - x) over one frame x and the previous frame p."""
    p, x = previous.double(), frame.double()
    return (p.exp() * (p - x)).mean().item()


@dataclass
class SearchTrace:
    """|KL - λ| of one frame after each iteration of the two-stage search (paper, Figure 17)."""

    random: list[float] = field(default_factory=list)
    linear: list[float] = field(default_factory=list)


def exact_angle(a: float, b: float, motion: float) -> float:
    """The angle θ at which x = cos θ p + sin θ q has KL(x, p) = λ.

    With a = mean(eᵖ p) and b = mean(eᵖ q) the divergence is a (1 - cos θ) - b sin θ, so
    θ = φ + arccos((a - λ) / R) with R = hypot(a, b) and φ = atan2(b, a). λ = 0 gives θ = 0, the same
    noise again; λ ≥ √e, what independent noise has on average, gives π/2. Just below √e a frame may by
    chance need a little more than π/2.
    """
    if motion <= 0:
        return 0.0
    if motion >= INDEPENDENT:
        return math.pi / 2
    cosine = (a - motion) / math.hypot(a, b)
    return math.atan2(b, a) + math.acos(min(max(cosine, -1.0), 1.0))


def searched_angle(a: float, b: float, motion: float, errors: list[float] | None = None) -> float:
    """The angle of `exact_angle` by the paper's second stage, a search for α = cos² θ (Algorithm 1).

    As printed, Algorithm 1 can only step up and may end at α = 1; here α is bracketed in [0, 1], where the
    divergence falls from above λ to below it, and the bracket is halved `SEARCH_ITERATIONS` times. Appends
    |KL - λ| after each iteration to `errors`.
    """

    def divergence(alpha: float) -> float:
        return a * (1 - math.sqrt(alpha)) - b * math.sqrt(1 - alpha)

    low, high = 0.0, 1.0
    if motion <= 0:
        low = 1.0
    elif divergence(0.0) <= motion:
        high = 0.0
    for _ in range(SEARCH_ITERATIONS):
        alpha = (low + high) / 2
        if errors is not None:
            errors.append(abs(divergence(alpha) - motion))
        if divergence(alpha) > motion:
            low = alpha
        else:
            high = alpha
    return math.acos(math.sqrt((low + high) / 2))


class Dependency(Walk):
    """Consecutive frames have the divergence λ (paper, section 3.1, Algorithm 1).

    `motion[i]` is λ of the step into frame i; `inertia` as of a `Walk`. The angles are found with the first noise that
    is drawn, by `find`: of `candidates` innovations per frame the one whose divergence from the previous frame is
    nearest λ is kept, and mixed with the previous frame at the angle that gives λ exactly (solver "exact") or nearly
    ("search"). With `traces` the search's errors are appended to it, one trace per frame from the second.

    The paper keeps the best of 10. The exact solver needs no search, and for small λ the nearest candidate is the one
    most along eᵖ, step after step: over 32 frames of 4×64×64 at λ = .05 that raises a frame's variance by 5 %, where a
    single candidate leaves each frame N(0, I).
    """

    def __init__(
        self,
        motion: Sequence[float],
        inertia: Sequence[float] | None = None,
        candidates: int = 1,
        solver: str = "exact",
        traces: list[SearchTrace] | None = None,
    ):
        super().__init__([None] * len(motion), inertia)
        self._motion, self._candidates, self._solver, self._traces = motion, candidates, solver, traces

    @property
    def found(self) -> bool:
        """Whether the angles of all frames are known."""
        return None not in self._turns[1:]

    def find(self, i: int, state: State, draw: Callable[[], torch.Tensor]) -> State:
        """The state after frame i as by `step`, the angle found anew; `draw()` returns one more innovation for it."""
        goal, trace = self._motion[i], SearchTrace()
        directions = (self._direction(i, state, draw()) for _ in range(self._candidates))
        direction, a, b = _nearest(directions, state.frame, goal, trace)
        theta = exact_angle(a, b, goal) if self._solver == "exact" else searched_angle(a, b, goal, trace.linear)
        self._turns[i] = math.cos(theta), math.sin(theta)
        if self._traces is not None:
            self._traces.append(trace)
        return self._turn(i, state.frame, direction)


def _nearest(
    candidates: Iterable[torch.Tensor], previous: torch.Tensor, motion: float, trace: SearchTrace
) -> tuple[torch.Tensor, float, float]:
    """Of the directions `candidates` the one whose divergence from `previous` is nearest λ (section 3.1, first
    stage), and the numbers a and b of `exact_angle` for it. Appends |KL - λ| of each candidate to `trace`.
    """
    weight = previous.exp()
    a = (weight * previous).mean().item()
    direction, b = None, 0.0
    for candidate in candidates:
        candidate_b = (weight * candidate).mean().item()
        if direction is None or abs(a - candidate_b - motion) < abs(a - b - motion):
            direction, b = candidate, candidate_b
        trace.random.append(abs(a - b - motion))
    return direction, a, b


# --- loops ----------------------------------------------------------------------------------------------


class Loop:
    """Frames that lead back to the first, by `loop_matrix`.

    Each follows from all before it, so that there is no recursion with a small state: innovations are multiplied by L,
    which costs frames² and goes by whole clips alone.
    """

    found = True

    def __init__(self, frames: int, motion: float):
        self._frames, self._motion = frames, motion

    @functools.cached_property
    def _mixing(self) -> torch.Tensor:
        return loop_matrix(self._frames, self._motion)

    def follow(
        self, first: int, count: int, state: None, draw: Callable[[int], torch.Tensor], find: bool
    ) -> Iterator[State]:
        """As by `Recursion.follow`, for all frames of the loop."""
        innovations = torch.stack([draw(i) for i in range(count)])
        for frame in (self._mixing @ innovations.flatten(1)).view_as(innovations):
            yield State(frame)

    def correlation(self, i: int) -> float:
        """That of the noises of neighbouring frames, the last and the first among them."""
        return (self._mixing[0] @ self._mixing[1]).item()

    def matrix(self, frames: int) -> torch.Tensor:
        """L (frames, frames), float64."""
        return self._mixing


def loop_matrix(frames: int, motion: float) -> torch.Tensor:
    """L of a loop: a stationary process on the circle, the step from the last frame to the first like any other.

    x_i = √w₀ n₀ + Σ_h √w_h (cos(2πhi/m) n_h + sin(2πhi/m) n'_h). Neighbours have the correlation 1 - λ/√e
    that λ stands for on average, 1 for λ = 0 and none from λ = √e on. The power w is spread evenly over as
    few harmonics h as reach it: the slowest closed path with that step.
    """
    goal = min(motion / INDEPENDENT, 1.0)
    drops = [1 - math.cos(2 * math.pi * h / frames) for h in range(frames // 2 + 1)]

    def flat(harmonics: int) -> float:
        """1 - the neighbours' correlation with the power even over harmonics 1..harmonics."""
        return sum(drops[1 : harmonics + 1]) / harmonics if harmonics else 0.0

    last = next((h for h in range(1, len(drops)) if flat(h) >= goal), len(drops) - 1)
    share = (goal - flat(last - 1)) / (flat(last) - flat(last - 1))
    power = [0.0] * len(drops)
    for harmonics, weight in ((last - 1, 1 - share), (last, share)):
        for h in range(1, harmonics + 1):
            power[h] += weight / harmonics
        if not harmonics:
            power[0] += weight

    angle = 2 * math.pi * torch.arange(frames, dtype=torch.float64) / frames
    columns = [torch.full((frames,), math.sqrt(power[0]), dtype=torch.float64)]
    for h in range(1, len(drops)):
        columns += [math.sqrt(power[h]) * torch.cos(h * angle), math.sqrt(power[h]) * torch.sin(h * angle)]
    return _triangular(torch.stack(columns, dim=1))


def _triangular(factor: torch.Tensor) -> torch.Tensor:
    """The lower triangular L (frames, frames) with L Lᵀ = F Fᵀ, for any factor F (frames, sources).

    The same process over rotated innovations, so that frame 1 is the first innovation alone.
    """
    frames = factor.shape[0]
    mixing = torch.linalg.qr(factor.T).R.T
    mixing = mixing * torch.where(mixing.diagonal() < 0, -1.0, 1.0)
    return torch.nn.functional.pad(mixing, (0, frames - mixing.shape[1]))
