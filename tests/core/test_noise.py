"""The noise models against references in float64 that are written from the equations, and against statistics.

References: KL(x, p) is torch's own `kl_div`, as in the paper's listing 1; a step solves KL = λ by bisection,
where the library has a closed form; covariances are the models' definitions; a clip is its dense L times its
innovations, where the library has a recursion.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from zs2_lib.core import noise as noise_module
from zs2_lib.core.noise import MODELS, ClipNoise, exact_device, frame_seeds
from zs2_lib.core.noise_models import SEARCH_ITERATIONS, Dependency, kl_divergence, loop_matrix

SQRT_E = math.sqrt(math.e)
VARIANTS = {
    "dependency": {},
    "search": dict(solver="search"),
    "inertia": dict(inertia=0.7),
    "great circle": dict(inertia=1.0),
    "loop": dict(loop=True),
    "mixed": dict(model="mixed", alpha=0.6),
    "progressive": dict(model="progressive", alpha=0.9),
    "independent": dict(model="independent"),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def clip(
    variant: str = "dependency", frames: int = 8, seed: int = 0, motion: float | list[float] = 0.05, **options
) -> ClipNoise:
    options = {**VARIANTS[variant], **options}
    inertia = options.pop("inertia", None)
    return ClipNoise(
        seed,
        motion if isinstance(motion, list) else [motion] * frames,
        [inertia] * frames if isinstance(inertia, float) else inertia,
        **options,
    )


def still(seed: int = 0, shape=(4, 64, 64)) -> torch.Tensor:
    """What a host draws for the image of that seed."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def kl(x: torch.Tensor, p: torch.Tensor) -> float:
    return torch.nn.functional.kl_div(x.double(), p.double(), reduction="none", log_target=True).mean().item()


