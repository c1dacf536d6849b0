"""Encoding and decoding of clips: speed and memory by format and length."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.read import open_source
from zs2_lib.media.write import write_clip

from .document import PALETTE, Figures, Target, label_ends, megabytes, table
from .timing import in_own_process, process_peak, seconds

TITLE = "Files: encoding and decoding"
SIDE = 256
FPS = 8
LENGTHS, QUICK_LENGTHS = (32, 256), (32,)


def measure(run) -> dict:
    lengths = run.pick(LENGTHS, QUICK_LENGTHS)
    rows = [
        {"format": format, "frames": frames, **in_own_process(one_file, format, frames)}
        for format in FORMATS
        for frames in lengths
    ]
    return {"side": SIDE, "files": rows}


def one_file(format: str, frames: int) -> dict:
    """Writes a clip and reads it again; memory is how much the process's peak grows."""
    with tempfile.TemporaryDirectory() as folder:
        write_clip(pictures(2), Path(folder) / "first", format, FPS)  # what is loaded once, is loaded
        for _ in open_source(Path(folder) / ("first" if format == "png" else f"first.{format}")).frames():
            pass
        drawing = seconds(lambda: [None for _ in pictures(frames)], clock=time.perf_counter)
        start = process_peak()
        target, written = Path(folder) / "clip", []
        encoding = seconds(
            lambda: written.append(write_clip(pictures(frames), target, format, FPS)), clock=time.perf_counter
        )
        encoded = process_peak()
        count = []
        decoding = seconds(
            lambda: count.append(sum(1 for _ in open_source(written[0]).frames())), clock=time.perf_counter
        )
        if count != [frames]:
            raise RuntimeError(f"the {format} of {frames} frames was read back with {count[0]}")
        size = sum(file.stat().st_size for file in ([written[0]] if written[0].is_file() else written[0].iterdir()))
        return {
            "encoding": max(encoding - drawing, 1e-6),
            "decoding": decoding,
            "size": size,
            "encoding memory": encoded - start,
            "decoding memory": process_peak() - encoded,
        }


def pictures(frames: int) -> Iterator[np.ndarray]:
    """A disc that circles over a still, grainy slope, frame by frame (SIDE, SIDE, 3)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 4, (SIDE, SIDE, 3)).astype(np.float32)
    ground = np.stack([x * 0.6, y * 0.6, 200 - x * 0.4], axis=2) + grain
    for i in range(frames):
        centre_x, centre_y = (SIDE * (0.5 + 0.3 * turn(2 * math.pi * i / 64)) for turn in (math.cos, math.sin))
        disc = np.clip(SIDE / 6 - np.hypot(x - centre_x, y - centre_y), 0, 4)[..., None] / 4
        yield np.clip(ground * (1 - disc) + np.float32((230, 60, 40)) * disc, 0, 255).astype(np.uint8)


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    rows = [
        (
            f["format"],
            f["frames"],
            f["frames"] / f["encoding"],
            megabytes(f["encoding memory"]),
            f["frames"] / f["decoding"],
            megabytes(f["decoding memory"]),
            f"{f['size'] / 2**20:.2f} MiB",
        )
        for f in data["files"]
    ]
    formats = list(dict.fromkeys(f["format"] for f in data["files"]))
    with figures("memory", "Memory to write a clip", "frames", "growth of the process's peak memory, MiB") as axes:
        lines = {
            format: [(f["frames"], f["encoding memory"] / 2**20) for f in data["files"] if f["format"] == format]
            for format in formats
        }
        colours = dict(zip(formats, (*PALETTE, "#a16207")))
        for format, points in lines.items():
            axes.plot(*zip(*points), color=colours[format], marker="o", markersize=4)
        axes.set_ylim(0)
        axes.set_xlim(0, max(x for points in lines.values() for x, _ in points) * 1.12)
        label_ends(axes, {format: (*points[-1], colours[format]) for format, points in lines.items()})
    return (
        f"A moving disc on a grainy ground, {data['side']}×{data['side']}, wall time, each clip in a process of its "
        "own. *Memory*: how much the process's peak grows while it writes, and then while it reads.\n\n"
        + table(("format", "frames", "written per s", "memory", "read per s", "memory", "file"), rows)
        + "\n"
        + figures.link("memory", "Memory to write a clip by format and length")
    )
