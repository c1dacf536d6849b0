"""How many clips a batch makes with two workers of one thread each, against one such worker."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from . import metrics
from .document import Target, table

TITLE = "A batch on several workers"
BAR = 1.7
JOB = {"prompt": "a red circle on a blue background", "frames": 16, "steps": 6, "size": 128, "formats": ["apng"]}
LONG = {**JOB, "frames": 128, "steps": 4, "formats": ["mp4", "webm", "gif"], "seed": 1, "name": "long"}
ROOT = Path(__file__).resolve().parent.parent


def measure(run) -> dict:
    if importlib.util.find_spec("ray") is None:
        raise ValueError("batch: Ray is missing; install it with: python -m pip install ray")
    clips, pairs = run.pick(14, 6), run.pick(3, 1)
    rates, seconds = {1: [], 2: []}, {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = _jobs(Path(folder, "jobs.jsonl"), [{**JOB, "seed": seed, "name": str(seed)} for seed in range(clips)])
        for pair in range(pairs):
            for workers in (1, 2) if pair % 2 else (2, 1):
                rates[workers].append(_rate(_made(jobs, workers)))
        long = _jobs(Path(folder, "long.jsonl"), [LONG])
        for workers in (2, 1):
            (record,) = _made(long, workers)
            seconds[workers] = record["seconds"]
    return {"clips": clips, "one": rates[1], "two": rates[2], "long": [seconds[1], seconds[2]]}


def _jobs(file: Path, jobs: list[dict]) -> Path:
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return file


def _made(jobs: Path, workers: int) -> list[dict]:
    """The manifest of a batch."""
    out = Path(tempfile.mkdtemp(dir=jobs.parent))
    command = [sys.executable, "-m", "zs2_lib", "batch", str(jobs), "--out", str(out), "--workers", str(workers)]
    subprocess.run([*command, "--quiet"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def _rate(records: list[dict]) -> float:
    """Clips in a second, from when each worker has made its first one until the last is there."""
    firsts = {}
    for record in records:
        firsts.setdefault(record["pid"], record["finished"])
    begin, end = max(firsts.values()), max(record["finished"] for record in records)
    return sum(record["finished"] > begin for record in records) / (end - begin)


def targets(data: dict) -> list[Target]:
    ratio = metrics.median_ratio(data["two"], data["one"])
    what = "clips per second, 2 workers of one thread / 1 such worker"
    return [Target("batch-two-workers", what, f"≥ {BAR}×", f"{ratio:.2f}×", ratio >= BAR)]


def report(data: dict, figures) -> str:
    rows = [(name, *(f"{rate:.2f}" for rate in data[key])) for name, key in (("1", "one"), ("2", "two"))]
    head = ("workers", *(f"clips/s, run {number}" for number in range(1, 1 + len(data["one"]))))
    one, two = data["long"]
    return (
        f"`python -m zs2_lib batch` of {data['clips']} clips ({JOB['frames']} frames of {JOB['size']} pixels, "
        f"{JOB['steps']} steps) of the tiny checkpoint, on the CPU, each worker with one thread; from when each worker "
        "has made its first clip, as Ray's start and loading come once.\n\n"
        + table(head, rows)
        + f"\n\nOne clip of {LONG['frames']} frames, {LONG['steps']} steps, in {len(LONG['formats'])} formats takes "
        f"{one:.1f} s with one worker, and {two:.1f} s with two, of which one decodes and encodes alone: see "
        "[what that brings](scale.md#one-long-clip)."
    )
