"""A whole clip: ZS², a plain batch of as many pictures, Text2Video-Zero."""

from __future__ import annotations

import numpy as np

from . import metrics
from .clips import GUIDANCE, Job, decode, sample
from .document import PEER, PLAIN, ZS2, Figures, Target, label, table
from .timing import in_turns

TITLE = "A whole clip against its peers"
PROMPT = "a red circle on a blue background"
NAMES = {"zs2": "ZS²", "ddim": "plain batch", "text2video-zero": "Text2Video-Zero"}
COLOURS = {"zs2": ZS2, "ddim": PLAIN, "text2video-zero": PEER}
PLAIN_BAR, PEER_BAR = 1.02, 1.00


def measure(run) -> dict:
    frames, steps, pipe = 8, run.pick(20, 5), run.pipe
    jobs = {method: Job(method, PROMPT, 1, frames, steps) for method in NAMES}
    rows = {method: _unet_rows(pipe, job) for method, job in jobs.items()}
    times = in_turns({method: lambda job=job: decode(pipe, sample(pipe, job)) for method, job in jobs.items()}, run.pick(9, 2))
    return {"frames": frames, "steps": steps, "guidance": GUIDANCE, "rows": rows, "times": times}


def _unet_rows(pipe, job: Job) -> int:
    """How many rows the UNet computes for a clip; the work that no implementation can save. Also warms up."""
    counted = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    try:
        sample(pipe, job)
    finally:
        handle.remove()
    return sum(counted)


def targets(data: dict) -> list[Target]:
    times, size = data["times"], f"{data['frames']} frames, {data['steps']} steps"
    targets = []
    for anchor, other, what, bar in (
        ("clip-plain", "ddim", "plain batch of as many pictures", PLAIN_BAR), ("clip-peer", "text2video-zero", "Text2Video-Zero", PEER_BAR),
    ):
        ratio = metrics.median_ratio(times["zs2"], times[other])
        targets.append(Target(anchor, f"whole clip / {what}, {size}", f"≤ {bar:.2f}×", f"{ratio:.3f}×", ratio <= bar))
    return targets


def report(data: dict, figures: Figures) -> str:
    times, rows = data["times"], data["rows"]
    lines = []
    for method, name in NAMES.items():
        ratios = np.divide(times["zs2"], times[method])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        lines.append((
            name, metrics.median(times[method]), f"{middle:.3f}", f"{low:.3f} to {high:.3f}", rows[method],
            f"{rows['zs2'] / rows[method]:.3f}",
        ))
    with figures("times", f"{data['frames']} frames in {data['steps']} steps, with decoding", "seconds (median)", "", height=2.4) as axes:
        for y, (method, name) in enumerate(reversed(NAMES.items())):
            taken = metrics.median(times[method])
            axes.barh(y, taken, 0.6, color=COLOURS[method])
            label(axes, 0, y, f"{name}: {taken:.2f} s", "white")
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
    return (
        f"{data['frames']} frames, DDIM with {data['steps']} steps at CFG {data['guidance']:g}, sampled and decoded, in turns "
        f"({len(times['zs2'])} rounds): median of the ratios of one round. The plain batch is the same pipeline asked for as many "
        "pictures. Text2Video-Zero is `diffusers`' pipeline on the same checkpoint, scheduler and steps, its t0 and t1 rescaled from 50 "
        "steps; nothing is added to the prompt, and no watermark is drawn. It samples the first steps for frame 1 alone, so it computes "
        "fewer rows: *UNet rows*.\n\n"
        + table(("method", "s per clip", "ZS² / method", "quartiles", "UNet rows", "the same ratio of rows"), lines)
        + "\n" + figures.link("times", "Time of a clip by method")
    )
