"""One generation of clips in a WebUI: what changes on the processing object, and what becomes of its images."""

from __future__ import annotations

import base64
import itertools
import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from modules import images, processing, shared
from modules.shared import opts
from PIL import Image

from zs2_lib.hosts.undo import override
from zs2_lib.media import write as video
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from . import a1111
from . import edit as source_video
from .a1111_controlnet import ControlUnits
from .prompts import PromptTravel

log = logging.getLogger(__name__)

FOLDER = "zs2-videos"
"""Folder of the clips, in the host's output directory of the tab."""
PLAYABLE = (".webp", ".gif", ".apng")
"""Files that the host's gallery, which draws <img>, plays."""
AUDIBLE = ("mp4", "webm")
"""Formats that hold sound."""

LORA_NOTE = "LoRA weights change over the frames: each UNet pass held one frame, for which they were merged anew; that takes longer."
ANCHORS_NOTE = "Anchor stride {stride} was not used: {reason}."
TOKEN_MERGING_NOTE = "Token merging was off for this clip: it merges other tokens in each frame."


@contextmanager
def errors_stop(p):
    """An error inside stops the job with its message; the API answers wrong settings with status 422.

    The host prints and forgets what a script's callback raises, so the error is raised by the first of `p`'s
    methods that the host calls outside of a callback. The job that `p` has ends at once.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SettingsError):
            error.status_code, error.detail = 422, str(error)
        if job := vars(p).get("zs2_job"):
            job.end()

        def stop(*args, _error=error, **kwargs):
            raise _error

        p.setup_prompts = p.init = p.sample = stop


_open_jobs: list[Job] = []


def end_jobs_of_before() -> None:
    """Ends what is left of an earlier generation that an error cut short; not a job that this one runs inside of."""
    for job in [job for job in _open_jobs if job.began != shared.state.time_start]:
        job.end()


def applies_to(p) -> bool:
    """Whether `p` makes images; the gallery's upscale button runs hires.fix on a single one that is there."""
    return getattr(p, "firstpass_image", None) is None


