"""Whose turn it is: which job a free worker gets, so that checkpoints are loaded seldom and nobody waits at the end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Jobs by checkpoint, each in its order, given out one by one.

    A worker goes on with the checkpoint that it has loaded; where that has no more jobs it takes the one that has most
    for each worker at work on it.
    """

    def __init__(self, jobs: Iterable[tuple[Hashable, Item]]):
        self._queues: dict[Hashable, deque[Item]] = {}
        for checkpoint, job in jobs:
            self._queues.setdefault(checkpoint, deque()).append(job)
        self._at_work: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def next(self, worker: Hashable) -> Item:
        """The job that `worker` gets. Raises IndexError where there is none."""
        loaded = self._at_work.get(worker)
        if not self._queues.get(loaded):
            users = Counter(self._at_work.values())
            waiting = [checkpoint for checkpoint, queue in self._queues.items() if queue]
            if not waiting:
                raise IndexError("there is no job left")
            loaded = max(waiting, key=lambda checkpoint: len(self._queues[checkpoint]) / (1 + users[checkpoint]))
        self._at_work[worker] = loaded
        return self._queues[loaded].popleft()

    def put_back(self, checkpoint: Hashable, job: Item) -> None:
        """A job to be done again, before the others."""
        self._queues.setdefault(checkpoint, deque()).appendleft(job)

    def lost(self, worker: Hashable) -> None:
        """The worker has nothing loaded any more."""
        self._at_work.pop(worker, None)
