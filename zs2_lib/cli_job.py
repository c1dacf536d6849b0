"""The work of the command line on a clip that is sampled: job in, files out."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from zs2_lib import cli_control, cli_edit, cli_upscale
from zs2_lib.cli_models import Models
from zs2_lib.cli_say import Failed, Meter, ModelRefused, say
from zs2_lib.hosts.diffusers.hires import first_size
from zs2_lib.media.formats import FORMATS, clip_path, exact_rate
from zs2_lib.media.on_disk import OnDisk
from zs2_lib.media.resample import interpolated, interpolated_count
from zs2_lib.media.write import write_clip, write_sidecar
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import STOPPED, FinishedClip, Kept, interpolated_to
from zs2_lib.settings.postprocessing import INTERPOLATED_TO
from zs2_lib.settings.table import Settings

TINY = "tiny-sd"
"""The name of the tiny checkpoint in a recipe."""


@dataclass(frozen=True)
class Faster:
    """More frames per second by an interpolator: pictures at `rate` become such at the rate `to`.

    closed: the clip goes on with its first picture after the last one.
    """

    rate: Fraction
    to: Fraction
    interpolator: str
    closed: bool

    def count(self, frames: int) -> int:
        return interpolated_count(frames, self.rate, self.to, self.closed)

    def pictures(self, frames: Iterable[Image.Image]) -> Iterator[Image.Image]:
        return interpolated(frames, self.rate, self.to, self.interpolator, self.closed)


Targets = list[tuple[Path, str]]
"""Each file's path without suffix, and its format."""


@dataclass(frozen=True)
class Job:
    """One clip to be sampled, checked: what it is made with, and the files that it becomes."""

    prompt: str
    negative: str
    model: str | None
    config: str | None
    settings: Settings
    targets: Targets
    size: tuple[int | None, int | None]
    """Width and height in pixels; None for the model's own."""
    seed: int
    steps: int
    cfg: float
    faster: Faster | None
    notes: Sequence[str]
    kept: Kept | None
    """The pictures of the clip that it goes on from."""
    models: Models
    """What samples it, beside the checkpoint."""
    edit: cli_edit.Edit | None = None
    """What its frames are made of, beside the prompt."""
    control: tuple[cli_control.Unit, ...] = ()
    hires: cli_upscale.Hires | None = None
    """Its second pass."""
    upscale: cli_upscale.Larger | None = None
    """What makes its finished frames larger."""

    @property
    def rate(self) -> Fraction:
        """Frames per second of the files."""
        return self.faster.to if self.faster else exact_rate(self.settings.rate)

    @property
    def stopped(self) -> Job:
        """The same job for the frames that there are: its files' names say that it was stopped."""
        targets = [(path.with_name(f"{path.name}-stopped"), format) for path, format in self.targets]
        return replace(self, targets=targets, faster=self.faster and replace(self.faster, closed=False))

    def count(self, frames: int) -> int:
        """Frames of the files, of which so many were sampled."""
        played = len(self.settings.played(range(frames)))
        return self.faster.count(played) if self.faster else played


def model_name(path: str | None) -> str:
    """What a recipe calls the model."""
    return Path(path).name.removesuffix(".safetensors") if path else TINY


def load(job: Job):
    """The pipeline. Refuses a model that cannot be loaded or that ZS² cannot sample with."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' words to their programmers
    # imported here: they take seconds, which wrong values need not wait for, and they read the environment above
    from diffusers.utils.logging import disable_progress_bar

    from zs2_lib.hosts.diffusers import adapters, checkpoints, control, devices, editing, prompts, samplers

    disable_progress_bar()
    if job.model is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # of so small a model threads mostly wait for each other, on a busy machine for minutes
    models = job.models
    try:
        pipe = checkpoints.load_pipeline(
            job.model, job.config, *devices.first(models.device, models.dtype, models.offload)
        )
        adapters.put(pipe, [adapters.Lora(*lora) for lora in models.loras], models.embeddings, models.vae)
        if job.control:
            pipe = control.with_controls(pipe, [unit.model for unit in job.control])
        if job.edit:
            pipe = of_host(job.edit).pipeline(pipe)
        else:
            editing.check_without_pictures(pipe)
        with samplers.using(pipe, models.sampler, models.schedule), adapters.clip_skip(pipe, models.clip_skip):
            checkpoints.check_pipeline(pipe)
        prompts.check_parts(pipe, job.prompt, job.settings.prompts)
        if models.offload:
            devices.offload(pipe, models.device, models.offload)
        if models.compiled:
            devices.compile_parts(pipe)
    except ValueError as error:
        raise ModelRefused(error) from None
    return pipe


def check_edit(pipe, job: Job) -> None:
    """Refuses an edit that a loaded pipeline of its kind cannot make."""
    try:
        of_host(job.edit).check(pipe)
    except ValueError as error:
        raise ModelRefused(error) from None


def of_host(edit: cli_edit.Edit):
    """The same as the host takes it."""
    from zs2_lib.hosts.diffusers.editing import Editing  # see `load`

    masks = read_or_fail(edit.masks) if edit.masks else None
    return Editing(read_or_fail(edit.pictures), edit.size, masks, edit.strength, edit.image_guidance)


def read_or_fail(pictures: Callable) -> Callable:
    """The function that reads pictures of files; one that is found to be damaged ends the program in words."""

    def read(*which):
        try:
            return pictures(*which)
        except ValueError as error:
            raise Failed(error) from error

    return read


class Hands:
    """Who decodes a clip's frames and writes its files: this process, one after the other. A batch has others."""

    def pictures(self, pipe, job: Job, segments: Iterator[torch.Tensor]) -> Iterator[Image.Image]:
        """The pictures of the latents of each segment, in their order."""
        for latents in segments:
            yield from pictures_of(pipe, job, latents)

    def files(self, clips: Sequence[tuple]) -> Iterator[Path]:
        """The files of these clips, each the arguments of `write_clip`."""
        for clip in clips:
            yield write_clip(*clip)


