"""A scope of hooks on the UNet that samples a clip: what they see of a pass, how they are set and taken off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.utils.hooks import RemovableHandle

from .rows import Rows

SWITCH_OFF = "switch it off for this clip"


def another_extension(does: str, remedy: str = SWITCH_OFF) -> str:
    """The end of an error's message: what another extension `does`, and what to do against it."""
    return f"another extension {does}: {remedy}"


@dataclass
class Pass:
    """One pass of the UNet over some frames of a clip, as the hooks see it.

    `rows` are its rows, and `done` is the part of the UNet call that was done before it, 0 to 1.
    """

    rows: Rows
    done: float = 0.0
    seen: Rows = field(init=False)
    """The rows that the layers see now: inside the deep blocks those of the anchors."""
    repeated: Callable[[], Rows] | None = None
    """The rows of a layer that sees fewer than the pass has: some extensions repeat attention for a part of them."""
    uses: Counter = field(default_factory=Counter)
    """How often each layer was used in this pass."""
    suspended: bool = field(default=False, init=False)

    def __post_init__(self):
        self.seen = self.rows

    @property
    def frames(self) -> tuple[int, int]:
        """The first and the last frame of the pass, counted from 1."""
        return min(self.rows.frames) + 1, max(self.rows.frames) + 1


class Hooks:
    """Hooks on a UNet, and the state that they carry from pass to pass.

    A scope: `attach` sets the hooks (again, if the UNet is another one than before), leaving the scope takes them off.
    Between, `begin` says which pass comes next, and `restart` that a step of the sampler begins.
    """

    NAME = ""
    """Of the method, in messages."""
    CARRIED: tuple[str, ...] = ()
    """The attributes, dicts, that make up the state."""

    def __init__(self):
        self.now: Pass | None = None
        self._models: tuple[torch.nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []

    def hook(self, unet: torch.nn.Module, *controls: torch.nn.Module) -> Iterator[RemovableHandle]:
        """Sets the hooks, one after the other. Raises ValueError if `unet` is not built as they need it."""
        raise NotImplementedError

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """Forgets what was carried: the next call begins with frame 0, at the `step` of the sampler (counted from 0).

        `time` says where on the way from noise (0) to the picture (1) the diffusion is: 1 - t / T.
        """
        raise NotImplementedError

    def attach(self, unet: torch.nn.Module, *controls: torch.nn.Module) -> None:
        """Hooks `unet`, and `controls`, ControlNet models that run inside its calls on the same rows; takes the hooks
        off the models before, if they were others.

        Raises ValueError if `unet` is not built as the hooks need it.
        """
        models = tuple(dict.fromkeys((unet, *controls)))  # control units may share a model
        if models == self._models:
            return
        self.detach()
        try:
            for handle in self.hook(*models):
                self._handles.append(handle)
        except BaseException:
            self.detach()
            raise
        self._models = models

    def detach(self) -> None:
        """Takes all hooks off and forgets what was carried."""
        while self._handles:
            self._handles.pop().remove()
        self._models = ()
        self.restart()

    def begin(self, now: Pass | None) -> None:
        """The UNet pass that comes next; None for calls that are not the clip's."""
        self.now = now

    def saw(self, now: Pass) -> bool:
        """Whether the hooks acted in the pass `now`, which is done."""
        raise NotImplementedError

    def end(self, now: Pass) -> None:
        """The pass `now` is done. Raises RuntimeError if it went by the hooks."""
        if self._handles and not self.saw(now):
            raise RuntimeError(
                f"{self.NAME}: the UNet ran without its hooks, as one that was compiled before may do: switch "
                "torch.compile off for this clip"
            )

    @property
    def act(self) -> bool:
        """Whether the hooks have anything to do in the call of a module: not in another's, not while suspended."""
        return self.now is not None and not self.now.suspended

    def snapshot(self) -> tuple[dict, ...]:
        """The state now, for `restore`; what is carried is replaced and never changed in place."""
        return tuple(dict(getattr(self, name)) for name in self.CARRIED)

    def restore(self, state: tuple[dict, ...]) -> None:
        """Goes back to a state that `snapshot` gave, once."""
        for name, value in zip(self.CARRIED, state):
            setattr(self, name, value)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.detach()


@contextmanager
def suspended(now: Pass | None) -> Iterator[None]:
    """Scope in which the hooks do nothing: for calls of the UNet inside of its pass `now` whose rows are no frames."""
    if now is None:
        yield
        return
    before, now.suspended = now.suspended, True
    try:
        yield
    finally:
        now.suspended = before
