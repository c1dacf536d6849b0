"""ZS² against its peers on the same prompts: fidelity, consistency, ablation. All three come from the same clips."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job
from .document import OTHER, PEER, PLAIN, ZS2, Figures, Target, label, label_ends, percent, slug, table

TITLE = "Methods: fidelity, consistency, ablation"
FRAMES, STEPS = 8, 6
METHODS = {
    "DDIM, independent": ("ddim", {}),
    "Text2Video-Zero": ("text2video-zero", {}),
    "ZS²": ("zs2", {}),
    "mixed noise": ("zs2", {"noise_model": "mixed"}),
    "progressive noise": ("zs2", {"noise_model": "progressive"}),
    "noise alone": ("zs2", {"momentum": 0}),
    "momentum alone": ("zs2", {"noise_model": "independent"}),
}
"""The last two are for the ablation, on fewer prompts."""
PEERS = tuple(METHODS)[:5]
ABLATION = {
    "neither": "DDIM, independent",
    "noise alone": "noise alone",
    "momentum alone": "momentum alone",
    "both (ZS²)": "ZS²",
}
COLOURS = dict(zip(METHODS, (PLAIN, PEER, ZS2, OTHER, "#7c3aed", "#a16207", "#be185d")))


def measure(run) -> dict:
    prompts = run.prompts(run.pick(100, 1))
    ablated = run.pick(12, 1)
    jobs = {
        name: [
            Job(method, each["prompt"], seed, FRAMES, STEPS, settings=tuple(settings.items()))
            for seed, each in enumerate(prompts[: None if name in PEERS else ablated])
        ]
        for name, (method, settings) in METHODS.items()
    }
    # without a prompt guidance changes nothing, but Text2Video-Zero cannot do without
    guidance = {"text2video-zero": GUIDANCE}
    free = {
        name: [
            Job(method, "", seed, FRAMES, STEPS, guidance.get(method, 1.0), tuple(settings.items()))
            for seed in range(run.pick(8, 1))
        ]
        for name, (method, settings) in METHODS.items()
    }
    records = iter(run.sampler([job for groups in (jobs, free) for group in groups.values() for job in group]))
    return {
        "frames": FRAMES,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "prompts": prompts,
        "clips": {name: [next(records) for _ in group] for name, group in jobs.items()},
        "free": {name: [next(records) for _ in group] for name, group in free.items()},
    }


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    clips, prompts = data["clips"], data["prompts"]
    text = (
        f"{len(prompts)} prompts, {data['frames']} frames each, DDIM with {data['steps']} steps at CFG "
        f"{data['guidance']:g}, the same seeds for all. Mixed and progressive noise take the place of dependency noise "
        "in ZS². ZS² has its default settings. In brackets: 95 % bootstrap intervals over prompts.\n\n"
    )
    if "attributes" in prompts[0]:
        text += _fidelity(clips, prompts, figures)
    return text + _consistency(clips, data["free"], figures) + _ablation(clips, data["free"], prompts)


def _fidelity(clips: dict, prompts: list[dict], figures: Figures) -> str:
    values = {name: fidelity(clips[name], prompts) for name in PEERS}
    plain = np.array(values["DDIM, independent"])
    rows = []
    for name in PEERS:
        parts = map(percent, attributes_right(clips[name], prompts))
        beyond = None if name == "DDIM, independent" else _points(*metrics.interval(np.array(values[name]) - plain))
        method = f'<a id="fidelity-{slug(name)}"></a>{name}'
        rows.append((method, _percent(*metrics.interval(values[name])), beyond, *parts))
    title = "Frames that show what the prompt asks for (shape, colour and background all right)"
    _bars(figures, "fidelity", title, values)
    return (
        "### Prompt fidelity (stand-in for the paper's Table 1)\n\n"
        "The part of all frames in which the judge reads the shape, the colour and the background that the prompt asks "
        "for; and how that differs from DDIM's on the same prompts.\n\n"
        + table(("method", "all right", "against DDIM", "shape", "colour", "background"), rows)
        + "\n"
        + figures.link("fidelity", "Prompt fidelity by method")
        + "\n"
    )


def _consistency(clips: dict, free: dict, figures: Figures) -> str:
    def rows(groups: dict, anchor: str) -> list[tuple]:
        return [(f'<a id="{anchor}-{slug(name)}"></a>{name}', *_consistency_of(groups[name])) for name in PEERS]

    frames = range(2, len(clips["ZS²"][0]["drift"]) + 2)
    title, y = "How far frames get from the first", "mean |difference| from frame 1, of 255"
    with figures("drift", title, "frame", y) as axes:
        ends = {}
        for name in PEERS:
            drift = np.mean([record["drift"] for record in clips[name]], axis=0)
            axes.plot(frames, drift, color=COLOURS[name], marker="o", markersize=3)
            ends[name] = frames[-1], drift[-1], COLOURS[name]
        axes.set_ylim(0)
        axes.set_xlim(right=frames[-1] + 2)
        axes.set_xticks(list(frames))
        label_ends(axes, ends)
    judged = "attributes" in free["ZS²"][0]
    if judged:
        kept = {name: [metrics.kept(np.array(record["attributes"])) for record in free[name]] for name in PEERS}
        _bars(figures, "kept", "Frames that keep the shape, colour and background of frame 1 (empty prompt)", kept)
    return (
        "### Consistency\n\n"
        "*Identity kept*: frames after the first in which the judge reads all attributes that it reads in the first. "
        "*Change*: mean |difference| of neighbouring frames, of 255. *Drift*: the same to frame 1, over all later "
        "frames. *Flicker*: what is left of the change once each frame is carried back along its optical flow. *Jerk*: "
        "mean second difference / mean first difference.\n\n"
        + table(("method", *CONSISTENCY), rows(clips, "consistency"))
        + "\n"
        + figures.link("drift", "Drift from frame 1 by frame")
        + "\nThe same with the empty prompt, where nothing but the method holds the subject "
        f"({len(free['ZS²'])} clips each):\n\n"
        + table(("method", *CONSISTENCY), rows(free, "free"))
        + "\n"
        + (figures.link("kept", "Identity kept by method") + "\n" if judged else "")
    )


def _bars(figures: Figures, name: str, title: str, values: dict[str, list[float]]) -> None:
    """The mean part of the frames of each method, with its interval."""
    with figures(name, title, "% of frames, with 95 % interval", "") as axes:
        for y, method in enumerate(reversed(values)):
            mean, low, high = (100 * x for x in metrics.interval(values[method]))
            axes.barh(y, mean, 0.6, color=COLOURS[method])
            axes.plot((low, high), (y - 0.4, y - 0.4), color="black", linewidth=1.5)
            inside = mean > 40
            label(axes, 0 if inside else mean, y, f"{method}: {mean:.1f} %", "white" if inside else COLOURS[method])
        axes.set_yticks([])
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)


def _ablation(clips: dict, free: dict, prompts: list[dict]) -> str:
    count = len(clips["noise alone"])
    judged = "attributes" in prompts[0]
    prompted, unprompted = [], []
    for part, name in ABLATION.items():
        group = clips[name][:count]
        right = percent(float(np.mean(fidelity(group, prompts[:count])))) if judged else None
        prompted.append((f'<a id="ablation-{slug(part)}"></a>{part}', right, *_consistency_of(group)))
        unprompted.append((f'<a id="ablation-free-{slug(part)}"></a>{part}', *_consistency_of(free[name])))
    return (
        "### Ablation\n\n*noise alone*: dependency noise, μ = 0; *momentum alone*: independent noise with temporal "
        f"momentum attention. The first {count} of the prompts:\n\n"
        + table(("what is on", "all right", *CONSISTENCY), prompted)
        + f"\nThe empty prompt, {len(free['ZS²'])} clips each:\n\n"
        + table(("what is on", *CONSISTENCY), unprompted)
    )


CONSISTENCY = ("identity kept", "change", "drift", "flicker", "jerk")


def _consistency_of(records: list[dict]) -> tuple:
    kept = None
    if "attributes" in records[0]:
        kept = _percent(*metrics.interval([metrics.kept(np.array(record["attributes"])) for record in records]))
    jerks = [record["jerk"] for record in records if record["jerk"] is not None]
    means = [float(np.mean([record[key] for record in records])) for key in ("change", "drift", "flicker")]
    return kept, *means, float(np.mean(jerks)) if jerks else None


def fidelity(records: list[dict], prompts: list[dict]) -> list[float]:
    """The part of each clip's frames that have all attributes asked for."""
    return [
        float(metrics.right(record["attributes"], each["attributes"]).mean())
        for record, each in zip(records, prompts, strict=True)
    ]


def attributes_right(records: list[dict], prompts: list[dict]) -> list[float]:
    """The part of all frames with the right shape, colour and background, each by itself."""
    read = np.array([record["attributes"] for record in records])  # (clips, frames, 3)
    asked = np.array([each["attributes"] for each in prompts])[:, None]
    return [float(part) for part in (read == asked).mean(axis=(0, 1))]


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
