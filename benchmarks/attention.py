"""What temporal momentum adds to a UNet step, and why it is a scan of the layer's input on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from zs2_lib.core.clip import Clip
from zs2_lib.core.constants import Constants
from zs2_lib.core.momentum import Weights, momentum_product, momentum_scan
from zs2_lib.core.rows import Rows

from . import metrics, unets
from .document import ZS2, Figures, Target, at_most, label, ratio_cells, table
from .timing import KEEPING, averages_watched, in_own_process, in_turns, seconds

TITLE = "Temporal momentum attention: UNet steps"
LAYERS = ((4096, 320), (1024, 640), (256, 1280), (64, 1280))
"""Tokens and channels of SD 1.5's self-attention layers at 512×512 pixels."""
MOMENTUM = 0.98
SCAN = "scan input"
BAR = 1.01
STEPS = (
    # UNet, latent side, frames, frames per pass, pairs of steps
    ("sd1", 8, 2, 2, 9),
    ("sd1", 8, 8, 8, 2),
    ("sd1", 8, 32, 32, 1),
    ("sd1", 8, 8, 2, 2),
    ("sd1", 16, 2, 2, 3),
    ("sdxl", 8, 2, 2, 2),
)
QUICK_STEPS = (("sd1", 8, 2, 2, 2),)


def measure(run) -> dict:
    dtypes, layers = run.pick(("float32", "float16"), ("float32",)), run.pick(LAYERS, LAYERS[1:])
    return {
        "steps": in_own_process(compare_all_steps, run.pick(STEPS, QUICK_STEPS), environment=KEEPING),
        "forms": in_own_process(compare_all_forms, dtypes, layers, run.pick(0.5, 0.3), environment=KEEPING),
    }


# --- steps -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare_all_steps(wanted: Sequence[tuple]) -> list[dict]:
    """`compare_steps` for each of `wanted`, which are like `STEPS`."""
    rows, (device, dtype) = [], ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    for kind in dict.fromkeys(kind for kind, *_ in wanted):
        unet = unets.unet(kind).to(device, dtype)
        for _, side, frames, per_pass, pairs in (step for step in wanted if step[0] == kind):
            times = compare_steps(unet, side, frames, per_pass, pairs)
            rows.append({"unet": kind, "latent": side, "frames": frames, "per pass": per_pass, **times})
            ratio = metrics.median_ratio(rows[-1]["averaged"], rows[-1]["plain"])
            print(f"  {kind}, {frames} frames of {side}×{side} in passes of {per_pass}: {ratio:.4f}", flush=True)
        del unet
    return rows


def compare_steps(unet: torch.nn.Module, side: int, frames: int, per_pass: int, pairs: int) -> dict:
    """The times of steps of the same batch, cut into the same passes, with and without momentum in turns.

    `in hooks` is the part of a step that the averages take, on a CPU.
    """
    rows = Rows.blocks(frames, 2)
    arguments, keywords = unets.inputs(unet, len(rows), side)

    def call(*args, **kwargs) -> torch.Tensor:
        return unet(*args, return_dict=False, **kwargs)[0]

    def step(momentum: list[float]) -> None:
        with Clip(momentum, frames_per_pass=per_pass) as clip:
            clip.attach(unet)
            clip.call(call, rows, *arguments, **keywords)

    plain, averaged = [0.0] * frames, [MOMENTUM] * frames
    step(plain)
    spent = []

    def watched() -> None:
        with averages_watched() as averages:
            step(averaged)
        spent.append(sum(averages))

    times = in_turns({"plain": lambda: step(plain), "averaged": watched}, pairs)
    on_gpu = unet.device.type == "cuda"  # which works on after the hooks have returned
    return {**times, "in hooks": None if on_gpu else metrics.median_ratio(spent, times["averaged"])}


# --- forms of the average --------------------------------------------------------------------------------


def weights(frames: int) -> torch.Tensor:
    """The paper's U, transposed: K̈ = W K in float64, from equation 2 with a constant μ."""
    w = torch.eye(frames, dtype=torch.float64) * (1 - MOMENTUM)
    w[0, 0] = 1
    for i in range(1, frames):
        w[i] += MOMENTUM * w[i - 1]
    return w


def forms(frames: int, dtype: torch.dtype) -> dict[str, tuple[Callable, int]]:
    """Each form as f(input, K, V) -> averages, and how many more rows it holds than the layer does without."""
    rows, momentum = Rows.blocks(frames, 2), [MOMENTUM] * frames
    weights = Weights.of(rows, momentum, {}, torch.empty(0, dtype=dtype), Constants())

    def scan(*tensors):
        return tuple(momentum_scan(x, rows, momentum, {})[0] for x in tensors)

    def product(*tensors):
        return tuple(momentum_product(x, weights, {})[0] for x in tensors)

    return {
        SCAN: (lambda x, k, v: scan(x), 2 * frames + 2),
        "product input": (lambda x, k, v: product(x), 2 * frames + 2),
        "scan K, V": (lambda x, k, v: scan(k, v), 2 * (2 * frames + 2)),
        "product K, V": (lambda x, k, v: product(k, v), 2 * (2 * frames + 2)),
    }


@torch.inference_mode()
def compare_all_forms(dtypes: Sequence[str], layers: Sequence[tuple[int, int]], budget: float) -> list[dict]:
    return [
        row
        for dtype in dtypes
        for tokens, channels in layers
        for row in compare_forms(tokens, channels, 8, getattr(torch, dtype), budget)
    ]


