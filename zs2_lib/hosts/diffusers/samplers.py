"""The WebUI's samplers and schedule types by their names there, as schedulers of `diffusers`.

The names can be checked without `diffusers`, which takes seconds to import.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from zs2_lib.settings.kinds import Choice, SettingsError

AUTOMATIC = "Automatic"
_SPACING = ("Uniform", "Normal", "SGM Uniform", "Simple", "DDIM")
SCHEDULES: dict[str, dict] = {
    AUTOMATIC: {},
    "Karras": {"use_karras_sigmas": True, "timestep_spacing": "linspace"},
    "Exponential": {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    "Polyexponential": {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},  # the same with its ρ of 1
    "Beta": {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
    "Uniform": {"timestep_spacing": "linspace"},
    "Normal": {"timestep_spacing": "linspace"},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    "DDIM": {"timestep_spacing": "leading", "steps_offset": 1},
}
"""What each sets in the configuration of a scheduler."""
_ALL = tuple(SCHEDULES)
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_ORDER_2 = {"solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}


@dataclass(frozen=True)
class Sampler:
    """One of the WebUI's samplers: the class of `diffusers`, its configuration, and the schedule types that it has.

    automatic: the schedule type that the WebUI gives it.
    differs: why a WebUI's pictures have other numbers with the same settings and the same noise; "" where they agreed
        by 0.002 at most, with 20 steps of the small checkpoint and the WebUI's own schedule type, whose latents have a
        deviation of 0.5.
    spaced_by: the class of `diffusers` that has the schedule types which its own has not, and is its like in the rest.
    """

    scheduler: str
    config: Mapping = field(default_factory=dict)
    automatic: str = "Uniform"
    schedules: tuple[str, ...] = _ALL
    needs: str | None = None
    most_steps: int = 999
    differs: str = ""
    spaced_by: str | None = None


_LAST = "its last step is another"
_NOISE = "the noise of each step is drawn otherwise"
_OWN = "it is computed by other code"
_TIMED = {"schedules": (AUTOMATIC, *_SPACING)}
_UNCLIPPED = {"clip_sample": False}
SAMPLERS = {
    "Euler": Sampler("EulerDiscreteScheduler"),
    "Euler a": Sampler("EulerAncestralDiscreteScheduler", spaced_by="EulerDiscreteScheduler"),
    "Heun": Sampler("HeunDiscreteScheduler"),
    "LMS": Sampler("LMSDiscreteScheduler", needs="scipy"),
    "DPM2": Sampler("KDPM2DiscreteScheduler", automatic="Karras", differs=_LAST),
    "DPM2 a": Sampler("KDPM2AncestralDiscreteScheduler", automatic="Karras", differs=_LAST),
    "DPM++ 2M": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_ORDER_2}, "Karras"),
    "DPM++ 2M SDE": Sampler(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", **_ORDER_2},
        "Exponential",
        differs=_NOISE,
    ),
    "DPM++ 2M SDE Heun": Sampler(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", **_ORDER_2, "solver_type": "heun"},
        "Exponential",
        differs=_NOISE,
    ),
    "DPM++ SDE": Sampler("DPMSolverSDEScheduler", automatic="Karras", needs="torchsde"),
    "DDIM": Sampler("DDIMScheduler", {**_UNCLIPPED, "set_alpha_to_one": False}, "DDIM", differs=_OWN, **_TIMED),
    "PLMS": Sampler(
        "PNDMScheduler",
        {"skip_prk_steps": True, "set_alpha_to_one": False},
        "DDIM",
        differs=_OWN,
        **_TIMED,
    ),
    "UniPC": Sampler("UniPCMultistepScheduler", differs=_OWN),
    "DEIS": Sampler("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}, differs=_OWN),
    "DDPM": Sampler("DDPMScheduler", _UNCLIPPED, "DDIM", differs=_OWN, **_TIMED),
    "LCM": Sampler("LCMScheduler", _UNCLIPPED, AUTOMATIC, (AUTOMATIC,), most_steps=50, differs=_OWN),
    "TCD": Sampler("TCDScheduler", _UNCLIPPED, AUTOMATIC, (AUTOMATIC,), most_steps=50, differs=_OWN),
}
NEAREST = {
    "DPM++ 2S a": "DPM2 a",
    "DPM++ 3M SDE": "DPM++ 2M SDE",
    "DPM fast": "DPM++ 2M",
    "DPM adaptive": "DPM++ 2M",
    "Restart": "Heun",
    "HeunPP2": "Heun",
    "IPNDM": "PLMS",
    "IPNDM_V": "PLMS",
    "DDIM CFG++": "DDIM",
    "Euler CFG++": "Euler",
    "Euler a CFG++": "Euler a",
    "ER SDE": "DPM++ 2M SDE",
    "Res Multistep": "DPM++ 2M",
}
"""Samplers of the WebUIs that `diffusers` has no counterpart for, each with the nearest that it has."""
NEAREST_SCHEDULES = {
    "KL Optimal": "Karras",
    "Align Your Steps": "Karras",
    "Align Your Steps GITS": "Karras",
    "Align Your Steps 11": "Karras",
    "Align Your Steps 32": "Karras",
    "Turbo": "SGM Uniform",
    "Linear Quadratic": "Simple",
}


def read_sampler(key: str, text: str) -> tuple[str, str | None]:
    """(sampler, schedule type) that a name stands for; older WebUIs wrote both together, "DPM++ 2M Karras".

    Raises SettingsError, which names `key`, for one that `diffusers` has not.
    """
    for schedule in ("Karras", "Exponential"):
        if text.lower().endswith(f" {schedule}".lower()):
            return _read(key, text[: -len(schedule) - 1], SAMPLERS, NEAREST), schedule
    return _read(key, text, SAMPLERS, NEAREST), None


def read_schedule(key: str, text: str, sampler: str | None) -> str:
    """The schedule type of that name. Raises SettingsError for one that `diffusers` has not, or not for `sampler`."""
    schedule = _read(key, text, SCHEDULES, NEAREST_SCHEDULES)
    allowed = SAMPLERS[sampler].schedules if sampler else _ALL
    if schedule not in allowed:
        raise SettingsError(
            f"{key}: {text!r} is not allowed with {sampler}, which has {', '.join(allowed)} in diffusers; the nearest "
            f"is {allowed[0]!r}"
        )
    return schedule


def _read(key: str, text: str, names: Mapping, nearest: Mapping[str, str]) -> str:
    """The one of `names` that `text` is, in small letters or large."""
    of_case = {name.lower(): name for name in (*nearest, *names)}
    name = of_case.get(text.strip().lower(), text)
    if name in nearest:
        raise SettingsError(
            f"{key}: {text!r} is not allowed: diffusers has no counterpart for it; the nearest is {nearest[name]!r}"
        )
    return Choice(tuple(names)).read(key, name)


def check_steps(sampler: str | None, steps: int) -> None:
    """Raises SettingsError for more steps than the sampler can take, and where a package that it needs is missing."""
    if sampler is None:
        return
    kind = SAMPLERS[sampler]
    if steps > kind.most_steps:
        raise SettingsError(f"steps: {steps} is not allowed with {sampler}; give at most {kind.most_steps}")
    if kind.needs and importlib.util.find_spec(kind.needs) is None:
        raise SettingsError(f"sampler: {sampler} needs the package {kind.needs}; install it, or choose Euler")


def note_on(sampler: str) -> str | None:
    """A sentence where a WebUI's pictures have other numbers."""
    differs = SAMPLERS[sampler].differs
    return f"{sampler} may have other numbers here than in a WebUI: {differs}" if differs else None


