"""The sampling of one clip inside AUTOMATIC1111's WebUI (v1.10).

Everything here is undone when the scope is left, however it is left.
"""

from __future__ import annotations

import copy
import functools
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import k_diffusion.sampling
import torch
from modules import sd_samplers_common, sd_unet, shared

from zs2_lib.core.anchors import Anchors
from zs2_lib.core.momentum import TemporalMomentum
from zs2_lib.core.noise import frame_seeds
from zs2_lib.core.passes import Passes, Progress
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import override, restore_afterwards, wrap
from zs2_lib.settings.table import Settings

from .a1111_controlnet import ControlUnits
from .prompts import PromptTravel

UNCONDITIONAL = -1
"""The guidance group of the negative prompt; prompts joined by AND are groups 0, 1, …"""

_current: ClipSampling | None = None


class ClipSampling:
    """Scope around the host's `p.sample` in which its batch is sampled as the frames of one clip.

    Inside it every UNet call passes through `apply_model` below, the UNet's self-attention has temporal
    momentum, and all noise the host draws is correlated over the frames. Errors in the host's callbacks, which
    it would print and forget, are raised at the next UNet call.
    """

    def __init__(self, p, settings: Settings, travel: PromptTravel | None = None, control: ControlUnits | None = None):
        self.p = p
        self.control = control
        self.travel = travel if travel and travel.weights_change else None
        self.frames = settings.frames
        self.seed = int(p.seeds[0])
        self.attention = TemporalMomentum(settings.momentum.values(self.frames))
        self.anchors = Anchors(self.attention, settings.anchor_stride, settings.anchor_depth, settings.anchor_start)
        self.passes = Passes(self.attention, settings.frames_per_pass, self.anchors)
        self.noise = settings.clip_noise(self.seed)
        self.error: Exception | None = None
        self.rows: Rows | None = None
        self.next_row = 0
        self.denoiser_call = 0
        self._undo = ExitStack()
        self._model = None
        self._undo_model = ExitStack()

    def __enter__(self) -> ClipSampling:
        global _current
        if sd_unet.current_unet is not None:
            raise RuntimeError(
                f"ZS² needs the checkpoint's own UNet, but SD Unet is set to {sd_unet.current_unet.option.label!r}: "
                "set it to None in Settings > Stable Diffusion"
            )
        with ExitStack() as undo:
            undo.enter_context(self.attention)
            undo.enter_context(self.anchors)
            undo.callback(self._undo_model.close)
            if self.control:
                self.control.begin(undo, self.attention)
            self._follow_model()
            _share_init_image(self.p)
            override(
                undo, self.p, "txt2img_image_conditioning", _same_for_all_frames(self.p.txt2img_image_conditioning)
            )
            restore_afterwards(undo, self.p, "rng")
            previous, _current = _current, self
            undo.callback(_set_current, previous)
            undo.callback(setattr, shared.state, "textinfo", None)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()

    # --- the UNet ------------------------------------------------------------------------------------------

    def _follow_model(self) -> None:
        """Hooks the model that samples now: the refiner and a checkpoint for hires.fix replace it mid-way."""
        if shared.sd_model is self._model:
            return
        self._undo_model.close()
        self._model = shared.sd_model
        wrap(self._undo_model, self._model, "apply_model", self.apply_model)
        unet, control = self._model.model.diffusion_model, self.control
        self.attention.attach(unet, *(control.models if control and control.settings.control_momentum else ()))
        self.anchors.attach(unet, *(control.models if control else ()))

    def begin_step(self, denoiser) -> None:
        """A new step of the sampler: its UNet calls follow, row after row of `_rows_of_step`."""
        self._follow_model()
        self.rows, self.next_row, self.denoiser_call = _rows_of_step(denoiser), 0, denoiser.step
        # the host's step number goes up after each `calls` of the denoiser, first after the very first one
        calls = max(denoiser.total_steps // denoiser.steps, 1)
        self.step = denoiser.step // calls + 1
        self.part_of_step = (max(denoiser.step - 1, 0) % calls / calls, 1 / calls if denoiser.step else 0.0)

    def apply_model(self, original, x: torch.Tensor, t: torch.Tensor, cond, **kwargs) -> torch.Tensor:
        """The host's `sd_model.apply_model`, `original`, in passes of a few frames; sees every UNet call in order."""
        if self.error is not None:
            raise self.error
        if self.rows is None:  # another extension's call, outside of a sampler's step
            return original(x, t, cond, **kwargs)
        call = range(self.next_row, self.next_row + x.shape[0])
        if call.stop > len(self.rows):
            raise RuntimeError(
                f"ZS²: a step of {len(self.rows)} rows calls the UNet for {call.stop}; another extension changes the "
                "UNet's batch: switch it off for this clip"
            )
        self.next_row = call.stop
        if call.start == 0:
            self.passes.restart(self.denoiser_call, 1 - float(t[0]) / len(self._model.alphas_cumprod))
        step, tiling = shared.state.sampling_step, _hypertile_state()
        if self.control:
            self.control.begin_call()

        def before_pass(progress: Progress) -> None:
            if shared.state.interrupted or shared.state.skipped:
                raise sd_samplers_common.InterruptedException
            _set_hypertile_state(tiling)
            start, length = self.part_of_step
            shared.state.sampling_step = (
                step + start + length * (call.start + progress.done * len(call)) / len(self.rows)
            )
            first, last = progress.frames
            if self.travel:
                self.travel.set_weights(first - 1)
            if self.control:
                self.control.set_rows(progress.rows)
            shared.state.textinfo = f"Step {self.step}: frames {first} to {last} of {self.frames}"

        try:
            return self.passes.run(original, self.rows.take(call), x, t, cond, before_pass=before_pass, **kwargs)
        finally:
            shared.state.sampling_step = step

    # --- the noise -----------------------------------------------------------------------------------------

    def correlate(self, noise: torch.Tensor) -> None:
        """Correlates `noise`, which the host samples next, in place, and what it will draw while it samples.

        The first row is the noise of the still and stays. Called before the first pass and before that of hires.fix.
        """
        p = self.p
        scale = getattr(p, "initial_noise_multiplier", 1.0)  # img2img has scaled the noise already
        if scale:
            noise[1:] = self.noise.draw(noise[:1] / scale)[1:] * scale

        still = copy.copy(p.rng)  # the host's own draws for frame 1
        still.generators = p.rng.generators[:1]
        p.rng = copy.copy(p.rng)
        p.rng.next = lambda: self.noise.draw(still.next())
        override(self._undo, p.sampler, "create_noise_sampler", self._brownian(p.sampler.create_noise_sampler))
        if p.sampler.funcname == "sample_dpm_adaptive":
            override(self._undo, p.sampler, "func", _steps_for_first_frame(p.sampler.func))

    def _brownian(self, create_noise_sampler):
        """The host's noise sampler for SDE samplers with each frame's own Brownian motion, correlated."""

        def create(x, sigmas, p):
            seeds = frame_seeds(self.seed, self.frames)
            batch = SimpleNamespace(all_seeds=seeds, iteration=0, batch_size=self.frames)
            brownian = create_noise_sampler(x, sigmas, batch)
            if brownian is None:  # the option "Do not make DPM++ SDE deterministic": k-diffusion draws the still's seed
                seeds[0] = torch.randint(0, 2**63 - 1, []).item()
                brownian = k_diffusion.sampling.BrownianTreeNoiseSampler(
                    x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seeds
                )
            return lambda sigma, sigma_next: self.noise.mix(brownian(sigma, sigma_next))

        return create


def _rows_of_step(denoiser) -> Rows:
    """The rows of all UNet calls of one step, in order, as the host's CFGDenoiser.forward lays them out.

    Each frame's prompts joined by AND one after the other, frame by frame, then the negative prompt's rows; for
    Instruct-Pix2Pix three blocks: prompt, image, neither. The calls may stop before the last block.
    """
    prompts = [len(frame) for frame in denoiser.sampler.sampler_extra_args["cond"].batch]
    frames = range(len(prompts))
    edits = shared.sd_model.cond_stage_key == "edit" and denoiser.image_cfg_scale not in (None, 1.0)
    if edits:
        return Rows.blocks(len(prompts), 3)
    conditional = [(frame, group) for frame in frames for group in range(prompts[frame])]
    rows = conditional + [(frame, UNCONDITIONAL) for frame in frames]
    return Rows(*(tuple(column) for column in zip(*rows)))


def on_cfg_denoiser(params) -> None:
    """To be registered as the host's callback of that name, which comes before the UNet calls of each step."""
    if _current is not None:
        _keeping_errors(_current.begin_step, params.denoiser)


def before_every_sampling(p, noise: torch.Tensor) -> None:
    """To be called from the host's callback of that name: correlates the noise of the clip being sampled."""
    if _current is not None and _current.p is p:
        _keeping_errors(_current.correlate, noise)


def _keeping_errors(function, *args) -> None:
    """Calls `function`; keeps its error for the clip's next UNet call, as the host would swallow it here."""
    try:
        function(*args)
    except Exception as error:
        _current.error = error


def _set_current(sampling: ClipSampling | None) -> None:
    global _current
    _current = sampling


def _same_for_all_frames(image_conditioning):
    """Frames share the image condition of frame 1: the VAE draws noise of its own for each."""

    def conditioning(x, *args, **kwargs):
        first = image_conditioning(x[:1], *args, **kwargs)
        return first.expand(x.shape[0], *first.shape[1:]).clone()

    return conditioning


def _steps_for_first_frame(sample_dpm_adaptive):
    """DPM adaptive with its step sizes chosen by frame 1, as for the still, not by the error of the whole batch."""

    @functools.wraps(sample_dpm_adaptive)
    def sample(model, x, *args, **kwargs):
        hijacked_torch = k_diffusion.sampling.torch  # the host's, made anew for each sampling
        frames = x.shape[0]
        hijacked_torch.linalg = SimpleNamespace(norm=lambda error: torch.linalg.norm(error[:1]) * frames**0.5)
        try:
            return sample_dpm_adaptive(model, x, *args, **kwargs)
        finally:
            del hijacked_torch.linalg

    return sample


def _share_init_image(p) -> None:
    """One image animated: all frames begin with the same latents, though the VAE drew noise for each."""
    if len(getattr(p, "init_images", None) or []) == 1:
        p.init_latent[1:] = p.init_latent[:1]
        p.image_conditioning[1:] = p.image_conditioning[:1]


def _hypertile_state():
    """State of HyperTile's random tile sizes, if it is there: all passes of a call have to be tiled alike."""
    hypertile = sys.modules.get("hypertile")
    return hypertile.RNG_INSTANCE.getstate() if hypertile else None


def _set_hypertile_state(state) -> None:
    if state is not None:
        sys.modules["hypertile"].RNG_INSTANCE.setstate(state)
