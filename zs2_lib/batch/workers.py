"""The jobs of a batch on workers of Ray: actors that keep a checkpoint loaded, on this machine or on a cluster.

Imported only where a batch runs, as Ray is an extra. Ray starts the actors, gives each its GPU, restarts those that
died, and says what became of a job. A job whose worker died goes back to the others, and not with Ray's own
`max_task_retries`, which wait for that same actor: where its machine is gone, for ever.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# before Ray is imported, which reads them: nothing is reported to its makers
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from zs2_lib.cli_say import Failed, Refused

from .jobs import Planned
from .make import STAY_HERE, Maker
from .sharing import LONG, Crew, Lost
from .turns import Turns

HERE = "127.0.0.1"
"""Where Ray listens if it is started here, as nobody has to say who they are to it."""
STORE = 200_000_000
"""Bytes of Ray's store of objects on this machine, for the frames that helpers decode (see `sharing.HELD`)."""
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
    """Makes one clip after the other, or helps with another worker's; what is `asked` is answered beside that."""

    def __init__(self, folder: str, place: str, threads: int):
        if Path(place).is_dir():
            os.chdir(place)  # what the paths of jobs begin at
        self.maker = Maker(Path(folder), threads)
        self.idle: dict[int, ActorHandle] = {}
        self.crew: Crew | None = None

    def make(self, name: str, arguments: tuple[str, ...], formats: tuple[str, ...]) -> dict:
        job = name, arguments, formats
        self.crew = Crew(
            idle=lambda: self.idle,
            decode=lambda helper, latents: _asked(self.idle, helper, "decode", latents.cpu().clone(), *job),
            write=lambda helper, clip: _asked(self.idle, helper, "write", clip, name),
            prepare=lambda helper: _asked(self.idle, helper, "prepare", *job),
        )
        return self.maker.make(*job, self.crew)

    def prepare(self, *job) -> None:
        self.maker.prepare(*job)

    def decode(self, latents, *job) -> list:
        return self.maker.decode(latents, *job)

    def write(self, clip: tuple, name: str) -> list:
        return [self.maker.write(clip, name)]

    @ray.method(concurrency_group="asked", max_task_retries=-1)
    def ready(self) -> int:
        return os.getpid()

    @ray.method(concurrency_group="asked")
    def progress(self) -> dict:
        return self.maker.said.last

    @ray.method(concurrency_group="asked")
    def helped_by(self, idle: dict[int, ActorHandle]) -> None:
        """These workers, by number, have nothing to do."""
        self.idle = idle
        if self.crew is not None:
            self.crew.look()


def _asked(idle: Mapping[int, ActorHandle], number: int, method: str, *values) -> Callable[[], list]:
    """Has a helper do something, waits for it, and gives a function that gives what came of it; both raise Lost."""

    def answer() -> list:
        try:
            return ray.get(reference)
        except RayError as error:
            raise Lost from error

    try:
        reference = getattr(idle[number], method).remote(*values)
    except (KeyError, RayError) as error:  # it has got a job since; Ray's store is full
        raise Lost from error
    answer()
    return answer


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
    show: Callable[[dict[int, dict]], None],
) -> None:
    """Has the jobs made, inside of `started`.

    done: is called with what became of a job, in words of the manifest; `tries` counts its workers.
    show: is called now and then with what each worker is at, by number: of a clip the `job` and its progress, or whom
        it `helps`.
    Raises Failed where no worker is left.
    """
    gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
    how = Worker.options(num_cpus=machines.threads, num_gpus=gpu)
    crowd = _Crowd([how.remote(str(folder), os.getcwd(), machines.threads) for _ in range(workers)], jobs, machines)
    while crowd.left:
        crowd.give_out()
        finished, _ = ray.wait(list(crowd.waiting), timeout=ASKED_EVERY)
        for reference in finished:
            if (outcome := crowd.outcome(reference)) is not None:
                done(*outcome)
        show(crowd.progress())


