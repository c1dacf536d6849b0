"""A control image for every frame, with the units of the extension sd-webui-controlnet (v1.1.455).

The extension preprocesses one image per unit, and shows it to all rows of a UNet call. Here its own preprocessing runs once
per frame, and before each UNet call every unit is given the images of that call's rows. Everything else stays the
extension's: what a unit does to a frame is what it does to the still.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from modules import devices, scripts, shared
from PIL import Image

from zs2_lib.core.momentum import TemporalMomentum
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import override, override_item
from zs2_lib.media.read import Source
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import FROM_SOURCE, Settings

from .edit import SourceVideo, file_of, in_words, opened, same_draws

PER_FRAME = (
    "ControlNet",
    "ControlLoRA",
    "ControlNetUnion",
    "InstantID",
    "T2I_Adapter",
    "IPAdapter",
    "AttentionInjection",
)
"""The extension's kinds of unit (its ControlModelType) that can have an image for each frame."""
NETWORKS = ("ControlNet", "ControlLoRA", "ControlNetUnion", "InstantID")
"""Those with a model like the UNet's way down."""


def script_of(p):
    """The extension's script among those of the job `p`, or None if it is not installed.

    Raises SettingsError if it is a version that is built otherwise.
    """
    always_on = p.scripts.alwayson_scripts if p.scripts else []
    script = next((script for script in always_on if script.title().lower() == "controlnet"), None)
    if script is not None and "get_control" not in _globals(script):
        raise SettingsError(
            "ControlNet: this version of the extension is not known to ZS²; install sd-webui-controlnet v1.1.455"
        )
    return script


def unit_count() -> int:
    """How many units the extension's panel has; 0 if the extension is not installed."""
    installed = any("get_control" in vars(data.module) for data in scripts.scripts_data)
    return int(shared.opts.data.get("control_net_unit_count", 3)) if installed else 0


def _globals(script) -> dict:
    """The names of the module that the extension's script is defined in."""
    return getattr(type(script), "controlnet_main_entry", lambda: None).__globals__


# --- the frames of a unit ----------------------------------------------------------------------------------


class Pictures:
    """The control images of a clip: `index[frame]` says which of the pictures, read one by one, is that of the frame."""

    def __init__(self, source: Source, picks: np.ndarray, key: str):
        self.source, self.key = source, key
        self.numbers, self.index = np.unique(picks, return_inverse=True)

    def __len__(self) -> int:
        return len(self.numbers)

    @contextmanager
    def units(self, p, unit) -> Iterator[Iterator]:
        """The unit with each picture in turn as its image; a mask that it has stays."""

        def with_pictures():
            mask = _mask_of(unit)
            for _, picture in self.source.read(self.numbers):
                picture = np.asarray(picture.convert("RGB"))
                shown = {"image": picture, "mask": mask if mask is None else _resized(mask, picture)}
                yield unit.copy(update={"image": shown, "mask": None})

        with in_words(self.key):
            yield with_pictures()


class InitImages:
    """The job's init images, one for each frame, with their masks: what the extension takes where a unit has no image."""

    def __init__(self, frames: int, source: SourceVideo | None):
        self.index = np.arange(frames)
        self.masks = source.masks if source else None

    def __len__(self) -> int:
        return len(self.index)

    @contextmanager
    def units(self, p, unit) -> Iterator[Iterator]:
        """The unit itself, each time with another init image (and mask) on `p`."""
        with ExitStack() as undo:
            images = iter(p.init_images)
            masks = iter(self.masks) if self.masks else None
            override(undo, p, "init_images", None)
            override(undo, p, "image_mask", p.image_mask)

            def with_images():
                for image in images:
                    p.init_images = [image]
                    if masks:
                        p.image_mask = next(masks)
                    yield unit.copy()

            yield with_images()


def _mask_of(unit):
    """The mask that a unit has beside its image, in any of the forms that the extension takes; or None."""
    image = unit.image[0] if isinstance(unit.image, (list, tuple)) and unit.image else unit.image
    mask = image.get("mask") if isinstance(image, dict) else unit.mask
    return None if mask is None else type(unit).parse_image(mask)


