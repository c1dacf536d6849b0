"""Quality against cost: what anchors save and change, and what fewer steps, another sampler and the peers do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from zs2_lib.core.blocks import DEPTHS, deep_modules
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.settings.speeds import SPEEDS
from zs2_lib.settings.table import Settings

from . import anchor_costs, clips, metrics, unets
from .clips import GUIDANCE, decode
from .document import OTHER, PEER, PLAIN, ZS2, Figures, Target, label, percent, table

TITLE = "Anchor passes: quality against cost"
FRAMES, STEPS = 8, 20
BAR = {"motion": 0.15, "flicker": 1.15}
DDIM, DPM = anchor_costs.SAMPLERS
TEXT2VIDEO_ZERO = "Text2Video-Zero"


class Variant(NamedTuple):
    """How a clip is sampled: the deep output serves for `every` steps, the step-wise caching of DeepCache."""

    sampler: str = DDIM
    steps: int = STEPS
    stride: int = 1
    depth: str = "medium"
    start: float = 0.0
    every: int = 1
    method: str = "ZS²"


EXACT, LIMIT = Variant(), Variant(steps=80)
BY_PRESET = {name: Variant(DDIM, preset.steps or STEPS, *preset.settings.values()) for name, preset in SPEEDS.items()}
BY_PRESET["exact"] = EXACT
FEWER = tuple(Variant(DDIM, steps) for steps in (8, 9, 10, 11, 12, 13, 14, 16)) + tuple(
    Variant(DPM, steps) for steps in (8, 10, 12, 14, 16, 20)
)
ANCHORS = tuple(
    Variant(DDIM, STEPS, stride, depth, start)
    for depth in DEPTHS
    for stride in (4, 8, 16)
    for start in ((0.12, 0.18, 0.3) if depth != "gentle" else (0.18,))
)
ANCHORS_FEWER = tuple(
    Variant(sampler, steps, 8, depth, start)
    for sampler, some in ((DDIM, (12, 14, 16)), (DPM, (10, 12, 14, 16, 20)))
    for steps in some
    for depth in ("medium", "strong")
    for start in (0.18, 0.3)
)
CACHED = tuple(Variant(every=every, depth=depth) for depth in ("medium", "strong") for every in (2, 3))
BOTH = (Variant(DDIM, STEPS, 8, "medium", 0.18, 2), Variant(DDIM, STEPS, 8, "strong", 0.18, 2))
PEERS = tuple(Variant(steps=steps, method=TEXT2VIDEO_ZERO) for steps in (STEPS, 12))
KINDS = {
    "DDIM, fewer steps": tuple(each for each in FEWER if each.sampler == DDIM),
    "DPM++ 2M Karras, fewer steps": tuple(each for each in FEWER if each.sampler == DPM),
    "anchors, gentle": tuple(each for each in ANCHORS if each.depth == "gentle"),
    "anchors, medium": tuple(each for each in ANCHORS if each.depth == "medium"),
    "anchors, strong": tuple(each for each in ANCHORS if each.depth == "strong"),
    "anchors and fewer steps, DDIM": tuple(each for each in ANCHORS_FEWER if each.sampler == DDIM),
    "anchors and fewer steps, DPM++ 2M Karras": tuple(each for each in ANCHORS_FEWER if each.sampler == DPM),
    "step-wise caching": CACHED,
    "anchors and caching": BOTH,
    TEXT2VIDEO_ZERO: PEERS,
}
VARIANTS = tuple(
    dict.fromkeys((EXACT, LIMIT, *BY_PRESET.values(), *(each for kind in KINDS.values() for each in kind)))
)
MEASURES = {"motion": metrics.change, "drift": metrics.drift, "flicker": metrics.flicker}


# --- the clips ----------------------------------------------------------------------------------------------


def quality(pipe, judge, task: dict) -> list[dict]:
    """What each of the task's variants, the first of them exact, makes of a prompt: clips of the same noise.

    `right` is the part of the frames whose shape, colour and background are as asked; `difference` the mean absolute
    difference to the exact clip, of 255, and `from_limit` that to the one of many steps, None without it; `motion`
    (change), `drift` and `flicker` are those of `metrics`; `rows` how many rows the UNet's calls had.
    """
    results, shown = [], {}
    for variant in map(Variant._make, task["variants"]):
        with _rows_counted(pipe.unet) as rows:
            clip = decode(pipe, sample(pipe, task["prompt"], task["seed"], variant, task["frames"]))
        shown[variant] = clip.astype(np.float32)
        results.append(
            {
                "variant": variant,
                "right": float(metrics.right(judge.attributes(clip), task["attributes"]).mean()),
                **{name: float(np.mean(measure(clip))) for name, measure in MEASURES.items()},
                "rows": sum(rows),
            }
        )
    first = next(iter(shown))
    for name, other in (("difference", first), ("from_limit", LIMIT)):
        for result in results:
            distance = np.abs(shown[result["variant"]] - shown[other]).mean() if other in shown else None
            result[name] = None if distance is None else float(distance)
    return results


def sample(pipe, prompt: str, seed: int, variant: Variant, frames: int) -> torch.Tensor:
    """The latents of one clip, in one pass a step."""
    if variant.method == TEXT2VIDEO_ZERO:
        return clips.sample(pipe, clips.Job("text2video-zero", prompt, seed, frames, variant.steps))
    anchors = {"anchor_stride": variant.stride, "anchor_depth": variant.depth, "anchor_start": variant.start}
    settings = Settings(frames=frames, frames_per_pass=frames, **anchors)
    with (
        _sampler(pipe, variant.sampler),
        host.ClipSampling(pipe, settings, seed),
        deep_output_kept(pipe.unet, variant.depth, variant.every),
    ):
        return pipe(
            prompt,
            num_images_per_prompt=frames,
            num_inference_steps=variant.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images


@contextlib.contextmanager
def _sampler(pipe, sampler: str) -> Iterator[None]:
    before = pipe.scheduler
    pipe.scheduler = anchor_costs.scheduler(sampler, before.config)
    try:
        yield
    finally:
        pipe.scheduler = before


@contextlib.contextmanager
def _rows_counted(unet) -> Iterator[list[int]]:
    rows: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


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
    counted = run.sampler.map(_operations, run.pick(tuple(unets.NAMES), ("sd1",)), "UNets counted")
    variants = run.pick(VARIANTS, tuple(BY_PRESET.values()))
    tasks = [
        {**each, "seed": seed, "frames": FRAMES, "variants": variants}
        for seed, each in enumerate(run.prompts(run.pick(24, 1)) if run.options.model is None else ())
    ]
    return {
        "frames": FRAMES,
        "operations": [row for rows in counted for row in rows],
        "clips": run.sampler.map(quality, tasks, "prompts"),
    }


def _operations(pipe, judge, model: str) -> list[dict]:
    return anchor_costs.operations(model)


def summary(data: dict) -> dict[Variant, dict]:
    """Of each variant measured: its cost, of `STEPS` steps of the plain batch, by UNet, and means over the clips."""
    rows = {}
    for variant in (Variant._make(one["variant"]) for one in data["clips"][0]):
        found = [one for prompt in data["clips"] for one in prompt if Variant._make(one["variant"]) == variant]
        right, low, high = metrics.interval([one["right"] for one in found])
        known = [name for name in (*MEASURES, *DIFFERENCES) if found[0][name] is not None]
        means = {name: float(np.mean([one[name] for one in found])) for name in known}
        cost = {model: _cost(data, variant, found[0], model) for model in _models(data)}
        rows[variant] = {"cost": cost, "right": right, "low": low, "high": high, **means}
    return rows


DIFFERENCES = ("difference", "from_limit")


def _models(data: dict) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in data["operations"]))


def _cost(data: dict, variant: Variant, measured: dict, model: str) -> float:
    if variant.method == TEXT2VIDEO_ZERO:
        return measured["rows"] / (2 * data["frames"] * STEPS)
    shape = variant.steps, variant.stride, variant.depth, variant.start, variant.every, variant.sampler, model
    return anchor_costs.cost(data["operations"], *shape, data["frames"]) / STEPS


def same_cost(rows: dict[Variant, dict], cost: float, model: str) -> tuple[Variant, dict]:
    """The variant without anchors, caching or a peer's method that comes nearest to the exact clip for no more than
    `cost` (and a hundredth); if all cost more, the cheapest.
    """
    plain = [(each, row) for each, row in rows.items() if each in (EXACT, *FEWER)]
    least = max(cost + 0.01, min(row["cost"][model] for _, row in plain))
    return min((pair for pair in plain if pair[1]["cost"][model] <= least), key=lambda pair: pair[1]["difference"])


def targets(data: dict) -> list[Target]:
    if not data["clips"]:
        return []
    rows, found = summary(data), []
    exact = rows[EXACT]
    for name, variant in BY_PRESET.items():
        if variant == EXACT or variant not in rows:
            continue
        row, of = rows[variant], f"“{name}”, {len(data['clips'])} clips of {data['frames']} frames"
        moved, flicker = row["motion"] / exact["motion"] - 1, row["flicker"] / exact["flicker"]
        found += [
            Target(
                f"anchors-{name}-fidelity",
                f"{of}: frames that show what is asked for",
                f"≥ {percent(exact['low'])}, where the exact method's interval begins",
                f"{percent(row['right'])} (exact: {percent(exact['right'])})",
                row["right"] >= exact["low"],
            ),
            Target(
                f"anchors-{name}-motion",
                f"{of}: motion against the exact method's",
                f"within {BAR['motion']:.0%}",
                f"{moved:+.1%}",
                abs(moved) <= BAR["motion"],
            ),
            Target(
                f"anchors-{name}-flicker",
                f"{of}: flicker over the exact method's",
                f"≤ {BAR['flicker']:.2f}×",
                f"{flicker:.2f}×",
                flicker <= BAR["flicker"],
            ),
        ]
        for model, cost in row["cost"].items():
            _, other = same_cost(rows, cost, model)
            found.append(
                Target(
                    f"anchors-{name}-{model}",
                    f"{of}: difference to the exact clip, against fewer steps of the same cost, {unets.NAMES[model]}",
                    f"≤ {other['difference']:.2f} at {other['cost'][model]:.2f}",
                    f"{row['difference']:.2f} at a cost of {cost:.2f}",
                    row["difference"] <= other["difference"],
                )
            )
    return found


def report(data: dict, figures: Figures) -> str:
    text = (
        "Of every s frames (*stride* s) one goes through the deep blocks, the others change as these do; at the first "
        "steps (up to the part *start* of the way from noise to picture) all go.\n\n"
    )
    if data["clips"]:
        text += _quality(data, figures)
    kinds = list(dict.fromkeys((row["model"], row["pixels"], row["frames"]) for row in data["operations"]))
    varied = ("depth", "stride", "model", "pixels", "frames")
    ratios = {tuple(row[key] for key in varied): row["ratio"] for row in data["operations"]}
    head = [f"{unets.NAMES[model]}, {pixels}×{pixels}, {frames} frames" for model, pixels, frames in kinds]
    return text + (
        "\n### Operations of a step with anchors\n\nOf the plain batch's; what a step takes on a GPU is "
        "[above](#on-a-gpu-kernels-memory-traffic-copies).\n\n"
        + table(
            ("depth", "stride", *head),
            [
                (*each, *(f"{ratios[(*each, *kind)]:.2f}" for kind in kinds))
                for each in dict.fromkeys(k[:2] for k in ratios)
            ],
        )
    )


def _quality(data: dict, figures: Figures) -> str:
    rows = summary(data)
    names = {variant: name for name, variant in BY_PRESET.items() if variant in rows}
    models = _models(data)
    head = ("all right", *MEASURES, "difference", "from the limit")
    costs = [f"cost, {unets.NAMES[model]}" for model in models]

    def cells(row: dict) -> tuple:
        right = f"{percent(row['right'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        return right, *(f"{row[name]:.2f}" if name in row else None for name in (*MEASURES, *DIFFERENCES))

    presets = []
    for variant, name in names.items():
        row = rows[variant]
        presets.append((name, told(variant), *(f"{row['cost'][model]:.2f}" for model in models), *cells(row)))
        for model in models if variant.stride > 1 else ():
            other, plain = same_cost(rows, row["cost"][model], model)
            what = f"without anchors, {unets.NAMES[model]}", told(other)
            presets.append((*what, *(f"{plain['cost'][each]:.2f}" for each in models), *cells(plain)))
    text = (
        f"### The presets\n\n{len(data['clips'])} clips of {data['frames']} frames of the tiny checkpoint at CFG "
        f"{GUIDANCE:g}, the same noise for each. *Cost*: operations of the whole sampling at the shapes of SD 1.5 "
        f"(512×512) and SDXL (1024×1024), of {STEPS} steps in full. *All right*: frames with the shape, colour and "
        "background asked for, with the 95 % bootstrap interval. *Difference*: to the exact clip "
        f"({told(EXACT)}), of 255; *from the limit*: to that of {LIMIT.steps} steps. *Without anchors*: what comes "
        "nearest to the exact clip for no more than the preset's cost with that UNet; where all that was measured "
        "costs more, the cheapest.\n\n" + table(("preset", "sampling", *costs, *head), presets)
    )
    if len(rows) <= len(names) + 1:
        return text
    _plot(figures, rows, names, models)
    lines = [
        (kind, told(each), *(f"{rows[each]['cost'][model]:.2f}" for model in models), *cells(rows[each]))
        for kind, group in {"exact": (EXACT, LIMIT), **KINDS}.items()
        for each in group
        if each in rows
    ]
    return (
        text
        + "\n### By steps, sampler, stride, depth and start\n\n"
        + figures.link("by_cost", "Difference to the exact clip and flicker by cost")
        + "\n*Step-wise caching*: the deep output serves for several steps, as in DeepCache; it is not offered. "
        "With anchors as well, what these keep is that of every step, which flatters. "
        f"*{TEXT2VIDEO_ZERO}*: that of `diffusers`, with DDIM; another clip, whose difference says little.\n\n"
        + table(("", "sampling", *costs, *head), lines)
    )


def told(variant: Variant) -> str:
    """A variant in words."""
    words = [f"{variant.sampler}, {variant.steps} steps"]
    if variant.stride > 1:
        words.append(f"stride {variant.stride}, {variant.depth}, start {variant.start:g}")
    if variant.every > 1:
        words.append(f"{variant.depth}, each deep output for {variant.every} steps")
    return "; ".join(words)


COLOURS = ("#0f172a", PLAIN, "#c4b5fd", "#7c3aed", ZS2, "#a16207", "#be185d", PEER, "#0891b2", OTHER)


def _plot(figures: Figures, rows: dict[Variant, dict], names: dict[Variant, str], models: Sequence[str]) -> None:
    marks = {"difference": "difference to the exact clip, of 255", "flicker": "flicker, of 255"}
    x = [f"operations, of {STEPS} steps in full ({unets.NAMES[model]})" for model in models]
    with figures.grid("by_cost", "What is saved and what it changes", x, list(marks.values())) as grid:
        for axes_row, mark in zip(grid, marks):
            for axes, model in zip(axes_row, models):
                for (kind, group), colour in zip(KINDS.items(), COLOURS):
                    joined = sorted(
                        (each for each in group if each in rows), key=lambda each: rows[each]["cost"][model]
                    )
                    points = [[rows[each]["cost"][model] for each in joined], [rows[each][mark] for each in joined]]
                    line = "-" if "fewer steps" in kind and "anchors" not in kind else ""
                    axes.plot(*points, color=colour, marker="o", markersize=3.5, label=kind, linestyle=line)
                for variant, name in names.items():
                    row = rows[variant]
                    axes.plot(row["cost"][model], row[mark], "o", color=ZS2, markersize=9, fillstyle="none")
                    label(axes, row["cost"][model], row[mark], name, ZS2, xytext=(0, -12), ha="center")
                axes.set_xlim(0.2, 1.1)
                axes.set_ylim(0, 3 * rows[EXACT]["flicker"] if mark == "flicker" else 8)
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
