"""Which host this is: the adapter that fits the model of a job, and the kind of ControlNet that the host has.

No host is told by its name: each kind says what it is known by.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from modules import scripts, sd_models, shared
from modules.shared import opts

from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import a1111_controlnet, forge_controlnet
from .a1111 import A1111
from .controlnet import short
from .forge import Forge
from .seam import Adapter, ControlUnits

ADAPTERS: tuple[type[Adapter], ...] = (Forge, A1111)
CONTROLNETS: tuple[type[ControlUnits], ...] = (a1111_controlnet.Units, forge_controlnet.Units)


def adapter_of(p) -> Adapter:
    """The adapter that fits the job `p`, whose model is loaded. Raises SettingsError if none does."""
    for adapter in ADAPTERS:
        if adapter.fits(p):
            return adapter(p)
    raise SettingsError(
        f"ZS² does not know this WebUI, whose model is a {type(p.sd_model).__name__}; it works in AUTOMATIC1111's "
        "WebUI, Forge, reForge and Forge Neo"
    )


def model_refusal() -> str | None:
    """Why the model that is loaded, if it is the chosen one, cannot sample a clip; loads none."""
    model = _loaded()
    try:
        return adapter_of(SimpleNamespace(sd_model=model)).refusal() if model else None
    except SettingsError as error:
        return str(error)


def loaded_unet() -> torch.nn.Module | None:
    """The UNet that is loaded, if it is that of the chosen checkpoint, and has one; loads none."""
    model = _loaded()
    if model is None or model_refusal():
        return None
    return adapter_of(SimpleNamespace(sd_model=model)).model().unet


def rows_of_a_frame(cfg_scale: float) -> int:
    """UNet rows of a frame: one for each prompt, unless the host leaves out the negative one."""
    job = SimpleNamespace(sd_model=_loaded())
    return 1 if cfg_scale == 1 and any(each.fits(job) and each.skips_negative for each in ADAPTERS) else 2


def normalizes_in_float() -> bool:
    """Whether what the layers before attention give is in float32, whatever the weights are in."""
    return A1111.fits(SimpleNamespace(sd_model=_loaded())) and shared.cmd_opts.precision == "autocast"


def _loaded():
    model = sd_models.model_data.sd_model
    chosen = sd_models.checkpoint_aliases.get(opts.sd_model_checkpoint)
    own = getattr(model, "sd_checkpoint_info", None)
    if own is None or (chosen and chosen.filename != own.filename):
        return None
    return model


def control_units(p, settings: Settings, source, undo, note, maps: bool) -> ControlUnits | None:
    """The enabled ControlNet units of `p`, or None if it has none: see `ControlUnits.of`."""
    script = _controlnet(p.scripts)
    if refusal := _refusal_of(script, settings):
        raise SettingsError(refusal)
    if script is None:
        return None
    kind = next(kind for kind in CONTROLNETS if kind.knows(script))
    return kind.of(p, script, settings, source, undo, note, maps)


def controlnet_refusal(settings: Settings, is_img2img: bool) -> str | None:
    """Why ControlNet units cannot be used in the jobs of a tab, with a remedy."""
    return _refusal_of(_controlnet(scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img), settings)


def _controlnet(runner):
    always_on = runner.alwayson_scripts if runner else []
    return next((script for script in always_on if script.title().lower() == "controlnet"), None)


def _refusal_of(script, settings: Settings) -> str | None:
    if script is None and any(settings.control):
        return (
            f"control: {short(settings.control)} is not allowed: the extension sd-webui-controlnet is not installed; "
            "install it from Extensions > Available, or leave control out"
        )
    if script is not None and not any(kind.knows(script) for kind in CONTROLNETS):
        return "ControlNet: this version of the extension is not known to ZS²; install sd-webui-controlnet v1.1.455"
    return None


def control_unit_count() -> int:
    """How many ControlNet units the panel has; 0 where there is no ControlNet."""
    known = any(kind.knows(data.script_class) for data in scripts.scripts_data for kind in CONTROLNETS)
    return int(opts.data.get("control_net_unit_count", 3)) if known else 0
