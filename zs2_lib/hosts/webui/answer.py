"""What a request to the host gets for its clips: pictures, the lists beside them, and `zs2_clips` in `info`.

A request may run several jobs: the script that is selected, such as X/Y/Z plot, runs one for each cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from zs2_lib.settings.table import Settings

from . import options
from .library import name_of

PARALLEL = {"all_prompts": "prompt", "all_negative_prompts": "negative_prompt", "all_seeds": "seed"}
PARALLEL |= {"all_subseeds": "subseed"}
"""The lists of the host's result that have an entry for each picture, and what of a clip they hold."""


@dataclass
class Clip:
    """A finished clip."""

    frames: int
    fps: float
    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    infotext: str
    stopped: bool
    first_frame: Image.Image
    files: dict[str, Path] = field(default_factory=dict)
    """By format, the file (for "png" the folder) that is saved, or its name alone if it is not."""
    data: dict[str, str] = field(default_factory=dict)
    """By format, the file's base64 (for "png" that of a ZIP), if the request asks for it."""
    playable: Path | None = None
    """A file that the host's gallery plays, which draws <img>."""
    is_grid: bool = False
    """Whether it shows other clips, side by side."""
    plays: str | None = None
    """The name of a file that the page's player plays."""
    pictures: list = field(default_factory=list)
    """What the clip is among the pictures of an API's answer with a script: PIL images or base64."""
    animation: str = ""
    """The base64 of an animated picture, if the request asks for it."""

    def entries(self) -> list[dict]:
        """What `info` says of it, file by file."""
        about = {"frames": self.frames, "fps": self.fps, "seed": self.seed}
        about |= {"stopped": True} if self.stopped else {}
        about |= {"grid": True} if self.is_grid else {}
        about |= {"plays": self.plays} if self.plays else {}
        return [
            {"path": str(path), **named(path), "format": format, **about}
            | ({"data": self.data[format]} if format in self.data else {})
            for format, path in self.files.items()
        ]

    def item(self) -> Image.Image:
        """An image for the host's results: the first frame, which the gallery shows as the playable file."""
        item = self.first_frame.copy()
        item.zs2_clip = self
        item.info["parameters"] = self.infotext
        if self.playable:
            item.already_saved_as = str(self.playable)
        return item


def named(path: Path) -> dict[str, str]:
    """The name by which a file that is saved can be asked for."""
    name = name_of(path) if path.is_absolute() else None
    return {"name": name} if name else {}


class Request:
    """The clips of all jobs of a request; those of a script's jobs are in its result one picture each, until it ends.

    Kept on the processing object as `p.zs2_request`, which a script's copies of `p` share.
    """

    def __init__(self, is_api: bool):
        self.is_api = is_api
        self.clips: list[Clip] = []
        self.script = ""
        """The title of the script that runs the jobs now."""
        self.init_images: Sequence = ()
        """The init images that this script was given."""
        self.notes: list[str] = []
        """What the user should know about the jobs."""
        self.error: Exception | None = None
        """The first error of a job."""
        self.settings: Settings | None = None
        """Those of the panel, or of the API's request."""
        self.axes: dict[str, list] = {}
        """The values of the axes of X/Y/Z plot that are ZS²'s, by label."""
        self.keep: Callable[[Clip, Sequence[Image.Image], Mapping[str, Path]], None] | None = None
        """Is told of each clip, its pictures, and the files that are saved of it."""

    def note(self, p, text: str) -> None:
        """Tells the user something, once: in `info`, and under the result of `p` unless the settings say otherwise."""
        if text not in self.notes:
            self.notes.append(text)
            if options.value("zs2_notes"):
                p.comment("ZS²: " + text)

    def put_into(self, processed, clips: list[Clip]) -> None:
        """Puts the clips of one job into the host's result, which has their frames."""
        tell(processed, self)
        self.put_notes_into(processed)
        if self.script:
            self._one_for_each(processed, clips)
            return
        items = [(clip.animation if self.is_api else clip.playable and clip.item(), clip.infotext) for clip in clips]
        items = [(item, infotext) for item, infotext in items if item]
        processed.images[:0] = [item for item, _ in items]
        processed.infotexts[:0] = [infotext for _, infotext in items]
        processed.index_of_first_image += len(items)

    def put_notes_into(self, processed) -> None:
        """Puts the notes into the result's `info`."""
        if self.notes:
            notes = {"ZS2 notes": " ".join(self.notes)}
            processed.extra_generation_params = {**processed.extra_generation_params, **notes}

    def _one_for_each(self, processed, clips: list[Clip]) -> None:
        """Scripts count on a picture for each sample; they make grids of them, or the next job's init images."""
        processed.images = [clip.item() for clip in clips]
        processed.infotexts = [clip.infotext for clip in clips] or processed.infotexts
        processed.index_of_first_image, processed.batch_size = 0, 1
        for name, value in PARALLEL.items():
            setattr(processed, name, [getattr(clip, value) for clip in clips] or getattr(processed, name))

    def finish(self, processed) -> None:
        """Makes of the result of the script that of the request: for the API each clip's frames in its place."""
        tell(processed, self)
        self.put_notes_into(processed)
        first = processed.index_of_first_image
        infotexts, images = processed.infotexts, processed.images
        lists = {name: getattr(processed, name) for name in PARALLEL}
        processed.images, processed.infotexts = [], []
        for name in PARALLEL:
            setattr(processed, name, [])
        for number, image in enumerate(images):
            clip = getattr(image, "zs2_clip", None)
            pictures = clip.pictures or [image] if clip else [image]
            processed.images += pictures
            infotext = infotexts[number] if number < len(infotexts) else ""
            processed.infotexts += [clip.infotext if clip else infotext] * len(pictures)
            for name, value in PARALLEL.items():
                known, new = lists[name][max(number - first, 0) :], getattr(processed, name)
                if clip:
                    new += [getattr(clip, value)] * len(pictures)
                elif number >= first and known:
                    new.append(known[0])
        for name, before in lists.items():
            setattr(processed, name, getattr(processed, name) or before)


class _WithClips:
    """The host's result with the clips of the request in its `info`; its copies have them as well."""

    zs2_request: Request

    def js(self) -> str:
        entries = [entry for clip in self.zs2_request.clips for entry in clip.entries()]
        return json.dumps({**json.loads(super().js()), "zs2_clips": entries})


def tell(processed, request: Request) -> None:
    """Makes `processed`, a result of the host, tell of the clips of `request` in its `info`."""
    processed.zs2_request = request
    if not isinstance(processed, _WithClips):
        host = type(processed)
        processed.__class__ = type(host.__name__, (_WithClips, host), {})
