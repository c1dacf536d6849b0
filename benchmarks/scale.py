"""Simulates a batch on a cluster: python -m benchmarks.scale, with the batch's own way to give out jobs.

Each of `gpus` workers takes jobs from `zs2_lib.batch.turns`, loads a checkpoint where it has another one loaded, and
dies at times that a Poisson process gives; the job that it was at is done again, by another worker.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass, replace

from zs2_lib.batch.turns import Turns


@dataclass(frozen=True)
class Plan:
    """clip, spread: median seconds of a clip, and σ of its logarithm, by clip.
    stragglers, slow: which part of the workers is slower, and how many times.
    load, start: seconds to load a checkpoint, and to start a worker anew.
    lost_per_hour: workers that die in the whole cluster.
    driver: seconds that the driver needs for each job.
    """

    clips: int = 10_000
    gpus: int = 100
    checkpoints: int = 20
    clip: float = 73.0
    spread: float = 0.5
    stragglers: float = 0.05
    slow: float = 2.0
    load: float = 20.0
    start: float = 15.0
    lost_per_hour: float = 1.0
    driver: float = 0.002
    longest_first: bool = True


@dataclass(frozen=True)
class Outcome:
    """makespan, ideal: seconds. loads: of checkpoints. lost: seconds of clips that were begun again. idle: seconds in
    which workers had no job left.
    """

    makespan: float
    ideal: float
    loads: int
    again: int
    lost: float
    idle: float


def simulate(plan: Plan, seed: int) -> Outcome:
    rng = random.Random(seed)
    work = [plan.clip * rng.lognormvariate(0, plan.spread) for _ in range(plan.clips)]
    if plan.longest_first:
        work.sort(reverse=True)
    checkpoint_of = [rng.randrange(plan.checkpoints) for _ in work]
    speed = [1 / plan.slow if n < plan.stragglers * plan.gpus else 1.0 for n in range(plan.gpus)]
    turns = Turns((checkpoint_of[job], job) for job in range(plan.clips))
    deaths = plan.lost_per_hour / 3600 / plan.gpus  # of one worker in a second
    free = [(plan.start, worker) for worker in range(plan.gpus)]
    heapq.heapify(free)
    loaded, ended, driver_free = {}, [0.0] * plan.gpus, 0.0
    left, loads, again, lost, makespan = plan.clips, 0, 0, 0.0, 0.0
    back: list[tuple[float, int]] = []  # jobs that come back when the death of their worker is known
    while left:
        now, worker = heapq.heappop(free)
        while back and back[0][0] <= now:
            job = heapq.heappop(back)[1]
            turns.put_back(checkpoint_of[job], job)
        if not len(turns):
            if back:
                heapq.heappush(free, (max(now, back[0][0]), worker))
            continue
        now = driver_free = max(now, driver_free) + plan.driver
        job = turns.next(worker)
        loading = plan.load if loaded.get(worker) != checkpoint_of[job] else 0.0
        loads += loading > 0
        loaded[worker] = checkpoint_of[job]
        end = now + loading + work[job] / speed[worker]
        dies = now + rng.expovariate(deaths) if deaths else float("inf")
        if dies < end:
            heapq.heappush(back, (dies, job))
            again, lost = again + 1, lost + dies - now
            loaded.pop(worker)
            turns.lost(worker)
            heapq.heappush(free, (dies + plan.start, worker))
            continue
        left -= 1
        ended[worker] = end
        makespan = max(makespan, end)
        heapq.heappush(free, (end, worker))
    ideal = sum(work) / sum(speed)
    return Outcome(makespan, ideal, loads, again, lost, sum(makespan - end for end in ended))


VARIANTS = {
    "the plan": {},
    "no worker lost": {"lost_per_hour": 0.0},
    "20 workers lost each hour": {"lost_per_hour": 20.0},
    "no stragglers": {"stragglers": 0.0},
    "1 checkpoint": {"checkpoints": 1},
    "200 checkpoints": {"checkpoints": 200},
    "loading takes 120 s": {"load": 120.0},
    "in the order of the file, not the longest first": {"longest_first": False},
    "clips of 10 minutes, 1000 of them": {"clip": 600.0, "clips": 1000},
    "the same in the order of the file": {"clip": 600.0, "clips": 1000, "longest_first": False},
    "clips of 2 s": {"clip": 2.0},
    "clips of 2 s, the driver takes 20 ms": {"clip": 2.0, "driver": 0.02},
}


def main(arguments: list[str] | None = None) -> None:
    """Prints the table of docs/scale.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--clip", type=float, default=Plan.clip, help="median seconds of a clip; default %(default)s")
    parser.add_argument("--load", type=float, default=Plan.load, help="seconds of a checkpoint; default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="simulations of each row; default %(default)s")
    options = parser.parse_args(arguments)
    print("| | makespan | ideal | × ideal | loads | begun again | idle at the end |\n|---|---|---|---|---|---|---|")
    for name, change in VARIANTS.items():
        plan = replace(Plan(clip=options.clip, load=options.load), **change)
        runs = [simulate(plan, seed) for seed in range(options.seeds)]

        def mean(name, runs=runs):
            return sum(getattr(run, name) for run in runs) / len(runs)

        span, ideal, idle = mean("makespan"), mean("ideal"), mean("idle") / (mean("makespan") * plan.gpus)
        ratio = f"{span / ideal:.3f}"
        cells = (f"{span / 3600:.2f} h", f"{ideal / 3600:.2f} h", ratio, f"{mean('loads'):.0f}", f"{mean('again'):.1f}")
        print(f"| {name} | {' | '.join(cells)} | {idle:.1%} |")


if __name__ == "__main__":
    main()
