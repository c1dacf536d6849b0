"""Noise models: how the noises of consecutive frames depend on each other (paper, section 3).

Every model is linear: the frames' noises are x = L n with independent innovations n and a mixing matrix
L, lower triangular with rows of unit norm. Each frame alone is N(0, I); frame 1 is n₁, the noise that the
host draws for a still. L, found for the first draw, correlates every later draw of a sampler as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange

MODELS = ("dependency", "mixed", "progressive", "independent")
SOLVERS = ("exact", "search")
SEARCH_ITERATIONS = 15
"""Iterations of the second stage of the `search` solver (paper, section 6.1)."""
INDEPENDENT = math.sqrt(math.e)
"""The expected λ between independent frames: E[eᵖ p] of a standard normal p."""


def frame_seeds(seed: int, frames: int) -> list[int]:
    """A seed for the noise of each frame: `seed` itself for frame 1, then ones derived from it.

    The derived seeds (63 bit) depend on `seed` and the frame's number alone, and are unlike the seeds of
    neighbouring clips.
    """

    def derive(frame: int) -> int:
        digest = hashlib.sha256(f"zs2 {seed} {frame}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    return [seed] + [derive(frame) for frame in range(1, frames)]


def kl_divergence(frame: torch.Tensor, previous: torch.Tensor) -> float:
    """KL of the paper's listing 1: the mean of eᵖ (p - x) over one frame x and the previous frame p."""
    p, x = previous.double(), frame.double()
    return (p.exp() * (p - x)).mean().item()


@dataclass
class SearchTrace:
    """|KL - λ| of one frame after each iteration of the two-stage search (paper, Figure 17)."""

    random: list[float] = field(default_factory=list)
    linear: list[float] = field(default_factory=list)


# --- the dependency model (section 3.1) ---------------------------------------------------------------


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


