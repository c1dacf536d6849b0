"""What the host's tab, or a request to it, holds beside the settings of ZS², as far as a forecast asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from modules import sd_samplers_common

from zs2_lib.settings.kinds import File, Kind, Number, SettingsError, WholeNumber, YesNo, nearest

from . import known

KINDS: dict[str, Kind] = {
    "width": WholeNumber(1, 16384),
    "height": WholeNumber(1, 16384),
    "steps": WholeNumber(1, 1000),
    "cfg_scale": Number(0, 1000),
    "sampler_name": File(),
    "n_iter": WholeNumber(1, 100_000),
    "batch_size": WholeNumber(1, 100_000),
    "img2img": YesNo(),
    "denoising_strength": Number(0, 1),
    "enable_hr": YesNo(),
    "hr_scale": Number(0, 16),
    "hr_resize_x": WholeNumber(0, 16384),
    "hr_resize_y": WholeNumber(0, 16384),
    "hr_second_pass_steps": WholeNumber(0, 1000),
    "hr_cfg": Number(0, 1000),
    "script_name": File(),
}
"""By the key in the host's requests, except for `img2img`, which says whose request it is."""


@dataclass(frozen=True)
class Sampling:
    """One sampling of a clip: how often the denoiser is called, at which guidance, for latents of which size."""

    cfg_scale: float
    steps: int
    calls: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Tab:
    """The values, checked; those of the page at first."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler_name: str = ""
    n_iter: int = 1
    batch_size: int = 1
    img2img: bool = False
    denoising_strength: float = 0.75
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_second_pass_steps: int = 0
    hr_cfg: float = 0.0
    """That of the second sampling, where the host has one; 0: the same."""
    script_name: str = ""

    def __post_init__(self):
        for key, kind in KINDS.items():
            object.__setattr__(self, key, kind.check(key, getattr(self, key)))

    @classmethod
    def from_mapping(cls, values: Mapping) -> Tab:
        """Those left out, or null, as on the page. Raises SettingsError."""
        for key in values:
            if key not in KINDS:
                raise SettingsError(
                    f"{key!r} is not part of a forecast; settings, {', '.join(KINDS)} are{nearest(key, KINDS)}"
                )
        return cls(**{key: value for key, value in values.items() if value is not None})

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures in the end."""
        if not self._second:
            return self.width, self.height
        x, y = self.hr_resize_x, self.hr_resize_y
        if x or y:
            return x or round(y * self.width / self.height), y or round(x * self.height / self.width)
        return int(self.width * self.hr_scale), int(self.height * self.hr_scale)

    @property
    def _second(self) -> bool:
        return self.enable_hr and not self.img2img

    @property
    def samplings(self) -> list[Sampling]:
        """Those of a clip: with hires.fix a second one."""
        steps = self.steps
        if self.img2img:  # as the host counts them
            steps = sd_samplers_common.setup_img2img_steps(SimpleNamespace(**vars(self)))[1] + 1
        found = [self._sampling(self.cfg_scale, steps, self.width, self.height)]
        if self._second:
            steps = self.hr_second_pass_steps or self.steps
            found.append(self._sampling(self.hr_cfg or self.cfg_scale, steps, *self.size))
        return found

    def _sampling(self, cfg_scale: float, steps: int, width: int, height: int) -> Sampling:
        calls = known.calls_of(self.sampler_name, steps)
        return Sampling(cfg_scale, steps, calls, max(height // 8, 1), max(width // 8, 1))