ALONE = Hands()


def pictures_of(pipe, job: Job, latents: torch.Tensor) -> Iterator[Image.Image]:
    """All that is made of latents (frames, channels, height / 8, width / 8) frame by frame, each by itself."""
    from zs2_lib.hosts.diffusers import sampling as host  # see `load`

    pictures = host.decode_frames(pipe, latents)
    if job.upscale and not job.kept:  # whose pictures take the place of others first
        return map(upscaler(pipe, job), pictures)
    return pictures


def upscaler(pipe, job: Job) -> Callable[[Image.Image], Image.Image]:
    """What makes finished frames larger."""
    return _opened(job.upscale, pipe._execution_device, pipe.unet.dtype)


@lru_cache(maxsize=1)
def _opened(upscale: cli_upscale.Larger, device: torch.device, dtype: torch.dtype):
    return upscale.open(device, dtype)


def make(pipe, job: Job, hands: Hands = ALONE) -> None:
    """Samples the clip and writes its files."""
    sampler, models = type(pipe.scheduler).__name__.removesuffix("Scheduler"), job.models
    if models.expected and models.expected.lower() != sampler.lower():
        say(f"the recipe's sampler is {models.expected}, here it is the checkpoint's own, {sampler}")
    more = {**of_host(job.edit).texts(pipe), **job.edit.texts} if job.edit else {}
    more |= {"Size": "x".join(map(str, first_size(pipe, *job.size)))} if job.hires or job.upscale else {}
    write(sample(pipe, job, hands), job, sampler, more, hands)


def sample(pipe, job: Job, hands: Hands = ALONE) -> Iterator[Image.Image]:
    """The frames, sampled segment by segment; each is decoded when it is asked for."""
    from zs2_lib.hosts.diffusers import adapters, control, samplers  # see `load`
    from zs2_lib.hosts.diffusers import sampling as host

    models = job.models
    if models.clip_skip > 1 and not adapters.clip_skip_counts(pipe):
        say(f"clip skip {models.clip_skip} changes nothing with this checkpoint, as in the WebUI")
    try:
        hires = job.hires.of_host(pipe) if job.hires else None
        larger = upscaler(pipe, job) if job.upscale else None
    except ValueError as error:
        raise ModelRefused(error) from None
    with (
        samplers.using(pipe, models.sampler, models.schedule),
        adapters.clip_skip(pipe, models.clip_skip),
        Meter() as meter,
    ):

        def show(progress: host.Progress) -> None:
            first, last = progress.frames
            words = f"{'hires ' * progress.hires}step {progress.step}/{progress.steps}, frames {first}-{last}"
            about = {"step": progress.step, "steps": progress.steps, "frames": progress.frames}
            meter.show(progress.done, words, **about, **({"hires": progress.hires} if hires else {}))

        segments = host.sample_segments(
            pipe,
            job.prompt,
            job.settings,
            job.seed,
            negative_prompt=job.negative or None,
            steps=job.steps,
            guidance=job.cfg,
            editing=of_host(job.edit) if job.edit else None,
            progress=show,
            rng=models.rng,
            hires=hires,
            **({} if job.edit else {"width": job.size[0], "height": job.size[1]}),
            control=[
                control.Unit(read_or_fail(unit.pictures), unit.weight, unit.start, unit.end) for unit in job.control
            ],
        )
        for number, frame in enumerate(hands.pictures(pipe, job, segments), 1):
            meter.decoded(number, job.settings.length)
            if job.kept:
                job.kept.take_over(number - 1, frame)
            yield larger(frame) if larger and job.kept else frame
    for note in job.kept.notes if job.kept else ():
        say(note)


