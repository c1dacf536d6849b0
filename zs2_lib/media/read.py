"""Open a source of frames: a video file, an animated image (GIF, WebP, APNG), a picture or a folder of pictures.

source = open_source("holiday.mov")
selection = Selection(start=2, end=6, fps=12)
for time, picture in source.frames(selection):
    ...
clip = write_clip(edited, "holiday", "mp4", source.clip_fps(selection))
add_audio(clip, source, selection)
"""

from __future__ import annotations

import os
from pathlib import Path

from .formats import MAX_FPS, MIN_FPS, exact_rate
from .images import Animation, Folder, is_picture
from .source import MAX_PIXELS, Source, check_file, in_words
from .videos import Video

FOLDER_FPS = 8


def open_source(
    path: str | os.PathLike, folder_fps: float = FOLDER_FPS, background: str = "white", max_pixels: int = MAX_PIXELS
) -> Source:
    """Opens a video (MP4, MOV, MKV, WebM, ...), an animated image (GIF, WebP, APNG), a picture or a folder of pictures.

    What a file is, is told from its content, not from its name. The file's times are read here, once; for a long video
    that takes as long as reading the file.

    folder_fps: frames per second of a folder, which has no clock of its own.
    background: the colour that transparent parts are laid on.
    max_pixels: that one frame may have; a source with larger ones is refused.

    Raises FileNotFoundError where nothing is there, RuntimeError where PyAV is missing, otherwise ValueError.
    """
    if not os.fspath(path):
        raise FileNotFoundError("no source is given: name a video, an animated image or a folder of images")
    if not MIN_FPS <= folder_fps <= MAX_FPS:
        raise ValueError(f"folder_fps is {folder_fps}, but a folder plays at {MIN_FPS} to {MAX_FPS} frames per second")
    path = Path(path)
    with in_words(path):
        if path.is_dir():
            return Folder(path, exact_rate(folder_fps), background, max_pixels)
        check_file(path)
        with open(path, "rb") as file:
            kind = Animation if is_picture(file.read(12)) else Video
        return kind(path, background, max_pixels)
