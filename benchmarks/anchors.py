"""Anchor passes: what they cost and what they do to a clip, by stride and depth.

    python -m benchmarks.anchors operations     counted at the real shapes of SD 1.5 and SDXL
    python -m benchmarks.anchors times          pairs of steps of a UNet of real width on this machine

Costs are ratios to the plain batch, the same frames with guidance in one UNet call. The command writes a line of JSON
for each row, for other sizes than those of the section; `measure` is the section of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zs2_lib.core.anchors import AnchorRows, phase_of
from zs2_lib.core.blocks import DEPTHS, deep_modules
from zs2_lib.core.clip import Clip
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.settings.presets import PRESETS
from zs2_lib.settings.table import Settings

from . import metrics, timing, unets
from .clips import GUIDANCE, decode
from .document import OTHER, PEER, PLAIN, ZS2, Figures, Target, label, percent, table

TITLE = "Anchor passes: quality against cost"
STRIDES = (2, 4, 8)
START = PRESETS["balanced"][2]
EXACT = (1, "medium", START, 1)
"""(stride, depth, start, steps that the deep output serves)."""
BY_PRESET = tuple((*preset, 1) for preset in PRESETS.values())
BY_DEPTH = tuple((stride, depth, START, 1) for depth in DEPTHS for stride in STRIDES)
BY_START = tuple((8, "medium", start, 1) for start in (0.0, 0.1, 0.3))
CACHED = ((1, "medium", 0.0, 2), (1, "medium", 0.0, 3), (8, "medium", START, 2))
VARIANTS = tuple(dict.fromkeys((*BY_PRESET, *BY_DEPTH, *BY_START, *CACHED)))
STEPS = 20
SHAPES = (("sd1", 64, 8), ("sd1", 64, 16), ("sdxl", 128, 8))
"""UNet, latent side and frames of the operations counted."""
TIMED = (
    # UNet, latent side, rounds, (stride, depth)
    ("sd1", 32, 1, ((8, "medium"), (16, "medium"), (8, "gentle"), (8, "strong"))),
)
QUICK_TIMED = (("sd1", 8, 1, ((8, "medium"),)),)
MOMENTUM = 0.98
BAR = {"cost": 0.60, "motion": 0.15}


# --- costs --------------------------------------------------------------------------------------------------


def operations(model: str, side: int, frames: int) -> list[dict]:
    """Multiplications and additions of a UNet call with guidance after the steps in full; `ratio`: to the plain batch.

    Nothing is computed: torch's fake tensors have shapes alone.
    """
    with FakeTensorMode():
        unet = unets.unet(model)
        arguments = unets.inputs(unet, 2 * frames, side)
        plain = _count(unet, arguments, frames, 1, "medium")
        variants = [(stride, depth) for depth in DEPTHS for stride in STRIDES]
        counted = [(_variant(model, side, frames, *each), _count(unet, arguments, frames, *each)) for each in variants]
    return [{**row, "operations": count, "ratio": count / plain} for row, count in counted]


def _variant(model: str, side: int, frames: int, stride: int, depth: str) -> dict:
    return {"model": model, "pixels": 8 * side, "frames": frames, "stride": stride, "depth": depth}


def _count(unet, arguments, frames: int, stride: int, depth: str) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the CPU's own kernel is not counted
        step(unet, arguments, frames, stride, depth)
    return counter.get_total_flops()


def times(model: str, side: int, rounds: int, variants: Sequence[tuple[int, str]], frames: int = 8) -> list[dict]:
    """The time of a UNet step with anchors over that of the plain batch, in turns; `ratio` is the median."""
    unet = unets.unet(model)
    arguments = unets.inputs(unet, 2 * frames, side)
    runs = {each: functools.partial(step, unet, arguments, frames, *each) for each in ((1, "medium"), *variants)}
    step(unet, arguments, frames, 8, "strong")  # what is done once
    taken = timing.in_turns(runs, rounds)
    plain = taken.pop((1, "medium"))
    shared = {"rounds": rounds, "plain": metrics.median(plain)}
    return [
        {**_variant(model, side, frames, *each), **shared, "ratio": metrics.median_ratio(seconds, plain)}
        for each, seconds in taken.items()
    ]


@torch.no_grad()
def step(unet, arguments: tuple[tuple, dict], frames: int, stride: int, depth: str) -> torch.Tensor:
    """One UNet call of a clip, with guidance; with stride 1, the plain batch without momentum."""
    args, kwargs = arguments
    rows = Rows.blocks(frames, 2)
    momentum = [MOMENTUM if stride > 1 else 0.0] * frames
    with Clip(momentum, anchor_stride=stride, anchor_depth=depth, frames_per_pass=frames) as clip:
        clip.attach(unet)
        clip.anchors.kept.known[None] = 0  # a step after the first, which computes all frames
        clip.begin_step(1)
        return clip.call(lambda *args, **kwargs: unet(*args, **kwargs).sample, rows, *args, **kwargs)


def cost(
    counted: Sequence[dict],
    stride: int,
    depth: str,
    start: float = 0.0,
    every: int = 1,
    model: str = "sd1",
    frames: int = 8,
    steps: int = STEPS,
) -> float:
    """The ratio to the plain batch of a sampling (DDIM) with a variant, from the rows of `operations`; its deep output
    serves for `every` steps.
    """

    def share(stride: int, phase: int) -> float:  # of the frames that are anchors
        return len(AnchorRows.of(Rows.blocks(frames, 1), stride, phase, clip_end=frames - 1).index) / frames

    row = next(row for row in counted if (row["model"], row["frames"], row["depth"]) == (model, frames, depth))
    deep = (1 - row["ratio"]) / (1 - share(row["stride"], phase_of(1, row["stride"])))
    full = steps_in_full(start, steps) if stride > 1 else 0
    total = float(full)
    for number in range(full, steps):
        computed = share(stride, phase_of(number, stride)) if stride > 1 else 1.0
        total += 1 - deep + deep * computed * (number % every == 0)
    return total / steps


def steps_in_full(start: float, steps: int = STEPS) -> int:
    """How many of DDIM's steps, as Stable Diffusion spaces them, compute all frames in full."""
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(steps)
    return sum(step == 0 or 1 - float(t) / 1000 < start for step, t in enumerate(scheduler.timesteps))


