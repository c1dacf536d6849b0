"""The sampling of clips with pipelines of `diffusers`, without a WebUI.

`sample_clip` samples a clip with a pipeline, such as `checkpoints.load_pipeline` gives. `ClipSampling` is the scope
inside which any call of the pipeline is a clip. Everything it changes is an attribute of the pipeline's own objects,
and undone when the scope is left, however it is left.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, DPMSolverSDEScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from PIL import Image

from zs2_lib.core.hooks import Pass
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import override, restore_afterwards
from zs2_lib.settings.table import Settings

from .checkpoints import check_pipeline, follows_picture
from .control import Controls, Unit
from .draws import CPU, NVIDIA, CorrelatedDraws
from .editing import Editing, encode_one_by_one
from .hires import Hires, first_size
from .nvidia_noise import NvidiaNoise
from .pictures import decode_frames
from .prompts import Prompts


@dataclass(frozen=True)
class Progress:
    """Where the sampling of a clip is: `step` (from 1) of `steps` UNet calls and `frames` (first, last; from 1) of
    the next pass; `done` is the part of the whole that is finished, from 0 to 1. `hires` says that they are those of
    hires. fix.
    """

    step: int
    steps: int
    frames: tuple[int, int]
    done: float
    hires: bool = False


def sample_clip(
    pipe: DiffusionPipeline, prompt: str, settings: Settings, seed: int, **options
) -> Iterator[Image.Image]:
    """Samples a clip and returns its frames, which are decoded one by one as they are taken.

    Frame 1 is the image that the pipeline alone gives with `generator=torch.Generator().manual_seed(seed)`; in half
    precision with noise that is drawn in float32. The `options` are the keyword arguments of `sample_latents`; it
    raises the same errors.
    """
    segments = sample_segments(pipe, prompt, settings, seed, **options)
    first = next(segments)  # errors come before any frame is asked for
    return itertools.chain.from_iterable(decode_frames(pipe, latents) for latents in itertools.chain([first], segments))


def sample_latents(pipe: DiffusionPipeline, prompt: str, settings: Settings, seed: int, **options) -> torch.Tensor:
    """The latents of a clip (frames, channels, height / 8, width / 8): those of `sample_segments` together, whose
    arguments and errors it has.
    """
    return torch.cat(list(sample_segments(pipe, prompt, settings, seed, **options)))


def sample_segments(
    pipe: DiffusionPipeline,
    prompt: str,
    settings: Settings,
    seed: int,
    *,
    steps: int = 20,
    guidance: float = 5.0,
    editing: Editing | None = None,
    progress: Callable[[Progress], None] | None = None,
    control: Sequence[Unit] = (),
    rng: str = CPU,
    hires: Hires | None = None,
    **options,
) -> Iterator[torch.Tensor]:
    """Samples a clip with the pipeline's own scheduler, one segment of it each time that it is asked for: its latents
    (frames, channels, height / 8, width / 8).

    `progress` is called before each pass over some frames and may raise to stop. `control` has a unit for each
    ControlNet of the pipeline (`control.with_controls`). `editing` says what pictures the frames are made of; `pipe` is
    then one that its `pipeline` gives. `hires` has each frame sampled a second time, larger; not with `editing`. `rng`,
    one of `draws.SOURCES`, says where frame 1 has its noise from. `options` are further arguments of the pipeline:
    `negative_prompt`, `width` and `height` (pixels, multiples of 8; default: the model's size; not with `editing`),
    `eta`, `clip_skip`, `guidance_rescale`, …

    Raises ValueError for a pipeline that cannot make a clip, or wrong arguments.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: {prompt!r} is not allowed; a clip has one prompt, a string")
    if "latents" in options:
        raise ValueError(
            "latents: cannot be given; a clip draws its own noise, correlated over the frames: choose it by seed"
        )
    if hires and editing:
        raise ValueError("hires: it is for clips made of text alone; give it without pictures")
    sampling = ClipSampling(pipe, settings, seed, progress, control, editing, rng, steps)
    size = editing.size if editing else first_size(pipe, options.get("width"), options.get("height"))
    first = {"num_inference_steps": steps, "guidance_scale": guidance, **options, **sampling.controls.arguments(*size)}
    again = sampling.again(hires, steps, size) if hires else None

    def sampled(sampling: ClipSampling, prompt: str, frames: range, arguments: dict) -> torch.Tensor:
        with sampling:
            return sampling.pipe(
                prompt,
                num_images_per_prompt=len(frames),
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **arguments,
            ).images

    with sampling.clip:  # which carries from segment to segment; the pipeline decodes in between
        for frames in sampling.clip.segments:
            sampling.clip.begin_segment(frames)
            latents = sampled(sampling, prompt, frames, first | (editing.arguments(pipe, frames) if editing else {}))
            if again:
                more = hires.arguments(steps, guidance) | again.controls.arguments(*hires.sizes(size)[1])
                more |= {name: value for name, value in options.items() if name not in (*more, "width", "height")}
                more["image"] = hires.enlarged(pipe, latents)
                latents = sampled(again, prompt if hires.prompt is None else hires.prompt, frames, more)
            yield latents


class ClipSampling:
    """Scope in which a call of the pipeline samples the frames of one clip, or the segment of it that its `clip` has
    begun: its `num_images_per_prompt`.

    Inside it every UNet call runs in passes of a few frames, the UNet's self-attention has temporal momentum, and
    all noise that the pipeline and its scheduler draw is correlated over the frames; what the VAE draws for pictures is
    the same for all of them. The arguments are those of `sample_clip`; `seed` decides about the frames after the first,
    whose noise comes from the call's generator; `steps` are those of the call, if its prompts change over them.

    Raises ValueError on entering if `pipe`, as it is set up, cannot make a clip.
    """

    def __init__(
        self,
        pipe,
        settings: Settings,
        seed: int,
        progress: Callable[[Progress], None] | None = None,
        control: Sequence[Unit] = (),
        editing: Editing | None = None,
        rng: str = CPU,
        steps: int | None = None,
    ):
        self.pipe = pipe
        self.progress = progress
        self.controls = Controls(pipe, control)
        self.control_momentum = settings.control_momentum
        self.clip = settings.clip(seed, editing.segment(settings) if editing else settings.segment)
        self.keyframes = settings.prompts
        self.steps, self.calls_before = steps, 0
        self.in_betweens = settings.in_betweens
        self.nvidia = functools.partial(NvidiaNoise, seed) if rng == NVIDIA else None
        self.calls = 0
        self.part = 0.0, 1.0
        """Which part of the sampling of its frames it is."""
        self._undo = ExitStack()

    def again(self, hires: Hires, steps: int, size: tuple[int, int]) -> ClipSampling:
        """The scope for the second pass of the same frames, after a first one of so many steps in that size."""
        again = copy.copy(self)
        again.pipe = hires.pipeline(self.pipe)
        again.controls = Controls(again.pipe, self.controls.units)
        again.steps, again.calls_before = hires.steps or steps, self.calls_of_steps
        share = hires.share(steps, size)
        self.part, again.part = (0.0, share), (share, 1.0)
        return again

    def __enter__(self) -> ClipSampling:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        check_pipeline(pipe)
        self.calls = 0
        self.clip.noise.begin_pass()
        with ExitStack() as undo:
            undo.callback(self.clip.detach)
            self.clip.attach(pipe.unet, self.controls.nets, self.control_momentum)
            self._unet = self.controls.unet(pipe.unet.forward)
            self.controls.enter(undo, self.clip.frames_now)
            override(undo, pipe.unet, "forward", self.unet)
            self._draws = CorrelatedDraws(self.clip.noise, self.nvidia and self.nvidia())
            override(undo, pipe.vae, "encode", encode_one_by_one(pipe.vae.encode, self._draws.apart))
            override(undo, pipe, "prepare_latents", self._with_correlated_draws(pipe.prepare_latents))
            self._prompts = Prompts(pipe, self.keyframes, self._counted, self.calls_of_steps, self.calls_before)
            self._prompts.enter(undo)
            if isinstance(scheduler, DPMSolverSDEScheduler):
                restore_afterwards(undo, scheduler, "noise_sampler")
                override(undo, scheduler, "step", self._with_brownian_motion(scheduler))
            else:
                override(undo, scheduler, "step", self._with_correlated_draws(scheduler.step))
            if self.progress is not None:
                config = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
                override(undo, pipe, "_progress_bar_config", config)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()

    @property
    def calls_of_steps(self) -> int | None:
        """The UNet calls of as many steps as are asked for, in which the WebUI counts; None: it is not known."""
        return self.steps and self.steps * getattr(self.pipe.scheduler, "order", 1)

    def _counted(self, row: int) -> float:
        """The frame of a row, as keyframes count it."""
        return (self.clip.first + row % len(self.clip.frames_now)) / self.in_betweens

    # --- the UNet ------------------------------------------------------------------------------------------

    def unet(self, sample: torch.Tensor, timestep, *args, return_dict: bool = True, **kwargs):
        """The UNet's `forward`, in passes of a few frames; one call is one step, and sees all rows of the clip.

        With guidance `sample` is the block of the negative prompt and the block of the prompt, (2 frames, …), of
        Instruct-Pix2Pix those of prompt and picture, of the picture alone and of neither, (3 frames, …); without, it is
        one block, (frames, …).
        """
        frames, calls, call = len(self.clip.frames_now), self.pipe.num_timesteps, self.calls
        guided = 3 if follows_picture(self.pipe) else 2
        rows = Rows.blocks(frames, guided if self.pipe.do_classifier_free_guidance else 1)
        if sample.shape[0] != len(rows):
            raise ValueError(
                f"ZS²: the UNet is called with {sample.shape[0]} rows for {frames} frames of a clip, which have "
                f"{len(rows)}; call the pipeline with one prompt and num_images_per_prompt={frames}"
            )
        self.calls += 1
        sample, kwargs = self._prompts.spread(call, sample, kwargs)
        rows = Rows.blocks(frames, len(rows) // frames + self._prompts.parts - 1)

        def before_pass(now: Pass) -> None:
            if self.progress is not None:
                begin, end = self.part
                done = self.clip.frames_now.start + (begin + (call + now.done) / calls * (end - begin)) * frames
                self.progress(Progress(call + 1, calls, now.frames, done / self.clip.frames, begin > 0))

        def plain(*args, **kwargs) -> torch.Tensor:
            return self._unet(*args, return_dict=False, **kwargs)[0]

        noise_left = float(torch.as_tensor(timestep).reshape(-1)[0]) / self.pipe.scheduler.config.num_train_timesteps
        self.clip.begin_step(call, 1 - noise_left)
        output = self.clip.call(plain, rows, sample, timestep, *args, before_pass=before_pass, **kwargs)
        output = self._prompts.gathered(output)
        return UNet2DConditionOutput(output) if return_dict else (output,)

    # --- the noise -----------------------------------------------------------------------------------------

    def _with_correlated_draws(self, function: Callable) -> Callable:
        """`function` with each noise that it draws for the frames of the clip correlated."""

        @functools.wraps(function)
        def correlated(*args, **kwargs):
            with self._draws:
                return function(*args, **kwargs)

        return correlated

    def _with_brownian_motion(self, scheduler: DPMSolverSDEScheduler) -> Callable:
        """The scheduler's `step` with each frame's own Brownian motion, correlated over the frames.

        Frame 1 has the motion of `noise_sampler_seed`, as alone, or of the clip's seed if the scheduler has none.
        """
        from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

        seeds = list(self.clip.noise.seeds)
        if scheduler.noise_sampler_seed is not None and not self.clip.first:
            seeds[0] = scheduler.noise_sampler_seed
        original = scheduler.step

        @functools.wraps(original)
        def step(model_output, timestep, sample, *args, **kwargs):
            if scheduler.noise_sampler is None:
                sigmas = scheduler.sigmas
                brownian = BrownianTreeNoiseSampler(sample, sigmas[sigmas > 0].min().item(), sigmas.max().item(), seeds)
                scheduler.noise_sampler = lambda sigma, sigma_next: self.clip.noise.mix(brownian(sigma, sigma_next))
            return original(model_output, timestep, sample, *args, **kwargs)

        return step
