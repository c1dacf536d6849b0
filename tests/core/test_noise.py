"""The noise models against references in float64 that are written from the equations, and against statistics.

References: KL(x, p) is torch's own `kl_div`, as in the paper's listing 1; a step solves KL = λ by bisection,
where the library has a closed form; covariances are the models' definitions.
"""

from __future__ import annotations

import math

import pytest
import torch

from zs2_lib.core.noise import (
    MODELS,
    SEARCH_ITERATIONS,
    ClipNoise,
    dependency_noise,
    frame_seeds,
    kl_divergence,
    loop_matrix,
)

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


def reference_walk(innovations, motion, inertia) -> torch.Tensor:
    """x = cos θ p + sin θ q, q = β t + √(1-β²) n, t = cos θ q - sin θ p, with KL(x, p) = λ by bisection."""
    frames, heading = [innovations[0]], None
    for n, step, kept in zip(innovations[1:], motion[1:], inertia[1:]):
        p = frames[-1]
        q = n if heading is None else kept * heading + math.sqrt(1 - kept**2) * n
        low, high = 0.0, math.pi if step else 0.0
        for _ in range(60):
            angle = (low + high) / 2
            if kl(math.cos(angle) * p + math.sin(angle) * q, p) < step:
                low = angle
            else:
                high = angle
        frames.append(math.cos(high) * p + math.sin(high) * q)
        heading = math.cos(high) * q - math.sin(high) * p
    return torch.stack(frames)


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
    frames, mixing = dependency_noise(innovations[0], motion, lambda i: innovations[i], inertia, candidates=1)
    torch.testing.assert_close(frames, reference_walk(innovations, motion, inertia), rtol=0, atol=1e-9)
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
    frames, _ = dependency_noise(
        normals(1, 256, seed=1)[0], [motion] * 6, lambda i: next(draws), [inertia] * 6, candidates=8
    )
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
    noise = clip("search", motion=motion, candidates=10)
    frames = noise.draw(still())
    assert len(noise.traces) == 7
    for trace, x, p in zip(noise.traces, frames[1:], frames):
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
    frames, _ = dependency_noise(p, [motion] * 2, lambda i: n, candidates=1, solver="search")
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


def innovations(seed: int, shapes: list, candidates: int = 1) -> list[torch.Tensor]:
    """The innovations of each draw of an 8-frame clip with so many candidates in the first; frame 1's are stills."""
    generators = [torch.Generator().manual_seed(s) for s in frame_seeds(seed, 8)]
    draws = []
    for draw, shape in enumerate(shapes):
        rows = [
            [torch.randn(shape, generator=g) for _ in range(candidates if draw == 0 else 1)][-1] for g in generators
        ]
        draws.append(torch.stack([still(seed + draw, shape)[0], *rows[1:]]))
    return draws


@variants
@pytest.mark.parametrize("candidates", [1, 10])
def test_every_draw_is_mixed_by_the_same_matrix(variant, candidates):
    shapes = [(4, 32, 32), (4, 32, 32), (4, 48, 64)]  # the last one as in a second pass of hires.fix
    noise = clip(variant, seed=3, candidates=candidates)
    searches = VARIANTS[variant].keys() <= {"solver", "inertia"}
    for draw, expected in enumerate(innovations(3, shapes, candidates if searches else 1)):
        frames = noise.draw(still(3 + draw, shapes[draw]))
        assert frames.shape == (8, *shapes[draw])
        if draw or candidates == 1 or not searches:  # which candidate was kept is tested above
            mixed = torch.einsum("ij, jchw -> ichw", noise.mixing, expected.double())
            torch.testing.assert_close(frames.double(), mixed, rtol=0, atol=1e-6)
            torch.testing.assert_close(noise.mix(expected), frames, rtol=0, atol=1e-6)


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
