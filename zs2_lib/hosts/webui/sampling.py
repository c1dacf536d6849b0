"""The sampling of one clip in a WebUI: the scope that asks the host's adapter.

Everything here is undone when the scope is left, however it is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from modules import sd_samplers_common, shared

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass, another_extension
from zs2_lib.hosts.undo import restore_afterwards, wrap
from zs2_lib.settings.kinds import SettingsError

from . import errors, foreign, known
from .live import Live
from .prompts import PromptTravel
from .seam import Adapter, Call, ControlUnits, Model


def check_model(adapter: Adapter) -> None:
    """Raises SettingsError where the model that is loaded cannot sample a clip."""
    if refusal := adapter.refusal():
        raise SettingsError(refusal)


class ClipSampling:
    """Scope around the host's `p.sample` in which its batch is sampled as the frames of one clip, or of the segment of
    it that `clip` has begun.

    Inside it every UNet call passes through `unet_call`, the UNet's self-attention has temporal momentum, and all noise
    the host draws is correlated over the frames. Errors in the host's callbacks are raised at the next UNet call.
    """

    def __init__(
        self,
        p,
        adapter: Adapter,
        clip: Clip,
        live: Live,
        control_momentum: bool = False,
        travel: PromptTravel | None = None,
        control: ControlUnits | None = None,
    ):
        self.p = p
        self.adapter = adapter
        self.control = control
        self.control_momentum = control_momentum
        self.travel = travel if travel and travel.weights_change else None
        self.clip = clip
        self.live = live
        self.seen = True
        """Whether a UNet call of the step came by."""
        self.others: Path | None = None
        """The code of another extension that takes part in the UNet's attention, if there is any."""
        self._sampler = self._correlated = None
        self._calls: list[list] = []  # of each sampling: its sampler, its steps, how often that called the denoiser
        self._undo = ExitStack()
        self._model: Model | None = None
        self._undo_model = ExitStack()
        self._undo_step = ExitStack()

    def __enter__(self) -> ClipSampling:
        with ExitStack() as undo:
            undo.callback(self.clip.detach)
            undo.callback(self._undo_model.close)
            undo.callback(self._undo_step.close)
            if self.control:
                self.control.begin(undo, self.clip)
            self._follow_model()
            self.adapter.share_first_image(undo)
            if hasattr(torch.compiler, "set_stance"):  # a compiled UNet may leave out hooks that it has not seen
                undo.enter_context(torch.compiler.set_stance("force_eager"))
            restore_afterwards(undo, self.p, "rng")
            undo.callback(setattr, shared.state, "textinfo", None)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()
        if exception[0] is None:
            self.live.sampled()
            if not (shared.state.interrupted or shared.state.skipped):
                for of_sampling in self._calls:
                    known.record_calls(*of_sampling)

    # --- the UNet ----------------------------------------------------------------------------------------------------

    def _follow_model(self) -> None:
        """Hooks the model that samples now, with its control models: the refiner and hires.fix bring others mid-way."""
        model = self.adapter.model()
        if not self._model or model.owner is not self._model.owner:
            check_model(self.adapter)
            self._undo_model.close()
            self._model = model
            wrap(self._undo_model, model.owner, model.method, self.unet_call)
        self.clip.attach(model.unet, self.control.models if self.control else (), self.control_momentum)

    def begin_step(self, denoiser) -> None:
        """A new step of the sampler: its UNet calls follow."""
        self.check()
        self.seen = False
        self._follow_model()
        self._undo_step.close()  # and over what others have put there since
        self.adapter.begin_step(denoiser, self._undo_step)
        self.denoiser_call, self.denoiser_calls = denoiser.step, denoiser.total_steps
        if not denoiser.step:
            self._calls.append([self.p.sampler.config.name, denoiser.steps, 0])
        self._calls[-1][2] += 1
        # the host's step number goes up after each `calls` of the denoiser, first after the very first one
        calls = max(denoiser.total_steps // denoiser.steps, 1)
        self.step = denoiser.step // calls + 1
        self.part_of_step = (max(denoiser.step - 1, 0) % calls / calls, 1 / calls if denoiser.step else 0.0)

    def check(self) -> None:
        """Raises the error that was kept, if there is one; RuntimeError if the step before called a UNet that is not
        hooked: its frames would know nothing of each other.
        """
        errors.raise_kept(self.p)
        if not self.seen:
            raise RuntimeError(
                "ZS²: a step was sampled by a UNet that does not pass through ZS²; " + another_extension("replaces it")
            )

    def unet_call(self, original: Callable, x: torch.Tensor, t: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The model's own call of its UNet, `original`, in passes of a few frames; sees every UNet call in order.

        An error stops the clip also where the call is another extension's, in a callback of the host.
        """
        errors.raise_kept(self.p)
        with errors.kept_and_raised(self.p):
            call = self.adapter.call(x, *args, **kwargs)
            if call is None:  # another extension's, outside of a sampler's step
                return original(x, t, *args, **kwargs)
            self.seen = True
            if call.tile and self.control:
                cuts = another_extension("cuts them into tiles")
                raise RuntimeError(f"ZS²: the images of ControlNet units are of whole frames; {cuts}")
            if call.first:
                self._look_for_others(kwargs)
                self._begin_call(call, x, self.adapter.time(t))
            try:
                return self._in_passes(call, original, x, t, *args, **kwargs)
            except RuntimeError as error:
                if not call.again:
                    raise
                raise type(error)(f"{error}; " + another_extension("calls the UNet once more in each step")) from error

    def _begin_call(self, call: Call, x: torch.Tensor, time: float) -> None:
        """The first UNet call of the denoiser's call begins."""
        self.clip.begin_step(self.denoiser_call, time)
        positions = x.shape[-2] * x.shape[-1]
        self.live.call(
            self.denoiser_call, self.denoiser_calls, len(x) * positions / (call.stop - call.start), positions, time
        )

    def _look_for_others(self, kwargs: dict) -> None:
        """Keeps the UNet's calls whole where other code takes part in its attention.

        Raises RuntimeError where each frame needs a pass of its own.
        """
        patches = self.adapter.attention_patches(kwargs)
        but_for = self.control.folder if self.control else None
        self.others = self.others or foreign.on_attention(self._model.unet, but_for, patches)
        if self.others:
            if self.travel:
                raise RuntimeError(
                    "ZS²: LoRA weights that change over the frames need a UNet pass for each frame, and the extension "
                    f"{self.others.name} works on attention, and may count on all of them: switch one of both off"
                )
            self.clip.keep_calls_whole()

    def _in_passes(self, call: Call, original: Callable, x: torch.Tensor, t: torch.Tensor, *args, **kwargs):
        step, same_tiles = shared.state.sampling_step, self.adapter.same_tiles()
        unet = self.adapter.unet(original, self.clip, len(x), kwargs)
        if self.control:
            self.control.begin_call()

        def before_pass(now: Pass) -> None:
            if shared.state.interrupted or shared.state.skipped:
                raise sd_samplers_common.InterruptedException
            same_tiles()
            self._prepare(now)
            start, length = self.part_of_step
            done = call.start + now.done * (call.stop - call.start)
            self.live.before_pass(done)
            shared.state.sampling_step = step + start + length * done

        try:
            return self.clip.call(unet, call.rows, x, t, *args, before_pass=before_pass, **kwargs)
        finally:
            shared.state.sampling_step = step

    def _prepare(self, now: Pass) -> None:
        """What changes from pass to pass beside the rows: LoRA weights, control images, and what the user sees."""
        first, last = now.frames
        if self.travel:
            self.travel.set_weights(first - 1)
        if self.control:
            self.control.prepare(now)
        shared.state.textinfo = f"Step {self.step}: frames {first} to {last} of {self.clip.frames}"

    # --- the noise ---------------------------------------------------------------------------------------------------

    def correlate(self, noise: torch.Tensor) -> None:
        """Correlates `noise` (frames, channels, height, width), which the host samples next, in place, and what it will
        draw while it samples.

        The clip's first row is the noise of the still and stays. Called before the first pass and before that of
        hires.fix.
        """
        if noise is self._correlated:  # Forge says so twice before the second pass of hires.fix
            return
        p, clip, self._correlated = self.p, self.clip, noise
        clip.noise.begin_pass()
        scale = getattr(p, "initial_noise_multiplier", 1.0)  # img2img has scaled the noise already
        if scale:
            stays = 0 if clip.first else 1
            noise[stays:] = clip.noise.draw(noise[:1] / scale)[stays:] * scale
        still = copy.copy(p.rng)  # the host's own draws for frame 1
        still.generators = p.rng.generators[:1]
        p.rng = copy.copy(p.rng)
        wrap(self._undo, p.rng, "next", lambda original: clip.noise.draw(still.next()))
        if p.sampler is not self._sampler:  # that of hires.fix may be the same
            self._sampler = p.sampler
            self.adapter.ask_for_memory(clip, self._undo)  # hires.fix may have brought another checkpoint
            self.adapter.begin_sampling(self._undo)
            self.adapter.correlate_own_draws(clip, self._undo)