def normals(count: int, elements: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, elements, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlation(frames: torch.Tensor) -> torch.Tensor:
    return torch.corrcoef(frames.flatten(1).double())


# --- dependency noise: the step -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("inertia", [0.0, 0.8])
@pytest.mark.parametrize("motion", [0.0, 1e-4, 0.01, 0.05, 0.25, 1.0, 1.5, 1.6])
def test_exact_solver_meets_motion(motion, inertia, seed):
    frames = clip(motion=motion, inertia=inertia, seed=seed, frames=6).draw(still(seed))
    for x, p in zip(frames[1:], frames):
        assert abs(kl(x, p) - motion) < 1e-6


def test_exact_solver_meets_keyframes():
    motion = [0.0, 0.01, 0.3, 0.0, 1.2, 0.05]
    frames = clip(motion=motion).draw(still())
    assert [kl(x, p) for x, p in zip(frames[1:], frames)] == pytest.approx(motion[1:], abs=1e-6)


@pytest.mark.parametrize("solver", ["exact", "search"])
def test_no_motion_is_a_still(solver):
    frames = clip(motion=0.0, inertia=0.5, solver=solver).draw(still())
    assert all(torch.equal(frame, still()[0]) for frame in frames)


@pytest.mark.parametrize("motion", [SQRT_E, 5.0])
@pytest.mark.parametrize("solver", ["exact", "search"])
def test_motion_from_sqrt_e_on_is_independence(motion, solver):
    noise = clip(motion=motion, solver=solver)
    frames = noise.draw(still())
    if solver == "exact":  # the search only knows that by chance no α reaches λ
        torch.testing.assert_close(noise.mixing, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (correlation(frames) - torch.eye(8)).abs().max() < 0.1


def reference_walk(innovations, motion, inertia) -> tuple[torch.Tensor, torch.Tensor]:
    """x = cos θ p + sin θ q, q = β t + √(1-β²) n, t = cos θ q - sin θ p, with KL(x, p) = λ by bisection, or θ = π/2
    from λ = √e on; and L, its rows from the same equations. `innovations` (frames, candidates, elements).
    """
    rows = torch.eye(len(motion), dtype=torch.float64)  # what each frame, direction and heading is of the innovations
    frames, mixing, heading, heading_row = [innovations[0][-1]], [rows[0]], None, None
    for candidates, row, step, kept in zip(innovations[1:], rows[1:], motion[1:], inertia[1:]):
        p, p_row = frames[-1], mixing[-1]
        if heading is not None:
            candidates = kept * heading + math.sqrt(1 - kept**2) * candidates
            row = kept * heading_row + math.sqrt(1 - kept**2) * row
        q = min(candidates, key=lambda direction: abs(kl(direction, p) - step))
        low, high = 0.0, math.pi if step else 0.0
        for _ in range(60):
            angle = (low + high) / 2
            if kl(math.cos(angle) * p + math.sin(angle) * q, p) < step:
                low = angle
            else:
                high = angle
        if step >= SQRT_E:
            high = math.pi / 2
        frames.append(math.cos(high) * p + math.sin(high) * q)
        mixing.append(math.cos(high) * p_row + math.sin(high) * row)
        heading, heading_row = math.cos(high) * q - math.sin(high) * p, math.cos(high) * row - math.sin(high) * p_row
    return torch.stack(frames), torch.stack(mixing)


def walk(still: torch.Tensor, motion, draw, inertia=None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The library's frames and L for innovations of a test's own."""
    model = Dependency(motion, inertia, **options)
    states = model.follow(0, len(motion), None, lambda i: draw(i) if i else still, find=True)
    return torch.stack([state.frame for state in states]), model.matrix(len(motion))


WALKS = pytest.mark.parametrize(
    "inertia",
    [
        [0.0] * 7,
        [0.5] * 7,
        [0.9] * 7,
        [1.0] * 7,
        [0, 0.2, 0, 1, 0.7, 0, 0.4],
    ],
    ids=["random walk", "half", "nine tenths", "great circle", "keyframes"],
)


@WALKS
def test_walk_follows_the_equations(inertia):
    innovations = normals(7, 4096)
    motion = [0, 0.01, 0.05, 0, 0.25, 0.6, 0.002]
    frames, mixing = walk(innovations[0], motion, lambda i: innovations[i], inertia)
    reference, reference_mixing = reference_walk(innovations[:, None], motion, inertia)
    torch.testing.assert_close(frames, reference, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixing, reference_mixing, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixing @ innovations, frames, rtol=0, atol=1e-12)


def test_full_inertia_stays_in_a_plane():
    def planes(inertia):
        return torch.linalg.matrix_rank(clip(inertia=inertia).draw(still()).double().flatten(1), rtol=1e-5).item()

    assert planes(1.0) == 2
    assert planes(0.9) == planes(0.0) == 8


# --- dependency noise: the two-stage search -----------------------------------------------------------


@pytest.mark.parametrize("inertia", [0.0, 0.6])
@pytest.mark.parametrize("motion", [0.05, 1.65])
def test_random_search_keeps_the_nearest_candidate(motion, inertia):
    candidates = normals(5 * 8, 256).view(5, 8, 256)
    draws = iter(candidates.flatten(0, 1))
    frames, _ = walk(normals(1, 256, seed=1)[0], [motion] * 6, lambda i: next(draws), [inertia] * 6, candidates=8)
    heading = None
    for i in range(5):
        p, x = frames[i], frames[i + 1]
        q = candidates[i] if heading is None else inertia * heading + math.sqrt(1 - inertia**2) * candidates[i]
        nearest = min(q, key=lambda direction: abs(kl(direction, p) - motion))
        # x lies in the plane of p and the direction that was kept
        plane = torch.stack([p, nearest], dim=1)
        cos, sin = torch.linalg.lstsq(plane, x[:, None]).solution.flatten()
        torch.testing.assert_close(plane @ torch.stack([cos, sin]), x, rtol=0, atol=1e-12)
        heading = cos * nearest - sin * p


@pytest.mark.parametrize("motion", [0.001, 0.05, 0.25, 1.0, 1.5])
def test_search_converges(motion):
    traces = []
    noise = clip("search", motion=motion, candidates=10, traces=traces)
    frames = noise.draw(still())
    assert len(traces) == 7
    for trace, x, p in zip(traces, frames[1:], frames):
        assert len(trace.random) == 10 and len(trace.linear) == SEARCH_ITERATIONS
        assert trace.random == sorted(trace.random, reverse=True)
        assert trace.linear[0] > 0.1 and trace.linear[-1] < 1e-3
        assert abs(kl(x, p) - motion) < 1e-3
    # α = cos² θ in [0, 1]: no step is longer than to independence, none turns back
    assert all(0 <= row[i + 1] < 1 for i, row in enumerate(noise.mixing[1:]))


def test_search_and_exact_solver_agree():
    exact, search = clip().draw(still()), clip("search").draw(still())
    assert not torch.equal(exact, search)
    torch.testing.assert_close(exact, search, rtol=0, atol=5e-3)


@pytest.mark.parametrize("motion", [1.64, SQRT_E, 3.0])
def test_search_without_a_solution_stays_at_independence(motion):
    seed = next(s for s in range(20) if kl(still(s + 100), still(s)) < 1.6)
    p, n = still(seed).double().flatten(), still(seed + 100).double().flatten()
    frames, _ = walk(p, [motion] * 2, lambda i: n, solver="search")
    torch.testing.assert_close(frames[1], n, rtol=0, atol=1e-12)


def test_kl_divergence_is_the_listing():
    x, p = normals(2, 1000)
    assert kl_divergence(x.float(), p.float()) == pytest.approx(kl(x, p), rel=1e-6)


# --- matrices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 3, 4, 8, 13, 32])
@pytest.mark.parametrize("motion", [0.0, 0.01, 0.05, 0.25, 1.0, 1.6, 3.0])
def test_loop_has_equal_steps_all_around(motion, frames):
    mixing = loop_matrix(frames, motion)
    covariance = mixing @ mixing.T
    neighbours = torch.tensor([covariance[i, (i + 1) % frames] for i in range(frames)])
    torch.testing.assert_close(neighbours, torch.full_like(neighbours, max(1 - motion / SQRT_E, 0)), rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance, covariance.roll((1, 1), (0, 1)), rtol=0, atol=1e-12, msg="not stationary")


@pytest.mark.parametrize("motion", [0.0, 0.01, 0.05, 0.2])
def test_slow_loop_is_one_harmonic(motion):
    """x_i = √(1-r) n₀ + √r (cos(2πi/m) n₁ + sin(2πi/m) n₂), r from the neighbours' 1 - r (1 - cos(2π/m))."""
    angle = 2 * math.pi / 8
    r = motion / SQRT_E / (1 - math.cos(angle))
    lag = torch.arange(8, dtype=torch.float64)
    mixing = loop_matrix(8, motion)
    torch.testing.assert_close(
        mixing @ mixing.T, (1 - r) + r * torch.cos(angle * (lag[:, None] - lag)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    ("model", "covariance"),
    [
        ("mixed", lambda alpha, lag: lag.eq(0).double() * (1 - alpha) + alpha),
        ("progressive", lambda alpha, lag: math.sqrt(alpha) ** lag),
        ("independent", lambda alpha, lag: lag.eq(0).double()),
    ],
)
def test_covariance_of_the_compared_models(model, covariance, alpha):
    frame = torch.arange(6, dtype=torch.float64)
    mixing = clip(model, frames=6, alpha=alpha).mixing
    torch.testing.assert_close(mixing @ mixing.T, covariance(alpha, (frame[:, None] - frame).abs()), rtol=0, atol=1e-12)


@variants
def test_mixing_is_lower_triangular_with_unit_rows(variant):
    noise = clip(variant, motion=0.3)
    frames = noise.draw(still())
    mixing = noise.mixing
    assert mixing.shape == (8, 8) and mixing.dtype == torch.float64
    assert torch.equal(mixing, mixing.tril())
    assert mixing[0].tolist() == [1] + [0] * 7
    torch.testing.assert_close(mixing.norm(dim=1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (correlation(frames) - mixing @ mixing.T).abs().max() < 5 / math.sqrt(frames[0].numel())


# --- the recursion, against the dense L -----------------------------------------------------------------


def innovations(seed: int, shapes: list, candidates: int = 1, frames: int = 8) -> list[torch.Tensor]:
    """The innovations of each draw of a clip (frames, candidates, …), so many candidates in the first and one in the
    others; frame 1's are stills.
    """
    generators = [torch.Generator().manual_seed(s) for s in frame_seeds(seed, frames)]
    draws = []
    for draw, shape in enumerate(shapes):
        count = 1 if draw else candidates
        rows = [torch.stack([torch.randn(shape, generator=g) for _ in range(count)]) for g in generators]
        draws.append(torch.stack([still(seed + draw, shape).expand(count, *shape), *rows[1:]]).double())
    return draws


def definition(model: str, alpha: float, frames: int) -> torch.Tensor:
    """The dense L of a model, the Cholesky factor of the covariance that defines it."""
    lag = torch.arange(frames, dtype=torch.float64)
    lag = (lag[:, None] - lag).abs()
    if alpha == 1:  # all frames are the first
        return (torch.arange(frames) == 0).double().expand(frames, frames)
    if model == "progressive":
        return torch.linalg.cholesky(math.sqrt(alpha) ** lag)
    return torch.linalg.cholesky(lag.eq(0).double() * (1 - alpha) + alpha)


WILD = [0.05, 0, 0.01, 1.7, 0.25, 0, 0.6, 0.002]
KEYS = [0, 0.2, 0, 1, 0.7, 0, 0.4, 1]
DEFINED = {
    **{f"mixed {alpha}": dict(model="mixed", alpha=alpha) for alpha in (0.0, 0.3, 0.9, 1.0)},
    **{f"progressive {alpha}": dict(model="progressive", alpha=alpha) for alpha in (0.0, 0.3, 0.9, 1.0)},
    "independent": dict(model="independent", alpha=0.0),
    "dependency": {},
    "motion by frame": dict(motion=WILD),
    "candidates": dict(motion=WILD, candidates=10),
    "inertia": dict(inertia=0.7),
    "great circle": dict(inertia=1.0),
    "inertia by frame": dict(motion=WILD, inertia=KEYS),
    "inertia, candidates": dict(motion=WILD, inertia=KEYS, candidates=4),
}


@pytest.mark.parametrize("case", DEFINED)
def test_every_draw_is_the_dense_matrix_times_innovations(case):
    """The last draw as in a second pass of hires.fix; before it noise of another kind, as Brownian motions are."""
    options = DEFINED[case]
    shapes = [(4, 32, 32), (4, 32, 32), (4, 48, 64)]
    first, *later = innovations(3, shapes, options.get("candidates", 1))
    noise = clip(seed=3, **options)
    if "model" in options:
        mixing = definition(**options, frames=8)
        reference = torch.einsum("ij, jchw -> ichw", mixing, first[:, 0])
    else:
        inertia = options.get("inertia", 0.0)
        motion = options.get("motion", [0.05] * 8)
        reference, mixing = reference_walk(
            first.flatten(2), motion, inertia if isinstance(inertia, list) else [inertia] * 8
        )
    frames = noise.draw(still(3, shapes[0]))
    torch.testing.assert_close(frames.double().view(8, -1), reference.view(8, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.mixing, mixing, rtol=0, atol=1e-9)
    motions = normals(8, 60).view(8, 3, 20)
    torch.testing.assert_close(noise.mix(motions), torch.einsum("ij, jab -> iab", mixing, motions), rtol=0, atol=1e-9)
    for draw, (shape, expected) in enumerate(zip(shapes[1:], later), start=1):
        mixed = torch.einsum("ij, jchw -> ichw", mixing, expected[:, 0])
        torch.testing.assert_close(noise.draw(still(3 + draw, shape)).double(), mixed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("motion", [0.0, 0.05, 1.0])
def test_loops_are_the_dense_matrix_times_innovations(motion):
    shapes = [(4, 32, 32), (4, 48, 64)]
    noise, mixing = clip("loop", seed=3, motion=motion), loop_matrix(8, motion)
    for draw, expected in enumerate(innovations(3, shapes)):
        mixed = torch.einsum("ij, jchw -> ichw", mixing, expected[:, 0])
        torch.testing.assert_close(noise.draw(still(3 + draw, shapes[draw])).double(), mixed, rtol=0, atol=1e-6)
        torch.testing.assert_close(noise.mix(expected[:, 0]), mixed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        dict(model="mixed", alpha=0.9),
        dict(model="mixed", alpha=0.999),
        dict(model="progressive", alpha=0.999),
        dict(inertia=[0.0] * 1024),
        dict(inertia=[0.9] * 1024),
        dict(inertia=[1.0] * 1024),
    ],
    ids=lambda options: " ".join(str(value[0] if isinstance(value, list) else value) for value in options.values()),
)
def test_errors_do_not_add_up_over_long_clips(options):
    """Over 1024 frames float64 stays within 1e-12 of the dense product, where float32 would go past 1e-6."""
    shape = (1, 8, 8)
    (first, later), n = innovations(0, [shape] * 2, frames=1024), normals(1024, 64)
    if "model" in options:
        mixing = definition(frames=1024, **options)
    else:
        _, mixing = reference_walk(first.flatten(2), [0.05] * 1024, options["inertia"])
    noise = clip(frames=1024, **options)
    noise.draw(still(0, shape))
    torch.testing.assert_close(noise.mixing, mixing, rtol=0, atol=1e-9)
    torch.testing.assert_close(noise.mix(n), noise.mixing @ n, rtol=0, atol=1e-12)
    frames = noise.draw(still(1, shape)).double().flatten(1)
    torch.testing.assert_close(frames, mixing @ later[:, 0].flatten(1), rtol=0, atol=1e-6)


# --- segments -------------------------------------------------------------------------------------------


SEGMENTED = {**DEFINED, "search": dict(solver="search", candidates=3)}
CUTS = [(8,), (1, 7), (7, 1), (3, 2, 3), (1,) * 8]


def sampled(noise, dtype=torch.float32) -> list[torch.Tensor]:
    """All that a sampler might draw for the frames of `noise`, with a second pass of hires.fix at the end."""
    frames = slice(noise.first, noise.first + noise.frames)
    stills = [still(seed, shape).to(dtype) for seed, shape in enumerate([(4, 16, 16), (4, 16, 16), (4, 24, 32)])]
    motions = [normals(8, 60, seed).view(8, 3, 20)[frames].to(dtype) for seed in range(2)]
    return [
        noise.draw(stills[0]),
        noise.mix(motions[0]),
        noise.draw(stills[1]),
        noise.draw(stills[2]),
        noise.mix(motions[1]),
    ]


@pytest.mark.parametrize("case", SEGMENTED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_clip_is_the_same_however_it_is_cut(case, dtype):
    whole = clip(seed=3, **SEGMENTED[case])
    expected = sampled(whole, dtype)
    for cuts in CUTS:
        noise, parts = clip(seed=3, **SEGMENTED[case]), []
        for first, count in zip(itertools.accumulate(cuts, initial=0), cuts):
            segment = noise.segment(first, count)
            assert segment.frames == count and segment.seeds == whole.seeds[first : first + count]
            parts.append(sampled(segment, dtype))
        for clip_of_parts, one in zip(map(torch.cat, zip(*parts)), expected):
            assert one.dtype == dtype and torch.equal(clip_of_parts, one), cuts
        assert torch.equal(noise.mixing, whole.mixing)


def test_what_the_host_does_to_its_noise_changes_no_later_segment():
    noise = clip("mixed")
    host = still().double()
    noise.segment(0, 1).draw(host)
    host.zero_()
    assert torch.equal(noise.segment(1, 7).draw(host), clip("mixed").draw(still().double())[1:])


@pytest.mark.parametrize("case", ["inertia, candidates", "mixed 0.9"])
def test_the_last_segment_can_be_sampled_again(case):
    """As when memory ran out in the midst of it."""
    whole, noise = (clip(seed=3, **SEGMENTED[case]) for _ in range(2))
    parts = [sampled(noise.segment(0, 3))]
    noise.segment(3, 3).draw(still(0, (4, 16, 16)))
    parts += [sampled(noise.segment(3, 3)), sampled(noise.segment(6, 2))]
    for expected, *cut in zip(sampled(whole), *parts):
        assert torch.equal(torch.cat(cut), expected)


def test_a_loop_is_one_segment():
    noise = clip("loop")
    assert all(map(torch.equal, sampled(noise.segment(0, 8)), sampled(clip("loop"))))
    with pytest.raises(ValueError, match="frames 0 to 3 of a loop of 8: loops are drawn as a whole"):
        noise.segment(0, 4)


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 9), (-1, 3), (6, 3), (8, 1)])
def test_segments_are_frames_of_the_clip(first, count):
    with pytest.raises(ValueError, match="are no frames of a clip of 8"):
        clip().segment(first, count)


def test_segments_follow_each_other():
    noise = clip()
    with pytest.raises(ValueError, match="from frame 3 on does not follow another; it can begin at frame 0"):
        noise.segment(3, 2)
    noise.segment(0, 3).draw(still())
    with pytest.raises(ValueError, match="it can begin at frame 0 or 3"):
        noise.segment(4, 2)
    segment = noise.segment(3, 2)
    segment.draw(still())
    with pytest.raises(RuntimeError, match="draw number 1 of frames 3 to 4 .* with the same steps"):
        segment.draw(still())
    with pytest.raises(RuntimeError, match="mix number 0 of frames 3 to 4 .* with the same steps"):
        segment.mix(normals(2, 4))


def test_a_long_clip_holds_what_its_segment_needs(monkeypatch):
    """Generators hold 5 kB each: only those of the segment's frames are made, and they go with it."""
    made = []
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda: made.append(generator()) or made[-1])
    noise = clip(frames=100_000, inertia=0.5)
    assert made == []
    for first in (0, 3):
        made.clear()
        segment = noise.segment(first, 3)
        for _ in range(2):
            segment.draw(torch.zeros(1, 4, 8, 8))
        assert len(made) == (3 if first else 2)  # frame 1 is the host's
    kept = [state for states in noise._states.values() for state in states.values()]
    assert len(kept) == 4 and all(state.frame.numel() == 4 * 8 * 8 for state in kept)


# --- devices --------------------------------------------------------------------------------------------


class WithoutFloat64(torch.overrides.TorchFunctionMode):
    """As on Apple's GPUs, which have no float64."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (kwargs or {}).get("dtype") == torch.float64 and kwargs.get("device") == torch.device("meta"):
            raise self.error
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "loop"])
def test_noise_is_mixed_where_it_lies(variant):
    """A meta tensor, which has no values that could be taken to the CPU, comes back mixed."""
    noise = clip(variant)
    noise.draw(still())
    mixed = noise.mix(torch.empty(8, 4, 16, 16, dtype=torch.float16, device="meta"))
    assert mixed.shape == (8, 4, 16, 16) and mixed.dtype == torch.float16 and mixed.device.type == "meta"
    assert noise.draw(still().to("meta")).device.type == "meta"


@pytest.mark.parametrize("error", [TypeError("MPS has no float64"), RuntimeError("Required aspect fp64 is missing")])
def test_noise_is_mixed_on_the_cpu_where_the_device_has_no_float64(error, monkeypatch):
    monkeypatch.setattr(noise_module, "exact_device", exact_device.__wrapped__)  # which is asked once
    noise = clip()
    noise.draw(still())
    with WithoutFloat64(error), pytest.raises(NotImplementedError, match="meta"):  # to take its values to the CPU
        noise.mix(torch.empty(8, 4, 16, 16, device="meta"))


# --- marginals ----------------------------------------------------------------------------------------


def deviations(frame: torch.Tensor) -> dict[str, float]:
    """How far a frame is from N(0, 1), each as a multiple of what is usual for its number of independent samples."""
    x = frame.double().flatten().sort().values
    n = len(x)
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    rank = torch.arange(n, dtype=torch.float64) / n
    return {
        "mean": x.mean().item() * math.sqrt(n),
        "variance": (x.square().mean().item() - 1) * math.sqrt(n / 2),
        "skewness": (x**3).mean().item() * math.sqrt(n / 15),
        "kurtosis": ((x**4).mean().item() - 3) * math.sqrt(n / 96),
        "Kolmogorov-Smirnov": max((below - rank).max(), (rank + 1 / n - below).max()).item() * math.sqrt(n) * 2,
    }


@variants
@pytest.mark.parametrize(("motion", "seed"), [(0.01, 0), (0.25, 1), (1.2, 2)])
def test_every_frame_is_standard_normal(variant, motion, seed):
    """Within 4.5 standard deviations (Kolmogorov-Smirnov: 2.25/√n); chance exceeds them in one of 10⁴ to 10⁵ frames."""
    for frame in clip(variant, motion=motion, seed=seed).draw(still(seed, (4, 96, 96))):
        assert all(abs(value) < 4.5 for value in deviations(frame).values()), deviations(frame)


def test_long_walks_stay_standard_normal():
    """Without random search: to keep the nearest candidate pushes every step along eᵖ, which adds up over 30 frames."""
    for frame in clip(frames=64).draw(still())[::8]:
        assert all(abs(value) < 4.5 for value in deviations(frame).values()), deviations(frame)


# --- seeds --------------------------------------------------------------------------------------------


def test_frame_seeds():
    clips = [frame_seeds(seed, 64) for seed in range(50)]
    assert [seeds[0] for seeds in clips] == list(range(50))
    assert len({seed for seeds in clips for seed in seeds}) == 50 * 64
    assert frame_seeds(7, 10) == frame_seeds(7, 64)[:10]
    assert all(0 <= seed < 2**63 for seeds in clips for seed in seeds)


@variants
def test_a_seed_gives_one_clip(variant):
    def draws(seed):
        noise = clip(variant, seed=seed)
        return noise.draw(still()), noise.draw(still(1))

    state = torch.get_rng_state()
    first, second = draws(5), draws(5)
    assert torch.equal(torch.get_rng_state(), state), "the host's random numbers were used up"
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])
    assert all((a[1:] != b[1:]).any() for a, b in zip(first, draws(6)))


def test_innovations_are_unlike_neighbouring_stills():
    """The host's image n of seed S has the noise of seed S + n: no frame of clip S may be that."""
    frames = clip("independent", seed=10).draw(still(10))
    neighbours = torch.cat([still(seed) for seed in range(5, 20) if seed != 10])
    across = correlation(torch.cat([frames, neighbours]))[:8, 8:]
    assert across.abs().max() < 5 / math.sqrt(frames[0].numel())


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "loop"])
@pytest.mark.parametrize(("short", "long"), [(1, 2), (2, 3), (5, 8), (8, 16), (7, 33)])
def test_longer_clips_begin_alike(variant, short, long):
    one, other = clip(variant, frames=short), clip(variant, frames=long)
    for draw in range(3):
        assert torch.equal(one.draw(still(draw)), other.draw(still(draw))[:short])


# --- what a host sees ---------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_frame_1_is_the_still(variant, dtype):
    noise = clip(variant)
    for draw in range(2):
        noise_of_still = still(draw, (4, 32, 32)).to(dtype)
        frames = noise.draw(noise_of_still)
        assert frames.dtype == dtype and frames.device == noise_of_still.device
        assert torch.equal(frames[:1], noise_of_still)
    assert noise.mix(frames).dtype == dtype


def test_a_second_pass_draws_anew():
    """As the host does for hires.fix: its noise does not depend on how much was drawn before."""
    passes = []
    for draws in (1, 3):
        noise = clip("independent", frames=3)
        for draw in range(draws):
            noise.draw(still(draw))
        noise.begin_pass()
        passes.append(noise.draw(still(0, (4, 12, 12))))
    assert torch.equal(*passes)


@variants
def test_one_frame_is_the_still(variant):
    noise = clip(variant, frames=1)
    for draw in range(2):
        assert torch.equal(noise.draw(still(draw)), still(draw))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(model="pyoco"), f"'pyoco' is none of {', '.join(MODELS)}"),
        (dict(solver="newton"), "'newton' is none of exact, search"),
    ],
)
def test_unknown_names_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ClipNoise(0, [0.05] * 2, **options)
