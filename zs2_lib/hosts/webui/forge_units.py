"""The units of the ControlNet that Forge, reForge and Forge Neo have built in: where a job has them."""

from __future__ import annotations

import os

from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

BATCH, MERGE = "BATCH", "MERGE"
"""Names of the modes, where the host has them, in which a unit takes the images of a folder or a gallery."""
GLOBAL_FOLDER = "GLOBAL_CONTROLNET_BATCH_DIR"
"""Where the host keeps a folder for the units of all jobs, instead."""


def units_of(p, script, settings: Settings) -> list[tuple]:
    """The units of `p`, enabled or not, each with its entry in `control`."""
    args = [arg for arg in p.script_args[script.args_from : script.args_to] if arg is not None]
    units = [_parsed(script, number, arg) for number, arg in enumerate(args)]
    entries = list(settings.control) + [""] * (len(units) - len(settings.control))
    return list(zip(units, entries))


def _parsed(script, number: int, unit):
    """A unit as an object; in a request it is a dict."""
    if not isinstance(unit, dict):
        return unit
    enabled = unit.get("enabled", True)
    try:
        (parsed,) = script.get_enabled_units([{**unit, "enabled": True}])
    except Exception as error:
        raise SettingsError(f"ControlNet unit {number}: {getattr(error, 'detail', error)}") from error
    parsed.enabled = enabled
    return parsed


def check_names(script, number: int, unit) -> None:
    """Raises SettingsError for a preprocessor or model that the host does not have: it would stop at no word of it."""
    lists = type(script).get_input_data.__globals__["global_state"]
    for kind, name, known in (
        ("preprocessor", unit.module, lists.get_all_preprocessor_names()),
        ("model", unit.model, lists.get_all_controlnet_names()),
    ):
        if name not in known:
            raise SettingsError(
                f"ControlNet unit {number}: {name!r} is no {kind} of this WebUI; choose one of its panel's, or of "
                "GET /controlnet/module_list and /controlnet/model_list"
            )


def count_of(script, unit) -> int:
    """How many units the host makes of this one: with a gallery, it may be one for each image."""
    return len(script.get_enabled_units([unit])) if mode_of(unit) == MERGE else 1


def mode_of(unit) -> str:
    """The name of a unit's input mode, which some hosts leave as a request has it; empty where there are none."""
    mode = getattr(unit, "input_mode", "")
    return str(getattr(mode, "name", mode)).upper()


def folder_of(script, unit) -> str:
    """The folder of a unit's Batch tab, if it is chosen, or of the host's for all units."""
    if mode_of(unit) == BATCH:
        return str(unit.batch_image_dir or "")
    folder = str(getattr(group_of(script), GLOBAL_FOLDER, "")).strip()
    return folder if os.path.isdir(folder) else ""


def has_image(unit) -> bool:
    return unit.image is not None or unit.use_preview_as_input or mode_of(unit) == MERGE


def group_of(script):
    """The host's class of a unit's controls."""
    return type(script).get_input_data.__globals__.get("ControlNetUiGroup")
