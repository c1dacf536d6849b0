"""The exact solver against the paper's search: error, time, convergence (paper, Figure 17)."""

from __future__ import annotations

import functools

import numpy as np
import torch

from zs2_lib.core.noise import dependency_noise, frame_seeds, kl_divergence

from . import metrics
from .document import PLAIN, ZS2, Figures, Target, label, label_ends, table
from .timing import in_turns

TITLE = "Noise: exact solver against search"
SHAPE = (4, 64, 64)
FRAMES = 8
SOLVERS = {"exact": {"solver": "exact", "candidates": 1}, "search": {"solver": "search", "candidates": 10}}
"""The library's default, and the search as the paper sets it: 10 random candidates, 15 steps between them."""
MOTION = 0.05
GRID = (0.0, 0.01, *(round(0.1 * i, 1) for i in range(1, 17)))
CURVES = (0.01, 0.05, 0.25)
BAR = 1e-6


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
    return {"shape": SHAPE, "lengths": lengths, "errors": worst, "curves": curves}


def noise(seed: int, motion: list[float], **options) -> torch.Tensor:
    """The noises of one clip (frames, elements), float64."""
    generators = [torch.Generator().manual_seed(each) for each in frame_seeds(seed, len(motion))]

    def draw(frame: int) -> torch.Tensor:
        return torch.randn(SHAPE, generator=generators[frame])

    return dependency_noise(draw(0).double().flatten(), motion, draw, **options)[0]


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
    return [Target("noise-error", what, "< 1e-6", f"{worst:.0e} at most", worst < BAR)]


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
        + f"\n### Largest |KL - λ| in clips of {FRAMES} frames\n\n"
        + table(("λ", "exact", "search"), worst)
        + "\n### Convergence (Figure 17)\n\n"
        + figures.link("convergence", "Error by iteration")
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
