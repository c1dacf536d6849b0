"""What an adapter answers about a host: the questions that the sampling of a clip in a WebUI asks, and no others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.core.rows import Rows
from zs2_lib.settings.table import Settings

from .edit import SourceVideo


class Model(NamedTuple):
    """The model that samples now: whose method all UNet calls go through, and the module with the attention."""

    owner: torch.nn.Module
    method: str
    unet: torch.nn.Module


class Call(NamedTuple):
    """A UNet call within a step: its rows, where in the step it lies, `start` to `stop` of 0 to 1, whether it is the
    step's `first`, before which what is carried from frame to frame is forgotten, whether rows come `again`, which
    another extension asks for, and whether they show but a `tile` of each frame.
    """

    rows: Rows
    start: float
    stop: float
    first: bool
    again: bool = False
    tile: bool = False


class ControlUnits(ABC):
    """The enabled ControlNet units of a job; one subclass for each kind of ControlNet that hosts have."""

    @staticmethod
    @abstractmethod
    def knows(script) -> bool:
        """Whether the host's ControlNet `script` (or its class) is of this kind."""

    @classmethod
    @abstractmethod
    def of(
        cls, p, script, settings: Settings, source: SourceVideo | None, undo: ExitStack, note: Callable, maps: bool
    ) -> ControlUnits | None:
        """The enabled units of the job `p`, or None if it has none; changes to them are undone with `undo`.

        `note(text)` tells the user something; `maps` says whether what preprocessors make of the pictures is part of
        the job's result. Raises SettingsError if `settings` ask for what the units cannot do.
        """

    @property
    @abstractmethod
    def use_source(self) -> bool:
        """Whether a unit takes its frames from the source video."""

    @property
    @abstractmethod
    def need_all_frames(self) -> bool:
        """Whether a unit looks into the deep blocks of the UNet, where anchor passes would leave frames out."""

    @property
    @abstractmethod
    def models(self) -> list[torch.nn.Module]:
        """The ControlNet models, which run inside the UNet's calls on the same rows; two units may share one."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the extension's code lies."""

    @abstractmethod
    def check(self) -> None:
        """Raises SettingsError if the units could not be set up."""

    @abstractmethod
    def begin(self, undo: ExitStack, clip: Clip) -> None:
        """Prepares the units for the sampling of a clip, until `undo` is closed."""

    @abstractmethod
    def begin_call(self) -> None:
        """A UNet call of the host begins; its passes follow."""

    @abstractmethod
    def prepare(self, now: Pass) -> None:
        """Gives every unit the images of the pass that comes next."""


class Adapter(ABC):
    """What a host answers about a job `p`, whose model is loaded; one subclass for each kind of host."""

    def __init__(self, p):
        self.p = p

    skips_negative = False
    """Whether the UNet computes no rows of the negative prompt where the CFG scale is 1."""

    lora_refusal: str | None = None
    """Why LoRA weights cannot change while a clip is sampled, with a remedy; None if they can."""

    weight_refusal: str | None = None
    """Why frames cannot have different weights of their prompts' parts, with a remedy; None if they can."""

    @classmethod
    @abstractmethod
    def fits(cls, p) -> bool:
        """Whether the model that `p` is sampled with, which is loaded, is one of this kind of host."""

    @abstractmethod
    def refusal(self) -> str | None:
        """Why the model that is loaded cannot be hooked, with a remedy; None if it can. Asked before the job samples,
        and of each model that takes part.
        """

    @abstractmethod
    def model(self) -> Model:
        """The model that samples now. Asked again in each step: refiner and hires.fix may bring another."""

    @abstractmethod
    def begin_sampling(self, undo: ExitStack) -> None:
        """The sampler of `p` is there, and will take its first step."""

    @abstractmethod
    def begin_step(self, denoiser, undo: ExitStack) -> None:
        """A step of the host's `denoiser` begins: its UNet calls follow."""

    @abstractmethod
    def call(self, x: torch.Tensor, *args, **kwargs) -> Call | None:
        """The next UNet call with its arguments; None for a call that belongs to no step. Raises RuntimeError where it
        does not fit the step.
        """

    def unet(self, original: Callable, clip: Clip, rows: int, kwargs: dict) -> Callable:
        """The UNet as a function of the arguments of a pass, for a call of `rows` rows of the host's `original`.

        Takes out of `kwargs` what is not cut along the rows as `core.rows.cut` does it, and puts it back cut.
        """
        return original

    def attention_patches(self, kwargs: dict) -> Iterator[tuple[Callable, bool]]:
        """What others gave with the arguments of a UNet call to take part in its attention, and of each whether it may
        keep what it sees there beyond the call, and so needs the rows of all frames at once.
        """
        return iter(())

    @abstractmethod
    def time(self, t: torch.Tensor) -> float:
        """How far the diffusion is at the UNet's argument `t` (rows,), from noise (0) to the picture (1)."""

    @abstractmethod
    def same_tiles(self) -> Callable[[], None]:
        """Remembers the random choices that layers make in a call; the function makes the next pass choose alike."""

    @abstractmethod
    def share_first_image(self, undo: ExitStack) -> None:
        """Gives all frames the init image and the image condition of the first, which the VAE draws noise for."""

    @abstractmethod
    def correlate_own_draws(self, clip: Clip, undo: ExitStack) -> None:
        """Correlates the noise that samplers draw, or step sizes that they choose, without asking `p.rng`."""

    def ask_for_memory(self, clip: Clip, undo: ExitStack) -> None:
        """Makes the host plan its memory for a pass of the clip, where it plans for the batch."""
        return None
