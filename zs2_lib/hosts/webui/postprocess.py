"""Works on a finished clip: larger frames by an upscaler of the host, more of them by an interpolator, as a new clip.

Frames pass one by one and wait on the disk for their files, so that a clip of any length takes the same memory.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from modules import shared
from modules.call_queue import queue_lock
from modules.shared import opts
from PIL import Image

from zs2_lib.media.formats import check_clip, exact_rate
from zs2_lib.media.on_disk import OnDisk
from zs2_lib.media.pictures import by, rgb_picture
from zs2_lib.media.resample import interpolated, interpolated_count
from zs2_lib.media.text import read_text
from zs2_lib.media.upscalers import STEP, large_size
from zs2_lib.media.write import clip_bytes, write_clip
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import STOPPED, FinishedClip, interpolated_to
from zs2_lib.settings.kinds import SettingsError, nearest
from zs2_lib.settings.postprocessing import (
    INTERPOLATED_TO,
    UPSCALE_FIRST,
    UPSCALED_BY,
    UPSCALER,
    Postprocessing,
    check_interpolator,
)
from zs2_lib.settings.schedule import number_text

from . import options
from .answer import named
from .files import GIVEN, in_words, opened, temporary_folder
from .library import clip_of
from .limits import check_frames, max_source_pixels
from .names import STOPPED as STOPPED_END
from .names import beside, folder_of_result

log = logging.getLogger(__name__)

JOB = "zs2-postprocess"
"""The name of the work in the host's state."""


@dataclass
class Result:
    """What came of it. files: by format, the file (for "png" the folder); none if it was stopped at once."""

    frames: int
    fps: float
    size: tuple[int, int]
    infotext: str
    stopped: bool
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the user should know."""

    def entries(self, with_data: bool) -> list[dict]:
        """What an answer says of it, file by file; `with_data` their base64, for "png" that of a ZIP."""
        about = {"frames": self.frames, "fps": self.fps, "width": self.size[0], "height": self.size[1]}
        seed = recipe.parsed(self.infotext)[2].get("Seed", "")
        about |= {"seed": int(seed)} if seed.isdecimal() else {}
        about |= {"stopped": True} if self.stopped else {}
        return [
            {"path": str(path), **named(path), "format": format, **about}
            | ({"data": base64.b64encode(clip_bytes(path)).decode()} if with_data else {})
            for format, path in self.files.items()
        ]


def postprocess(request: Mapping) -> dict:
    """The answer to a request, whose keys are those of `Postprocessing`: `clips` (as in the `zs2_clips` of a
    generation; with `data` where the clip came as base64), `infotext` and `notes`. Raises SettingsError.
    """
    with ExitStack() as undo:
        work = Work(Postprocessing.from_mapping(request), undo, is_api=True)
        result = work.run()
        return {"clips": result.entries(work.is_given), "infotext": result.infotext, "notes": result.notes}


def upscalers() -> list[str]:
    """The names of the host's upscalers."""
    return [upscaler.name for upscaler in shared.sd_upscalers]


def stop() -> None:
    """Stops the work on a clip that is going on, as the host's Interrupt does."""
    if shared.state.job == JOB:
        shared.state.interrupt()