def write(
    frames: Iterable[Image.Image], job: Job, sampler: str, more: Mapping[str, object], hands: Hands = ALONE
) -> None:
    """Writes the files, with the generation parameters in them, `more` of them by key, and says where they are. Ctrl-C
    leaves the frames that are finished in files that say so.
    """
    frames = iter(frames)
    first = next(frames)
    with on_disk(itertools.chain([first], frames), job.targets[0][0], stoppable=True) as kept:
        if stopped := len(kept) < job.settings.length:
            job = job.stopped
            say(f"interrupted: the {len(kept)} finished frames become the files; again, they stay as they are")
        lacking = f"{len(kept)} of {job.settings.length} frames" if stopped else None
        more = {**more, STOPPED: "before the end"} if stopped else more
        try:
            write_files(kept, job, sampler, more, hands)
        except KeyboardInterrupt:
            if stopped or not job.faster:
                raise
            say("interrupted: the frames that were sampled become the files, without those between")
            write_files(kept, replace(job.stopped, faster=None), sampler, more, hands)
            lacking = "no frames between"
    if lacking:
        raise KeyboardInterrupt(f"interrupted; the files have {lacking}")


def write_files(kept: OnDisk, job: Job, sampler: str, about: Mapping[str, object], hands: Hands) -> None:
    """The files of these frames; `about` is what else their text says."""
    size, count = "x".join(map(str, kept[0].size)), job.count(len(kept))
    values = {
        "Steps": job.steps,
        **job.models.values(sampler),
        "CFG scale": f"{job.cfg:g}",
        "Seed": job.seed,
        "Size": size,
        "Model": model_name(job.model),
        **cli_control.recipe_values(job.control),
        **(job.hires.texts if job.hires else {}),
        **recipe.texts(job.settings),
        **(job.upscale.texts if job.upscale else {}),
        **({INTERPOLATED_TO: interpolated_to(count, job.rate)} if job.faster else {}),
        **about,
    }
    text = recipe.parameters(job.prompt + job.models.tags, job.negative, values)
    frames = job.settings.played(kept)
    with ExitStack() as scope:
        if job.faster:
            frames = in_between(scope, frames, job.faster, job.targets, count)
        clips = [(frames, target, format, job.rate, text) for target, format in job.targets]
        for (_, format), file in zip(job.targets, hands.files(clips)):
            if job.settings.source_audio and FORMATS[format].sound:
                add_sound(job.edit, file)
            print(f"{file}: {count} frames of {size}, {float(count / job.rate):.3g} s, seed {job.seed}")
    if job.settings.sidecar:
        write_sidecars(job, count, text)


def add_sound(clip: cli_edit.Edit | FinishedClip, file: Path, *how) -> None:
    """Gives a file the clip's sound, as `how` says, or says why it has none."""
    try:
        clip.add_sound(file, *how)
    except (ValueError, RuntimeError) as error:
        say(f"{file} has no sound: {error}")


def in_between(
    scope: ExitStack, frames: Iterable[Image.Image], faster: Faster, targets: Targets, count: int
) -> Iterable[Image.Image]:
    """`frames` with those in between, `count` of them; where there are several files, they wait on the disk."""

    def shown() -> Iterator[Image.Image]:
        with Meter() as meter:
            for number, frame in enumerate(faster.pictures(frames), 1):
                meter.show(number / count, f"interpolated frame {number} of {count}", interpolated=number, of=count)
                yield frame

    return scope.enter_context(on_disk(shown(), targets[0][0])) if len(targets) > 1 else shown()


def write_sidecars(job: Job, frames: int, text: str) -> None:
    """A JSON file beside each clip; one that cannot be written is said, the clips are there."""
    about = {"infotext": text, "prompt": job.prompt, "negative_prompt": job.negative, "seed": job.seed}
    about |= {"frames": frames, "fps": round(float(job.rate), 3), "settings": recipe.by_key(job.settings)}
    about["host"] = "diffusers"
    for target in dict.fromkeys(target for target, _ in job.targets):
        files = {format: clip_path(path, format).name for path, format in job.targets if path == target}
        try:
            print(write_sidecar(target, {**about, "files": files}))
        except OSError as error:
            say(f"the JSON beside {target} could not be written: {error}")


@contextmanager
def on_disk(frames: Iterable[Image.Image], target: Path, stoppable: bool = False) -> Iterator[OnDisk]:
    """Scope in which the frames are in a folder beside `target`, where they stay if anything fails. `stoppable`: after
    Ctrl-C it goes on with those that there are.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = OnDisk(tempfile.mkdtemp(prefix=f"{target.name}-frames-", dir=target.parent))
    try:
        try:
            for frame in frames:
                kept.append(frame)
        except KeyboardInterrupt:
            if not stoppable or not len(kept):
                raise
        yield kept
    except BaseException:
        if len(kept):
            say(f"the {len(kept)} finished frames are in {kept.folder}")
        else:
            kept.folder.rmdir()
        raise
    shutil.rmtree(kept.folder)
