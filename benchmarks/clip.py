"""A whole clip: ZS², a plain batch of as many pictures, Text2Video-Zero."""

from __future__ import annotations

import torch

from zs2_lib.settings.speeds import SPEEDS

from . import metrics
from .clips import GUIDANCE, Job, decode, load, sample
from .document import OTHER, PEER, PLAIN, ZS2, Figures, Target, at_most, percent, ratio_cells, table, time_bars
from .timing import KEEPING, averages_watched, in_own_process, in_turns, seconds

TITLE = "A whole clip against its peers"
PROMPT = "a red circle on a blue background"
BALANCED = tuple(SPEEDS["balanced"].settings.items())
METHODS = {
    # name: method, settings, colour
    "ZS²": ("zs2", (), ZS2),
    "plain batch": ("ddim", (), PLAIN),
    "Text2Video-Zero": ("text2video-zero", (), PEER),
    "ZS², balanced": ("zs2", BALANCED, OTHER),
}
TARGETS = (
    # anchor, above, below, at most
    ("clip-plain", "ZS²", "plain batch", 1.02),
    ("clip-peer", "ZS²", "Text2Video-Zero", 1.0),
    ("clip-balanced", "ZS², balanced", "Text2Video-Zero", 1.0),
)


def measure(run) -> dict:
    arguments = run.options.model, run.options.config, 8, run.pick(20, 5), run.pick(9, 2)
    return in_own_process(compare, *arguments, environment=KEEPING)


def compare(model: str | None, config: str | None, frames: int, steps: int, rounds: int) -> dict:
    pipe = load(model, config)
    jobs = {name: Job(kind, PROMPT, 1, frames, steps, settings=more) for name, (kind, more, _) in METHODS.items()}
    rows = {name: _unet_rows(pipe, job) for name, job in jobs.items()}
    times = in_turns({name: lambda job=job: decode(pipe, sample(pipe, job)) for name, job in jobs.items()}, rounds)
    return {
        "frames": frames,
        "steps": steps,
        "guidance": GUIDANCE,
        "rows": rows,
        "times": times,
        "in hooks": None if torch.cuda.is_available() else _share_of_averages(pipe, jobs["ZS²"]),
    }


def _share_of_averages(pipe, job: Job) -> float:
    """The part of a clip's time that the averages take: all that ZS² does beyond a plain batch but draw some noise."""
    with averages_watched() as spent:
        whole = seconds(lambda: decode(pipe, sample(pipe, job)))
    return sum(spent) / whole


def _unet_rows(pipe, job: Job) -> list[int]:
    """How many rows the UNet computes for a clip, in its first layer and in its middle block. Also warms up."""
    layers = (pipe.unet.conv_in, pipe.unet.mid_block)
    counts, handles = [0] * len(layers), []
    try:
        for index, layer in enumerate(layers):

            def count(module, inputs, output, index=index) -> None:
                counts[index] += len(output)

            handles.append(layer.register_forward_hook(count))  # comes before those that make all rows of the anchors'
        sample(pipe, job)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def targets(data: dict) -> list[Target]:
    times, size = data["times"], f"{data['frames']} frames, {data['steps']} steps"
    return [
        at_most(anchor, f"whole clip: {above} / {below}, {size}", metrics.median_ratio(times[above], times[below]), bar)
        for anchor, above, below, bar in TARGETS
    ]


def report(data: dict, figures: Figures) -> str:
    times, rows, hooks = data["times"], data["rows"], data["in hooks"]
    lines = []
    for name, (everywhere, deep) in rows.items():
        cells = metrics.median(times[name]), *ratio_cells(times["ZS²"], times[name])
        lines.append((name, *cells, everywhere, deep, f"{rows['ZS²'][0] / everywhere:.3f}"))
    time_bars(
        figures,
        "times",
        f"{data['frames']} frames in {data['steps']} steps, with decoding",
        "seconds (median)",
        {name: (metrics.median(times[name]), colour) for name, (_, _, colour) in METHODS.items()},
    )
    header = ("method", "s per clip", "ZS² / method", "quartiles", "UNet rows", "deep", "ZS²'s rows / method's")
    return (
        f"{data['frames']} frames, DDIM with {data['steps']} steps at CFG {data['guidance']:g}, sampled and decoded, "
        f"in turns ({len(times['ZS²'])} rounds): median of the ratios of one round. The plain batch is the same "
        "pipeline asked for as many pictures. Text2Video-Zero is `diffusers`' pipeline on the same checkpoint, "
        "scheduler and steps, its t0 and t1 rescaled from 50 steps; nothing is added to the prompt, and no watermark "
        "is drawn. It samples the first steps for frame 1 alone, so it computes fewer rows: *UNet rows*, of which "
        "*deep* go through the middle block. *Balanced* is ZS² with [anchors](#anchors). "
        + (
            f"Of ZS²'s time the averages take {percent(hooks)}, which is what it adds to a plain batch, but for a few "
            "draws of noise: where the ratio says more or less, that is the machine's doing.\n\n"
            if hooks is not None
            else "\n\n"
        )
        + table(header, lines)
        + "\n"
        + figures.link("times", "Time of a clip by method")
    )