def dependency_noise(
    still: torch.Tensor,
    motion: Sequence[float],
    draw: Callable[[int], torch.Tensor],
    inertia: Sequence[float] | None = None,
    candidates: int = 1,
    solver: str = "exact",
    traces: list[SearchTrace] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noises in which consecutive frames have the divergence λ (paper, section 3.1, Algorithm 1).

    `still` is the first frame's noise, flat, float64; `motion[i]` is λ of the step into frame i;
    `draw(i)` returns one more independent innovation for frame i. Of `candidates` innovations per frame
    the one whose divergence from the previous frame is nearest λ is kept, and mixed with the previous
    frame at the angle that gives λ exactly (solver "exact") or nearly ("search").

    The paper keeps the best of 10. The exact solver needs no search, and for small λ the nearest candidate is the one
    most along eᵖ, step after step: over 32 frames of 4×64×64 at λ = .05 that raises a frame's variance by 5 %, where a
    single candidate leaves each frame N(0, I).

    Beyond the paper, `inertia[i]` = β in [0, 1] lets the step into frame i keep part of the last step's
    heading t: its direction is q = β t + √(1 - β²) n. β = 0 is the paper's random walk, β = 1 a great circle.

    Returns the frames (frames, elements) and the mixing matrix (frames, frames), both float64. With
    `traces` the search's errors are appended to it, one trace per frame from the second.
    """
    frames = len(motion)
    inertia = inertia if inertia is not None else [0.0] * frames
    x = torch.empty(frames, still.numel(), dtype=torch.float64)  # (frames, elements)
    mixing = torch.zeros(frames, frames, dtype=torch.float64)  # (frames, innovations)
    x[0], mixing[0, 0] = still, 1.0
    heading = heading_row = None  # (elements), (innovations)

    for i in range(1, frames):
        previous, goal, trace = x[i - 1], motion[i], SearchTrace()
        kept = inertia[i] if heading is not None else 0.0
        innovations = (draw(i).double().flatten() for _ in range(candidates))
        if kept:
            innovations = (kept * heading + math.sqrt(1 - kept**2) * innovation for innovation in innovations)
        direction, a, b = _nearest(innovations, previous, goal, trace)  # (elements)
        row = torch.zeros(frames, dtype=torch.float64)  # (innovations)
        row[i] = math.sqrt(1 - kept**2)
        if kept:
            row += kept * heading_row

        theta = exact_angle(a, b, goal) if solver == "exact" else searched_angle(a, b, goal, trace.linear)
        cos, sin = math.cos(theta), math.sin(theta)
        x[i] = cos * previous + sin * direction
        mixing[i] = cos * mixing[i - 1] + sin * row
        heading = cos * direction - sin * previous
        heading_row = cos * row - sin * mixing[i - 1]
        if traces is not None:
            traces.append(trace)
    return x, mixing


def _nearest(
    candidates: Iterable[torch.Tensor], previous: torch.Tensor, motion: float, trace: SearchTrace
) -> tuple[torch.Tensor, float, float]:
    """Of the directions `candidates` (elements) the one whose divergence from `previous` is nearest λ (section 3.1,
    first stage), and the numbers a and b of `exact_angle` for it. Appends |KL - λ| of each candidate to `trace`.
    """
    weight = previous.exp()  # (elements)
    a = (weight * previous).mean().item()
    direction, b = None, 0.0
    for candidate in candidates:
        candidate_b = (weight * candidate).mean().item()
        if direction is None or abs(a - candidate_b - motion) < abs(a - b - motion):
            direction, b = candidate, candidate_b
        trace.random.append(abs(a - b - motion))
    return direction, a, b


# --- models that are a matrix from the start ----------------------------------------------------------


def mixed_matrix(frames: int, alpha: float) -> torch.Tensor:
    """L of the mixed noise model (PYoCo; paper, section 3): any two frames share the correlation α."""
    shared = torch.full((frames, 1), math.sqrt(alpha), dtype=torch.float64)
    individual = math.sqrt(1 - alpha) * torch.eye(frames, dtype=torch.float64)
    return _triangular(torch.cat([shared, individual], dim=1))


def progressive_matrix(frames: int, alpha: float) -> torch.Tensor:
    """L of the progressive noise model (PYoCo; paper, section 3): xⁱ = √α xⁱ⁻¹ + √(1 - α) nⁱ."""
    mixing = torch.eye(frames, dtype=torch.float64)
    for i in range(1, frames):
        mixing[i] = math.sqrt(alpha) * mixing[i - 1] + math.sqrt(1 - alpha) * mixing[i]
    return mixing


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


# --- the noise of one clip ----------------------------------------------------------------------------


class ClipNoise:
    """All noise that the sampling of one clip draws, correlated over its frames.

    `motion`, `inertia` hold λ and β of every frame; `model` is one of `MODELS`, `alpha` belongs to "mixed"
    and "progressive", `inertia`, `loop`, `candidates` and `solver` to "dependency". Frame i's innovations
    come from `frame_seeds(seed, frames)[i]`, on the CPU in float32, the same on every device; longer clips begin like
    shorter ones (loops aside).
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
    ):
        if model not in MODELS:
            raise ValueError(f"noise model {model!r} is none of {', '.join(MODELS)}")
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is none of {', '.join(SOLVERS)}")
        self.frames = len(motion)
        self.motion, self.inertia = list(motion), inertia
        self.candidates, self.solver = candidates, solver
        self.seeds = frame_seeds(seed, self.frames)
        self.generators = [torch.Generator().manual_seed(frame_seed) for frame_seed in self.seeds]
        self.traces: list[SearchTrace] = []
        self.mixing: torch.Tensor | None = None
        """L (frames, frames), float64; for the dependency model known from the first draw on."""

        if model == "mixed":
            self.mixing = mixed_matrix(self.frames, alpha)
        elif model == "progressive":
            self.mixing = progressive_matrix(self.frames, alpha)
        elif model == "independent":
            self.mixing = torch.eye(self.frames, dtype=torch.float64)
        elif loop and self.frames > 1:
            self.mixing = loop_matrix(self.frames, self.motion[0])

    def draw(self, still: torch.Tensor) -> torch.Tensor:
        """The next noise of all frames (frames, channels, height, width), like `still` in dtype and device.

        `still` (1, channels, height, width) is what the host draws for frame 1, and becomes frame 1. The
        first draw fixes the mixing matrix; the following ones (ancestral and SDE steps, the second pass of hires.fix,
        which has another height and width) are mixed by it.
        """
        _, channels, height, width = still.shape
        first = still.detach().to("cpu", torch.float64).flatten()

        def innovation(frame: int) -> torch.Tensor:
            return torch.randn(channels, height, width, generator=self.generators[frame])

        if self.mixing is None:
            frames, self.mixing = dependency_noise(
                first, self.motion, innovation, self.inertia, self.candidates, self.solver, self.traces
            )
        else:
            innovations = [first] + [innovation(frame).double().flatten() for frame in range(1, self.frames)]
            frames = self.mix(torch.stack(innovations))
        return rearrange(frames.to(still), "frame (c h w) -> frame c h w", c=channels, h=height, w=width)

    def mix(self, innovations: torch.Tensor) -> torch.Tensor:
        """L n for independent noises n (frames, …) of any kind, like them in dtype and device; after the first draw.

        Multiplied on the CPU in float64: faster matrix products (TF32) would change the frames' noise.
        """
        return (self.mixing @ innovations.to("cpu", torch.float64).flatten(1)).to(innovations).view_as(innovations)
