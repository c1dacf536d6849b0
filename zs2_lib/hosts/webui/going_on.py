"""Going on from a finished clip by its recipe: in-betweens, an extension, a retake, each a generation of the host."""

from __future__ import annotations

import base64
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from zs2_lib.media.formats import FORMATS
from zs2_lib.settings import going_on, recipe
from zs2_lib.settings.kinds import SettingsError, nearest
from zs2_lib.settings.table import Settings

from . import remake
from .kept_clip import read_recipe
from .library import clip_of, name_of, previews_folder

STEPS: dict[str, tuple[str, Callable[..., Settings]]] = {
    "extend": ("frames", going_on.extended),
    "retake": ("frame", going_on.retaken),
    "in-betweens": ("times", going_on.with_in_betweens),
}
"""What can be made of a clip: the key of the number that it takes, and the settings that it gives."""
MORE = {"retake": ("take",)}
"""The keys of further numbers, which may be left out."""
DECIDED = {"extend": ("frames", "extended"), "retake": ("retakes",), "in-betweens": ("in_betweens",)}
"""The settings that a step decides."""
OF_ALL = ("clip", "settings", "request")
NO_CHANGE = ("source", "mask", "control", "formats", "return", "sidecar", "fps", "init_images", "send_images")
NO_CHANGE += ("save_images", "alwayson_scripts", "resize_mode", "inpainting_mask_invert")
"""Settings and fields of a request that do not say that a clip is to look otherwise: what a file cannot carry."""
DIFFERS = "Not as the clip was made: {differences}. What is new may not join without a jump."
NOT_COMPARED = ("Version", "hashes")
"""Parts of the keys whose texts say nothing of the pictures."""


def go_on(step: str, values: Mapping, is_api: bool = True) -> dict:
    """Makes of the clip that `values` name another one, by a generation of the host, and saves it.

    step: one of `STEPS`.
    values: `clip` (a name, a path or base64), the number that the step takes, for a retake `take` (else one that was
        not asked for of this clip in this session), and, where they are to be others than in the recipe, `settings` of
        ZS² and fields of the host's `request`. What a file cannot carry has to be in those: a source video
        (`settings`), init images, a mask and ControlNet units (`request`).
    is_api: whether the clip's path comes from a request.

    Returns the host's answer: `images`, if the request's `send_images` is true, and of its `info` `clips`, `infotext`
    and `notes`. Raises SettingsError, and what the host raises.
    """
    number, function = STEPS[step]
    more = MORE.get(step, ())
    _check_keys(values, (*OF_ALL, number, *more), number)
    request, changes = _mapping(values, "request"), _mapping(values, "settings")
    for key in changes:
        if key in (*DECIDED[step], "clip", "enabled"):
            raise SettingsError(f"settings: {key!r} is not allowed here, {step} decides it; leave it out")
    with ExitStack() as undo:
        text, infotext, before = read_recipe(clip_of(values["clip"], undo, is_api))
        after = function(before, values[number], **{key: values[key] for key in more if values.get(key) is not None})
        if step == "retake" and values.get("take") is None:
            after = _another_take(text, before, after)
        settings = {**recipe.by_key(after), **changes, "enabled": True, "return": "video"}
        if not {*changes, *request} - {*NO_CHANGE}:
            settings["clip"] = values["clip"]
        tab = _tab(infotext)
        _check_given(infotext, tab, request, settings)
        answer = remake.generated(tab, text, request, settings)
        answer["notes"] += _differences(text, answer["infotext"])
        for clip in answer["clips"]:
            _keep(clip)
        return answer


def _check_keys(values: Mapping, keys: tuple[str, ...], number: str) -> None:
    for key in values:
        if key not in keys:
            raise SettingsError(f"{key!r} is not known here; the keys are {', '.join(keys)}{nearest(key, keys)}")
    for key in ("clip", number):
        if values.get(key, "") in ("", None):
            raise SettingsError(f"{key}: none is given; give the clip to go on from, and {number}")


