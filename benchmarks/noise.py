"""The exact solver against the paper's search: error, time, convergence (paper, Figure 17); what a draw costs."""

from __future__ import annotations

import functools

import numpy as np
import torch

from zs2_lib.core.noise import ClipNoise
from zs2_lib.core.noise_models import kl_divergence

from . import metrics
from .document import PLAIN, ZS2, Figures, Target, at_most, label, label_ends, table
from .timing import KEEPING, in_own_process, in_turns

TITLE = "Noise: exact solver against search"
SHAPE = (4, 64, 64)
FRAMES = 8
SOLVERS = {"exact": {"solver": "exact", "candidates": 1}, "search": {"solver": "search", "candidates": 10}}
"""The library's default, and the search as the paper sets it: 10 random candidates, 15 steps between them."""
MOTION = 0.05
GRID = (0.0, 0.01, *(round(0.1 * i, 1) for i in range(1, 17)))
CURVES = (0.01, 0.05, 0.25)
LENGTHS = (64, 1024)
MODELS = {
    "dependency": {},
    "with inertia 0.7": {"inertia": 0.7},
    "mixed": {"model": "mixed"},
    "progressive": {"model": "progressive"},
    "independent": {"model": "independent"},
    "loop": {"loop": True},
}
BAR, LENGTH_BAR = 1e-6, 17


def measure(run) -> dict:
    clips = run.pick(8, 2)
    lengths, worst = [], []
    for frames in (8, 32, 128):
        runs = {name: functools.partial(noise, 0, [MOTION] * frames, **options) for name, options in SOLVERS.items()}
        largest = {name: max(errors(0, MOTION, frames, **options)) for name, options in SOLVERS.items()}
        lengths.append({"frames": frames, "seconds": in_turns(runs, run.pick(9, 3)), "errors": largest})
    for motion in GRID:
        found = {name: [errors(seed, motion, **SOLVERS[name]) for seed in range(clips)] for name in SOLVERS}
        worst.append({"motion": motion, **{name: max(map(max, each)) for name, each in found.items()}})
    curves = [{"motion": motion, **curve(motion, clips)} for motion in CURVES]
    draws = in_own_process(later_draws, SHAPE, run.pick(9, 3), environment=KEEPING)
    return {"shape": SHAPE, "lengths": lengths, "draws": draws, "errors": worst, "curves": curves}


def noise(seed: int, motion: list[float], **options) -> torch.Tensor:
    """The noises of one clip (frames, channels, height, width), float64."""
    return ClipNoise(seed, motion, **options).draw(still(seed, SHAPE).double())