class _Crowd:
    """The workers, what each is at, and the jobs that are left."""

    def __init__(self, actors: list[ActorHandle], jobs: Iterable[Planned], machines: Machines):
        self.actors, self.machines = actors, machines
        # the longest first, so that nobody waits for one at the end
        self.turns = Turns((job.checkpoint, job) for job in sorted(jobs, key=lambda job: -job.cost.work))
        self.left, self.tries = len(self.turns), Counter()
        self.waiting = {actor.ready.remote(): (number, None) for number, actor in enumerate(actors)}
        self.idle: list[int] = []
        self._helps: dict[int, int] = {}
        """At whose clip each of them helps."""
        self._has: dict[int, str] = {}
        """The checkpoint that each worker has loaded."""
        self._told: dict[int, list[int]] = {}
        self._asked: dict[int, ray.ObjectRef] = {}
        self._said: dict[int, dict] = {}

    def give_out(self) -> None:
        """Gives those who are idle a job, and where none is left has them help the others."""
        while self.idle and self.turns:
            number = self.idle.pop()
            job = self.turns.next(number)
            self.waiting[self.actors[number].make.remote(job.name, job.arguments, job.formats)] = (number, job)
            self._has[number] = job.checkpoint
        self._deal_helpers()
        at_work = self._at_work
        told = {number: [idle for idle in self._helps if self._helps[idle] == number] for number in at_work}
        for number in told.keys() | self._told.keys():
            if (helpers := told.get(number, [])) != self._told.get(number, []):
                self.actors[number].helped_by.remote({idle: self.actors[idle] for idle in helpers})
        self._told = told

    def _deal_helpers(self) -> None:
        """Has each idle worker help with one clip, the same as long as it lasts, as each has a checkpoint to load: one
        of the checkpoint that it has, or with the fewest helpers.
        """
        long = {number: job for number, job in self._at_work.items() if job.job.settings.length >= LONG}
        self._helps = {idle: helped for idle, helped in self._helps.items() if idle in self.idle and helped in long}
        for idle in sorted(set(self.idle) - self._helps.keys()) if long else ():
            count = Counter(self._helps.values())
            has = self._has.get(idle)
            self._helps[idle] = min(long, key=lambda number: (long[number].checkpoint != has, count[number], number))
            self._has[idle] = long[self._helps[idle]].checkpoint

    @property
    def _at_work(self) -> dict[int, Planned]:
        return {number: job for number, job in self.waiting.values() if job is not None}

    def outcome(self, reference: ray.ObjectRef) -> tuple[Planned, dict] | None:
        """A job that is finished or given up, and what became of it. Raises Failed."""
        number, job = self.waiting.pop(reference)
        try:
            outcome = ray.get(reference)
        except RayError as error:
            if job is None:  # Ray has given up to start it
                if not self.waiting and not self.idle:
                    raise Failed(f"no worker could be started: {_words(error)}") from None
                return None
            self.turns.lost(number)
            self.waiting[self.actors[number].ready.remote()] = (number, None)
            self.tries[job.name] += 1
            if self.tries[job.name] < self.machines.tries:
                self.turns.put_back(job.checkpoint, job)
                return None
            outcome = {"files": {}, "error": f"its worker died {self.machines.tries} times: {_words(error)}"}
            outcome |= {"seconds": None, "host": None, "pid": None, "notes": []}
        else:
            self.idle.append(number)
        if job is None:
            return None
        self.left -= 1
        return job, {**outcome, "tries": self.tries[job.name] + bool(outcome["files"] or outcome["pid"])}

    def progress(self) -> dict[int, dict]:
        """What workers say that they are at; they are asked without waiting for an answer."""
        for number, reference in list(self._asked.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self._asked[number]
                try:
                    self._said[number] = ray.get(reference)
                except RayError:
                    if number in self.idle:  # it died, and gets no job before there is another in its place
                        self.idle.remove(number)
                        self.turns.lost(number)
                        self.waiting[self.actors[number].ready.remote()] = (number, None)
        names = {number: job.name for number, job in self._at_work.items()}
        for number in {*names, *self.idle} - self._asked.keys():
            self._asked[number] = self.actors[number].progress.remote()
        said = {number: self._said.get(number, {}) for number in (*names, *self.idle)}
        for number, name in names.items():
            if said[number].get("job") != name:  # it has not heard of it yet
                said[number] = {"job": name}
        return dict(sorted(said.items()))


def _words(error: RayError) -> str:
    text = str(error)
    return " ".join(text.split())[:500]
