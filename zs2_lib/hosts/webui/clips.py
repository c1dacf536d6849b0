"""The clips of a job: written as soon as their frames are finished, to the folder of clips or for the answer alone."""

from __future__ import annotations

import base64
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from modules import processing
from modules.shared import opts
from PIL import Image

from zs2_lib.media.formats import FORMATS, clip_path
from zs2_lib.media.on_disk import OnDisk
from zs2_lib.media.write import clip_bytes, write_clip, write_sidecar
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

from . import known, options
from .answer import PARALLEL, Clip, Request
from .edit import SourceVideo
from .files import temporary_folder
from .library import made, name_of, previews_folder, remember
from .names import ClipName
from .segments import AT_ONCE, Segments

log = logging.getLogger(__name__)

MOST_IN_PAGE = 256
"""Frames of a clip of several segments that the page shows one by one."""
ABOUT = ("infotext", "prompt", "negative_prompt", "seed", "subseed", "frames", "fps", "stopped")
"""What the JSON beside a clip says of it."""
MOST_PREVIEWS, OLDEST_PREVIEW = 50, 24 * 60 * 60
"""How many are kept, and for how many seconds, when the next request begins."""


class Clips:
    """The clips of the job `p`, which is one of `request`, sampled in `segments`.

    They are saved where the host saves the frames. `note(text)` tells the user something.
    """

    def __init__(
        self,
        p,
        settings: Settings,
        segments: Segments,
        source: SourceVideo | None,
        request: Request,
        note: Callable[[str], None],
    ):
        self.p, self.settings, self.segments = p, settings, segments
        self.source, self.request, self.note = source, request, note
        self.written: list[Clip] = []
        self.stopped = False
        """Whether the sampling of the clip that comes next was stopped."""
        self._frames: list[Image.Image] | OnDisk = []
        self._disk = ExitStack()
        self._last: Image.Image | None = None
        self._number = 0
        self._saved = False

    def add_frame(self, image: Image.Image) -> None:
        """Takes a finished frame; writes the clip when it was the last.

        Frames of a clip of several segments wait on the disk, and those that no page would show are made empty when the
        next one comes: the host, which has saved them, holds all to the end.
        """
        if not self._frames:
            self._saved = self.p.save_samples()  # the host decides it once for all of them
            self._number = self.segments.number
            if self.segments.of_clip > 1:
                self._frames = OnDisk(temporary_folder(self._disk))
        self._frames.append(image)
        self._empty_last()
        self._last = image if len(self._frames) > self.most_pictures else None
        if len(self._frames) == self.settings.length:
            self._write_taken()  # the last one is not saved yet by the host

    @property
    def taken(self) -> int:
        """How many frames were taken of the clip that is not finished."""
        return len(self._frames)

    @property
    def unfinished(self) -> bool:
        """Whether frames were taken of a clip that lacks others."""
        return bool(self._frames)

    @property
    def most_pictures(self) -> int:
        """How many frames of a clip are among the pictures of the result."""
        return AT_ONCE if self.request.is_api or self.segments.of_clip == 1 else MOST_IN_PAGE

    def _empty_last(self) -> None:
        if self._last is not None:
            self._last.im, self._last._size = Image.new(self._last.mode, (1, 1)).im, (1, 1)
            self._last.zs2_emptied = True
        self._last = None

    def write(self) -> None:
        """Writes the clip of the frames taken so far in every format; what fails is noted, the frames are kept."""
        self._write_taken()
        self._empty_last()

    def _write_taken(self) -> None:
        frames, self._frames = self._frames, []
        with self._disk:
            if frames:
                self._write_all(frames)

    def leave_out(self, processed) -> None:
        """Leaves out of the host's result the pictures of long clips that are empty, and the entries beside them."""
        if self.segments.of_clip == 1:
            return
        frames, most = self.settings.length, self.most_pictures

        def first_of_clips(values: list) -> list:
            return [value for place, value in enumerate(values) if place % frames < most]

        for name in PARALLEL:
            setattr(processed, name, first_of_clips(self.segments.once_a_frame(getattr(processed, name))))
        processed.infotexts = first_of_clips(processed.infotexts)  # the host's masks among the pictures have none
        pictures = [image for image in processed.images if not hasattr(image, "zs2_emptied")]
        left_out, processed.images = len(processed.images) - len(pictures), pictures
        if left_out:
            self.note(f"The pictures are the first {most} of the {frames} frames of each clip; its files have all.")

    def _write_all(self, frames: Sequence[Image.Image]) -> None:
        clip = self._clip(frames)
        self.written.append(clip)
        self.request.clips.append(clip)
        name = ClipName(self.p, self._number, self.segments.clips, clip.first_frame, clip.stopped)
        alone = name.alone(len(self.request.clips) - 1)
        with ExitStack() as temporary:
            files, saved = {}, {}
            target = self._target(name) if self._saved else None
            for format in self.settings.formats:
                file = self._write(clip, frames, target, format)
                if file:
                    saved[format] = file
                if file or not self._saved:
                    clip.files[format] = file or clip_path(alone, format)
                if self.request.is_api and self.settings.returns != "frames":
                    file = file or self._write(clip, frames, self._passing(temporary), format)
                    if file:
                        clip.files.setdefault(format, clip_path(alone, format))
                        clip.data[format] = _base64(file)
                if file:
                    files[format] = file
                    if file.is_file():
                        known.record_file(format, file.stat().st_size, clip.frames, *clip.first_frame.size)
            if saved and self.settings.sidecar:
                self._write_sidecar(clip, target, saved)
            if self.request.keep:
                self.request.keep(clip, self.settings.played(frames), saved)
            self._show(clip, frames, files, temporary)
        if last := next(iter(saved.values()), clip.playable):
            made(last)
        if files and self._saved and not self.request.is_api:
            self.p.comment("ZS²: saved " + ", ".join(map(str, files.values())))

    def _clip(self, frames: Sequence[Image.Image]) -> Clip:
        p = self.p
        infotext = processing.create_infotext(
            p, p.prompts, p.seeds, p.subseeds, index=0, all_negative_prompts=p.negative_prompts
        )
        about = (p.prompts[0], p.negative_prompts[0], p.seeds[0], p.subseeds[0], infotext, self.stopped)
        played = len(self.settings.played(frames))
        return Clip(played, self.settings.rate, *about, frames[0])

    def _target(self, name: ClipName) -> Path | None:
        remember(name.outputs)
        try:
            return name.target()
        except Exception as error:
            self._note_failure("The clip", error)
            return None

    def _write(self, clip: Clip, frames: Sequence[Image.Image], target: Path | None, format: str) -> Path | None:
        if target is None:
            return None
        text = clip.infotext if opts.enable_pnginfo else None
        try:
            file = write_clip(
                self.settings.played(frames), target, format, self.settings.rate, text, quality=options.quality(format)
            )
        except Exception as error:
            self._note_failure(f"The clip as {format}", error)
            return None
        if self.settings.source_audio and FORMATS[format].sound:
            try:
                self.source.add_sound(file)
            except Exception as error:
                log.error("no sound in %s", file, exc_info=error)
                self.note(f"The clip as {format} has no sound: {error}")
        return file

    def _write_sidecar(self, clip: Clip, target: Path, files: dict[str, Path]) -> None:
        about = {name: getattr(clip, name) for name in ABOUT}
        about["settings"] = recipe.by_key(self.settings)
        about["host"] = recipe.parsed(clip.infotext)[2].get("Version", "")
        try:
            write_sidecar(target, {**about, "files": {format: file.name for format, file in files.items()}})
        except Exception as error:
            self._note_failure("The JSON beside the clip", error)

    def _note_failure(self, what: str, error: Exception) -> None:
        log.error("%s could not be written", what, exc_info=error)
        self.note(f"{what} could not be written: {type(error).__name__}: {error}. Its frames are kept.")

    # --- what is shown of them ---------------------------------------------------------------------------------------

    def _show(self, clip: Clip, frames: Sequence[Image.Image], files: dict[str, Path], temporary: ExitStack) -> None:
        """Makes what the answer has of the clip among its pictures."""
        is_api, returns = self.request.is_api, self.settings.returns
        if is_api and self.request.script:
            clip.pictures = list(frames[: self.most_pictures])
            for frame in clip.pictures if opts.enable_pnginfo else ():
                frame.info["parameters"] = clip.infotext
        if is_api and returns != "both":
            return
        file = next((file for format, file in files.items() if FORMATS[format].plays_in_gallery), None)
        if file is None:
            playable = (format for format in self.settings.formats if FORMATS[format].plays_in_gallery)
            format = "webp" if self._saved else next(playable, "webp")
            file = self._write(clip, frames, self._passing(temporary) if is_api else self._preview(), format)
        if file and is_api:
            clip.animation = _base64(file)
            clip.pictures[:0] = [clip.animation] if self.request.script else []
        elif file:
            clip.playable = file
            self._plays(clip, frames, files)

    def _plays(self, clip: Clip, frames: Sequence[Image.Image], files: dict[str, Path]) -> None:
        """Says which file the page's player has; where nothing is saved, in the first format that was asked for."""
        format, playable = self.settings.formats[0], clip.playable
        if not files and not FORMATS[format].is_folder and playable.suffix != FORMATS[format].suffix:
            file = self._write(clip, frames, playable.with_suffix(""), format)
            files = {format: file} if file else files
        videos = (file for format, file in files.items() if FORMATS[format].encoding)
        clip.plays = name_of(next(videos, next(iter(files.values()), playable)))

    def _passing(self, temporary: ExitStack) -> Path | None:
        """A path, without suffix, of a file that is there until `temporary` is closed."""
        try:
            return Path(temporary_folder(temporary), "clip")
        except OSError as error:
            self._note_failure("The clip", error)
            return None

    def _preview(self) -> Path | None:
        """A path, without suffix, of a file for the page."""
        try:
            folder = previews_folder()
            folder.mkdir(parents=True, exist_ok=True)
            if len(self.request.clips) == 1:
                _clear(folder)
            return folder / secrets.token_hex(8)
        except OSError as error:
            self._note_failure("The clip for the gallery", error)
            return None


def _clear(folder: Path) -> None:
    """Removes the previews that no page is likely to show any more."""
    newest_first = sorted(folder.iterdir(), key=os.path.getmtime, reverse=True)
    for number, path in enumerate(newest_first):
        old = number >= MOST_PREVIEWS or time.time() - os.path.getmtime(path) > OLDEST_PREVIEW
        if old and not path.is_dir():
            path.unlink(missing_ok=True)


def _base64(file: Path) -> str:
    return base64.b64encode(clip_bytes(file)).decode()
