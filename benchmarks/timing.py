"""Time and memory, measured so that other work on the machine disturbs them least.

On a CPU times are processor time on one thread; on a GPU, wall time with the GPU's work done. What is compared runs in
turns, and the figure is the median of the ratios.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from zs2_lib.core.momentum import TemporalMomentum


def seconds(run: Callable[[], object], repeat: int = 1, clock: Callable[[], float] | None = None) -> float:
    """How long one `run()` takes, by processor time on a CPU unless another `clock` is given."""
    clock = clock or (_gpu_clock if torch.cuda.is_available() else time.process_time)
    start = clock()
    for _ in range(repeat):
        run()
    return (clock() - start) / repeat


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(run: Callable[[], object]) -> float:
    """How long the GPU is at work on one `run()`, from its first kernel to its last, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def in_turns(runs: dict[str, Callable[[], object]], rounds: int, repeat: int = 1) -> dict[str, list[float]]:
    """The times of each run, `rounds` of them; who begins changes from round to round."""
    times = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            times[name].append(seconds(runs[name], repeat))
        order.append(order.pop(0))
    return times


KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Tells Linux' C library to keep freed memory for later, as torch does on a GPU. Otherwise the kernel clears new pages
in every layer: up to a third of a step's time, and by chance not the same part of each step that is compared.
"""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Tells Linux' C library to give freed memory back at once, so that a process's memory is what it holds."""


@contextlib.contextmanager
def averages_watched() -> Iterator[list[float]]:
    """Scope in which the seconds of processor time that each average of temporal momentum takes are collected: unlike a
    whole step's time, they are hardly blurred by what else the machine does. On a GPU they say nothing: it works on
    after the hooks.
    """
    spent, average = [], TemporalMomentum._average

    def watched(*arguments) -> torch.Tensor:
        start = time.process_time()
        result = average(*arguments)
        spent.append(time.process_time() - start)
        return result

    TemporalMomentum._average = watched
    try:
        yield spent
    finally:
        TemporalMomentum._average = average


def in_own_process(function: Callable, *arguments, environment: Mapping[str, str] | None = None, threads: int = 1):
    """`function(*arguments)` in a fresh process of so many threads, whose memory is its own."""
    with (
        started_with(environment or {}),
        ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def started_with(environment: Mapping[str, str]) -> Iterator[None]:
    """Scope in which processes are started with these environment variables as well."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def peak_memory() -> int:
    """Bytes that this process's tensors held at most so far on the GPU; without one, what `process_peak` says."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_peak()


def process_peak() -> int:
    """Bytes of main memory that this process held at most so far."""
    if os.path.exists("/proc/self/status"):  # getrusage may say the parent's, from before the process began its own
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
