"""Key-frame passes: what they cost and what they do to a clip, by stride and depth.

    python -m benchmarks.keyframes operations     counted at the real shapes of SD 1.5 and SDXL
    python -m benchmarks.keyframes times          pairs of steps of SD 1.5's UNet on this machine
    python -m benchmarks.keyframes quality        clips of the tiny checkpoint

Costs are ratios to the plain batch, the same frames with guidance in one UNet call. The command writes a line of JSON for
each row; `measure` is the section of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from zs2_lib.attention import TemporalMomentum
from zs2_lib.hosts import diffusers as host
from zs2_lib.keyframes import DEPTHS, PRESETS, KeyFrames, Keys, deep_modules, phase_of
from zs2_lib.layout import Rows
from zs2_lib.settings import Settings
from zs2_lib.streaming import Passes

from . import metrics, timing, unets
from .clips import GUIDANCE, decode, load
from .document import OTHER, PEER, PLAIN, ZS2, Figures, Target, label, table
from .judge import example_prompts, load_judge

TITLE = "Key-frame passes: quality against cost"
STRIDES = (2, 4, 8)
VARIANTS = tuple((stride, depth) for depth in DEPTHS for stride in STRIDES)
REFRESHED = tuple(dict.fromkeys((PRESETS["balanced"], PRESETS["fast"], (4, "medium", 10), (8, "medium", 5), (8, "medium", 10))))
"""(stride, depth, refresh)."""
CACHED = ((1, "strong", 0, 2), (1, "strong", 0, 3), (4, "medium", 0, 2))
"""(stride, depth, refresh, steps that the deep output serves)."""
EXACT = (1, "medium", 0, 1)
STEPS = 20
"""Of the samplings that costs are given for."""
SHAPES = (("sd1", 64), ("sdxl", 128))
"""UNet and latent side."""
MOMENTUM = 0.98
BAR = {"cost": 0.60, "motion": 0.15}


# --- costs --------------------------------------------------------------------------------------------------

def operations(shapes=SHAPES, frames=(8, 16), variants=VARIANTS) -> list[dict]:
    """Multiplications and additions of a UNet call with guidance; `ratio` is to the plain batch.

    Nothing is computed: the tensors are torch's `meta` ones.
    """
    result = []
    for model, side in shapes:
        with torch.device("meta"):
            unet = unets.unet(model)
        for count in frames:
            with torch.device("meta"):
                arguments = unets.inputs(unet, 2 * count, side)
            plain = _count(unet, arguments, count, 1, "medium")
            for stride, depth in variants:
                counted = _count(unet, arguments, count, stride, depth)
                result.append({"model": model, "pixels": 8 * side, "frames": count, "stride": stride, "depth": depth,
                               "operations": counted, "ratio": counted / plain})
    return result


def _count(unet, arguments, frames: int, stride: int, depth: str) -> int:
    with FlopCounterMode(display=False) as counter:
        step(unet, arguments, frames, stride, depth)
    return counter.get_total_flops()


def times(
    model: str = "sd1", side: int = 16, frames: int = 8, rounds: int = 3, variants=((2, "medium"), (4, "medium"), (8, "medium")),
) -> list[dict]:
    """The time of a UNet step with key frames over that of the plain batch, in turns on one thread; `ratio` is the median."""
    unet = unets.unet(model)
    arguments = unets.inputs(unet, 2 * frames, side)
    runs = {variant: functools.partial(step, unet, arguments, frames, *variant) for variant in ((1, "medium"), *variants)}
    step(unet, arguments, frames, 8, "strong")  # what is done once
    taken = timing.in_turns(runs, rounds)
    plain = taken.pop((1, "medium"))
    return [
        {"model": model, "pixels": 8 * side, "frames": frames, "stride": stride, "depth": depth, "rounds": rounds,
         "plain": metrics.median(plain), "ratio": metrics.median_ratio(seconds, plain)}
        for (stride, depth), seconds in taken.items()
    ]


@torch.no_grad()
def step(unet, arguments: tuple[tuple, dict], frames: int, stride: int, depth: str) -> torch.Tensor:
    """One UNet call of a clip, with guidance; with stride 1, the plain batch without momentum."""
    args, kwargs = arguments
    rows = Rows.blocks(frames, 2)
    with TemporalMomentum([MOMENTUM if stride > 1 else 0.0] * frames) as attention, KeyFrames(attention, stride, depth) as keys:
        attention.attach(unet)
        keys.attach(unet)
        keys.kept[None] = None  # a step after the first, which computes all frames
        keys.restart(1)
        return Passes(attention, frames, keys).run(lambda *args, **kwargs: unet(*args, **kwargs).sample, rows, *args, **kwargs)


def cost(
    counted: Sequence[dict], stride: int, depth: str, refresh: int = 0, every: int = 1,
    model: str = "sd1", frames: int = 8, steps: int = STEPS,
) -> float:
    """The ratio to the plain batch of a sampling with a variant, from the rows of `operations`; its deep output serves for
    `every` steps.
    """
    def share(stride: int, phase: int) -> float:  # of the frames that are key frames
        return len(Keys.of(Rows.blocks(frames, 1), stride, phase, frames - 1).index) / frames

    row = next(row for row in counted if (row["model"], row["frames"], row["depth"]) == (model, frames, depth) and row["stride"] > 1)
    deep = (1 - row["ratio"]) / (1 - share(row["stride"], phase_of(1, row["stride"])))
    full = (len(range(0, steps, refresh)) if refresh else stride > 1) / steps
    shares = [share(stride, phase_of(step, stride)) for step in range(1, stride + 1)]
    return full + (1 - full) * (1 - deep + deep * sum(shares) / len(shares) / every)


# --- quality ------------------------------------------------------------------------------------------------

def quality(
    variants: Sequence[tuple[int, str, int, int]], prompts: int = 32, frames: int = 8, steps: int = 10, guidance: float = GUIDANCE,
    pipe=None, done: Callable[[dict], object] = lambda row: None,
) -> list[dict]:
    """Clips of the tiny checkpoint, exact and by variant (stride, depth, refresh, every): one number a clip of what is measured.

    `every` n > 1 keeps what the deep blocks gave for n steps. `right` is the part of the frames whose shape, colour and
    background are as asked, `difference` the mean absolute difference to the exact clip, of 255; `motion` (change), `drift`
    and `flicker` are those of `metrics`. `done(row)` is called with each row once it is there.
    """
    pipe, judge = pipe or load(None, None), load_judge()
    examples, exact, result = example_prompts(prompts), [], []
    for variant in (EXACT, *variants):
        row = {**dict(zip(("stride", "depth", "refresh", "every"), variant)), "steps": steps, "frames": frames}
        row.update({name: [] for name in ("right", "motion", "drift", "flicker", "difference")})
        for seed, (prompt, asked) in enumerate(examples):
            clip = decode(pipe, sample(pipe, prompt, seed, *variant, frames, steps, guidance))
            if len(exact) < prompts:
                exact.append(clip)
            row["right"].append(float(metrics.right(judge.attributes(clip), asked).mean()))
            row["motion"].append(float(np.mean(metrics.change(clip))))
            row["drift"].append(float(np.mean(metrics.drift(clip))))
            row["flicker"].append(float(np.mean(metrics.flicker(clip))))
            row["difference"].append(float(np.abs(clip.astype(np.float32) - exact[seed]).mean()))
        result.append(row)
        done(row)
    return result


def sample(
    pipe, prompt: str, seed: int, stride: int, depth: str, refresh: int, every: int, frames: int, steps: int, guidance: float,
) -> torch.Tensor:
    """The latents of one clip, in one pass a step."""
    settings = Settings(
        frames=frames, keyframe_stride=stride, keyframe_depth=depth, keyframe_refresh=refresh, frames_per_pass=frames)
    with host.ClipSampling(pipe, settings, seed), deep_output_kept(pipe.unet, depth, every):
        return pipe(
            prompt, num_images_per_prompt=frames, num_inference_steps=steps, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed), output_type="latent",
        ).images


@contextlib.contextmanager
def deep_output_kept(unet, depth: str, every: int) -> Iterator[None]:
    """What the deep blocks give at one step serves for `every` steps (Ma et al., DeepCache, 2023).

    For the pictures alone: the deep blocks still run.
    """
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
    variants = run.pick(
        [*((*variant, 0, 1) for variant in VARIANTS), *((*variant, 1) for variant in REFRESHED), *CACHED],
        [(*PRESETS[name], 1) for name in ("balanced", "fast")],
    )
    return {
        "presets": {name: list(preset) for name, preset in PRESETS.items()},
        "operations": operations(),
        "times": times(rounds=run.pick(3, 1)),
        "quality": quality(variants, run.pick(32, 4), pipe=run.pipe) if run.options.model is None else [],
    }


def summary(data: dict) -> list[dict]:
    """One row a variant: its cost at SD 1.5's shape and 8 frames, and the means over clips."""
    rows = []
    for row in data["quality"]:
        variant = row["stride"], row["depth"], row["refresh"], row["every"]
        right, low, high = metrics.interval(row["right"])
        rows.append({
            "variant": variant, "preset": next(
                (name for name, preset in data["presets"].items() if (*preset, 1) == variant), "exact" if variant == EXACT else ""),
            "cost": cost(data["operations"], *variant), "right": right, "low": low, "high": high,
            **{name: float(np.mean(row[name])) for name in ("motion", "drift", "flicker", "difference")},
        })
    return rows