def still(seed: int, shape: tuple) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def later_draws(shape: tuple, rounds: int) -> list[dict]:
    """The times of the draws after the first, for each model and length, and how far from L n they are, in float64."""
    rows = []
    for name, options in MODELS.items():
        runs, difference = {}, 0.0
        for frames in LENGTHS:
            settings = {**options, "inertia": [options.get("inertia", 0.0)] * frames}
            clip = ClipNoise(0, [MOTION] * frames, **settings)
            clip.draw(still(0, shape))
            runs[str(frames)] = functools.partial(clip.draw, still(1, shape))
            innovations = torch.randn(frames, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            difference = max(difference, (clip.mix(innovations) - clip.mixing @ innovations).abs().max().item())
        rows.append({"noise": name, "seconds": in_turns(runs, rounds), "difference": difference})
    return rows


def errors(seed: int, motion: float, count: int = FRAMES, **options) -> list[float]:
    """|KL - λ| of each step of a clip."""
    frames = noise(seed, [motion] * count, **options)
    return [abs(kl_divergence(frame, before) - motion) for before, frame in zip(frames, frames[1:])]


def curve(motion: float, clips: int) -> dict:
    """The search's mean error after each iteration, and the exact solver's after its one step."""
    traces = []
    for seed in range(clips):
        noise(seed, [motion] * FRAMES, **SOLVERS["search"], traces=traces)
    return {
        "random": np.mean([trace.random for trace in traces], axis=0).tolist(),
        "linear": np.mean([trace.linear for trace in traces], axis=0).tolist(),
        "exact": float(np.mean([error for seed in range(clips) for error in errors(seed, motion, **SOLVERS["exact"])])),
    }


def targets(data: dict) -> list[Target]:
    worst = max(row["exact"] for row in data["errors"])
    what = "KL error of the exact solver, λ from 0 to 1.6"
    error = Target("noise-error", what, "< 1e-6", f"{worst:.0e} at most", worst < BAR)
    short, long = map(str, LENGTHS)
    ratios = {
        row["noise"]: metrics.median_ratio(row["seconds"][long], row["seconds"][short])
        for row in data["draws"]
        if row["noise"] != "loop"
    }
    slowest = max(ratios, key=ratios.get)
    what = f"a draw of noise, {long} frames / {short} frames, of five models at most ({slowest})"
    return [error, at_most("noise-length", what, ratios[slowest], LENGTH_BAR, digits=1)]


def report(data: dict, figures: Figures) -> str:
    shape = "×".join(map(str, data["shape"]))
    lengths = [
        (
            row["frames"],
            *(1e3 * metrics.median(row["seconds"][name]) for name in SOLVERS),
            metrics.median_ratio(row["seconds"]["search"], row["seconds"]["exact"]),
            *(f"{row['errors'][name]:.0e}" for name in SOLVERS),
        )
        for row in data["lengths"]
    ]
    header = ("exact, ms", "search, ms", "search / exact", *(f"{name}, largest |KL - λ|" for name in SOLVERS))
    worst = [(f"{row['motion']:g}", f"{row['exact']:.0e}", f"{row['search']:.0e}") for row in data["errors"]]
    _plot(figures, data["curves"])
    return (
        f"Latents of {shape}. *exact*: the closed form, one candidate; *search*: 10 random candidates, then 15 "
        "halvings between the previous frame and the best of them (Algorithm 1, corrected so that it cannot leave the "
        "interval).\n\n"
        f"### A clip's noise, λ = {MOTION:g}\n\n"
        + table(("frames", *header), lengths)
        + f"\n### A later draw, λ = {MOTION:g}\n\n"
        + _draws(data["draws"])
        + f"\n### Largest |KL - λ| in clips of {FRAMES} frames\n\n"
        + table(("λ", "exact", "search"), worst)
        + "\n### Convergence (Figure 17)\n\n"
        + figures.link("convergence", "Error by iteration")
    )


def _draws(rows: list[dict]) -> str:
    short, long = map(str, LENGTHS)
    cells = [
        (
            row["noise"],
            *(1e3 * metrics.median(row["seconds"][frames]) for frames in (short, long)),
            metrics.median_ratio(row["seconds"][long], row["seconds"][short]),
            f"{row['difference']:.0e}",
        )
        for row in rows
    ]
    return (
        "As at each step of an ancestral sampler, on one thread, with memory that is kept from draw to draw. A frame "
        "follows from the one before and an innovation; in a loop from all innovations up to it, by the matrix L. "
        "*difference*: the largest from L n, in float64.\n\n"
        + table(("noise", f"{short} frames, ms", f"{long} frames, ms", f"{long} / {short}", "difference"), cells)
    )


def _plot(figures: Figures, curves: list[dict]) -> None:
    title = "Error of the paper's search by iteration, and of the exact solver"
    with figures("convergence", title, "iteration of the search", "mean |KL - λ|") as axes:
        ends = {}
        for row, shade in zip(curves, (0.45, 0.7, 1.0)):
            random, linear = row["random"], row["linear"]
            points = range(1, len(random) + len(linear) + 1)
            axes.semilogy(points, random + linear, color=PLAIN, alpha=shade, marker="o", markersize=3)
            ends[f"search, λ = {row['motion']:g}"] = points[-1], linear[-1], PLAIN
        exact = max(row["exact"] for row in curves)
        axes.axhline(exact, color=ZS2)
        label(axes, 1, exact, f"exact, at once: {exact:.0e} at most for these λ", ZS2, xytext=(0, 7))
        axes.axvline(len(random) + 0.5, color="#d1d5db", linestyle=":")
        axes.set_xlim(0, points[-1] + 7)
        axes.set_ylim(top=1e3)
        label_ends(axes, ends)
        axes.text(1, 0.98, "random candidates", transform=axes.get_xaxis_transform(), va="top", fontsize=9)
        axes.text(len(random) + 1, 0.98, "interval search", transform=axes.get_xaxis_transform(), va="top", fontsize=9)
