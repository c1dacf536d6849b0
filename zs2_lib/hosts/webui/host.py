"""Which host this is: the adapter that fits the model of a job, and the kind of ControlNet that the host has.

No host is told by its name: each kind says what it is known by.
"""

from __future__ import annotations

from modules import scripts
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


def control_units(p, settings: Settings, source, undo, note, maps: bool) -> ControlUnits | None:
    """The enabled ControlNet units of `p`, or None if it has none: see `ControlUnits.of`."""
    always_on = p.scripts.alwayson_scripts if p.scripts else []
    script = next((script for script in always_on if script.title().lower() == "controlnet"), None)
    if script is None:
        if any(settings.control):
            raise SettingsError(
                f"control: {short(settings.control)} is not allowed: the extension sd-webui-controlnet is not "
                "installed; install it from Extensions > Available, or leave control out"
            )
        return None
    for kind in CONTROLNETS:
        if kind.knows(script):
            return kind.of(p, script, settings, source, undo, note, maps)
    raise SettingsError(
        "ControlNet: this version of the extension is not known to ZS²; install sd-webui-controlnet v1.1.455"
    )


def control_unit_count() -> int:
    """How many ControlNet units the panel has; 0 where there is no ControlNet."""
    known = any(kind.knows(data.script_class) for data in scripts.scripts_data for kind in CONTROLNETS)
    return int(opts.data.get("control_net_unit_count", 3)) if known else 0
