"""The jobs of a batch on workers of Ray: actors that keep a checkpoint loaded, on this machine or on a cluster.

Imported only where a batch runs, as Ray is an extra. Ray starts the actors, gives each its GPU, restarts those that
died, and says what became of a job. A job whose worker died goes back to the others, and not with Ray's own
`max_task_retries`, which wait for that same actor: where its machine is gone, for ever.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# before Ray is imported, which reads them: nothing is reported to its makers
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError

from zs2_lib.cli_say import Failed, Refused

from .jobs import Planned
from .make import STAY_HERE, Maker
from .turns import Turns

HERE = "127.0.0.1"
"""Where Ray listens if it is started here, as nobody has to say who they are to it."""
STORE = 100_000_000
"""Bytes of Ray's store of objects on this machine; what workers and driver tell each other are a few kilobytes."""
ASKED_EVERY = 0.5
"""Seconds between two looks at the workers."""


@dataclass(frozen=True)
class Machines:
    """Where a batch runs.

    address: of a cluster; None for this machine.
    workers: how many; None for one on each GPU, without a GPU one.
    threads: of each worker.
    tries: how often a job is begun whose worker dies.
    """

    address: str | None
    workers: int | None
    threads: int
    tries: int
    dashboard: bool


@ray.remote(max_restarts=-1, concurrency_groups={"asked": 1})
class Worker:
    """Makes one clip after the other; `ready` and `progress` answer beside that."""

    def __init__(self, folder: str, place: str, threads: int):
        if Path(place).is_dir():
            os.chdir(place)  # what the paths of jobs begin at
        self.maker = Maker(Path(folder), threads)

    def make(self, name: str, arguments: tuple[str, ...], formats: tuple[str, ...]) -> dict:
        return self.maker.make(name, arguments, formats)

    @ray.method(concurrency_group="asked", max_task_retries=-1)
    def ready(self) -> int:
        return os.getpid()

    @ray.method(concurrency_group="asked")
    def progress(self) -> str:
        return self.maker.said.last


@contextmanager
def started(machines: Machines) -> Iterator[int]:
    """Scope in which Ray runs; gives the number of workers. Refuses what the machines cannot give."""
    local = machines.address is None
    how = {"address": machines.address}
    if local:
        cpus = (machines.workers or os.cpu_count() or 1) * machines.threads
        how = {"address": "local", "num_cpus": max(cpus, machines.threads), "object_store_memory": STORE}
        how |= {"include_dashboard": machines.dashboard, "dashboard_host": HERE}
    try:
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        where = "on this machine" if local else f"at {machines.address}"
        raise Refused(f"Ray cannot be reached {where} ({' '.join(str(error).split())[:300]}); start it") from None
    try:
        if local and (address := ray.util.get_node_ip_address()) != HERE:
            raise Failed(f"Ray would listen at {address}, which others can reach; {STAY_HERE}=0 should prevent that")
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus and local and (machines.workers or 0) > gpus:
            raise Refused(f"--workers: {machines.workers} is not allowed, each has a GPU, of which there are {gpus}")
        yield machines.workers or gpus or 1
    finally:
        ray.shutdown()


def run(
    jobs: Iterable[Planned],
    folder: Path,
    machines: Machines,
    workers: int,
    done: Callable[[Planned, dict], None],
    show: Callable[[dict[int, str]], None],
) -> None:
    """Has the jobs made, inside of `started`.

    done: is called with what became of a job, in words of the manifest; `tries` counts its workers.
    show: is called now and then with what each worker is at, by number.
    Raises Failed where no worker is left.
    """
    # the longest first, so that nobody waits for one at the end
    turns = Turns((job.checkpoint, job) for job in sorted(jobs, key=lambda job: -job.rows))
    left, tries = len(turns), Counter()
    gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
    how = Worker.options(num_cpus=machines.threads, num_gpus=gpu)
    actors = [how.remote(str(folder), os.getcwd(), machines.threads) for _ in range(workers)]
    waiting = {actor.ready.remote(): (number, None) for number, actor in enumerate(actors)}
    idle, progress = [], _Progress(actors)
    while left:
        while idle and turns:
            number = idle.pop()
            job = turns.next(number)
            waiting[actors[number].make.remote(job.name, job.arguments, job.formats)] = (number, job)
        finished, _ = ray.wait(list(waiting), timeout=ASKED_EVERY)
        for reference in finished:
            number, job = waiting.pop(reference)
            try:
                outcome = ray.get(reference)
            except RayError as error:
                if job is None:  # Ray has given up to start it
                    if not waiting and not idle:
                        raise Failed(f"no worker could be started: {_words(error)}") from None
                    continue
                turns.lost(number)
                waiting[actors[number].ready.remote()] = (number, None)
                tries[job.name] += 1
                if tries[job.name] < machines.tries:
                    turns.put_back(job.checkpoint, job)
                    continue
                outcome = {"files": {}, "error": f"its worker died {machines.tries} times: {_words(error)}"}
                outcome |= {"seconds": None, "host": None, "pid": None, "notes": []}
            else:
                idle.append(number)
            if job is not None:
                left -= 1
                done(job, {**outcome, "tries": tries[job.name] + bool(outcome["files"] or outcome["pid"])})
        show(progress.of({number: job.name for number, job in waiting.values() if job is not None}))


class _Progress:
    """What workers say that they are at, asked without waiting for an answer."""

    def __init__(self, actors: list):
        self.actors, self.asked, self.said = actors, {}, {}

    def of(self, names: dict[int, str]) -> dict[int, str]:
        for number, reference in list(self.asked.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self.asked[number]
                with suppress(RayError):
                    self.said[number] = ray.get(reference)
        for number in names.keys() - self.asked.keys():
            self.asked[number] = self.actors[number].progress.remote()
        return {number: f"{name}: {self.said.get(number, '')}" for number, name in sorted(names.items())}


def _words(error: RayError) -> str:
    text = str(error)
    return " ".join(text.split())[:500]