def compare_forms(tokens: int, channels: int, frames: int, dtype: torch.dtype, budget: float) -> list[dict]:
    """One row for each form; takes about `budget` seconds, or five rounds."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2 * frames, tokens, channels, generator=generator).to(dtype) for _ in range(3)]
    exact = torch.block_diag(*[weights(frames)] * 2)
    sample = [(exact @ x[:, ::7, ::7].double().flatten(1)) for x in tensors]
    candidates = forms(frames, dtype)

    errors = {}
    for name, (form, _) in candidates.items():
        results = form(*tensors)
        expected = sample[:1] if name.endswith("input") else sample[1:]
        differences = [r[:, ::7, ::7].double().flatten(1) - e for r, e in zip(results, expected)]
        errors[name] = max(x.abs().max().item() for x in differences)
        if errors[name] >= 20 * torch.finfo(dtype).eps:
            raise RuntimeError(
                f"the form {name!r} of the average does not agree with float64: it is off by {errors[name]}"
            )

    runs = {name: lambda form=form: form(*tensors) for name, (form, _) in candidates.items()}
    once = sum(seconds(run) for run in runs.values())
    repeat = max(1, round(0.005 * len(candidates) / once))
    times = in_turns(runs, min(max(round(budget / (once * repeat)), 5), 51), repeat)
    layer = {"dtype": str(dtype)[6:], "tokens": tokens, "channels": channels, "frames": frames}
    return [
        {
            **layer,
            "form": name,
            "extra": extra,
            "ms": 1e3 * metrics.median(times[name]),
            "ratio": metrics.median_ratio(times[name], times[SCAN]),
            "error": errors[name],
        }
        for name, (_, extra) in candidates.items()
    ]


# --- the document ----------------------------------------------------------------------------------------


def targets(data: dict) -> list[Target]:
    steps = [step for step in data["steps"] if step["unet"] == "sd1"]
    pairs = [ratio for step in steps for ratio in np.divide(step["averaged"], step["plain"])]
    hooks = [step["in hooks"] for step in steps if step["in hooks"] is not None]
    of = f"median of all {len(pairs)} pairs at SD 1.5's widths" + (
        f"; {100 * max(hooks):.1f} % of a step in the averages" if hooks else ""
    )
    return [at_most("unet-step", f"UNet step with TMA / without, {of}", metrics.median(pairs), BAR, digits=4)]


def report(data: dict, figures: Figures) -> str:
    rows = []
    for step in data["steps"]:
        batch = step["frames"], step["per pass"], f"{8 * step['latent']}×{8 * step['latent']}", len(step["plain"])
        cells = metrics.median(step["plain"]), *ratio_cells(step["averaged"], step["plain"], digits=4)
        hooks = None if step["in hooks"] is None else f"{100 * step['in hooks']:.2f} %"
        rows.append((unets.NAMES[step["unet"]], *batch, *cells, hooks))
    _plot(figures, data["steps"])
    header = ("UNet", "frames", "per pass", "pixels", "pairs")
    header += ("s per step", "with TMA / without", "quartiles", "in hooks")
    forms = []
    for row in data["forms"]:
        layer, error = f"{row['tokens']}×{row['channels']}", f"{row['error']:.0e}"
        forms.append((row["dtype"], layer, row["form"], row["ms"], row["ratio"], error, row["extra"]))
    frames = data["forms"][0]["frames"]
    return (
        "Steps of UNets with the widths and depths of SD 1.5 and SDXL and random weights, with guidance (twice as many "
        "rows as frames), on one thread, in turns: median of the pairs. Pictures are small so that a step takes "
        "seconds; the averages grow with the picture like the rest of the step, and attention more, so larger pictures "
        "make the ratio smaller. *in hooks*: the part of a step spent in the averages.\n\n"
        + table(header, rows)
        + "\n"
        + figures.link("share", "Share of the averages in a step")
        + "\n### Why the average is a scan of the layer's input on a CPU\n\n"
        f"Forms of the average at the shapes (tokens × channels) of SD 1.5's layers for 512×512 pixels and {frames} "
        "frames with guidance; times are for keys and values of one layer together, ratios are to the form that the "
        "library takes on a CPU. *scan*: row by row; *product*: a matrix of rows × rows, the form on every other "
        "device, where each of the scan's rows costs a launch; *input*: one average of the layer's input, which gives "
        "that of both. *error*: largest deviation from float64. *extra*: rows held beyond what the "
        "layer holds without momentum. The scan alone also gives the same bits however a "
        "clip is cut into passes.\n\n" + table(("dtype", "layer", "form", "ms", "/ scan", "error", "extra"), forms)
    )


def _plot(figures: Figures, steps: list[dict]) -> None:
    names = [
        f"{unets.NAMES[s['unet']]}, {s['frames']} frames\nin passes of {s['per pass']}, {8 * s['latent']}²"
        for s in steps
    ]
    title, x = "What temporal momentum adds to a UNet step", "time with / without: median and quartiles of pairs"
    with figures("share", title, x, "", height=0.8 + 0.42 * len(steps)) as axes:
        for y, step in enumerate(reversed(steps)):
            low, middle, high = metrics.ratio_quartiles(step["averaged"], step["plain"])
            axes.plot((low, high), (y, y), color=ZS2, linewidth=2)
            axes.plot(middle, y, "o", color=ZS2)
            label(axes, high, y, f"{middle:.3f}", ZS2)
        axes.axvline(1, color="#9ca3af")
        axes.axvline(BAR, color="black", linestyle="--")
        label(axes, BAR, len(steps) - 0.45, f"target {BAR}", "black")
        axes.set_yticks(range(len(steps)), reversed(names), fontsize=8)
        axes.set_ylim(-0.6, len(steps) - 0.2)
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
