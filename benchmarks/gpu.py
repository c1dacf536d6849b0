"""What a UNet step asks of a GPU, with ZS² and without: counted on any machine, timed where there is a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from zs2_lib.core.rows import Rows
from zs2_lib.settings.speeds import SPEEDS
from zs2_lib.settings.table import Settings

from . import document, metrics, unets
from .counting import counted
from .document import Figures, Target, at_most, ratio_cells, table
from .timing import in_own_process, milliseconds

TITLE = "On a GPU: kernels, memory traffic, copies"
SIDES = {"sd1": 64, "sdxl": 128}
"""Of the latents, for 512×512 and 1024×1024 pixels."""
FRAMES, QUICK_FRAMES = (8, 16, 64), (8,)
PER_PASS = 8
ROUNDS = {8: 9, 16: 5, 64: 3}
"""Rounds that are timed, by frames."""
PLAIN = "plain batch"
VARIANTS = {
    PLAIN: None,
    "momentum": ("exact", 0.0),
    "balanced, a step in full": ("balanced", 0.0),
    "fine": ("fine", 1.0),
    "balanced": ("balanced", 1.0),
}
"""Of each step the preset, and where on the way from noise (0) to the picture (1) it is."""
KEY = ("unet", "frames", "variant")
"""What tells a step from the others."""
BARS = {"momentum": {"kernels": 1.06, "bytes": 1.04}, "balanced": {"kernels": 1.25}}


def measure(run) -> dict:
    """Counts, and times on a GPU: without one, those that a machine with one has left in the output stay."""
    frames = run.pick(FRAMES, QUICK_FRAMES)
    rows = [row for kind in SIDES for row in counts(kind, frames)]
    return {"per pass": PER_PASS, "steps": rows, "times": timed(rows, frames, run)}


def timed(rows: Sequence[dict], frames: Sequence[int], run) -> dict | None:
    if not torch.cuda.is_available():
        before = document.read(run.output, "gpu") if run.output else None
        return before["data"].get("times") if before else None
    times = in_own_process(all_times, frames, run.quick)
    return {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "steps": [
            {
                **{key: row[key] for key in KEY},
                "kernels": row["kernels"],
                "ms": times[row["unet"], row["frames"]].get(row["variant"]),
            }
            for row in rows
        ],
    }


@contextlib.contextmanager
def step(
    unet: torch.nn.Module, side: int, frames: int, variant: str, per_pass: int = PER_PASS
) -> Iterator[Callable[[], None]]:
    """Scope with one UNet step of a clip, as a host makes it, ready to be called.

    It has guidance, and latents of side × side. It is the sampler's second: the first, which brings to the GPU what all
    steps share, is made on entering. The plain batch is the UNet alone, on batches of `per_pass` frames.
    """

    def call(*args, **kwargs) -> torch.Tensor:
        return unet(*args, return_dict=False, **kwargs)[0]

    if variant == PLAIN:
        args, kwargs = unets.inputs(unet, 2 * per_pass, side)

        def plain() -> None:
            for _ in range(frames // per_pass):
                call(*args, **kwargs)

        yield plain
        return

    (preset, time), (args, kwargs) = VARIANTS[variant], unets.inputs(unet, 2 * frames, side)
    settings = Settings(frames=frames, frames_per_pass=per_pass, **SPEEDS[preset].settings)
    with settings.clip(seed=0) as clip:
        clip.attach(unet)

        def sample(step: int, time: float) -> None:
            clip.begin_step(step, time)
            clip.call(call, Rows.blocks(frames, 2), *args, **kwargs)
            if clip.passes.reduced_to is not None:
                raise torch.cuda.OutOfMemoryError(f"{per_pass} frames do not fit into a pass")

        sample(0, 0.0)
        yield lambda: sample(1, time)


def counts(kind: str, lengths: Sequence[int], per_pass: int = PER_PASS) -> list[dict]:
    """What `counting` finds of each variant of a step, in float16, for clips of these lengths."""
    with torch.device("meta"):
        unet, rows = unets.unet(kind).half(), []
    for frames in lengths:
        for variant in VARIANTS:
            with counted() as found, step(unet, SIDES[kind], frames, variant, per_pass) as run:
                found.clear()  # of the step before
                run()
            shape = {"unet": kind, "pixels": 8 * SIDES[kind], "frames": frames, "variant": variant}
            rows.append({**shape, **dataclasses.asdict(found)})
        print(f"  {unets.NAMES[kind]}, {frames} frames: counted", flush=True)
    return rows


def all_times(lengths: Sequence[int], quick: bool) -> dict[tuple[str, int], dict]:
    """`times` on the GPU in float16, by UNet and frames."""
    found = {}
    for kind, side in SIDES.items():
        unet = unets.unet(kind).to("cuda", torch.float16)
        for frames in lengths:
            found[kind, frames] = times(unet, side, frames, 1 if quick else ROUNDS[frames])
            print(f"  {unets.NAMES[kind]}, {frames} frames: timed", flush=True)
        del unet
    return found


@torch.no_grad()
def times(unet: torch.nn.Module, side: int, frames: int, rounds: int, per_pass: int = PER_PASS) -> dict:
    """The milliseconds of each variant of a step, in turns, after a round that counts for nothing.

    Empty where the GPU's memory does not suffice.
    """
    taken = {variant: [] for variant in VARIANTS}
    try:
        for _ in range(rounds + 1):
            for variant in VARIANTS:
                with step(unet, side, frames, variant, per_pass) as run:
                    taken[variant].append(milliseconds(run))
    except torch.cuda.OutOfMemoryError:
        return {}
    return {variant: each[1:] for variant, each in taken.items()}


# --- the document ----------------------------------------------------------------------------------------


def ratio(data: dict, row: dict, key: str) -> float:
    """To the plain batch of the same frames."""
    return row[key] / _plain(data, row)[key]


def _plain(data: dict, row: dict) -> dict:
    same = ("unet", "frames")
    return next(r for r in data["steps"] if r["variant"] == PLAIN and all(r[key] == row[key] for key in same))


def targets(data: dict) -> list[Target]:
    """The worst of all lengths, for each UNet."""
    found = []
    for unet, (name, bars) in itertools.product(dict.fromkeys(row["unet"] for row in data["steps"]), BARS.items()):
        rows = [row for row in data["steps"] if row["variant"].startswith(name) and row["unet"] == unet]
        where = f"on a GPU, {name}, {unets.NAMES[unet]}"
        for key, bar in bars.items():
            worst = max(ratio(data, row, key) for row in rows)
            found.append(at_most(f"gpu-{unet}-{name}-{key}", f"{where}: {key} / plain batch, worst case", worst, bar))
        waits = max(row["waits"] for row in rows)
        what = f"{where}: copies of a UNet step that the CPU waits for, worst case"
        found.append(Target(f"gpu-{unet}-{name}-waits", what, "0", str(waits), waits == 0))
    return found


def report(data: dict, figures: Figures) -> str:
    rows, changed = [], False
    for row in data["steps"]:
        shape = unets.NAMES[row["unet"]], f"{row['pixels']}×{row['pixels']}", row["frames"], row["variant"]
        cells = row["kernels"], *(f"{ratio(data, row, key):.3f}" for key in ("kernels", "bytes"))
        ms, relative, same = _times(data, row)
        changed |= not same
        rows.append((*shape, *cells, row["copies"], row["waits"], ms, relative + ("" if same else " *")))
    header = ("UNet", "pixels", "frames", "step", "kernels", "kernels / plain", "bytes / plain", "copies", "that wait")
    gpu, times = "No GPU was there when this was measured, so it has no times.", data["times"]
    if times:
        gpu = (
            f"*ms*: by the clock of the GPU, {times['gpu']} ({times['date']}, torch {times['torch']}), median of steps "
            "in turns, with random weights; */ plain*: median and quartiles of the pairs."
        ) + (" An asterisk: the step had other kernels then than it has now." if changed else "")
    return (
        "One UNet step with guidance (twice as many rows as frames) in float16, at the shapes of SD 1.5 and SDXL, in "
        f"passes of {data['per pass']} frames (with anchors the last one may hold a few more). *plain batch*: the UNet "
        f"alone, on as many frames in batches of {data['per pass']}; all ratios are to it. *fine* and *balanced* are "
        "[presets](#anchors), past their start; the steps of *fast* are those of *balanced*. Each step is its clip's "
        "second: what all steps share is on the GPU by then.\n\n"
        "All but the times is counted on torch's `meta` tensors, which need no GPU. *kernels*: operations that write "
        "to the GPU's memory; views and allocations are none, attention is one, and an operation is one even where a "
        "library launches several kernels for it. *bytes*: what kernels read and write, without caches. *copies*: "
        "between main memory and GPU; *that wait*: those during which the CPU waits, so that it cannot launch kernels "
        f"ahead.\n\n{gpu}\n\n" + table((*header, "ms", "ms / plain"), rows)
    )


def _times(data: dict, row: dict) -> tuple[object, str, bool]:
    """Of a step: the milliseconds, their ratio to the plain batch, and whether it had today's kernels."""
    found = {tuple(each[key] for key in KEY): each for each in (data["times"] or {"steps": ()})["steps"]}
    here, plain = (found.get(tuple(each[key] for key in KEY)) for each in (row, _plain(data, row)))
    if not here:
        return ("–", "–", True) if data["times"] else ("no GPU", "no GPU", True)
    same = here["kernels"] == row["kernels"]
    if not here["ms"]:
        return "out of memory", "out of memory", same
    middle, quartiles = ratio_cells(here["ms"], plain["ms"])
    return metrics.median(here["ms"]), f"{middle} ({quartiles})", same