class Work:
    """What is to be done with a clip; all that can be said against it is said here, by SettingsError.

    undo: closed when the work is done. is_api: whether the clip's path comes from a request.
    """

    count: int
    """Frames that it makes, unless it is stopped."""
    made: int = 0
    """Frames that are finished."""

    def __init__(self, settings: Postprocessing, undo: ExitStack, is_api: bool):
        self.settings, self.undo = settings, undo
        self._upscaler = _upscaler(settings) if settings.upscales else None
        self._path = clip_of(settings.clip, undo, is_api)
        self.is_given = self._path.name == GIVEN.format(key="clip")
        self._source = opened("clip", self._path)
        with in_words("clip"):
            self._clip = FinishedClip(self._source, read_text(self._path))
        self._closed, self._rate = self._clip.closed, self._clip.rate
        self._to = exact_rate(settings.fps) if settings.fps else self._rate * settings.interpolate
        self._formats = settings.formats or (_format_of(self._path),)
        self._check_times()
        self._check_size()
        self._pictures = self._stream()

    def _check_times(self) -> None:
        settings, frames = self.settings, self._source.info.frames
        key = "fps" if settings.fps else "interpolate"
        if self._to < self._rate:
            raise SettingsError(
                f"fps: {settings.fps:g} is not allowed, the clip has {float(self._rate):g} frames per second; give more"
            )
        more = settings.interpolates
        self.count = interpolated_count(frames, self._rate, self._to, self._closed) if more else frames
        check_frames(self.count, "take a shorter clip, or interpolate less", key)
        for format in self._formats:
            try:
                check_clip(format, self._to)
            except ValueError as error:
                raise SettingsError(f"{key}: not allowed with the format {format!r}: {error}") from None

    def _check_size(self) -> None:
        if self._upscaler is None:
            return
        size, scale = self._source.info.size, self.settings.scale
        large, most = large_size(size, scale), max_source_pixels()
        if math.prod(large) > most:
            raise SettingsError(
                f"scale: {scale:g} is not allowed, it makes frames of {by(large)} of those of {by(size)}, and a frame "
                f"may have {most} pixels (--zs2-max-source-pixels of this server); give less"
            )
        if not all(large):
            raise SettingsError(
                f"scale: {scale:g} is not allowed with frames of {by(size)}: the WebUI cuts what it upscales to "
                f"multiples of {STEP} pixels; give more"
            )

    # --- the work ----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Does it, when the host's queue lets it, and writes the files.

        The host's Interrupt ends it with what is finished, which becomes a whole clip with "-stopped" in its name; so
        does an error, which is raised then.
        """
        with queue_lock:
            state = shared.state
            state.begin(JOB)
            try:
                state.job_count, state.sampling_steps = 1, self.count
                frames = OnDisk(temporary_folder(self.undo))
                try:
                    self._make(frames)
                except Exception as error:
                    self._keep(frames, error)
                return self._write(frames)
            finally:
                state.end()

    def _make(self, frames: OnDisk) -> None:
        """Appends the frames until all are there, or the host is told to stop."""
        state = shared.state
        with closing(self._pictures) as pictures:
            for picture in pictures:
                if state.interrupted or state.skipped or state.stopping_generation:
                    return  # an upscaler that was interrupted may have given less than it should
                frames.append(picture)
                state.assign_current_image(picture)
                state.sampling_step = self.made = len(frames)
                state.textinfo = f"ZS²: frame {self.made} of {self.count}"

    def _stream(self) -> Iterator[Image.Image]:
        steps = [self._upscaled] if self._upscaler else []
        if self.settings.interpolates:
            steps.insert(len(steps) if self.settings.order == UPSCALE_FIRST else 0, self._interpolated)
        pictures = (picture for _, picture in self._source.frames())
        for step in steps:
            pictures = step(pictures)
        return pictures

    def _interpolated(self, pictures: Iterator[Image.Image]) -> Iterator[Image.Image]:
        name = self.settings.interpolator
        check_interpolator(name)
        try:
            return interpolated(pictures, self._rate, self._to, name, self._closed)
        except RuntimeError as error:
            raise SettingsError(f"interpolator: {error}") from error

    def _upscaled(self, pictures: Iterator[Image.Image]) -> Iterator[Image.Image]:
        upscaler, scale = self._upscaler, self.settings.scale
        for number, picture in enumerate(pictures, start=1):
            large = rgb_picture(upscaler.scaler.upscale(picture, scale, upscaler.data_path), number)
            if number == 1 and upscaler.data_path:
                _check_upscaled(picture, large, upscaler.name)
            yield large

    def _keep(self, frames: OnDisk, error: Exception) -> None:
        """Writes the frames that were finished before `error`, and raises it."""
        files = {}
        if len(frames):
            with suppress(Exception):  # where the disk is full, which `error` says as well
                files = self._write(frames).files
        if not files:
            raise error
        kept = ", ".join(map(str, files.values()))
        raise RuntimeError(f"{error} (the {len(frames)} frames that were finished are in {kept})") from error

    # --- its files ---------------------------------------------------------------------------------------------------

    def _write(self, frames: OnDisk) -> Result:
        count, stopped = len(frames), len(frames) < self.count
        size = frames[0].size if count else (0, 0)
        result = Result(count, float(self._to), size, self._infotext(count, stopped), stopped)
        if not count:
            result.notes.append("It was stopped before the first frame was finished; nothing was written.")
            return result
        folder, stem = self._place()
        target, first_error = beside(folder, stem, self._end(stopped)), None
        for format in self._formats:
            shared.state.textinfo = f"ZS²: writing {format}"
            try:
                text = result.infotext if opts.enable_pnginfo else None
                quality = options.quality(format)
                result.files[format] = write_clip(frames, target, format, self._to, text, quality=quality)
            except Exception as error:
                log.error("the clip %s could not be written as %s", target, format, exc_info=error)
                result.notes.append(f"The clip as {format} could not be written: {type(error).__name__}: {error}")
                first_error = first_error or error
                continue
            self._add_sound(result, format)
        if not result.files:
            raise first_error
        return result

    def _add_sound(self, result: Result, format: str) -> None:
        """Gives the file the sound of the clip, as long as its frames last."""
        try:
            self._clip.add_sound(result.files[format], format, result.frames, self._to)
        except Exception as error:
            log.error("no sound in %s", result.files[format], exc_info=error)
            result.notes.append(f"The clip as {format} has no sound: {error}")

    def _place(self) -> tuple[Path, str]:
        """The folder of the result, and the beginning of its name."""
        stem = self._path.name if self._path.is_dir() else self._path.stem
        return folder_of_result(self._path), "clip" if self.is_given else stem

    def _end(self, stopped: bool) -> str:
        larger = f"-x{number_text(self.settings.scale)}" if self._upscaler else ""
        more = f"-{number_text(round(float(self._to), 3))}fps" if self.settings.interpolates else ""
        return larger + more + STOPPED_END * stopped

    def _infotext(self, frames: int, stopped: bool) -> str:
        values = {}
        if self._upscaler:
            values = {UPSCALER: self.settings.upscaler, UPSCALED_BY: number_text(self.settings.scale)}
        if self.settings.interpolates:
            values[INTERPOLATED_TO] = interpolated_to(frames, self._to)
        if stopped:
            values[STOPPED] = "before the end"
        return recipe.with_values(self._clip.text, values)


def _upscaler(settings: Postprocessing):
    """The host's upscaler of that name."""
    for upscaler in shared.sd_upscalers:
        if upscaler.name == settings.upscaler:
            return upscaler
    raise SettingsError(
        f"upscaler: {settings.upscaler!r} is not allowed; give one of {', '.join(upscalers())}"
        f"{nearest(settings.upscaler, upscalers())}"
    )


def _check_upscaled(picture: Image.Image, large: Image.Image, name: str) -> None:
    """Raises RuntimeError if an upscaler of a model did nothing: the host then resizes, and says so on its console
    alone.
    """
    flat = all(low == high for low, high in picture.getextrema())
    if not flat and large.tobytes() == picture.resize(large.size, Image.Resampling.LANCZOS).tobytes():
        raise RuntimeError(
            f"the upscaler {name!r} gave back the frame as it was, perhaps because its model could not be loaded: see "
            "the console of the WebUI, or choose another one"
        )


def _format_of(path: Path) -> str:
    """The format of a clip that is there, told from its content; MP4 for what ZS² does not write."""
    if path.is_dir():
        return "png"
    with open(path, "rb") as file:
        head = file.read(12)
    for begins, format in ((b"GIF8", "gif"), (b"\x89PNG", "apng"), (b"RIFF", "webp"), (b"\x1aE\xdf\xa3", "webm")):
        if head.startswith(begins):
            return format
    return "mp4"
