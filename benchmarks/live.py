"""What the page is told of a job in a running WebUI, and what telling it costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from . import metrics
from .document import Target, at_most, percent, ratio_cells, table
from .webui import folder_in, host_tests

TITLE = "While a job runs"
COST_BAR, ERROR_BAR = 1.02, 0.15
INTERVAL = 1.0
"""Seconds between two questions of the page."""
FROM = 0.25
"""The part of a job from which on its end should be known."""
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
JOBS = {
    "plain": ({"frames": 16}, {}),
    "balanced": ({"frames": 16, "anchor_stride": 8, "anchor_depth": "medium", "anchor_start": 0.3}, {}),
    "hires.fix": ({"frames": 8}, HIRES),
    "two clips": ({"frames": 8}, {"n_iter": 2}),
    "two segments": ({"frames": 160}, {"steps": 6}),
    "Karras, balanced": (
        {"frames": 16, "anchor_stride": 8, "anchor_depth": "medium", "anchor_start": 0.3},
        {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    ),
}


def measure(run) -> dict:
    host, models, installation = host_tests()
    steps, pairs, repeats = run.pick(20, 10), run.pick(5, 2), run.pick(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        made = models.make(Path(folder) / "models")
        with host.started(installation, made, folder_in(folder, "data")) as webui:
            ends = {}
            for name, (settings, payload) in JOBS.items():
                payload = {"steps": steps, "sampler_name": "DDIM", **payload}
                ends[name] = [_followed(webui, settings, payload)["off"] for _ in range(1 + repeats)]
            payload = {"steps": steps, "sampler_name": "DDIM"}
            alone, seen = [], []
            for pair in range(pairs):
                for followed in (False, True) if pair % 2 else (True, False):
                    job = _followed(webui, JOBS["plain"][0], payload, followed)
                    (seen if followed else alone).append(job["seconds"])
            return {"version": webui.version, "steps": steps, "ends": ends, "alone": alone, "seen": seen}


def _followed(webui, settings: dict, payload: dict, followed: bool = True) -> dict:
    """The seconds of a job, and the largest error of its end as it was said from a quarter on, as a part of them."""
    start, said, strip = time.perf_counter(), [], ""
    job = webui.in_background(webui.clip, {**settings, "return": "frames"}, **payload)
    while job.is_alive():
        if followed:
            now = webui.client.get(f"/zs2/v1/live?strip={strip}")
            strip = (now.get("strip") or {"id": strip})["id"]
            said.append((time.perf_counter() - start, now.get("seconds_left")))
        job.join(INTERVAL)
    job.result()
    seconds = time.perf_counter() - start
    errors = [abs(used + left - seconds) for used, left in said if left is not None and used >= FROM * seconds]
    return {"seconds": seconds, "off": max(errors, default=0.0) / seconds, "said": len(errors)}


def targets(data: dict) -> list[Target]:
    cost = metrics.median_ratio(data["seen"], data["alone"])
    worst = max(error for errors in data["ends"].values() for error in errors[1:])
    return [
        at_most("live-cost", "whole job with the page's filmstrip / without", cost, COST_BAR),
        Target(
            "live-end",
            "error of a job's end from a quarter on, at worst",
            f"≤ {percent(ERROR_BAR)}",
            percent(worst),
            worst <= ERROR_BAR,
        ),
    ]


def report(data: dict, figures) -> str:
    rows = [
        (name, *(percent(error) for error in (errors[0], max(errors[1:])))) for name, errors in data["ends"].items()
    ]
    cost = ratio_cells(data["seen"], data["alone"])
    return (
        f"AUTOMATIC1111's WebUI {data['version']} on the tiny checkpoint, on the CPU, asked once a second as the page "
        f"does, {data['steps']} steps unless the job says so. How far the end of a job was off that was said from a "
        "quarter of it on, at worst, as a part of the whole job: in the first job of its kind, and in later ones, of "
        "which the pace is known.\n\n"
        + table(("job", "first", "later"), rows)
        + f"\nTime of {len(data['seen'])} pairs of jobs, with the page's questions and without: {cost[0]} "
        f"({cost[1]}).\n"
    )