def _resized(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST))


def fitted(count: int, frames: int, fit: str) -> np.ndarray:
    """Which of `count` control images belongs to each of `frames` frames: the first ones if there are enough, else by `fit`:
    "hold" keeps the last, "loop" begins again, "stretch" spreads them evenly.
    """
    if count >= frames:
        return np.arange(frames)
    if fit == "loop":
        return np.arange(frames) % count
    if fit == "stretch":
        return np.rint(np.arange(frames) * (count - 1) / (frames - 1)).astype(int)
    return np.minimum(np.arange(frames), count - 1)


# --- the units of a job --------------------------------------------------------------------------------------


@dataclass
class Unit:
    """An enabled unit: its number in the tab, the pictures it takes per frame (None: its one image), and what the extension
    made of them, one after the other: hints (pictures, channels, height, width) on the CPU, or values of another kind.
    """

    number: int
    pictures: Pictures | InitImages | None
    hints: list | torch.Tensor | None = None
    hires_hints: torch.Tensor | None = None
    latents: dict[bool, torch.Tensor] = field(default_factory=dict)
    embeds: list | None = None


class ControlUnits:
    """The enabled units of the job `p`, which makes clips of `frames` frames."""

    def __init__(self, p, script, units: list[Unit], settings: Settings, note: Callable[[str], None], with_maps: bool):
        self.p, self.script, self.units, self.settings, self.note = p, script, units, settings, note
        self.with_maps = with_maps
        self.error: Exception | None = None
        self._draws: list[torch.Tensor] = []
        self._next_draw = 0
        self.rows: Rows | None = None

    @classmethod
    def of(
        cls, p, settings: Settings, source: SourceVideo | None, undo: ExitStack, note, with_maps: bool
    ) -> ControlUnits | None:
        """The units of `p`, or None if it has none; changes to the extension are undone with `undo`.

        Raises SettingsError if `settings` ask for what the units cannot do.
        """
        script = script_of(p)
        asked = [number for number, value in enumerate(settings.control) if value]
        if script is None:
            if asked:
                raise SettingsError(
                    f"control: {_short(settings.control)} is not allowed: the extension sd-webui-controlnet is not installed; "
                    "install it from Extensions > Available, or leave control out"
                )
            return None
        try:
            given = _take_batch_tabs(p, script, settings)
        except (ValueError, AssertionError) as error:
            raise SettingsError(f"ControlNet: {error}") from error
        if len(settings.control) > len(given):
            raise SettingsError(
                f"control: {len(settings.control)} entries for {len(given)} ControlNet units; give one for each"
            )
        for number in asked:
            if not given[number][0].enabled:
                note(f"control: ControlNet unit {number} is not enabled: its frames are not used.")

        units = []
        for number, (unit, value) in enumerate(given):
            if unit.enabled:
                pictures = _pictures_of(p, unit, number, value, settings, source, undo, note)
                units += [Unit(number, pictures) for _ in range(_count(unit))]
        if not units:
            return None
        control = cls(p, script, units, settings, note, with_maps)
        names = _globals(script)
        override_item(undo, names, "get_control", control._per_frame(names["get_control"]))
        override(undo, script, "controlnet_main_entry", control._keeping_errors(script.controlnet_main_entry))
        return control

    @property
    def use_source(self) -> bool:
        """Whether a unit takes its frames from the source video."""
        return any(isinstance(unit.pictures, Pictures) and unit.pictures.key == "source" for unit in self.units)

    # --- preprocessing -----------------------------------------------------------------------------------

    def _per_frame(self, get_control: Callable) -> Callable:
        """The extension's `get_control`, which preprocesses a unit's image, for each picture of the unit."""

        def get_controls(p, unit, idx, control_model_type, preprocessor):
            ours = self.units[idx] if p is self.p and idx < len(self.units) else None
            if ours is not None and "lama" in unit.module:
                raise SettingsError(
                    f"ControlNet unit {ours.number}: the preprocessor {unit.module!r} is not allowed, it changes the noise of the frames; "
                    "choose 'inpaint_only'"
                )
            if ours is None or ours.pictures is None:
                return get_control(p, unit, idx, control_model_type, preprocessor)
            if control_model_type.name not in PER_FRAME:
                raise SettingsError(
                    f"control: ControlNet unit {ours.number} is a {control_model_type.value}, which takes one image for all frames; give it "
                    "an image of its own"
                )
            controls, hires_controls, maps, pictures = [], [], [], ours.pictures
            with pictures.units(p, unit) as units:
                for number, one in enumerate(units, 1):
                    shared.state.textinfo = f"ControlNet unit {ours.number}: picture {number} of {len(pictures)}"
                    (control,), (hires_control,), new = get_control(p, one, idx, control_model_type, preprocessor)
                    controls.append(_on_cpu(control))
                    hires_controls.append(_on_cpu(hires_control))
                    maps += new if number == 1 else []
                    if shared.state.interrupted:  # the host looks for it before it samples
                        pictures.index = np.minimum(pictures.index, number - 1)
                        break
            shared.state.textinfo = None
            if not isinstance(controls[0], torch.Tensor):
                ours.hints = controls
                return controls[:1], hires_controls[:1], maps if self.with_maps else []
            ours.hints = torch.cat(controls)
            ours.hires_hints = torch.cat(hires_controls) if hires_controls[0] is not None else None
            # the extension lays these over the finished frames, by their number
            finished = "inpaint_only" in unit.module or "recolor" in unit.module
            low, high = (
                hints[pictures.index] if finished and hints is not None else hints
                for hints in (ours.hints, ours.hires_hints)
            )
            return [low], [high], maps if self.with_maps else []

        return get_controls

    def _keeping_errors(self, main_entry: Callable) -> Callable:
        """The extension's `controlnet_main_entry`; the host prints and forgets what it raises, so it is raised by what comes next."""

        def entry(p):
            if p is not self.p:
                return main_entry(p)
            try:
                main_entry(p)
            except Exception as error:
                self.error = error
                p.init = lambda *args, **kwargs: self.check()
                raise

        return entry

    # --- sampling ------------------------------------------------------------------------------------------

    @property
    def network(self):
        """The extension's hook on the UNet."""
        return self.script.latest_network

    def check(self) -> None:
        """Raises the extension's error, if it could not set up its units."""
        if isinstance(self.error, SettingsError):
            raise self.error
        if self.error is not None or self.network is None:
            refusal = SettingsError(
                f"ControlNet: {self.error or 'its units could not be set up; see the log of the WebUI'}"
            )
            refusal.status_code, refusal.detail = 422, str(refusal)
            raise refusal from self.error

    def begin(self, undo: ExitStack, attention: TemporalMomentum) -> None:
        """Prepares the units for the sampling of a clip, until `undo` is closed."""
        self.check()
        network = self.network
        attention.fewer_rows = lambda: self.rows.take(network.current_uc_indices)
        override(undo, network, "original_forward", self._without_momentum(network.original_forward, attention))
        hook = sys.modules[type(network).__module__]
        override(undo, hook, "predict_q_sample", self._same_reference_noise(hook.predict_q_sample))
        for param, unit in zip(network.control_params, self.units):
            if param.control_model_type.name == "IPAdapter":
                override(undo, param.control_model, "image_emb", param.control_model.image_emb)
                undo.callback(setattr, param.control_model, "cache", {})
            if param.control_model_type.name == "T2I_Adapter" and unit.pictures is not None:
                override(undo, param.control_model, "forward", self._adapted(param, unit, param.control_model.forward))
                # the extension would repeat the control of one image for all rows first
                override(undo, param, "cfg_injection", False)

    @property
    def models(self) -> list[torch.nn.Module]:
        """The ControlNet models, which run inside the UNet's calls on the same rows; two units may share one."""
        params = self.network.control_params
        return [param.control_model.control_model for param in params if param.control_model_type.name in NETWORKS]

    @property
    def need_all_frames(self) -> bool:
        """Whether a unit looks into the deep blocks of the UNet, where anchor passes would leave frames out."""
        return any(
            param.control_model_type.name in ("AttentionInjection", "IPAdapter")
            for param in self.network.control_params
        )

    def begin_call(self) -> None:
        """A UNet call of the host begins; its passes follow."""
        self._draws = []

    def set_rows(self, rows: Rows) -> None:
        """Gives every unit the images of `rows`, those of the UNet pass that comes next."""
        self.rows, self._next_draw = rows, 0
        for param, unit in zip(self.network.control_params, self.units):
            if param.control_model_type.name == "IPAdapter":
                self._set_embeds(param.control_model, unit)
            else:
                self._set_hints(param, unit)

    def _numbers(self, unit: Unit) -> torch.Tensor:
        index = np.zeros(max(self.rows.frames) + 1, int) if unit.pictures is None else unit.pictures.index
        return torch.from_numpy(index[list(self.rows.frames)])

    def _set_hints(self, param, unit: Unit) -> None:
        numbers, device = self._numbers(unit), devices.get_device_for("controlnet")
        hires = bool(getattr(self.p, "is_hr_pass", False)) and isinstance(param.hr_hint_cond, torch.Tensor)
        if unit.pictures is not None:
            param.hint_cond = unit.hints[numbers].to(device)  # the extension forgets what it made of those before
            if unit.hires_hints is not None:
                param.hr_hint_cond = unit.hires_hints[numbers].to(device)
        param.used_hint_inpaint_hijack = None
        name = param.preprocessor["name"]
        if param.control_model_type.name == "AttentionInjection" or "colorfix" in name or "inpaint_only" in name:
            if hires not in unit.latents:
                hints = param.hr_hint_cond if hires else param.hint_cond
                kept = unit.hires_hints if hires else unit.hints
                unit.latents[hires] = self._encoded(hints if unit.pictures is None else kept)
            param.used_hint_cond = param.hr_hint_cond if hires else param.hint_cond
            param.used_hint_cond_latent = unit.latents[hires][numbers].to(device)

    def _encoded(self, hints: torch.Tensor) -> torch.Tensor:
        """The latents (pictures, …) of hints, with the same random draws for each, and the generator as after one."""
        latents = []
        for number in reversed(range(len(hints))):
            with same_draws() if number else ExitStack():
                latents.insert(
                    0, self.network.call_vae_using_process(self.p, hints[number : number + 1].to(devices.device)).cpu()
                )
        return torch.cat(latents)

    def _set_embeds(self, model, unit: Unit) -> None:
        model.cache = {}  # of the pass before, which may have had other rows
        if unit.pictures is None:
            return
        if unit.embeds is None:
            unit.embeds = [model.ipadapter.get_image_emb(value) for value in unit.hints]
        rows = [unit.embeds[number] for number in self._numbers(unit)]
        model.image_emb = type(rows[0])(*(torch.cat(embeds) for embeds in zip(*rows)))

    def _without_momentum(self, forward: Callable, attention: TemporalMomentum) -> Callable:
        """The UNet's own `forward`, by which a reference unit shows it the reference first: no frames of the clip."""

        def reference_pass(*args, **kwargs):
            with attention.suspended():
                return forward(*args, **kwargs)

        return reference_pass

    def _same_reference_noise(self, predict_q_sample: Callable) -> Callable:
        """The extension's `predict_q_sample`, which puts noise on a reference: that of the still, the same for all frames."""

        def noised(model, latents, t, noise=None):
            if noise is None and self.rows is not None and len(latents) == len(self.rows):
                groups = list(dict.fromkeys(self.rows.groups))
                if self._next_draw == len(self._draws):
                    self._draws.append(torch.randn_like(latents[:1].expand(len(groups), *latents.shape[1:])))
                noise = self._draws[self._next_draw][[groups.index(group) for group in self.rows.groups]]
                self._next_draw += 1
            return predict_q_sample(model, latents, t, noise)

        return noised

    def _adapted(self, param, unit: Unit, forward: Callable) -> Callable:
        """A T2I-Adapter's `forward`, for the pictures of the rows. As for a still, the control of the first pass serves in that of
        hires.fix too, unless the unit is for the latter only; and with "ControlNet is more important" it is the prompt's alone.
        """
        hires_only, prompt_only = param.hr_option.name == "HIGH_RES_ONLY", param.cfg_injection
        hints = unit.hires_hints if hires_only and unit.hires_hints is not None else unit.hints

        def adapted(hint=None, **kwargs):
            param.control_model.reset()  # it keeps what it made of the rows before
            controls = forward(hint=hints[self._numbers(unit)].to(hint), **kwargs)
            return [control * self.network.model.cond_mark for control in controls] if prompt_only else controls

        return adapted


