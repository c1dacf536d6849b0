"""Clips by ZS² and by its peers on one checkpoint, and what is measured of each."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, TextToVideoZeroPipeline
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error

from zs2_lib.core.noise import frame_seeds
from zs2_lib.hosts.diffusers import checkpoints
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.settings.table import Settings

from . import metrics
from .judge import load_judge
from .timing import KEEPING, started_with

METHODS = ("ddim", "text2video-zero", "zs2")
GUIDANCE = 5.0
DECODED_AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """One clip to sample: `method` is one of `METHODS`, `settings` are those of ZS² that are not at their default."""

    method: str
    prompt: str
    seed: int
    frames: int = 8
    steps: int = 10
    guidance: float = GUIDANCE
    settings: tuple[tuple[str, object], ...] = ()


def load(model: str | None, config: str | None) -> StableDiffusionPipeline:
    """The checkpoint, sampled with DDIM whatever its folder says: the sampler that all methods share."""
    set_verbosity_error()
    disable_progress_bar()
    pipe = checkpoints.load_pipeline(model, config)
    if not isinstance(pipe, StableDiffusionPipeline):
        raise checkpoints.ModelError(
            f"model: {model!r} is a {type(pipe).__name__}; the peers are compared on SD 1.x and 2.x: choose such a "
            "checkpoint"
        )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- the methods -----------------------------------------------------------------------------------------


def sample(pipe: StableDiffusionPipeline, job: Job) -> torch.Tensor:
    """The latents of a clip (frames, channels, height, width)."""
    return {"ddim": _ddim, "text2video-zero": _text2video_zero, "zs2": _zs2}[job.method](pipe, job)


def _zs2(pipe, job: Job) -> torch.Tensor:
    settings = Settings(frames=job.frames, **dict(job.settings))
    return host.sample_latents(pipe, job.prompt, settings, job.seed, steps=job.steps, guidance=job.guidance)


def _ddim(pipe, job: Job) -> torch.Tensor:
    """Independent pictures of one prompt as one batch; the first is frame 1 of ZS² with that seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in frame_seeds(job.seed, job.frames)]
    return pipe(
        job.prompt,
        num_images_per_prompt=job.frames,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        generator=generators,
        output_type="latent",
    ).images


def _text2video_zero(pipe, job: Job) -> torch.Tensor:
    """`diffusers`' Text2Video-Zero with the same checkpoint, scheduler and steps; it adds nothing to the prompt."""
    if job.guidance <= 1:
        raise ValueError(
            f"guidance: {job.guidance} is not possible; Text2Video-Zero samples with guidance alone: give more than 1"
        )
    t0, t1 = text2video_zero_times(job.steps)
    with text2video_zero(pipe) as peer:
        return peer(
            job.prompt,
            video_length=job.frames,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
            generator=torch.Generator().manual_seed(job.seed),
            t0=t0,
            t1=t1,
            output_type="latent",
        ).images


@contextlib.contextmanager
def text2video_zero(pipe) -> Iterator[TextToVideoZeroPipeline]:
    """The peer on the checkpoint's own modules, whose attention is as before afterwards."""
    processors = pipe.unet.attn_processors
    try:
        modules = pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, copy.deepcopy(pipe.scheduler)
        peer = TextToVideoZeroPipeline(*modules, None, None, requires_safety_checker=False)
        peer.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's words to the peer's programmers
            yield peer
    finally:
        pipe.unet.set_attn_processor(processors)


def text2video_zero_times(steps: int) -> tuple[int, int]:
    """(t0, t1) of Text2Video-Zero for so many steps.

    Of its 50 steps, frame 1 takes 5 alone before it is moved (t0 = 44: 45 are left), and all frames go on
    together from where 48 are left (t1 = 47). Both are kept as parts of the whole, at least one step apart.
    """
    if steps < 2:
        raise ValueError(f"steps: {steps} is not possible; Text2Video-Zero needs 2 or more")
    together = round(steps * 48 / 50)
    left = min(round(steps * 45 / 50), together - 1)
    return left - 1, together - 1


@torch.inference_mode()
def decode(pipe, latents: torch.Tensor) -> np.ndarray:
    """The frames (frames, height, width, 3), uint8."""
    pictures = []
    for part in latents.split(DECODED_AT_ONCE):
        image = pipe.vae.decode(part.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor).sample.float()
        pictures.append(((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(pictures)


# --- what is measured of a clip --------------------------------------------------------------------------


def describe(frames: np.ndarray, judge=None) -> dict:
    """The raw numbers of one clip: lists by frame. With a judge also the attributes of each frame."""
    record = {
        "change": metrics.change(frames),
        "drift": metrics.drift(frames),
        "jerk": metrics.jerk(frames),
        "flicker": metrics.flicker(frames),
    }
    if judge is not None:
        record["attributes"] = judge.attributes(frames).tolist()
    return metrics.rounded(record)


class Sampler:
    """Samples clips and describes them, in worker processes of one thread each; each clip is sampled once.

    Unless told how many, there are two, or one on a GPU. Use it as a scope; it starts the workers when they are needed.
    """

    def __init__(self, model: str | None = None, config: str | None = None, workers: int | None = None):
        self.model, self.config = model, config
        self.workers = workers or (1 if torch.cuda.is_available() else 2)
        self.done: dict[Job, dict] = {}
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *exception) -> None:
        self.rest()

    def rest(self) -> None:
        """Ends the workers, so that times can be measured alone."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def __call__(self, jobs: Sequence[Job]) -> list[dict]:
        """What `describe` says of each job's clip."""
        new = [job for job in dict.fromkeys(jobs) if job not in self.done]
        self.done.update(zip(new, self.map(_describe_job, new, "clips")))
        return [self.done[job] for job in jobs]

    def map(self, function: Callable, items: Sequence, what: str) -> list:
        """function(pipe, judge, item) of each item, in the workers; `judge` is None but on the tiny checkpoint.

        Says on the way how many of `what` are done.
        """
        if items and self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, get_context("spawn"), initializer=_start_worker, initargs=(self.model, self.config)
            )
        started, results = time.monotonic(), []
        with started_with(KEEPING):
            done = self._pool.map(_in_worker, [function] * len(items), items) if items else ()
        for result in done:
            results.append(result)
            if len(results) % 10 == 0 or len(results) == len(items):
                print(f"  {len(results)} of {len(items)} {what}, {time.monotonic() - started:.0f} s", flush=True)
        return results


_worker: tuple = ()


def _start_worker(model: str | None, config: str | None) -> None:
    global _worker
    torch.set_num_threads(1)
    pipe = load(model, config)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)  # the same pictures, a tenth sooner
    _worker = pipe, load_judge() if model is None else None


def _in_worker(function: Callable, item):
    return function(*_worker, item)


def _describe_job(pipe, judge, job: Job) -> dict:
    return describe(decode(pipe, sample(pipe, job)), judge)