# --- quality ------------------------------------------------------------------------------------------------


def quality(pipe, judge, task: dict) -> list[dict]:
    """What each of the task's variants makes of a prompt: clips of the same noise, compared with the exact one.

    `right` is the part of the frames whose shape, colour and background are as asked, `difference` the mean absolute
    difference to the exact clip, of 255; `motion` (change), `drift` and `flicker` are those of `metrics`.
    """
    results, exact = [], None
    for variant in (EXACT, *(variant for variant in task["variants"] if variant != EXACT)):
        clip = decode(pipe, sample(pipe, task["prompt"], task["seed"], variant, task["frames"], task["steps"]))
        exact = clip if exact is None else exact
        results.append(
            {
                "variant": variant,
                "right": float(metrics.right(judge.attributes(clip), task["attributes"]).mean()),
                **{name: float(np.mean(measure(clip))) for name, measure in MEASURES.items()},
                "difference": float(np.abs(clip.astype(np.float32) - exact).mean()),
            }
        )
    return results


MEASURES = {"motion": metrics.change, "drift": metrics.drift, "flicker": metrics.flicker}


def sample(pipe, prompt: str, seed: int, variant: tuple, frames: int, steps: int) -> torch.Tensor:
    """The latents of one clip, in one pass a step."""
    stride, depth, start, every = variant
    anchors = {"anchor_stride": stride, "anchor_depth": depth, "anchor_start": start}
    settings = Settings(frames=frames, frames_per_pass=frames, **anchors)
    with host.ClipSampling(pipe, settings, seed), deep_output_kept(pipe.unet, depth, every):
        return pipe(
            prompt,
            num_images_per_prompt=frames,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images


@contextlib.contextmanager
def deep_output_kept(unet, depth: str, every: int) -> Iterator[None]:
    """What the deep blocks give at one step serves for `every` steps (Ma et al., DeepCache, 2023).

    For the pictures alone: the deep blocks still run. Measured as a second axis; it is not part of the library.
    """
    if every == 1:
        yield
        return
    calls, kept = 0, None

    def keep(module, args, output):
        nonlocal calls, kept
        if calls % every == 0:
            kept = output
        calls += 1
        return kept

    handle = deep_modules(unet, depth)[-1].register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


# --- the section --------------------------------------------------------------------------------------------


def measure(run) -> dict:
    timed = []
    run.sampler.rest()
    for each in run.pick(TIMED, QUICK_TIMED):
        timed += timing.in_own_process(times, *each, environment=timing.KEEPING, threads=os.cpu_count() or 1)
        print(f"  {timed[-1]['model']}, {timed[-1]['pixels']} pixels: {timed[-1]['ratio']:.2f}", flush=True)
    counted = run.sampler.map(_operations, run.pick(SHAPES, SHAPES[:1]), "shapes counted")
    clips, compared = run.pick((24, 2), (1, 1))
    steps = run.pick(STEPS, 10)
    shared, tasks = {"frames": 8, "steps": steps}, []
    for seed, each in enumerate(run.prompts(clips) if run.options.model is None else ()):
        variants = run.pick(VARIANTS, BY_PRESET) if seed < compared else BY_PRESET
        tasks.append({**each, "seed": seed, **shared, "variants": variants})
    return {
        "presets": {name: [*preset, 1] for name, preset in PRESETS.items()},
        **shared,
        "operations": [row for rows in counted for row in rows],
        "times": timed,
        "clips": run.sampler.map(quality, tasks, "prompts"),
    }


def _operations(pipe, judge, shape: tuple) -> list[dict]:
    return operations(*shape)


def summary(data: dict, of: Sequence, count: int | None = None) -> list[dict]:
    """A row for each variant `of` those measured: cost at SD 1.5's shape, means over the first `count` clips."""
    names = {tuple(preset): name for name, preset in data["presets"].items()}
    rows = []
    for variant in map(tuple, of):
        clips = [one for prompt in data["clips"][:count] for one in prompt if tuple(one["variant"]) == variant]
        right, low, high = metrics.interval([clip["right"] for clip in clips])
        rows.append(
            {
                "variant": variant,
                "preset": names.get(variant, ""),
                "cost": cost(data["operations"], *variant),
                "clips": len(clips),
                "right": right,
                "low": low,
                "high": high,
                **{name: float(np.mean([clip[name] for clip in clips])) for name in (*MEASURES, "difference")},
            }
        )
    return rows


def targets(data: dict) -> list[Target]:
    if not data["clips"]:
        return []
    exact, balanced = summary(data, [data["presets"][name] for name in ("exact", "balanced")])
    moved = balanced["motion"] / exact["motion"] - 1
    of = f"{balanced['clips']} clips of {data['frames']} frames, {data['steps']} steps"
    return [
        Target(
            "anchors-cost",
            f"“balanced”: operations at SD 1.5, 512×512, 8 frames, {STEPS} steps of DDIM, of the plain batch's",
            f"≤ {BAR['cost']:.2f}×",
            f"{balanced['cost']:.3f}×",
            balanced["cost"] <= BAR["cost"],
        ),
        Target(
            "anchors-fidelity",
            f"“balanced”: frames that show what is asked for, {of}",
            f"≥ {percent(exact['low'])}, where the exact method's interval begins",
            f"{percent(balanced['right'])} (exact: {percent(exact['right'])})",
            balanced["right"] >= exact["low"],
        ),
        Target(
            "anchors-motion",
            f"“balanced”: motion against the exact method's, {of}",
            f"within {BAR['motion']:.0%}",
            f"{moved:+.1%}",
            abs(moved) <= BAR["motion"],
        ),
    ]


VARIED = ("depth", "stride", "model", "pixels", "frames")


def report(data: dict, figures: Figures) -> str:
    text = (
        "Of every s frames (*stride* s) one goes through the deep blocks, the others get what lies between; at the "
        "first steps (up to the part *start* of the way from noise to picture) all do. All ratios are to the plain "
        "batch of the same frames.\n\n"
    )
    if data["clips"]:
        text += _quality(data, figures)
    kinds = list(dict.fromkeys((row["model"], row["pixels"], row["frames"]) for row in data["operations"]))
    ratios = {tuple(row[key] for key in VARIED): row["ratio"] for row in data["operations"]}
    variants = dict.fromkeys(key[:2] for key in ratios)
    head = [f"{unets.NAMES[model]}, {pixels}×{pixels}, {frames} frames" for model, pixels, frames in kinds]
    text += "\n### Operations of a step with anchors\n\n" + table(
        ("depth", "stride", *head),
        [(*variant, *(f"{ratios[(*variant, *kind)]:.2f}" for kind in kinds)) for variant in variants],
    )
    full = steps_in_full(START)
    timed = []
    for row in data["times"]:
        ratios = f"{row['ratio']:.2f}", f"{(full + (STEPS - full) * row['ratio']) / STEPS:.2f}"
        unet = unets.NAMES[row["model"]], f"{row['pixels']}×{row['pixels']}"
        timed.append((*unet, row["depth"], row["stride"], row["rounds"], row["plain"], *ratios))
    head = ("UNet", "pixels", "depth", "stride", "rounds", "plain batch, s", "ratio", "whole")
    return text + (
        "\n### Time of a step with anchors\n\n"
        f"UNets of real widths with random weights, with guidance, {data['frames']} frames, on all cores, in turns: "
        f"median of the ratios of a round. *Whole*: the same of {STEPS} steps of DDIM, {full} of them in full.\n\n"
        + table(head, timed)
    )


def _quality(data: dict, figures: Figures) -> str:
    presets, measured = summary(data, data["presets"].values()), {tuple(one["variant"]) for one in data["clips"][0]}
    count = sum(len(prompt) == len(measured) for prompt in data["clips"])
    rows = summary(data, (variant for variant in VARIANTS if variant in measured), count)
    _plot(figures, rows)

    def lines(rows: list[dict]) -> list[tuple]:
        cells = []
        for row in rows:
            stride, depth, start, every = row["variant"]
            depth, start = depth if row["preset"] != "exact" else None, f"{start:g}" if stride > 1 else None
            right = f"{percent(row['right'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            means = (f"{row[name]:.2f}" for name in (*MEASURES, "difference"))
            cells.append((row["preset"], stride, depth, start, every, f"{row['cost']:.2f}", right, *means))
        return cells

    head = ("preset", "stride", "depth", "start", "cached", "cost", "all right", *MEASURES, "difference")
    return (
        f"### The presets\n\n{presets[0]['clips']} clips of {data['frames']} frames of the tiny checkpoint, DDIM with "
        f"{data['steps']} steps at CFG {GUIDANCE:g}, the same seeds for each. *Cost*: operations of {STEPS} steps of "
        "DDIM with SD 1.5 at 512×512, 8 frames. *All right*: frames that show the shape, the colour and the background "
        "asked for, with the 95 % bootstrap interval. *Difference*: to the exact clip, of 255.\n\n"
        + table(head, lines(presets))
        + "\n### By stride, depth and start\n\n"
        f"The first {count} of these prompts. *Cached*: for how many steps the deep output serves, the step-wise "
        "caching of DeepCache; measured as a second axis, it is not offered.\n\n"
        + table(head, lines(rows))
        + "\n"
        + figures.link("by_cost", "Difference to the exact clip by cost")
        + "\n"
    )


def _plot(figures: Figures, rows: list[dict]) -> None:
    groups = {
        f"{depth}, start {START:g}": [row for row in rows if row["variant"] in BY_DEPTH and row["variant"][1] == depth]
        for depth in DEPTHS
    }
    started = {*BY_START, *BY_PRESET} - {*BY_DEPTH, EXACT}
    groups["stride 8 or 16, medium, another start"] = [row for row in rows if row["variant"] in started]
    groups["deep output kept for more steps"] = [row for row in rows if row["variant"] in CACHED]
    x, y = "operations, of the plain batch's (SD 1.5, 512×512)", "difference to the exact clip, of 255"
    with figures("by_cost", "What anchors save and what they change", x, y) as axes:
        for (name, group), colour in zip(groups.items(), (OTHER, ZS2, "#7c3aed", PEER, PLAIN)):
            if not group:
                continue
            joined = sorted(group, key=lambda row: row["cost"])
            points = [row["cost"] for row in joined], [row["difference"] for row in joined]
            line = "-" if name.startswith(DEPTHS) and "another" not in name else ""
            axes.plot(*points, color=colour, marker="o", markersize=4, label=name, linestyle=line)
            for row in joined:
                label(axes, row["cost"], row["difference"], row["preset"] or _named(row["variant"]), colour)
        axes.set_ylim(0)
        axes.margins(x=0.12)
        axes.legend(frameon=False, fontsize=8)


def _named(variant: tuple) -> str:
    """What a variant differs by from the others of its colour in the plot."""
    stride, _, start, every = variant
    if every > 1:
        return f"{every} steps" + (f", stride {stride}" if stride > 1 else "")
    return f"stride {stride}" if start == START else f"start {start:g}"


# --- the command --------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("operations", "times"))
    parser.add_argument("--variants", nargs="+", metavar="STRIDE,DEPTH", help="of the steps timed; default: all")
    parser.add_argument("--model", default="sd1", choices=tuple(unets.NAMES), help="default sd1")
    parser.add_argument("--side", type=int, default=16, help="latent height and width; default 16")
    parser.add_argument("--frames", type=int, default=8, help="default 8")
    parser.add_argument("--rounds", type=int, default=3, help="steps timed of each kind; default 3")
    options = parser.parse_args()
    variants = [(int(stride), depth) for stride, depth in (text.split(",") for text in options.variants or ())]
    if options.what == "operations":
        rows = operations(options.model, options.side, options.frames)
    else:
        variants = variants or [variant[:2] for variant in BY_DEPTH]
        rows = times(options.model, options.side, options.rounds, variants, options.frames)
    for row in rows:
        print(json.dumps(metrics.rounded(row, 5)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
