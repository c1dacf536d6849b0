"""The same ratios in a running WebUI, through its API. It is started from $ZS2_WEBUI as the host tests start it."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from . import metrics
from .document import PLAIN, ZS2, Figures, Target, at_most, megabytes, ratio_cells, table, time_bars
from .length import CHAIN_BAR, CHAIN_SIDE, CHAIN_STEPS, MANY_SEGMENTS, ONE_SEGMENT

TITLE = "In the WebUI"
HOST_TESTS = Path(__file__).resolve().parent.parent / "tests" / "hosts" / "webui"
SHORT, LONG, PER_PASS = 8, 64, 8
PLAIN_BAR, TIME_BAR, MEMORY_BAR = 1.02, 8.2, 1.05


def host_tests():
    """What the host tests have: the module that starts a WebUI and asks it, the one that makes checkpoints, and the
    installation at $ZS2_WEBUI. Raises ValueError where there is none.
    """
    sys.path.insert(0, str(HOST_TESTS))
    import host
    import models
    from webui import Installation

    installation = Installation.from_environment()
    if installation is None:
        raise ValueError("ZS2_WEBUI is not set: give it the folder of an installed WebUI")
    installation.install_extension(models.ROOT)
    return host, models, installation


def measure(run) -> dict:
    host, models, installation = host_tests()
    steps, pairs, repeats = run.pick(20, 4), run.pick(7, 2), run.pick(3, 1)
    with tempfile.TemporaryDirectory() as folder:
        made = models.make(Path(folder) / "models")
        with host.started(installation, made, folder_in(folder, "long")) as webui:
            chain = [
                {"frames": frames, "peak": _chain_peak(webui, host.zs2, frames)}
                for frames in run.pick((ONE_SEGMENT, MANY_SEGMENTS), (ONE_SEGMENT, 300))
            ]
        with host.started(installation, made, folder_in(folder, "data")) as webui:
            plain, clip, peaks = _compare(webui, host.zs2, steps, pairs)
            short, long = [], []
            for _ in range(repeats):
                short.append(_seconds(webui, host.zs2, SHORT, steps))
                peaks["short"] = peaks.get("short") or webui.about()["peak memory"]
                long.append(_seconds(webui, host.zs2, LONG, steps))
            peaks["long"] = webui.about()["peak memory"]
            about = {key: webui.about()[key] for key in ("python", "torch")}
            setup = {"version": webui.version, **about, "steps": steps, "per pass": PER_PASS}
            return {**setup, "plain": plain, "clip": clip, "short": short, "long": long, "peaks": peaks, "chain": chain}


def folder_in(parent: str, name: str) -> Path:
    folder = Path(parent) / name
    folder.mkdir()
    return folder


def _chain_peak(webui, zs2, frames: int) -> int:
    """Peak memory of the WebUI's process after a clip of `frames`."""
    settings = {"frames": frames, "frames_per_pass": PER_PASS, "formats": ["mp4"], "return": "video"}
    size = {"width": CHAIN_SIDE, "height": CHAIN_SIDE}
    webui.generate(sampler_name="DDIM", steps=CHAIN_STEPS, **size, alwayson_scripts=zs2(settings))
    return webui.about()["peak memory"]


def _compare(webui, zs2, steps: int, pairs: int) -> tuple[list[float], list[float], dict]:
    """The times of a plain batch and of ZS² with as many frames, in turns."""
    _plain_seconds(webui, steps)
    peaks = {"plain": webui.about()["peak memory"]}
    _seconds(webui, zs2, SHORT, steps)
    plain, clip = [], []
    for pair in range(pairs):
        if pair % 2:
            clip.append(_seconds(webui, zs2, SHORT, steps))
        plain.append(_plain_seconds(webui, steps))
        if not pair % 2:
            clip.append(_seconds(webui, zs2, SHORT, steps))
    return plain, clip, peaks


def _plain_seconds(webui, steps: int) -> float:
    return _request_seconds(webui, batch_size=SHORT, steps=steps)


def _seconds(webui, zs2, frames: int, steps: int) -> float:
    settings = {"frames": frames, "frames_per_pass": PER_PASS, "return": "frames"}
    return _request_seconds(webui, steps=steps, alwayson_scripts=zs2(settings))


def _request_seconds(webui, **payload) -> float:
    start = time.perf_counter()
    webui.generate(sampler_name="DDIM", **payload)
    return time.perf_counter() - start


def targets(data: dict) -> list[Target]:
    job = metrics.median_ratio(data["clip"], data["plain"])
    time = metrics.median_ratio(data["long"], data["short"])
    memory = data["peaks"]["long"] / data["peaks"]["short"]
    one, many = data["chain"]
    what = f"{LONG} frames / {SHORT} frames in the WebUI, {data['per pass']} per pass"
    return [
        at_most("webui-plain", f"whole job / the WebUI's plain batch, {SHORT} frames", job, PLAIN_BAR),
        at_most("webui-time", f"time, {what}", time, TIME_BAR, digits=2),
        at_most("webui-memory", f"peak memory, {what}", memory, MEMORY_BAR),
        at_most(
            "webui-chain-memory",
            f"peak memory of the WebUI, {many['frames']} frames / {one['frames']} frames",
            many["peak"] / one["peak"],
            CHAIN_BAR,
        ),
    ]


def report(data: dict, figures: Figures) -> str:
    def row(what: str, above: str, below: str) -> tuple:
        medians = metrics.median(data[below]), metrics.median(data[above])
        return what, len(data[above]), *medians, *ratio_cells(data[above], data[below])

    peaks = data["peaks"]
    title = f"In the WebUI: {SHORT} frames in {data['steps']} steps"
    bars = {"plain batch": (metrics.median(data["plain"]), PLAIN), "ZS²": (metrics.median(data["clip"]), ZS2)}
    time_bars(figures, "times", title, "seconds of a job (median)", bars)
    return (
        f"AUTOMATIC1111's WebUI {data['version']} on the tiny checkpoint (Python {data['python']}, torch "
        f"{data['torch']}, float32 on one thread of the CPU), DDIM with {data['steps']} steps, in passes of "
        f"{data['per pass']} frames: whole API requests, wall time, in turns. ZS²'s job includes writing its MP4.\n\n"
        + table(
            ("what", "pairs", "s, first", "s, second", "second / first", "quartiles"),
            (
                row(f"plain batch of {SHORT}, ZS² with {SHORT} frames", "clip", "plain"),
                row(f"ZS² with {SHORT} frames, with {LONG}", "long", "short"),
            ),
        )
        + f"\nPeak memory of the WebUI's process: {megabytes(peaks['plain'])} after a plain batch of {SHORT}, "
        f"{megabytes(peaks['short'])} after ZS² with {SHORT} frames, "
        f"{megabytes(peaks['long'])} after {LONG} frames. A chain of segments, {CHAIN_STEPS} steps at "
        f"{CHAIN_SIDE}×{CHAIN_SIDE} pixels, in another process: "
        + ", ".join(f"{each['frames']} frames {megabytes(each['peak'])}" for each in data["chain"])
        + ".\n\n"
        + figures.link("times", "Time of a job in the WebUI")
    )