_asked: Counter = Counter()
"""How often a retake of a clip (its infotext) from a frame on was asked for in this session."""


def _another_take(text: str, before: Settings, after: Settings) -> Settings:
    """`after`, a retake of the clip of the recipe `text`, with a number that was not asked for yet."""
    frame, take = after.retakes[-1]
    _asked[text, frame] += 1
    return going_on.retaken(before, frame, take + _asked[text, frame] - 1)


def _mapping(values: Mapping, key: str) -> dict:
    value = values.get(key)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise SettingsError(f"{key}: {value!r} is not allowed; give an object")
    return dict(value)


def _tab(infotext: Mapping[str, str]) -> str:
    hires = any(key.startswith("Hires ") for key in infotext)
    return "img2img" if "Denoising strength" in infotext and not hires else "txt2img"


def _check_given(infotext: Mapping[str, str], tab: str, request: Mapping, settings: Mapping) -> None:
    """Raises SettingsError where something is missing that no file of a clip carries."""
    if "ZS2 source" in infotext and not settings.get("source"):
        raise SettingsError(
            f"source: the clip was made of {infotext['ZS2 source']!r}, which its file does not carry; give it as "
            "`settings.source`, and what of ControlNet took its frames as `settings.control`"
        )
    if tab == "img2img" and not (request.get("init_images") or settings.get("source")):
        raise SettingsError(
            "init_images: the clip was made of an init image, which its file does not carry; give it as "
            "`request.init_images`"
        )
    if "Mask blur" in infotext and not (request.get("mask") or settings.get("mask")):
        raise SettingsError(
            "mask: the clip was made with a mask, which its file does not carry; give it as `request.mask`, or a mask "
            "video as `settings.mask`"
        )
    units = [key for key in infotext if key.startswith("ControlNet ")]
    if units and "ControlNet" not in (request.get("alwayson_scripts") or {}):
        raise SettingsError(
            f"ControlNet: the clip was made with {len(units)} unit(s), whose images its file does not carry; give them "
            "as `request.alwayson_scripts`, as when it was made"
        )


# --- what came of it -------------------------------------------------------------------------------------------------


def _differences(before: str, after: str) -> list[str]:
    """What the infotext `after` says of how pictures are made that `before`, that of the clip, says otherwise."""
    if not after:
        return []
    (prompt, negative, old), (new_prompt, new_negative, new) = recipe.parsed(before), recipe.parsed(after)
    pairs = {"prompt": (prompt, new_prompt), "negative prompt": (negative, new_negative)}
    pairs |= {key: (old[key], new.get(key, "none")) for key in old if not key.startswith("ZS2 ")}
    found = [
        f"{key} {_short(a)} is {_short(b)} now"
        for key, (a, b) in pairs.items()
        if not _same(a, b) and not any(part in key for part in NOT_COMPARED)
    ]
    return [DIFFERS.format(differences="; ".join(found))] if found else []


def _same(a: str, b: str) -> bool:
    """Whether two texts of a value say the same: the page writes 7 where a request's 7.0 stands."""
    try:
        return a == b or float(a) == float(b)
    except ValueError:
        return False


def _short(text: str) -> str:
    return repr(text if len(text) < 60 else text[:60] + "…")


def _keep(clip: dict) -> None:
    """Puts a clip that the host did not save, as one that was stopped, to the previews, where it is kept for a day."""
    if "data" in clip and not Path(clip["path"]).is_absolute():
        folder = previews_folder()
        folder.mkdir(parents=True, exist_ok=True)
        suffix = FORMATS[clip["format"]].suffix or ".zip"
        path = folder / f"{secrets.token_hex(8)}{suffix}"
        path.write_bytes(base64.b64decode(clip["data"]))
        clip["path"] = str(path)
        if name := name_of(path):
            clip["name"] = name
