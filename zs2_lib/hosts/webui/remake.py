"""A job of the host made again from a recipe, by the host's own API and its own way of pasting an infotext."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Collection, Mapping

from fastapi import FastAPI
from modules import infotext_utils, scripts
from modules.api import models
from modules.api.api import Api
from modules.call_queue import queue_lock

from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError, nearest

log = logging.getLogger(__name__)

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


@functools.cache
def _api() -> Api:
    """The host's API, whether it serves it or not."""
    return Api(FastAPI(), queue_lock)


def generated(tab: str, text: str, request: dict, settings: dict) -> dict:
    """Makes a job of the recipe `text` again in a tab, with other `settings` of ZS² and fields of the host's `request`,
    and saves what it gives.

    Returns `clips`, the `infotext` of the last one, `notes` and `images`. Raises SettingsError for fields that the host
    does not take, and what the host raises.
    """
    api, is_txt2img = _api(), tab == "txt2img"
    model = models.StableDiffusionTxt2ImgProcessingAPI if is_txt2img else models.StableDiffusionImg2ImgProcessingAPI
    _check_request(request, model)
    payload = {"send_images": False, "save_images": True, **_fields(text, model), **request}
    payload["override_settings"] = {**_overrides(text), **(request.get("override_settings") or {})}
    payload["alwayson_scripts"] = {**(request.get("alwayson_scripts") or {}), "ZS2": {"args": [settings]}}
    notes = []
    runner = scripts.scripts_txt2img if is_txt2img else scripts.scripts_img2img
    try:
        model(**payload)
    except ValueError as error:  # pydantic's
        raise SettingsError(f"request: {error}") from error
    try:  # with what other extensions have in it; some hosts fail at that
        api.apply_infotext(model(**payload, infotext=text), tab, script_runner=runner, mentioned_script_args={})
        payload["infotext"] = text
    except Exception as error:
        log.warning("the host could not read an infotext in a request", exc_info=error)
        notes.append(NOT_RESTORED.format(error=type(error).__name__))
    return _answer((api.text2imgapi if is_txt2img else api.img2imgapi)(model(**payload)), notes)


def _known(model: type) -> Collection[str]:
    return getattr(model, "model_fields", None) or model.__fields__


def _check_request(request: Mapping, model: type) -> None:
    known = [*_known(model)]
    for key, value in request.items():
        if key not in known:
            raise SettingsError(f"request: {key!r} is no field of the WebUI's request{nearest(key, known)}")
        if key in ("override_settings", "alwayson_scripts") and not isinstance(value, (Mapping, type(None))):
            raise SettingsError(f"request: {key}: {value!r} is not allowed; give an object")


def _fields(text: str, model: type) -> dict:
    """The fields of a request that the recipe has, most of them found by the host's own way of pasting."""
    known, values, params = _known(model), {}, _parsed(text)
    for field in infotext_utils.paste_fields["txt2img"]["fields"]:  # those of the other tab name no field of the API
        if getattr(field, "api", None) in known and field.api not in NOT_PASTED:
            values[field.api] = field.function(params) if field.function else params.get(field.label)
    for name, of_text in OF_IMG2IMG.items():
        if name in known:
            values[name] = of_text(params)
    values = {name: _plain(value) for name, value in values.items()}
    values = {name: value for name, value in values.items() if value is not None or name in SAME_AS_FIRST}
    prompt, negative, _ = recipe.parsed(text)  # the host would take the texts of styles out of them
    return {**values, "prompt": prompt, "negative_prompt": negative, "styles": []}


def _plain(value):
    """What a control would show, as an API takes it."""
    if isinstance(value, dict) and "__type__" in value:  # an update of the control
        value = value.get("value")
    return None if isinstance(value, str) and value.startswith("Use same ") else value


def _parsed(text: str) -> dict:
    """The host's reading of an infotext, with all that it may be told to leave out."""
    return infotext_utils.parse_generation_parameters(text, skip_fields=[])


def _overrides(text: str) -> dict:
    return {name: value for _, name, value in infotext_utils.get_override_settings(_parsed(text))}


def _answer(answer, notes: list[str]) -> dict:
    info = json.loads(answer.info)
    said = info.get("extra_generation_params", {}).get("ZS2 notes", "")
    result = {"clips": info.get("zs2_clips", []), "infotext": (info.get("infotexts") or [""])[-1]}
    return {**result, "notes": [*notes, *filter(None, [said])], "images": answer.images or []}
