"""The clips of a job: their files and names, what the gallery shows of them, and the API's answer."""

from __future__ import annotations

import base64
import itertools
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from modules import images, processing
from modules.shared import opts
from PIL import Image

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.write import clip_bytes, write_clip
from zs2_lib.settings.table import Settings

from .edit import SourceVideo

log = logging.getLogger(__name__)

FOLDER = "zs2-videos"
"""Folder of the clips, in the host's output directory of the tab."""


@dataclass
class WrittenClip:
    """A clip's first frame, its infotext, and its file (for "png" the folder) in each format, by the format's name."""

    first_frame: Image.Image
    infotext: str
    files: dict[str, Path] = field(default_factory=dict)
    playable: Path | None = None
    """A file that the host's gallery plays, which draws <img>."""

    def gallery_item(self) -> Image.Image:
        """An image for the host's results: the first frame, which the gallery shows as the playable file."""
        item = self.first_frame.copy()
        item.already_saved_as = str(self.playable)
        item.info["parameters"] = self.infotext
        return item

    def base64(self) -> list[str]:
        """The files for an answer of the API."""
        return [base64.b64encode(clip_bytes(file)).decode() for file in self.files.values()]


class Clips:
    """The clips of the job `p`, written as soon as their frames are finished.

    `note(text)` tells the user something.
    """

    def __init__(self, p, settings: Settings, source: SourceVideo | None, note: Callable[[str], None]):
        self.p, self.settings, self.source, self.note = p, settings, source, note
        self.written: list[WrittenClip] = []
        self.failed = False
        self._frames: list[Image.Image] = []
        # a script that was selected as well (X/Y/Z plot) works on the result and needs images there
        self.as_base64 = p.is_api and p.script_args[0] in (0, None, "None")
        self.frames_only = self.as_base64 and settings.returns == "frames"

    # --- files -------------------------------------------------------------------------------------------------------

    def add_frame(self, image: Image.Image) -> None:
        """Takes a finished frame; writes the clip when it was the last."""
        self._frames.append(image)
        if len(self._frames) == self.settings.frames:
            self.write()

    def write(self) -> None:
        """Writes the clip of the frames taken so far in every format; what fails is noted, the frames are kept."""
        frames, self._frames = self._frames, []
        if not frames or (self.frames_only and not self.p.save_samples()):
            return
        clip = WrittenClip(frames[0], _infotext(self.p))
        try:
            target = self._target(frames[0])
        except Exception as error:
            self._note_failure("The clip", error)
            return
        self.written.append(clip)
        for format in self.settings.formats:
            if file := self._write(clip, frames, target, format):
                clip.files[format] = file
        plays = (file for format, file in clip.files.items() if FORMATS[format].plays_in_gallery)
        clip.playable = next(plays, None)
        if not self.as_base64:
            if clip.files:
                self.p.comment("ZS²: saved " + ", ".join(map(str, clip.files.values())))
            if clip.playable is None:
                preview = Path(tempfile.mkdtemp(prefix="zs2-", dir=opts.temp_dir or None), "preview")
                clip.playable = self._write(clip, frames, preview, "webp")

    def _write(self, clip: WrittenClip, frames: list[Image.Image], target: Path, format: str) -> Path | None:
        text = clip.infotext if opts.enable_pnginfo else None
        try:
            file = write_clip(frames, target, format, self.settings.fps, text)
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

    def _note_failure(self, what: str, error: Exception) -> None:
        self.failed = True
        log.error("%s could not be written", what, exc_info=error)
        self.note(f"{what} could not be written: {type(error).__name__}: {error}. Its frames are kept.")

    def _target(self, image: Image.Image) -> Path:
        """The clip's path without suffix: a name as the host gives to images, not taken yet."""
        p = self.p
        name = images.FilenameGenerator(p, p.seeds[0], p.prompts[0], image)
        folder = Path(p.outpath_samples, FOLDER)
        if opts.save_to_dirs:
            folder /= name.apply(opts.directories_filename_pattern or "[prompt_words]").lstrip(" ").rstrip("\\ /")
        folder.mkdir(parents=True, exist_ok=True)
        pattern = opts.samples_filename_pattern or ("[seed]" if opts.save_to_dirs else "[seed]-[prompt_spaces]")
        stem = name.apply(pattern)
        if opts.save_images_add_number or not stem:
            stem = f"{images.get_next_sequence_number(folder, ''):05}-{stem}".rstrip("-")
        return folder / _not_taken(folder, stem)

    # --- the result --------------------------------------------------------------------------------------------------

    def put_into(self, processed) -> None:
        """Puts the clips before the frames in the host's result."""
        if self.frames_only:
            return
        if self.as_base64:
            items = [(file, clip.infotext) for clip in self.written for file in clip.base64()]
        else:
            items = [(clip.gallery_item(), clip.infotext) for clip in self.written if clip.playable]
        if self.as_base64 and self.settings.returns == "video" and not self.failed:
            processed.images, processed.infotexts = [], []
        processed.images[:0] = [item for item, _ in items]
        processed.infotexts[:0] = [infotext for _, infotext in items]
        processed.index_of_first_image += len(items)


def _not_taken(folder: Path, stem: str) -> str:
    """`stem`, with a number if files of that name are there already: a clip is never overwritten."""
    taken = {path.stem for path in folder.iterdir()}
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    return next(name for name in candidates if name not in taken)


def _infotext(p) -> str:
    return processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=0, all_negative_prompts=p.negative_prompts
    )
