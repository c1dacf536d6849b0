"""Smoothness by inertia β, and against Text2Video-Zero."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import PEER, ZS2, Figures, Target, label, table

TITLE = "Smoothness by inertia"
SIZES = {"long": {"frames": 12, "steps": 20, "inertia": (0.0, 0.5, 0.9, 1.0)}, "short": {"frames": 8, "steps": 10, "inertia": (0.0, 1.0)}}
"""The first is shown in full; the second are the clips of the section on methods, and their like with inertia."""


def measure(run) -> dict:
    clips = {"long": run.pick(8, 1), "short": run.pick(16, 2)}
    return {"guidance": GUIDANCE, **{name: _measure(run, clips[name], **size) for name, size in SIZES.items()}}


def _measure(run, count: int, frames: int, steps: int, inertia: tuple[float, ...]) -> dict:
    prompts = [each["prompt"] for each in run.prompts(count)]

    def clips(method: str, **settings) -> list[dict]:
        options = tuple(settings.items())
        return run.sampler([Job(method, prompt, seed, frames, steps, settings=options) for seed, prompt in enumerate(prompts)])

    return {
        "frames": frames, "steps": steps, "inertia": inertia,
        "clips": [clips("zs2", **({"inertia": value} if value else {})) for value in inertia],
        "peers": {"Text2Video-Zero": clips("text2video-zero")},
    }


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
        f"The same prompts and seeds for all, CFG {data['guidance']:g}, the rest at the defaults. *Jerk*: mean second difference / mean first "
        "difference; less is smoother; in brackets its 95 % bootstrap interval.\n\n"
        + _table(long) + "\n" + figures.link("inertia", "Jerk by inertia") + "\nShorter clips with fewer steps:\n\n" + _table(short)
    )


def _table(size: dict) -> str:
    groups = {f"ZS², β = {value:g}": records for value, records in zip(size["inertia"], size["clips"])} | size["peers"]
    rows = [(name, _jerk(records), *(_mean(records, key) for key in ("change", "drift", "flicker"))) for name, records in groups.items()]
    return f"{len(size['clips'][0])} × {size['frames']} frames, {size['steps']} steps:\n\n" + table(
        ("clips", "jerk", "change", "drift", "flicker"), rows)


def _jerk(records: list[dict]) -> str:
    mean, low, high = metrics.interval([record["jerk"] for record in records if record["jerk"] is not None])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _mean(records: list[dict], key: str) -> float:
    return float(np.mean([np.mean(record[key]) for record in records if record[key] is not None]))
