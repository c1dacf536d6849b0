"""Going on from a finished clip by its recipe: in-betweens, an extension, a retake, each a generation of the host."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from fastapi import FastAPI
from modules import infotext_utils, scripts
from modules.api import models
from modules.api.api import Api
from modules.call_queue import queue_lock

from zs2_lib.settings import going_on, recipe
from zs2_lib.settings.kinds import SettingsError, nearest
from zs2_lib.settings.table import Settings

from .kept_clip import read_recipe
from .library import clip_of

log = logging.getLogger(__name__)

STEPS: dict[str, tuple[str, Callable[..., Settings]]] = {
    "extend": ("frames", going_on.extended),
    "retake": ("frame", going_on.retaken),
    "in-betweens": ("times", going_on.with_in_betweens),
}
"""What can be made of a clip: the key of the number that it takes, and the settings that it gives."""
OF_ALL = ("clip", "settings", "request")
NOT_PASTED = ("batch_size", "styles")
SAME_AS_FIRST = ("hr_sampler_name", "hr_scheduler", "hr_checkpoint_name")
"""Fields which a host pastes words into that its API refuses; it leaves alone what is given, and be it None."""
FILLS = ("fill", "original", "latent noise", "latent nothing")
OF_IMG2IMG = {
    "denoising_strength": lambda params: params.get("Denoising strength"),
    "image_cfg_scale": lambda params: params.get("Image CFG scale"),
    "mask_blur": lambda params: params.get("Mask blur"),
    "inpainting_mask_invert": lambda params: int(params.get("Mask mode") == "Inpaint not masked"),
    "inpainting_fill": lambda params: FILLS.index(params.get("Masked content", "original")),
    "inpaint_full_res": lambda params: params.get("Inpaint area") == "Only masked",
    "inpaint_full_res_padding": lambda params: params.get("Masked area padding"),
}
"""Fields of a request to img2img, for which no host says how its API calls what it pastes."""
NOT_RESTORED = (
    "This WebUI's API could not read the infotext ({error}): what other extensions' scripts had in it was left out."
)


def go_on(step: str, values: Mapping, is_api: bool = True) -> dict:
    """Makes of the clip that `values` name another one, by a generation of the host, and saves it.

    step: one of `STEPS`.
    values: `clip` (a name, a path or base64), the number that the step takes, and, where they are to be others than in
        the recipe, `settings` of ZS² and fields of the host's `request`. What a file cannot carry has to be in those:
        a source video (`settings`), init images and ControlNet units (`request`).
    is_api: whether the clip's path comes from a request.

    Returns the host's answer: `images`, if the request's `send_images` is true, and of its `info` `clips`, `infotext`
    and `notes`. Raises SettingsError, and what the host raises.
    """
    number, function = STEPS[step]
    keys = (*OF_ALL, number)
    for key in values:
        if key not in keys:
            raise SettingsError(f"{key!r} is not known here; the keys are {', '.join(keys)}{nearest(key, keys)}")
    for key, empty in (("clip", ""), (number, None)):
        if values.get(key, empty) == empty:
            raise SettingsError(f"{key}: none is given; give the clip to go on from, and {number}")
    request, changes = _mapping(values, "request"), _mapping(values, "settings")
    with ExitStack() as undo:
        text, infotext, before = read_recipe(clip_of(values["clip"], undo, is_api))
        after = function(before, values[number])
        settings = {**recipe.by_key(after), **changes, "enabled": True, "clip": values["clip"]}
        tab = _tab(infotext)
        _check_given(infotext, tab, request, settings)
        return _answer(*_generated(tab, text, infotext, request, settings))


def _mapping(values: Mapping, key: str) -> dict:
    value = values.get(key) or {}
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
    units = [key for key in infotext if key.startswith("ControlNet ")]
    if units and "ControlNet" not in request.get("alwayson_scripts", {}):
        raise SettingsError(
            f"ControlNet: the clip was made with {len(units)} unit(s), whose images its file does not carry; give them "
            "as `request.alwayson_scripts`, as when it was made"
        )


# --- the host's generation -------------------------------------------------------------------------------------------


@functools.cache
def _api() -> Api:
    """The host's API, whether it serves it or not."""
    return Api(FastAPI(), queue_lock)


def _generated(tab: str, text: str, infotext: Mapping, request: dict, settings: dict) -> tuple[object, list[str]]:
    """The host's answer to a request of the recipe `text`, and notes."""
    api, is_txt2img = _api(), tab == "txt2img"
    model = models.StableDiffusionTxt2ImgProcessingAPI if is_txt2img else models.StableDiffusionImg2ImgProcessingAPI
    payload = {"send_images": False, "save_images": True, **_fields(text, model), **request}
    payload["override_settings"] = {**_overrides(text), **request.get("override_settings", {})}
    always_on = {**payload.get("alwayson_scripts", {}), "ZS2": {"args": [settings]}}
    payload["alwayson_scripts"], notes = always_on, []
    try:  # with what other extensions have in it; some hosts fail at that
        runner = scripts.scripts_txt2img if is_txt2img else scripts.scripts_img2img
        api.apply_infotext(model(**payload, infotext=text), tab, script_runner=runner, mentioned_script_args={})
        payload["infotext"] = text
    except Exception as error:
        log.warning("the host could not read an infotext in a request", exc_info=error)
        notes.append(NOT_RESTORED.format(error=type(error).__name__))
    return (api.text2imgapi if is_txt2img else api.img2imgapi)(model(**payload)), notes


def _fields(text: str, model: type) -> dict:
    """The fields of a request that the recipe has, most of them found by the host's own way of pasting."""
    known = getattr(model, "model_fields", None) or model.__fields__
    values, params = {}, infotext_utils.parse_generation_parameters(text)
    for field in infotext_utils.paste_fields["txt2img"]["fields"]:  # those of the other tab name no field of the API
        if getattr(field, "api", None) in known and field.api not in NOT_PASTED:
            values[field.api] = field.function(params) if field.function else params.get(field.label)
    for name, of_text in OF_IMG2IMG.items():
        if name in known:
            values[name] = of_text(params)
    values = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in values.items() if value is not None or name in SAME_AS_FIRST}


def _plain(value):
    """What a control would show, as an API takes it."""
    if isinstance(value, dict) and "__type__" in value:  # an update of the control
        value = value.get("value")
    return None if isinstance(value, str) and value.startswith("Use same ") else value


def _overrides(text: str) -> dict:
    params = infotext_utils.parse_generation_parameters(text)
    return {name: value for _, name, value in infotext_utils.get_override_settings(params)}


def _answer(answer, notes: list[str]) -> dict:
    info = json.loads(answer.info)
    said = info.get("extra_generation_params", {}).get("ZS2 notes", "")
    result = {"clips": info.get("zs2_clips", []), "infotext": (info.get("infotexts") or [""])[-1]}
    return {**result, "notes": [*notes, *filter(None, [said])], "images": answer.images or []}
