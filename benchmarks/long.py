"""Long clips under the three noise models (paper, Figures 14 to 16)."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import OTHER, ZS2, Figures, Target, label_ends, percent, table

TITLE = "Long clips"
STEPS = 8
STRETCH = 8
"""Frames that one figure of the table is the mean of."""
MODELS = {"dependency (ZS²)": "dependency", "progressive": "progressive", "mixed": "mixed"}
COLOURS = dict(zip(MODELS, (ZS2, OTHER, "#7c3aed")))


def measure(run) -> dict:
    frames, prompts = run.pick(64, 16), run.prompts(run.pick(2, 1))
    models = [() if model == "dependency" else (("noise_model", model),) for model in MODELS.values()]
    jobs = [
        Job("zs2", each["prompt"], seed, frames, STEPS, settings=settings)
        for settings in models
        for seed, each in enumerate(prompts)
    ]
    records = iter(run.sampler(jobs))
    return {
        "frames": frames,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "prompts": prompts,
        "clips": {name: [next(records) for _ in prompts] for name in MODELS},
    }


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    judged = "attributes" in data["prompts"][0]
    stretches = [(first, min(first + STRETCH, data["frames"])) for first in range(0, data["frames"], STRETCH)]
    header = ("noise", *(f"frames {first + 1}–{last}" for first, last in stretches))
    text = (
        f"{len(data['prompts'])} clips of {data['frames']} frames for each noise model, {data['steps']} steps at CFG "
        f"{data['guidance']:g}, settings at their defaults (λ 0.05 for dependency noise, α 0.9 for the others, μ "
        "0.98).\n\n"
    )
    plots = []
    if judged:
        asked = [each["attributes"] for each in data["prompts"]]
        rows = {}
        for name, records in data["clips"].items():
            right = [metrics.right(record["attributes"], each) for record, each in zip(records, asked)]
            right = np.mean(right, axis=0)  # (frames,)
            rows[name] = [float(right[first:last].mean()) for first, last in stretches]
        text += "Frames that show what the prompt asks for:\n\n"
        text += table(header, [(name, *map(percent, parts)) for name, parts in rows.items()]) + "\n"
        lines = {name: [100 * part for part in parts] for name, parts in rows.items()}
        title = "What the prompt asks for, in long clips"
        _plot(figures, "fidelity", title, "% of frames right", lines, stretches, top=119)
        plots.append(figures.link("fidelity", "Fidelity by frame"))
    rows = {}
    for name, records in data["clips"].items():
        drift = np.mean([record["drift"] for record in records], axis=0)  # (frames - 1,)
        rows[name] = [float(drift[max(first - 1, 0) : last - 1].mean()) for first, last in stretches]
    text += "Mean |difference| from frame 1, of 255:\n\n" + table(header, [(name, *row) for name, row in rows.items()])
    title, y = "How far long clips get from frame 1", "mean |difference| from frame 1, of 255"
    _plot(figures, "drift", title, y, rows, stretches)
    plots.append(figures.link("drift", "Drift by frame"))
    return "\n".join([text, *plots])


def _plot(figures: Figures, name: str, title: str, y: str, lines: dict, stretches, top: float | None = None) -> None:
    with figures(name, title, f"frame (means over {STRETCH} frames)", y) as axes:
        middles = [(first + 1 + last) / 2 for first, last in stretches]
        for line, values in lines.items():
            axes.plot(middles, values, color=COLOURS[line], marker="o", markersize=4)
        axes.set_ylim(0, top)
        axes.set_xlim(right=middles[-1] * 1.25)
        label_ends(axes, {line: (middles[-1], values[-1], COLOURS[line]) for line, values in lines.items()})
