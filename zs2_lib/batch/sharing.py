"""One long clip over several workers: those that have no job left decode frames, and write files, for one that has.

The worker that samples the clip does the pieces of this work from the first on, and each helper from the last on, until
they meet; so it does not matter how fast they are. What a helper fails at, or does not finish as it dies, is done by
another, at last by the clip's own worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Condition, Thread

import torch
from PIL import Image

from zs2_lib.cli_job import Hands, Job, pictures_of
from zs2_lib.media.write import write_clip

LONG = 32
"""Frames of a clip that others help with: 128 pixels of the tiny checkpoint are decoded in a second then."""
PIECE, PIXELS = 8, 8 * 512 * 512
"""How many frames are a piece, and their pixels, of which fewer frames are one."""
HELD = 16 * PIXELS
"""How many pixels, of 3 bytes, of pieces that helpers have made wait until their turn comes."""


class Lost(Exception):
    """A helper did not do its piece: it died, or failed."""


class Shared:
    """Pieces of work, in a row; a piece has one or several results, which come in their order.

    do: does a piece here, one result after the other.
    idle: the helpers there are now.
    ask: has a helper do a piece, waits for it, and gives a function that gives the results; both raise Lost.
    prepare: makes a helper ready; raises Lost.
    most: how many helpers there may be.
    hurry: whether a piece is begun here as well where a helper is still at it; otherwise it is waited for.
    """

    def __init__(
        self,
        do: Callable[[object], Iterable],
        idle: Callable[[], Collection[Hashable]],
        ask: Callable[[Hashable, object], Callable[[], Sequence]],
        most: int,
        prepare: Callable[[Hashable], object] = lambda helper: None,
        hurry: bool = False,
    ):
        self._do, self._idle, self._ask, self._prepare, self._hurry = do, idle, ask, prepare, hurry
        self._most, self._held = most, 0
        self._pieces: list = []
        self._left: list[int] = []
        """Those that nobody does."""
        self._with: dict[int, Hashable] = {}
        """Which helper is at a piece."""
        self._made: dict[int, Callable[[], Sequence]] = {}
        self._next, self._closed = 0, False
        self._helping: set[Hashable] = set()
        self._changed = Condition()
        self.look()

    @property
    def is_helped(self) -> bool:
        with self._changed:
            return any(helper in self._idle() for helper in self._helping)

    def add(self, pieces: Iterable, held: int) -> None:
        """There are more pieces. `held`: how many that helpers have made, or are at, wait at most for their turn."""
        with self._changed:
            self._held = held
            first = len(self._pieces)
            self._pieces += pieces
            self._left += range(first, len(self._pieces))
            self._changed.notify_all()

    def look(self) -> None:
        """Others may be idle now."""
        with self._changed:
            new = [] if self._closed else [helper for helper in self._idle() if helper not in self._helping]
            new = new[: max(0, self._most - len(self._helping))]
            self._helping.update(new)
            self._changed.notify_all()
        for helper in new:
            Thread(target=self._help, args=(helper,), daemon=True).start()

    def close(self) -> None:
        """There is nothing more to do."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def results(self, only_made: bool = False) -> Iterator:
        """Those of the pieces that there are, from where it stopped; `only_made`: up to the first that no helper has
        made.
        """
        while self._next < len(self._pieces) and not (only_made and self._next not in self._made):
            number, self._next = self._next, self._next + 1
            self._claim(number)
            count = 0
            if number not in self._made:
                for result in self._do(self._pieces[number]):
                    yield result
                    count += 1
                    if number in self._made:  # in the meantime
                        break
                else:
                    self._forget(number)
                    continue
            yield from self._rest(number, count)
            self._forget(number)

    def _forget(self, number: int) -> None:
        """A piece is done, and what it is made of of no more use; nor is what a helper makes of it yet."""
        with self._changed:
            self._pieces[number] = None
            self._made.pop(number, None)
            self._changed.notify_all()

    def _rest(self, number: int, count: int) -> Iterator:
        """What a helper has made of a piece, but for the first results, so many."""
        try:
            made = self._made[number]()
        except Lost:
            made = list(self._do(self._pieces[number]))
        yield from made[count:]

    def _claim(self, number: int) -> None:
        """Leaves a piece to no other from here on, and waits for the one who is at it."""
        with self._changed:
            if number in self._left:
                self._left.remove(number)
            while not self._hurry and self._with.get(number) in self._idle():
                self._changed.wait()

    def _help(self, helper: Hashable) -> None:
        """In a thread of its own: has a helper do one piece after the other, from the last on."""
        number = None
        try:
            self._prepare(helper)
            while (taken := self._taken(helper)) is not None:
                number, piece = taken
                made = self._ask(helper, piece)
                with self._changed:
                    if self._pieces[number] is not None:
                        self._made[number] = made
                    del self._with[number]
                    self._changed.notify_all()
        except Lost:
            pass  # which another does
        finally:
            with self._changed:
                if self._with.pop(number, None) is not None and number >= self._next:
                    self._left.append(number)
                self._helping.discard(helper)
                self._changed.notify_all()

    def _taken(self, helper: Hashable) -> tuple[int, object] | None:
        """The last piece that nobody does, and its number, once there is one; None for a helper that is not idle any
        more.
        """
        with self._changed:
            while not self._closed and helper in self._idle():
                if self._left and len(self._made) + len(self._with) < self._held:
                    number = self._left.pop()
                    self._with[number] = helper
                    return number, self._pieces[number]
                self._changed.wait()
        return None


