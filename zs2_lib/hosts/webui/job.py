"""One generation of clips in a WebUI: what changes on the processing object `p`, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from modules import images, processing, shared
from PIL import Image

from zs2_lib.core.clip import Clip
from zs2_lib.hosts.undo import override, unwrapped_copy, wrap
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import STOPPED
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import foreign, host, nesting, options, preflight, sampling, selected
from .clips import Clips
from .edit import SourceVideo, edit
from .kept_clip import KeptClip
from .limits import check_frames
from .live import Live
from .names import fitting, frame_name
from .prompts import PromptTravel
from .seam import ControlUnits
from .segments import Segments

LORA_NOTE = (
    "LoRA weights change over the frames: each UNet pass held one frame, for which they were merged anew; "
    "that takes longer."
)
ANCHORS_NOTE = "Anchor stride {stride} was not used: {reason}."
WHOLE_NOTE = (
    "Each UNet pass held all frames, not {frames}: another extension's {others} works on attention, and may count on "
    "them."
)
REPLACED_NOTE = (
    "Each UNet pass held all frames: {others} stands in the place of self-attention. Where it lets the pictures of a "
    "batch look at each other, frame 1 is not the still."
)
TOKEN_MERGING_NOTE = "Token merging was off for this clip: it merges other tokens in each frame."

_open_jobs: list[Job] = []


def begin(p, settings: Settings) -> None:
    """Begins the job of `p`, if `settings` ask for clips; to be called first in a run of the host's `process_images`.

    Ends what is left of an earlier run of `p`, or of a generation that an error cut short; not a job that this one runs
    inside of, in which nothing is a clip. Raises SettingsError.
    """
    for job in [job for job in _open_jobs if job.began != shared.state.time_start]:
        job.end()
    if earlier := of(p):
        earlier.end()
    p.zs2_job = None
    if any(of(outer) for outer in nesting.being_processed() if outer is not p):
        unwrapped_copy(p)
        return
    # the gallery's upscale button runs hires.fix on a single image that is there
    if settings.enabled and getattr(p, "firstpass_image", None) is None:
        p.zs2_job = Job(p, settings)
        p.zs2_job.before_process()


def of(p) -> Job | None:
    """The job that was begun on `p`, if any; a copy of `p`, as other extensions make, has none."""
    job = vars(p).get("zs2_job")
    return job if job is not None and job.p is p else None


class Job:
    """The clips of one run of the host's `process_images`; kept on the processing object `p` as `p.zs2_job`.

    The methods are called from the script's callbacks of about the same names, in this order.
    """

    def __init__(self, p, settings: Settings):
        self.p = p
        self.began = shared.state.time_start
        self.settings = settings
        self.request = selected.of(p)
        self.source: SourceVideo | None = None
        self.control: ControlUnits | None = None
        self.clips: Clips | None = None
        self.kept: KeptClip | None = None
        self.travel: PromptTravel | None = None
        self.sampling: sampling.ClipSampling | None = None
        self.live: Live | None = None
        self._undo = ExitStack()

    # --- before sampling ---------------------------------------------------------------------------------------------

    def before_process(self) -> None:
        """Makes each batch one clip. Raises SettingsError if the job's input does not fit."""
        with self._ended_by_errors():
            self._begin()

    def process(self) -> None:
        """All frames of a clip have one seed: clip n that which the host gives to image n."""
        with self._ended_by_errors():
            self._prepare()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise

    def _begin(self) -> None:
        p = self.p
        _open_jobs.append(self)
        self._undo.callback(_open_jobs.remove, self)
        wrap(self._undo, p, "close", self._end_and_close)  # which the host calls after an error as well
        selected.check_init_images(p, self.settings)
        if self.settings.preflight:
            self.settings = preflight.begin(p, self.settings, self._undo, self.note)
        if self.settings.source:
            self._open_source()
        else:
            self._check_init_images()
        check_frames(self.settings.length, "give fewer frames")
        self._take_control_units()
        if self.settings.kept_clip:
            self.kept = KeptClip(self.settings, self._undo, p.is_api, self.note)
        self.segments = Segments(p, self.settings, self._needs_all_frames())
        self.clips = Clips(p, self.settings, self.segments, self.source, self.request, self.note)
        self.live = Live(p, self.segments, self.settings.preflight)
        self._undo.callback(self.live.end)

        frames = self.settings.length
        for note in self.settings.notes + options.notes():
            self.note(note)
        if p.batch_size > 1:
            self.note(
                f"Batch size {p.batch_size} was not used: a batch is one clip of {frames} frames. Batch count makes "
                "more clips."
            )
        self._switch_off_token_merging()

        for name in ("prompt", "negative_prompt"):
            prompts = getattr(p, name)
            if isinstance(prompts, list):  # of a script, such as Prompt matrix: a clip for each
                override(self._undo, p, "n_iter", len(prompts))
                override(self._undo, p, name, self.segments.repeated(prompts))
        override(self._undo, p, "batch_size", self.segments.size)
        override(self._undo, p, "n_iter", p.n_iter * self.segments.of_clip)
        override(self._undo, p, "do_not_save_grid", True)
        wrap(self._undo, images.FilenameGenerator, "apply", partial(fitting, p.outpath_samples))

    def _needs_all_frames(self) -> str | None:
        """What needs all frames of the clip in one batch, if anything does."""
        if self.settings.closed:
            return "the noise of a loop is drawn as a whole"
        if self.control:
            return "ControlNet units are given the images of all frames"
        for sampler in (self.p.sampler_name, getattr(self.p, "hr_sampler_name", None)):
            if sampler and "adaptive" in sampler.lower():
                return f"the sampler {sampler} chooses its steps by the first frame"
        return None

    def _check_init_images(self) -> None:
        p, kept, frames = self.p, self.settings.frames, self.settings.length
        images = getattr(p, "init_images", None) or []
        if len(images) in (0, 1, frames):
            return
        if len(images) == kept:  # in-betweens begin with what the kept frame before them does
            steps = self.settings.in_betweens
            override(self._undo, p, "init_images", [images[frame // steps] for frame in range(frames)])
            return
        if any(image is not images[0] for image in images):
            raise SettingsError(
                f"frames: {frames} does not fit {len(images)} init images; give one init image, or one for each frame"
            )
        override(self._undo, p, "init_images", images[:1])  # the Batch tab repeats it for a batch

    def _open_source(self) -> None:
        """Opens the source, which decides the frames and the rate that the settings leave to it; img2img edits its
        frames.
        """
        p = self.p
        self.source = SourceVideo(self.settings, self._undo, p.is_api)
        self.settings = self.source.settings
        for note in self.source.notes:
            self.note(note)
        p.extra_generation_params["ZS2 source"] = self.source.name
        if isinstance(p, processing.StableDiffusionProcessingImg2Img):
            edit(p, self.source, self._undo, lambda: self.segments.device_of_all)

    def _take_control_units(self) -> None:
        """Gives each frame its own control images. In txt2img only they can use a source."""
        p, settings = self.p, self.settings
        maps = not (p.is_api or self.request.script)  # which take the pictures for the frames
        self.control = host.control_units(p, settings, self.source, self._undo, self.note, maps)
        if self.source and not isinstance(p, processing.StableDiffusionProcessingImg2Img):
            if settings.mask:
                raise SettingsError(
                    "mask: a mask video is not allowed in txt2img; send it to img2img, which edits the source's frames"
                )
            if not (self.control and self.control.use_source):
                raise SettingsError(
                    f"source: {settings.source[:100]!r} is not used: in txt2img it can only be the control images of a "
                    "ControlNet unit; enable a unit without an image of its own, or send the source to img2img, which "
                    "edits its frames"
                )

    def _switch_off_token_merging(self) -> None:
        def no_merging(ratio: Callable, for_hr: bool = False) -> float:
            if ratio(for_hr=for_hr):
                self.note(TOKEN_MERGING_NOTE)
            return 0.0

        wrap(self._undo, self.p, "get_token_merging_ratio", no_merging)

    def _prepare(self) -> None:
        p, settings, self.adapter = self.p, self.settings, host.adapter_of(self.p)
        if settings.length > 1:
            sampling.check_model(self.adapter)
        clips = self.segments.clips
        p.all_seeds = self.segments.repeated(p.all_seeds[:clips])
        p.all_subseeds = self.segments.repeated(p.all_subseeds[:clips])
        p.extra_generation_params.update(recipe.texts(settings))
        if settings.prompts:
            refusals = self.adapter.lora_refusal, self.adapter.weight_refusal
            self.travel = PromptTravel(p, settings.prompts, settings.in_betweens, *refusals)
            self.travel.begin(self._undo)
            for note in self.travel.notes:
                self.note(note)
        if settings.length > 1:
            wrap(self._undo, p, "sample", self._sample)

    def before_process_batch(self) -> None:
        """A batch is a clip, or a segment of it."""
        self.live.batch_done()
        if not self.segments.now.start:
            self.clips.write()  # what a batch before this one left unfinished
            self.p.extra_generation_params.pop(STOPPED, None)
            self.clips.stopped = False
        elif self.clips.stopped:
            self.p.prompts = []  # the host ends the job
            return
        self.segments.begin_batch()
        if self.travel:
            self.travel.first = self.segments.now.start

    # --- sampling ----------------------------------------------------------------------------------------------------

    def _sample(self, sample: Callable, *args, **kwargs):
        """The host's `p.sample` for one clip, or the next segment of it."""
        settings = self._as_the_job_allows(self.settings)
        clip = self.segments.begin_clip(settings, self._undo)
        clip.passes.latents_per_pass = options.latents_per_pass()
        how = self.live, settings.control_momentum, self.travel, self.control
        self.live.sampling(clip)
        try:
            with sampling.ClipSampling(self.p, self.adapter, clip, *how) as self.sampling:
                samples = sample(*args, **kwargs)
                self.sampling.check()
            self.clips.stopped = shared.state.interrupted or shared.state.skipped
            if self.clips.stopped:
                self.p.extra_generation_params[STOPPED] = "before the end"
            if reduced_to := self.sampling.clip.passes.reduced_to:
                self.note(f"Memory ran out: the clip went on with {reduced_to} frames per UNet pass.")
            if others := self.sampling.others:
                self._note_on_others(others, self.sampling.clip)
            return samples
        finally:
            self.sampling = None

    def _note_on_others(self, others: Path, clip: Clip) -> None:
        if foreign.is_known(others):  # the host's own, which it replaces attention with
            self.note(REPLACED_NOTE.format(others=others.name))
        elif clip.passes.exceeded:
            self.note(WHOLE_NOTE.format(others=others.name, frames=clip.passes.exceeded))
        if not clip.anchors.is_identity:
            reason = f"{others.name} works on attention, and may count on all frames"
            self.note(ANCHORS_NOTE.format(stride=clip.anchors.stride, reason=reason))

    def _as_the_job_allows(self, settings: Settings) -> Settings:
        """Passes of one frame where LoRA weights change, and no anchors there, or where a ControlNet unit has to see
        all frames.
        """
        reason = None
        if self.travel and self.travel.weights_change:
            self.note(LORA_NOTE)
            settings = replace(settings, frames_per_pass=1)
            reason = "LoRA weights that change need every frame computed by itself"
        if self.control:
            self.control.check()
            if self.control.need_all_frames:
                reason = "a reference or IP-Adapter unit needs all frames"
        if settings.anchor_stride > 1 and reason:
            self.note(ANCHORS_NOTE.format(stride=settings.anchor_stride, reason=reason))
            settings = replace(settings, anchor_stride=1)
        return settings

    # --- after sampling ----------------------------------------------------------------------------------------------

    def mask_frame(self, overlay) -> None:
        """Lays frame `overlay.index` over the source with its own mask, if it has one and no other script has set
        another.
        """
        masks = vars(self.p).get("zs2_masks")
        if masks and overlay.mask_for_overlay is self.p.mask_for_overlay:
            overlay.mask_for_overlay = masks[self.segments.now.start + overlay.index]

    def name_frame(self, saved) -> None:
        """Gives a picture of a frame, which the host saves next as `saved.filename`, a name of its own."""
        if self in _open_jobs and self.settings.length > 1:
            saved.filename = frame_name(saved.filename, self.segments.now.start + self.p.batch_index + 1)

    def add_frame(self, image: Image.Image) -> None:
        """Takes a finished frame."""
        if self.kept and not self.segments.number:
            self.kept.take_over(self.clips.taken, self.p.all_seeds[0], image)
        self.clips.add_frame(image)

    def postprocess(self, processed) -> None:
        """Puts the clips into the result, and leaves `p` as it was."""
        self._write_unfinished()
        self.live.batch_done()
        if self.kept and not self.clips.stopped:
            self.kept.end()
        self.clips.leave_out(processed)
        self.end()
        self.request.put_into(processed, self.clips.written)
        processed.comments = "".join(f"{comment}\n" for comment in self.p.comments)

    def end(self) -> None:
        """Undoes what this job changed on `p`, for scripts that use it again, and on other extensions; the segments
        that are finished of a clip whose next one failed become a clip.
        """
        if self.clips and self.segments.of_clip > 1:
            self._write_unfinished()
        self._undo.close()

    def _write_unfinished(self) -> None:
        """Writes what there is of a clip; of one of several segments the host may have ended the job between two."""
        if self.clips.unfinished and self.segments.of_clip > 1:
            self.clips.stopped = True
            self.p.extra_generation_params[STOPPED] = "before the end"
        self.clips.write()

    def _end_and_close(self, close: Callable[[], None]) -> None:
        if self.p in nesting.being_processed():  # the host closes it afterwards: another extension closes a copy
            return
        self.end()
        close()

    def note(self, text: str) -> None:
        """Tells the user something, once: under the image, and in `info` of the API's answer."""
        self.request.note(self.p, text)