# --- what the units take ---------------------------------------------------------------------------------------


def _pictures_of(p, unit, number: int, value: str, settings: Settings, source: SourceVideo | None, undo, note):
    """Where the frames of a unit come from: `value` is its entry in `control`."""
    frames = settings.frames
    if not value:
        has_own = unit.image is not None or unit.ipadapter_input is not None
        init_images = len(getattr(p, "init_images", None) or [])
        if has_own or (source is None and init_images < 2):
            return None
        return InitImages(frames, source) if init_images else Pictures(source.source, source.picks, "source")
    if unit.ipadapter_input is not None:
        raise SettingsError(
            f"control: entry {number} is {_short(value)}, but ControlNet unit {number} has ipadapter_input; give one of both"
        )
    if value == FROM_SOURCE:
        if source is None:
            raise SettingsError(
                f'control: entry {number} is "{FROM_SOURCE}", but there is no source; give `source`, or a video or folder'
            )
        return Pictures(source.source, source.picks, "source")
    key = f"control[{number}]"
    video = opened(key, file_of(key, value, undo, p.is_api))
    count = video.info.frames
    if count < frames and count > 1:
        what = {"hold": "the last is held", "loop": "they begin again", "stretch": "they are spread over the clip"}[
            settings.control_fit
        ]
        note(
            f'ControlNet unit {number} has {count} frames for {frames}: {what} (control_fit "{settings.control_fit}"; hold, loop or stretch).'
        )
    elif count > frames:
        note(f"ControlNet unit {number} has {count} frames for {frames}: the first {frames} are used.")
    return Pictures(video, fitted(count, frames, settings.control_fit), key)


