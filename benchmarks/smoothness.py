"""Smoothness by inertia β, and against Text2Video-Zero."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import PEER, ZS2, Figures, Target, label, table

TITLE = "Smoothness by inertia"
FRAMES, STEPS = 12, 20
"""More than elsewhere: with few steps the tiny checkpoint's pictures leap where their noise glides."""
INERTIA = (0.0, 0.5, 0.9, 1.0)


def measure(run) -> dict:
    prompts = [each["prompt"] for each in run.prompts(run.pick(8, 1))]

    def clips(method: str, **settings) -> list[dict]:
        options = tuple(settings.items())
        return run.sampler([Job(method, prompt, seed, FRAMES, STEPS, settings=options) for seed, prompt in enumerate(prompts)])

    return {
        "frames": FRAMES, "steps": STEPS, "guidance": GUIDANCE,
        "inertia": INERTIA,
        "clips": [clips("zs2", **({"inertia": value} if value else {})) for value in INERTIA],
        "peers": {"Text2Video-Zero": clips("text2video-zero")},
    }


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    groups = {f"ZS², β = {value:g}": records for value, records in zip(data["inertia"], data["clips"])} | data["peers"]
    rows = [(name, _jerk(records), *(_mean(records, key) for key in ("change", "drift", "flicker"))) for name, records in groups.items()]
    ours = [_mean(records, "jerk") for records in data["clips"]]
    y = "mean second difference / mean first difference"
    with figures("inertia", "Smoothness by inertia (lower is smoother)", "β (inertia)", y) as axes:
        axes.plot(data["inertia"], ours, color=ZS2, marker="o", markersize=4)
        label(axes, data["inertia"][-1], ours[-1], "ZS²", ZS2)
        for name, records in data["peers"].items():
            axes.axhline(_mean(records, "jerk"), color=PEER, linestyle="--")
            label(axes, 0, _mean(records, "jerk"), name, PEER, xytext=(0, 7))
        axes.set_xticks(data["inertia"])
        axes.set_xlim(right=1.12)
    return (
        f"{len(data['clips'][0])} clips of {data['frames']} frames, {data['steps']} steps at CFG {data['guidance']:g}, the same prompts "
        "and seeds for all; the rest at the defaults. *Jerk*: mean second difference / mean first difference; less is smoother; in brackets its "
        "95 % bootstrap interval.\n\n"
        + table(("clips", "jerk", "change", "drift", "flicker"), rows) + "\n" + figures.link("inertia", "Jerk by inertia")
    )


def _jerk(records: list[dict]) -> str:
    mean, low, high = metrics.interval([record["jerk"] for record in records if record["jerk"] is not None])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _mean(records: list[dict], key: str) -> float:
    return float(np.mean([np.mean(record[key]) for record in records if record[key] is not None]))