def targets(data: dict) -> list[Target]:
    rows = {row["preset"]: row for row in summary(data)}
    if "balanced" not in rows:
        return []
    exact, balanced = rows["exact"], rows["balanced"]
    moved = balanced["motion"] / exact["motion"] - 1
    return [
        Target("keyframes-cost", "cost of “balanced”, operations at SD 1.5, 512×512, 8 frames", f"≤ {BAR['cost']:.2f}",
               f"{balanced['cost']:.2f}", balanced["cost"] <= BAR["cost"]),
        Target("keyframes-fidelity", "fidelity of “balanced”", f"≥ {exact['low']:.3f}, the lower end of the exact method's interval",
               f"{balanced['right']:.3f} (exact {exact['right']:.3f})", balanced["right"] >= exact["low"]),
        Target("keyframes-motion", "motion of “balanced” against exact", f"within {BAR['motion']:.0%}", f"{moved:+.1%}",
               abs(moved) <= BAR["motion"]),
    ]


def report(data: dict, figures: Figures) -> str:
    text = (
        "Every s-th frame (stride s) goes through the deep blocks, the others get what lies between. Costs are operations of a UNet call "
        "as a ratio to the plain batch of the same frames.\n\n### Cost\n\n"
    )
    kinds = list(dict.fromkeys((row["model"], row["pixels"], row["frames"]) for row in data["operations"]))
    ratios = {(row["depth"], row["stride"], row["model"], row["pixels"], row["frames"]): row["ratio"] for row in data["operations"]}
    variants = dict.fromkeys(key[:2] for key in ratios)
    head = [f"{unets.NAMES[model]}, {pixels}×{pixels}, {frames} frames" for model, pixels, frames in kinds]
    text += table(("depth", "stride", *head), [(*variant, *(f"{ratios[(*variant, *kind)]:.2f}" for kind in kinds)) for variant in variants])
    text += "\n### Time\n\nA step with guidance on this machine, median of the ratios of pairs.\n\n" + table(
        ("UNet", "size", "frames", "depth", "stride", "plain batch, s", "ratio"),
        [(unets.NAMES[row["model"]], f"{row['pixels']}×{row['pixels']}", row["frames"], row["depth"], row["stride"], row["plain"],
          f"{row['ratio']:.2f}") for row in data["times"]],
    )
    if not data["quality"]:
        return text
    rows, clips, one = summary(data), len(data["quality"][0]["right"]), data["quality"][0]
    text += (
        f"\n### Quality\n\nThe cost is that of {STEPS} steps of SD 1.5 at 512×512, 8 frames. {clips} clips of {one['frames']} frames "
        f"of the tiny checkpoint, {one['steps']} steps; the same seeds for each variant. "
        "Fidelity is the part of the frames whose shape, colour and background are as asked, with its 95 % interval; motion, drift, flicker and "
        "the difference to the exact clip are means, of 255. Refresh: at every so many steps all frames are computed in full. Cached: for how many steps the deep output serves (step-wise caching; measured only).\n\n"
    )
    text += table(
        ("preset", "depth", "stride", "refresh", "cached", "cost", "fidelity", "motion", "drift", "flicker", "difference"),
        [(row["preset"], row["variant"][1], row["variant"][0], *row["variant"][2:], f"{row['cost']:.2f}",
          f"{row['right']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
          *(f"{row[name]:.2f}" for name in ("motion", "drift", "flicker", "difference"))) for row in rows],
    )
    _plot(figures, rows)
    return text + "\n" + figures.link("by_cost", "Difference to the exact clip by cost")