class Crew(Hands):
    """The hands of one clip: its own worker, and those that have no job left.

    idle: these, by number; `look` says that there may be others.
    decode: has one of them decode latents (frames, channels, height / 8, width / 8), as `Shared` asks; it gives arrays
        (height, width, 3), uint8.
    write: has one write a clip, the arguments of `write_clip`.
    prepare: has one load the checkpoint.
    """

    def __init__(self, idle: Callable, decode: Callable, write: Callable, prepare: Callable):
        self._idle, self._decode, self._write, self._prepare = idle, decode, write, prepare
        self._shared: Shared | None = None

    def look(self) -> None:
        shared = self._shared
        if shared is not None:
            shared.look()

    def pictures(self, pipe, job: Job, segments: Iterator[torch.Tensor]) -> Iterator[Image.Image]:
        if job.settings.length < LONG:
            yield from super().pictures(pipe, job, segments)
            return

        def ask(helper: Hashable, latents: torch.Tensor) -> Callable[[], list[Image.Image]]:
            made = self._decode(helper, latents)
            return lambda: [Image.fromarray(picture) for picture in made()]

        do, most = partial(pictures_of, pipe, job), -(-job.settings.length // PIECE)
        larger = job.upscale.scale**2 if job.upscale else 1
        with self._sharing(do=do, ask=ask, prepare=self._prepare, hurry=True, most=most) as shared:
            for latents in segments:
                pixels = int(64 * latents.shape[2] * latents.shape[3] * larger)
                frames = max(1, min(PIECE, PIXELS // pixels))
                shared.add(latents.split(frames), held=max(1, HELD // (frames * pixels)))
                # where others help, the next segment is sampled meanwhile
                yield from shared.results(only_made=shared.is_helped)
            yield from shared.results()

    def files(self, clips: Sequence[tuple]) -> Iterator[Path]:
        if len(clips) == 1 or len(clips[0][0]) < LONG:
            yield from super().files(clips)
            return
        with self._sharing(do=lambda clip: [write_clip(*clip)], ask=self._write, most=len(clips) - 1) as shared:
            shared.add(clips, held=len(clips))
            yield from shared.results()

    @contextmanager
    def _sharing(self, **how) -> Iterator[Shared]:
        self._shared = shared = Shared(idle=self._idle, **how)
        shared.look()  # who became idle before it was known
        try:
            yield shared
        finally:
            self._shared = None
            shared.close()
