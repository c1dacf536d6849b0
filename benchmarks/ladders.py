"""The ladders of the paper's Figure 4: motion by λ, drift by μ."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import PLAIN, ZS2, Figures, Target, label_ends, table

TITLE = "Ladders: what λ and μ do"
FRAMES = 8
MOTION = {"values": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25), "momentum": 0.98, "steps": 8, "guidance": GUIDANCE}
MOMENTUM = {"values": (0.0, 0.25, 0.5, 0.75, 0.9, 1.0), "motion": 0.25, "steps": 12, "guidance": 1.0}
"""The empty prompt without guidance: a full prompt fixes the tiny checkpoint's subject, so that μ hardly shows."""
PAPER = {
    "motion": {"change": (5.2, 10.0, 11.7, 14.9, 16.2, 19.2)},
    "momentum": {"change": (31.8, 18.4, 17.2, 15.4, 12.7, 13.0), "drift": (48.2, 37.1, 35.8, 31.2, 28.4, 23.3)},
}
"""The paper authors' own clips (Figure 4, guided by poses), measured in the same way."""


def measure(run) -> dict:
    clips = run.pick(16, 1)
    prompts = [each["prompt"] for each in run.prompts(clips)]

    def ladder(key: str, settings: dict, prompts: list[str]) -> dict:
        fixed = {name: value for name, value in settings.items() if name in ("motion", "momentum")}
        steps, guidance = settings["steps"], settings["guidance"]
        jobs = [
            Job("zs2", prompt, seed, FRAMES, steps, guidance, tuple({key: value, **fixed}.items()))
            for value in settings["values"]
            for seed, prompt in enumerate(prompts)
        ]
        records = run.sampler(jobs)
        return {**settings, "clips": [records[i : i + clips] for i in range(0, len(records), clips)]}

    return {
        "frames": FRAMES,
        "motion": ladder("motion", MOTION, prompts),
        "momentum": ladder("momentum", MOMENTUM, [""] * clips),
    }


def means(ladder: dict, key: str) -> list[float]:
    """The mean over clips and frames at each value."""
    return [float(np.mean([record[key] for record in records])) for records in ladder["clips"]]


def targets(data: dict) -> list[Target]:
    motion, momentum = means(data["motion"], "change"), means(data["momentum"], "drift")
    of = f"mean of {len(data['motion']['clips'][0])} clips"
    what = f"motion rises with λ = 0 to 0.25, {of}", f"drift falls with μ = 0 to 1, {of}"
    return [
        Target("motion-ladder", what[0], "monotone", _steps(motion), metrics.rises(motion)),
        Target("momentum-ladder", what[1], "monotone", _steps(momentum), metrics.falls(momentum)),
    ]


def _steps(values: list[float]) -> str:
    return " → ".join(f"{value:.2f}" for value in values)


def report(data: dict, figures: Figures) -> str:
    count = len(data["motion"]["clips"][0])
    motion, momentum = data["motion"], data["momentum"]
    changes, drifts = ([means(ladder, key) for ladder in (motion, momentum)] for key in ("change", "drift"))
    paper = PAPER["momentum"]
    motion_rows = zip(motion["values"], changes[0], drifts[0], PAPER["motion"]["change"])
    momentum_rows = zip(momentum["values"], drifts[1], paper["drift"], changes[1], paper["change"])
    title, y = ("Motion by λ", "λ (motion)"), "mean |change| between frames, of 255"
    _plot(figures, "motion", *title, y, motion["values"], changes[0], PAPER["motion"]["change"])
    title, y = ("Drift from frame 1 by μ", "μ (momentum)"), "mean |difference| from frame 1, of 255"
    _plot(figures, "momentum", *title, y, momentum["values"], drifts[1], paper["drift"])
    return (
        f"Means of {count} clips of {data['frames']} frames, the same seeds at each value. Beside them the paper "
        "authors' own clips of Figure 4, measured in the same way: a large checkpoint guided by poses, whose movement "
        "is in their figures even at λ = 0.\n\n"
        f"### λ\n\nμ = {motion['momentum']:g}, full prompts, {motion['steps']} steps at CFG {motion['guidance']:g}.\n\n"
        + table(("λ", "change", "drift from frame 1", "the authors' change"), motion_rows)
        + "\n"
        + figures.link("motion", "Change between frames by λ")
        + f"\n### μ\n\nλ = {momentum['motion']:g}, the empty prompt, {momentum['steps']} steps at CFG "
        f"{momentum['guidance']:g}: a full prompt fixes what the tiny checkpoint shows, so that μ has nothing to "
        "hold.\n\n"
        + table(("μ", "drift from frame 1", "the authors' drift", "change", "the authors' change"), momentum_rows)
        + "\n"
        + figures.link("momentum", "Drift from frame 1 by μ")
    )


def _plot(figures: Figures, name: str, title: str, x: str, y: str, values, ours: list[float], authors) -> None:
    with figures(name, title, x, y) as axes:
        ends = {}
        theirs = (authors, "the paper authors' clips\n(large model, poses)", PLAIN)
        for numbers, what, colour in ((ours, "this run", ZS2), theirs):
            axes.plot(values, numbers, color=colour, marker="o", markersize=4)
            ends[what] = values[-1], numbers[-1], colour
        axes.set_ylim(0, 1.15 * max(*ours, *authors))
        axes.set_xlim(right=values[-1] * 1.35)
        axes.set_xticks(values)
        label_ends(axes, ends, apart=22)