class Job:
    """The clips of one run of the host's `process_images`; kept on the processing object `p` as `p.zs2_job`.

    The methods are called from the script's callbacks of about the same names, in this order.
    """

    def __init__(self, p, settings: Settings):
        self.p = p
        self.began = shared.state.time_start
        self.settings = settings
        self.images: list = []
        self.clips: list[Clip] = []
        self.notes: list[str] = []
        self.failed = False
        self.source: source_video.SourceVideo | None = None
        self.control: ControlUnits | None = None
        self.travel = PromptTravel(p, settings.prompts) if settings.prompts else None
        self._undo = ExitStack()
        # a script that was selected as well (X/Y/Z plot) works on the result and needs images there
        self.as_base64 = p.is_api and p.script_args[0] in (0, None, "None")
        self.frames_only = self.as_base64 and settings.returns == "frames"

    # --- before sampling -----------------------------------------------------------------------------------

    def before_process(self) -> None:
        """Makes each batch one clip. Raises SettingsError if the job's input does not fit."""
        p = self.p
        _open_jobs.append(self)
        self._undo.callback(_open_jobs.remove, self)
        override(self._undo, p, "close", self._end_and_close(p.close))  # which the host calls after an error as well
        init_images = len(getattr(p, "init_images", None) or [])
        if self.settings.source:
            self._open_source()
        elif init_images > 1 and init_images != self.settings.frames:
            raise SettingsError(
                f"frames: {self.settings.frames} does not fit {init_images} init images; give one init image, or one for each frame"
            )

        self._take_control_units()

        frames = self.settings.frames
        for note in self.settings.notes:
            self.note(note)
        if p.batch_size > 1:
            self.note(
                f"Batch size {p.batch_size} was not used: a batch is one clip of {frames} frames. Batch count makes more clips."
            )
        self._switch_off_token_merging()

        if isinstance(p.prompt, list):  # of a script, such as Prompt matrix: a clip for each
            p.n_iter = len(p.prompt)
            p.prompt = _repeat(p.prompt, frames)
        override(self._undo, p, "batch_size", frames)
        override(self._undo, p, "do_not_save_grid", True)

    def _open_source(self) -> None:
        """Opens the source, which decides the frames and the rate that the settings leave to it; img2img edits its frames."""
        p = self.p
        self.source = source_video.SourceVideo(self.settings, self._undo, p.is_api)
        self.settings = self.source.settings
        for note in self.source.notes:
            self.note(note)
        p.extra_generation_params["ZS2 source"] = self.source.name
        if isinstance(p, processing.StableDiffusionProcessingImg2Img):
            source_video.edit(p, self.source, self._undo)

    def _take_control_units(self) -> None:
        """Gives each frame its own control images. In txt2img only they can use a source."""
        p, settings = self.p, self.settings
        with_maps = not self.as_base64  # the API's answer holds the clip alone
        self.control = ControlUnits.of(p, settings, self.source, self._undo, self.note, with_maps)
        if self.source and not isinstance(p, processing.StableDiffusionProcessingImg2Img):
            if settings.mask:
                raise SettingsError(
                    "mask: a mask video is not allowed in txt2img; send it to img2img, which edits the source's frames"
                )
            if not (self.control and self.control.use_source):
                raise SettingsError(
                    f"source: {settings.source[:100]!r} is not used: in txt2img it can only be the control images of a ControlNet unit; "
                    "enable a unit without an image of its own, or send the source to img2img, which edits its frames"
                )

    def _switch_off_token_merging(self) -> None:
        ratio = self.p.get_token_merging_ratio

        def no_merging(for_hr=False) -> float:
            if ratio(for_hr=for_hr):
                self.note(TOKEN_MERGING_NOTE)
            return 0.0

        override(self._undo, self.p, "get_token_merging_ratio", no_merging)

    def process(self) -> None:
        """All frames of a clip have one seed: clip n that which the host gives to image n."""
        p, settings = self.p, self.settings
        p.all_seeds = _repeat(p.all_seeds[: p.n_iter], settings.frames)
        p.all_subseeds = _repeat(p.all_subseeds[: p.n_iter], settings.frames)
        p.extra_generation_params.update(recipe.texts(settings))
        if self.travel:
            self.travel.begin(self._undo)
        if settings.frames == 1:
            return

        sample = p.sample

        def sample_clip(*args, **kwargs):
            if p.zs2_job is not self:  # called by another extension's wrapper that outlived this job
                return sample(*args, **kwargs)
            with a1111.ClipSampling(p, self._as_the_job_allows(settings), self.travel, self.control) as sampling:
                samples = sample(*args, **kwargs)
            if sampling.passes.reduced_to:
                self.note(f"Memory ran out: the clip went on with {sampling.passes.reduced_to} frames per UNet pass.")
            return samples

        self._undo.callback(self._unwrap_sample, sample_clip, vars(p).get("sample"))
        p.sample = sample_clip

    def _as_the_job_allows(self, settings: Settings) -> Settings:
        """Passes of one frame where LoRA weights change, and no anchors there, or where a ControlNet unit has to see all frames."""
        reason = None
        if self.travel and self.travel.weights_change:
            self.note(LORA_NOTE)
            settings, reason = (
                replace(settings, frames_per_pass=1),
                "LoRA weights that change need every frame computed by itself",
            )
        if self.control:
            self.control.check()
            if self.control.need_all_frames:
                reason = "a reference or IP-Adapter unit needs all frames"
        if settings.anchor_stride > 1 and reason:
            self.note(ANCHORS_NOTE.format(stride=settings.anchor_stride, reason=reason))
            settings = replace(settings, anchor_stride=1)
        return settings

    def _unwrap_sample(self, sample_clip, before) -> None:
        """Takes `sample_clip` off `p` where it still is; another extension may have wrapped or replaced it since."""
        if vars(self.p).get("sample") is not sample_clip:
            return
        del self.p.sample
        if before is not None:
            self.p.sample = before

    def before_process_batch(self) -> None:
        """All frames of a clip have one prompt, also where another extension made it up for each image."""
        p, frames = self.p, self.settings.frames
        self.write_clip()  # what a batch before this one left unfinished
        clip = slice(p.iteration * frames, (p.iteration + 1) * frames)
        for name in ("all_prompts", "all_negative_prompts", "all_hr_prompts", "all_hr_negative_prompts"):
            prompts = getattr(p, name, None)
            if prompts:
                prompts[clip] = [prompts[clip.start]] * frames
        p.prompts, p.negative_prompts = p.all_prompts[clip], p.all_negative_prompts[clip]

    # --- after sampling --------------------------------------------------------------------------------------

    def mask_frame(self, overlay) -> None:
        """Lays frame `overlay.index` over the source with its own mask, if it has one and no other script has set another."""
        masks = vars(self.p).get("zs2_masks")
        if masks and overlay.mask_for_overlay is self.p.mask_for_overlay:
            overlay.mask_for_overlay = masks[overlay.index]

    def add_frame(self, image) -> None:
        """Takes a finished frame, a PIL image; writes the clip when it was the last."""
        self.images.append(image)
        if len(self.images) == self.settings.frames:
            self.write_clip()

    def write_clip(self) -> None:
        """Writes the clip of the frames taken so far in every format; what fails is noted, the frames are kept."""
        frames, self.images = self.images, []
        if not frames or (self.frames_only and not self.p.save_samples()):
            return
        clip = Clip(frames[0], _infotext(self.p))
        try:
            target = self._target(frames[0])
        except Exception as error:
            self._note_failure("The clip", error)
            return
        self.clips.append(clip)
        for format in self.settings.formats:
            if file := self._write(clip, frames, target, format):
                clip.files.append(file)
        clip.playable = next((file for file in clip.files if file.suffix in PLAYABLE), None)
        if not self.as_base64:
            if clip.files:
                self.p.comment("ZS²: saved " + ", ".join(map(str, clip.files)))
            if clip.playable is None:  # the gallery plays no mp4 and webm
                preview = Path(tempfile.mkdtemp(prefix="zs2-", dir=opts.temp_dir or None), "preview")
                clip.playable = self._write(clip, frames, preview, "webp")

    def _write(self, clip: Clip, frames: list, target: Path, format: str) -> Path | None:
        text = clip.infotext if opts.enable_pnginfo else None
        try:
            file = video.write_clip(frames, target, format, self.settings.fps, text)
        except Exception as error:
            self._note_failure(f"The clip as {format}", error)
            return None
        if self.settings.source_audio and format in AUDIBLE:
            try:
                self.source.add_sound(file)
            except Exception as error:
                log.error("no sound in %s", file, exc_info=error)
                self.note(f"The clip as {format} has no sound: {error}")
        return file

    def _note_failure(self, what: str, error: Exception) -> None:
        self.failed = True
        log.error("%s could not be written", what, exc_info=error)
        self.note(f"{what} could not be written: {type(error).__name__}: {error}. Its frames are kept.")

    def _target(self, image) -> Path:
        """The clip's path without suffix: a name as the host gives to images, not taken yet."""
        p = self.p
        name = images.FilenameGenerator(p, p.seeds[0], p.prompts[0], image)
        folder = Path(p.outpath_samples, FOLDER)
        if opts.save_to_dirs:
            folder /= name.apply(opts.directories_filename_pattern or "[prompt_words]").lstrip(" ").rstrip("\\ /")
        folder.mkdir(parents=True, exist_ok=True)
        stem = name.apply(
            opts.samples_filename_pattern or ("[seed]" if opts.save_to_dirs else "[seed]-[prompt_spaces]")
        )
        if opts.save_images_add_number or not stem:
            stem = f"{images.get_next_sequence_number(folder, ''):05}-{stem}".rstrip("-")
        return folder / _not_taken(folder, stem)

    def postprocess(self, processed) -> None:
        """Puts the clips before the frames in the result, and leaves `p` as it was."""
        self.write_clip()
        self.end()
        if self.as_base64:
            items = [(file, clip.infotext) for clip in self.clips for file in clip.base64()]
        else:
            items = [(clip.gallery_item(), clip.infotext) for clip in self.clips if clip.playable]
        if self.frames_only:
            items = []
        if self.as_base64 and self.settings.returns == "video" and not self.failed:
            processed.images, processed.infotexts = [], []
        processed.images[:0] = [item for item, _ in items]
        processed.infotexts[:0] = [infotext for _, infotext in items]
        processed.index_of_first_image += len(items)
        processed.comments = "".join(f"{comment}\n" for comment in self.p.comments)
        if self.notes:
            processed.extra_generation_params = {**processed.extra_generation_params, "ZS2 notes": " ".join(self.notes)}

    def end(self) -> None:
        """Undoes what this job changed on `p`, for scripts that use it again, and on other extensions."""
        self._undo.close()

    def _end_and_close(self, close) -> Callable[[], None]:
        def end_and_close() -> None:
            self.end()
            close()

        return end_and_close

    def note(self, text: str) -> None:
        """Tells the user something, once: under the image, and in `info` of the API's answer."""
        if text not in self.notes:
            self.notes.append(text)
            self.p.comment("ZS²: " + text)


@dataclass
class Clip:
    """A written clip: its first frame, its infotext, the file (for "png" the folder) of each format, and one that plays
    in the host's gallery, which draws <img>."""

    first_frame: Image.Image
    infotext: str
    files: list[Path] = field(default_factory=list)
    playable: Path | None = None

    def gallery_item(self) -> Image.Image:
        """An image for the host's results: the first frame, which the gallery shows as the playable file."""
        item = self.first_frame.copy()
        item.already_saved_as = str(self.playable)
        item.info["parameters"] = self.infotext
        return item

    def base64(self) -> list[str]:
        """The files for an answer of the API."""
        return [base64.b64encode(video.clip_bytes(file)).decode() for file in self.files]


def _not_taken(folder: Path, stem: str) -> str:
    """`stem`, with a number if files of that name are there already: a clip is never overwritten."""
    taken = {path.stem for path in folder.iterdir()}
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    return next(name for name in candidates if name not in taken)


def _repeat(values: list, times: int) -> list:
    return [value for value in values for _ in range(times)]


def _infotext(p) -> str:
    return processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=0, all_negative_prompts=p.negative_prompts
    )
