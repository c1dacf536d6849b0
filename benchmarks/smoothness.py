"""Smoothness by inertia β, and against Text2Video-Zero."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import PEER, ZS2, Figures, Target, label, table

TITLE = "Smoothness by inertia"
SIZES = {
    "long": {"frames": 12, "steps": 12, "inertia": (0.0, 0.5, 0.9, 1.0)},
    "short": {"frames": 8, "steps": 8, "inertia": (0.0, 1.0)},
}
"""The first is shown in full; the second are the clips of the section on methods, and their like with inertia."""
CLIPS = {"long": 4, "short": 12}


def measure(run) -> dict:
    sizes = run.pick(SIZES, {"long": {**SIZES["long"], "steps": 8}, "short": SIZES["short"]})
    jobs = {name: _jobs(run.prompts(run.pick(count, 1)), **sizes[name]) for name, count in CLIPS.items()}
    records = iter(run.sampler([job for groups in jobs.values() for group in groups for job in group]))
    data: dict = {"guidance": GUIDANCE}
    for name, groups in jobs.items():
        *clips, peer = [[next(records) for _ in group] for group in groups]
        data[name] = {**sizes[name], "clips": clips, "peers": {"Text2Video-Zero": peer}}
    return data


def _jobs(prompts: list[dict], frames: int, steps: int, inertia: tuple[float, ...]) -> list[list[Job]]:
    """The clips of each inertia, and those of Text2Video-Zero."""
    kinds = [("zs2", (("inertia", value),) if value else ()) for value in inertia] + [("text2video-zero", ())]
    return [
        [Job(method, each["prompt"], seed, frames, steps, settings=settings) for seed, each in enumerate(prompts)]
        for method, settings in kinds
    ]


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    long, short = data["long"], data["short"]
    ours = [_mean(records, "jerk") for records in long["clips"]]
    title, y = "Smoothness by inertia (lower is smoother)", "mean second difference / mean first difference"
    with figures("inertia", f"{title}, {long['frames']} frames, {long['steps']} steps", "β (inertia)", y) as axes:
        axes.plot(long["inertia"], ours, color=ZS2, marker="o", markersize=4)
        label(axes, long["inertia"][-1], ours[-1], "ZS²", ZS2)
        for name, records in long["peers"].items():
            axes.axhline(_mean(records, "jerk"), color=PEER, linestyle="--")
            label(axes, 0, _mean(records, "jerk"), name, PEER, xytext=(0, 7))
        axes.set_xticks(long["inertia"])
        axes.set_xlim(right=1.12)
    return (
        f"The same prompts and seeds for all, CFG {data['guidance']:g}, the rest at the defaults. *Jerk*: mean second "
        "difference / mean first difference; less is smoother; in brackets its 95 % bootstrap interval.\n\n"
        + _table(long)
        + "\n"
        + figures.link("inertia", "Jerk by inertia")
        + "\nShorter clips with fewer steps:\n\n"
        + _table(short)
    )


def _table(size: dict) -> str:
    groups = {f"ZS², β = {value:g}": records for value, records in zip(size["inertia"], size["clips"])} | size["peers"]
    rows = [
        (name, _jerk(records), *(_mean(records, key) for key in ("change", "drift", "flicker")))
        for name, records in groups.items()
    ]
    return f"{len(size['clips'][0])} × {size['frames']} frames, {size['steps']} steps:\n\n" + table(
        ("clips", "jerk", "change", "drift", "flicker"), rows
    )


def _jerk(records: list[dict]) -> str:
    mean, low, high = metrics.interval([record["jerk"] for record in records if record["jerk"] is not None])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _mean(records: list[dict], key: str) -> float:
    return float(np.mean([np.mean(record[key]) for record in records if record[key] is not None]))