def _take_batch_tabs(p, script, settings: Settings) -> list[tuple]:
    """The units of `p`, each with its entry in `control`; the folder of a unit's Batch tab is taken as its entry.

    By itself the extension would make one job of each file there.
    """
    names = _globals(script)
    external_code, mode = names["external_code"], names["InputMode"]
    given = external_code.get_all_units_in_processing(p)
    entries = list(settings.control) + [""] * (len(given) - len(settings.control))
    units = []
    for number, unit in enumerate(given):
        if unit.enabled and unit.input_mode == mode.BATCH:
            folder = unit.batch_images
            if not isinstance(folder, (str, Path)) or not str(folder).strip():
                raise SettingsError(f"ControlNet unit {number}: its Batch tab is {_short(folder)}; give it a folder")
            entries[number] = entries[number] or str(folder)
            unit = unit.copy(update={"input_mode": mode.SIMPLE, "image": None})
        units.append(unit)
    if any(unit is not before for unit, before in zip(units, given)):
        external_code.update_cn_script_in_processing(p, units)
    return list(zip(units, entries))


def _count(unit) -> int:
    """How many units the extension makes of this one: with several images, one for each."""
    several = unit.input_mode.value == "merge" and not unit.accepts_multiple_inputs
    return len(unit.image) if several else 1


def _on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:100] + "…"