def _plot(figures: Figures, rows: list[dict]) -> None:
    lines = [(depth, lambda row, depth=depth: row["variant"][1:] == (depth, 0, 1)) for depth in DEPTHS] + [
        ("with refresh", lambda row: row["variant"][2] > 0), ("cached over steps", lambda row: row["variant"][3] > 1)]
    with figures("by_cost", "What key frames cost and change", "cost, of the plain batch", "difference to the exact clip, of 255") as axes:
        for (name, belongs), colour in zip(lines, (OTHER, PEER, "#7c3aed", ZS2, PLAIN)):
            points = sorted((row for row in rows if belongs(row) and row["variant"] != EXACT), key=lambda row: row["cost"])
            axes.plot([row["cost"] for row in points], [row["difference"] for row in points], color=colour, marker="o", markersize=4,
                      label=name, linestyle="-" if name in DEPTHS else "")
            for row in points:
                label(axes, row["cost"], row["difference"], row["preset"] or str(row["variant"][0]), colour)
        axes.set_ylim(0)
        axes.legend(frameon=False, title="depth (numbers: stride)")


# --- the command --------------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("operations", "times", "quality"))
    parser.add_argument("--variants", nargs="+", metavar="STRIDE,DEPTH[,REFRESH[,CACHED]]", help="default: all")
    parser.add_argument("--prompts", type=int, default=32, help="clips of each variant; default 32")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps; default 10")
    parser.add_argument("--model", default="sd1", choices=tuple(unets.NAMES), help="of the steps timed; default sd1")
    parser.add_argument("--side", type=int, default=16, help="latent height and width of the steps timed; default 16")
    parser.add_argument("--frames", type=int, default=8, help="default 8")
    parser.add_argument("--rounds", type=int, default=3, help="steps timed of each kind; default 3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    variants = [(int(stride), depth, *map(int, rest)) for stride, depth, *rest in (text.split(",") for text in options.variants or ())]

    def show(row: dict) -> None:
        print(json.dumps(metrics.rounded(row, 5)), flush=True)

    if options.what == "quality":
        variants = variants or [*VARIANTS, *REFRESHED, *CACHED]
        variants = [(*variant, *(0, 1)[len(variant) - 2:]) for variant in variants]
        quality(variants, options.prompts, options.frames, options.steps, done=show)
        return
    pairs = [variant[:2] for variant in variants] or VARIANTS
    if options.what == "operations":
        rows = operations(variants=pairs)
    else:
        rows = times(options.model, options.side, options.frames, options.rounds, pairs)
    for row in rows:
        show(row)


if __name__ == "__main__":
    sys.exit(main())