def is_own(name: str) -> bool:
    """Whether `name` may be that of a checkpoint's own scheduler, its class without the last word, in a recipe."""
    return name not in SAMPLERS or SAMPLERS[name].scheduler == f"{name}Scheduler"


@contextmanager
def using(pipe, sampler: str | None, schedule: str | None) -> Iterator[None]:
    """Scope in which the pipeline has this scheduler, with what the checkpoint predicts and its noise kept; without a
    sampler its own, of another schedule type.

    Raises ValueError for what this version of `diffusers`, or the checkpoint, has not.
    """
    own = pipe.scheduler
    pipe.scheduler = scheduler(own, sampler, schedule)
    try:
        yield
    finally:
        pipe.scheduler = own


def scheduler(own, sampler: str | None, schedule: str | None):
    """The scheduler that takes the place of `own`, the checkpoint's, as `using` says; without a name `own` itself."""
    import diffusers

    if sampler is None and schedule is None:
        return own
    kind = SAMPLERS[sampler] if sampler else Sampler(type(own).__name__, automatic=AUTOMATIC)
    cls = getattr(diffusers, kind.scheduler) if sampler else type(own)
    chosen = schedule if schedule not in (None, AUTOMATIC) else kind.automatic
    config = {**kind.config, **SCHEDULES[chosen]}
    spacing = getattr(diffusers, kind.spaced_by) if kind.spaced_by and {*config}.intersection(_SIGMAS) else cls
    takes = inspect.signature(spacing.__init__).parameters
    zero_snr = own.config.get("rescale_betas_zero_snr", False)
    if zero_snr and "rescale_betas_zero_snr" not in takes:
        raise ValueError(
            f"sampler: {sampler} is not allowed with this checkpoint, whose last time step is noise alone (zero SNR), "
            "which it does not know in diffusers; choose Euler, DPM++ 2M or DDIM"
        )
    if zero_snr and schedule in (None, AUTOMATIC):
        config |= {"timestep_spacing": "trailing"}
    if missing := [name for name in config if name in (*_SIGMAS, "timestep_spacing") and name not in takes]:
        remedy = "take diffusers 0.32 or newer" if sampler else "give a sampler as well, such as Euler"
        raise ValueError(f"scheduler: {chosen} is not allowed: {spacing.__name__} has no {missing[0]}; {remedy}")
    config = {**{name: False for name in _SIGMAS if name in takes}, **config}
    spaced = spacing.from_config(own.config, **config)
    if spacing is cls:
        return spaced
    return _with_steps_of(spaced, cls.from_config(own.config, timestep_spacing=config["timestep_spacing"]))


def _with_steps_of(spaced, scheduler):
    """The scheduler with the time steps and noise levels of another, `spaced`."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def set_both(*args, **kwargs) -> None:
        set_timesteps(*args, **kwargs)
        spaced.set_timesteps(*args, **kwargs)
        scheduler.timesteps, scheduler.sigmas = spaced.timesteps, spaced.sigmas

    scheduler.set_timesteps = set_both
    return scheduler
