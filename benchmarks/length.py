"""Time and memory by clip length, at a fixed number of frames per pass."""

from __future__ import annotations

import tempfile
from pathlib import Path

from zs2_lib import cli
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.media.write import write_clip
from zs2_lib.settings.table import Settings

from . import metrics
from .clips import GUIDANCE, load
from .document import PLAIN, ZS2, Figures, Target, at_most, label, megabytes, table
from .timing import RETURNING, in_own_process, peak_memory, seconds

TITLE = "Time and memory by clip length"
PROMPT = "a red circle on a blue background"
PER_PASS = 8
STEPS = 2
"""Every step costs the same, and the memory does not depend on their number."""
LENGTHS, HELD_LENGTHS = (8, 16, 32, 64, 128, 256), (8, 128)
QUICK_LENGTHS, QUICK_HELD_LENGTHS = (8, 64), (8, 16)
SHORT, LONG = 8, 64
ONE_SEGMENT, MANY_SEGMENTS = 64, 2000
"""Frames of a clip that is sampled at once, and of a chain of segments."""
CHAIN_STEPS, CHAIN_SIDE = 4, 64
TIME_BAR, MEMORY_BAR, CHAIN_BAR = 8.2, 1.05, 1.10


def measure(run) -> dict:
    model, config = run.options.model, run.options.config
    clips = []
    for frames in run.pick(LENGTHS, QUICK_LENGTHS):
        repeats = run.pick({8: 3, 64: 2}, {}).get(frames, 1)
        clips.append({"frames": frames, **in_own_process(one_clip, model, config, frames, repeats)})
        taken = f"{metrics.median(clips[-1]['seconds']):.1f} s, {megabytes(clips[-1]['peak'])}"
        print(f"  {frames} frames: {taken}", flush=True)
    held = [
        {"frames": frames, "peak": in_own_process(sampled_peak, model, config, frames, environment=RETURNING)}
        for frames in run.pick(HELD_LENGTHS, QUICK_HELD_LENGTHS)
    ]
    chain = [
        {"frames": frames, "peak": in_own_process(command_line_peak, model, config, frames, environment=RETURNING)}
        for frames in run.pick((ONE_SEGMENT, MANY_SEGMENTS), (ONE_SEGMENT, 300))
    ]
    return {"per pass": PER_PASS, "steps": STEPS, "guidance": GUIDANCE, "clips": clips, "held": held, "chain": chain}


def one_clip(model: str | None, config: str | None, frames: int, repeats: int) -> dict:
    """Samples a clip from the prompt to the MP4 as the command line does, and measures its process."""
    pipe = _loaded(model, config)
    settings = Settings(frames=frames, frames_per_pass=PER_PASS)
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:

        def clip() -> None:
            pictures = host.sample_clip(pipe, PROMPT, settings, 1, steps=STEPS, guidance=GUIDANCE)
            write_clip(pictures, Path(folder) / "clip", "mp4", settings.fps)

        taken = [seconds(clip) for _ in range(repeats)]
    return {"seconds": taken, "before": before, "peak": peak_memory()}


def sampled_peak(model: str | None, config: str | None, frames: int) -> int:
    """The peak memory of sampling and decoding a clip, without its file."""
    pipe = _loaded(model, config)
    settings = Settings(frames=frames, frames_per_pass=PER_PASS)
    for _ in host.sample_clip(pipe, PROMPT, settings, 1, steps=1, guidance=GUIDANCE):
        pass
    return peak_memory()


def command_line_peak(model: str | None, config: str | None, frames: int) -> int:
    """The peak memory of the command line with a clip of `frames`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [PROMPT, "-o", str(Path(folder) / "clip.mp4"), "--frames", str(frames), "--seed", "1"]
        arguments += ["--steps", str(CHAIN_STEPS), "--size", str(CHAIN_SIDE)]
        arguments += ["--model", model] if model else []
        arguments += ["--config", config] if config else []
        if cli.main(arguments):
            raise RuntimeError(f"the command line failed with {frames} frames")
    return peak_memory()


def _loaded(model: str | None, config: str | None):
    """The checkpoint, after its first pictures: what is loaded once, is loaded."""
    pipe = load(model, config)
    host.sample_latents(pipe, PROMPT, Settings(frames=2), 1, steps=1, guidance=GUIDANCE)
    return pipe


def targets(data: dict) -> list[Target]:
    by_length = {clip["frames"]: clip for clip in data["clips"]}
    one, many = data["chain"]
    chain = f"peak memory of the command line, {many['frames']} frames / {one['frames']} frames"
    chain = at_most("chain-memory", chain, many["peak"] / one["peak"], CHAIN_BAR)
    if not {SHORT, LONG} <= by_length.keys():
        return [chain]
    short, long = by_length[SHORT], by_length[LONG]
    time, memory = metrics.median(long["seconds"]) / metrics.median(short["seconds"]), long["peak"] / short["peak"]
    what = f"{LONG} frames / {SHORT} frames, {data['per pass']} per pass"
    return [
        at_most("length-time", f"time, {what}", time, TIME_BAR, digits=2),
        at_most("length-memory", f"peak memory, {what}", memory, MEMORY_BAR),
        chain,
    ]


def report(data: dict, figures: Figures) -> str:
    clips = data["clips"]
    frames, peaks = [clip["frames"] for clip in clips], [clip["peak"] for clip in clips]
    times = [metrics.median(clip["seconds"]) for clip in clips]
    held = {clip["frames"]: clip["peak"] for clip in data["held"]}
    shortest = min(held.values())
    rows = []
    for clip, taken in zip(clips, times):
        whole = megabytes(clip["before"]), megabytes(clip["peak"]), f"{clip['peak'] / peaks[0]:.3f}"
        own = held.get(clip["frames"])
        own = (megabytes(own), f"{own / shortest:.3f}") if own else (None, None)
        rows.append((clip["frames"], taken, taken / clip["frames"], *whole, *own))
    slope = metrics.slope(frames, peaks)
    _plot(data, figures, frames, times, peaks, held)
    return (
        f"Each length in a process of its own: {data['steps']} steps at CFG {data['guidance']:g} in passes of "
        f"{data['per pass']} frames, decoded one by one and written as MP4. *Loaded*: the peak with the checkpoint "
        "loaded and two frames sampled, before the clip. *Held*: the peak of sampling and decoding alone with the C "
        "library told to give back what is freed; the rest of *peak* is memory that it keeps for later, and the "
        "encoder's.\n\n"
        + table(("frames", "s", "s per frame", "loaded", "peak", "/ shortest", "held", "/ shortest"), rows)
        + f"\nSlope of the peak: {slope / 2**10:.0f} KiB per frame; of what is held: "
        f"{metrics.slope(list(held), list(held.values())) / 2**10:.0f} KiB per frame; of the time: "
        f"{metrics.slope(frames, times):.3f} s per frame.\n\n"
        + f"A chain of segments, {CHAIN_STEPS} steps at {CHAIN_SIDE}×{CHAIN_SIDE} pixels from the command line: "
        + ", ".join(f"{each['frames']} frames {megabytes(each['peak'])}" for each in data["chain"])
        + ".\n\n"
        + figures.link("memory", "Peak memory by clip length")
        + "\n"
        + figures.link("time", "Time by clip length")
    )


def _plot(data: dict, figures: Figures, frames: list[int], times: list[float], peaks: list[int], held: dict) -> None:
    per_pass, last, points = f"{data['per pass']} frames per pass", frames[-1], {"marker": "o", "markersize": 4}
    y = "peak memory of the process, MiB"
    with figures("memory", f"Peak memory by clip length, {per_pass}", "frames", y) as axes:
        axes.plot(frames, [peak / 2**20 for peak in peaks], color=ZS2, **points)
        axes.plot(list(held), [peak / 2**20 for peak in held.values()], color=PLAIN, **points)
        ratio = f"{peaks[-1] / peaks[0]:.2f}× at {last / frames[0]:.0f}× the length"
        label(axes, last, peaks[-1] / 2**20, f"whole process: {ratio}", ZS2, xytext=(0, 10), ha="right")
        y = list(held.values())[-1] / 2**20
        label(axes, last, y, "held by sampling and decoding", PLAIN, xytext=(0, -12), ha="right")
        axes.set_ylim(0, 1.25 * max(peaks) / 2**20)
    y = f"seconds for {data['steps']} steps, decoding and MP4"
    with figures("time", f"Time by clip length, {per_pass}", "frames", y) as axes:
        axes.plot(frames, times, color=ZS2, **points)
        in_proportion = times[0] / frames[0] * last
        axes.plot((0, last), (0, in_proportion), color="#9ca3af", linestyle="--")
        label(axes, last, times[-1], f"{times[-1]:.0f} s", ZS2, xytext=(-8, 8), ha="right")
        label(axes, last / 2, in_proportion / 2, "in proportion\nto the shortest", "#6b7280", xytext=(12, -14))
        axes.set_ylim(0)
