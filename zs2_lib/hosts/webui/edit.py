"""The source video of a clip in a WebUI: where it may lie, its frames as the init images of one batch, its masks."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from modules import masking, paths_internal, shared
from modules.shared import opts
from PIL import Image, ImageChops

from zs2_lib.hosts.undo import override
from zs2_lib.media.read import Selection, Source, add_audio, open_source
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import MAX_FRAMES, Settings

INIT_RESULTS = ("init_latent", "image_conditioning", "mask", "nmask")
"""What `p.init` leaves on `p` for the sampler, one row per image (the masks without that dimension)."""
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
LONGEST_PATH = 4096


# --- files -------------------------------------------------------------------------------------------------


def allowed_folders() -> list[Path]:
    """The folders that a request may name files in: what the host serves files from, and where it writes its images."""
    folders = [
        paths_internal.data_path,
        *(shared.cmd_opts.gradio_allowed_path or []),
        opts.temp_dir or Path(tempfile.gettempdir(), "gradio"),
    ]
    folders += [value for key, value in opts.data.items() if key.startswith("outdir_")]
    return [Path(folder).resolve() for folder in folders if folder]


def file_of(key: str, value: str, undo: ExitStack, is_api: bool) -> Path:
    """The file or folder that the setting `key` gives: a path, or the base64 of a file, which is kept until `undo` is closed.

    A path of a request must lie inside the folders the host allows; from the panel, which shows the files of the
    machine that the host runs on, any will do unless the host was started with --hide-ui-dir-config. Raises SettingsError.
    """
    content = _content(key, value)
    if content is not None:
        path = Path(_temporary_folder(undo), f"the {key} of the request")
        path.write_bytes(content)
        return path
    path = Path(os.path.realpath(_path(value)))
    if is_api or shared.cmd_opts.hide_ui_dir_config:
        _check_allowed(key, value, path)
    return path


def _path(value: str) -> str:
    return os.path.join(paths_internal.data_path, os.path.expanduser(value))


def _content(key: str, value: str) -> bytes | None:
    """The content of the file that `value` is the base64 of; None if it is a path. Raises SettingsError if it is neither."""
    beginning = f"{key}: {value[:40]!r}{'…' * (len(value) > 40)}"
    if value[:5].lower() == "data:":
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            raise SettingsError(f"{beginning} is a data URL without base64; give data:video/mp4;base64,… or a path")
    elif (
        BASE64.fullmatch(value)
        and (not value.startswith("/") or value.startswith("/9j/"))
        and not os.path.exists(_path(value))
    ):
        data = value
    elif len(value) > LONGEST_PATH or "\0" in value:
        raise SettingsError(f"{beginning} is neither the base64 of a file nor a path; give the one or the other")
    elif re.match(r"[a-z]+://", value, re.IGNORECASE):
        raise SettingsError(
            f"{beginning} is an address, which is not opened; download the file, and give its base64 or its path"
        )
    else:
        return None
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: it is not ASCII
        raise SettingsError(
            f"{beginning} is no base64 of a file ({error}); give a path, or all of the base64"
        ) from None


def _check_allowed(key: str, value: str, path: Path) -> None:
    """Raises SettingsError if a request may not name `path`, or what a link in that folder leads to."""
    folders = allowed_folders()
    remedy = f"a path inside {', '.join(map(str, folders))} (--gradio-allowed-path allows more)"

    def allowed(place: Path) -> bool:
        return any(place.is_relative_to(folder) for folder in folders)

    if not allowed(path):
        raise SettingsError(f"{key}: {value!r} is not allowed; give the base64 of a file, or {remedy}")
    with suppress(OSError):  # no folder, or one that cannot be read, which is said when it is opened
        for entry in path.iterdir():
            if entry.is_symlink() and not allowed(Path(os.path.realpath(entry))):
                raise SettingsError(
                    f"{key}: {value!r} is not allowed, its {entry.name!r} is a link that leads out of it; give {remedy}"
                )


def _temporary_folder(undo: ExitStack) -> str:
    """A folder that is there until `undo` is closed, or forgotten after an error."""
    return undo.enter_context(
        tempfile.TemporaryDirectory(prefix="zs2-", dir=opts.temp_dir or None, ignore_cleanup_errors=True)
    )


@functools.lru_cache(maxsize=4)
def _opened(path: Path, background: str, _changed: int) -> Source:
    return open_source(path, background=background)


def opened(key: str, path: Path, background: str = "white") -> Source:
    """The source at `path`; kept, since a long video's times take reading all of it. Raises SettingsError that names `key`."""
    with in_words(key):
        return _opened(path, background, os.stat(path).st_mtime_ns if os.path.exists(path) else 0)


@contextmanager
def in_words(key: str):
    """What a source has against a file or a selection is said of the setting `key`."""
    try:
        yield
    except SettingsError:
        raise
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        refusal = SettingsError(f"{key}: {error}")
        refusal.status_code, refusal.detail = (
            422,
            str(refusal),
        )  # for the API, if the host does not run this in a callback
        raise refusal from error


# --- the source of a job ---------------------------------------------------------------------------------


def check_count(count: int) -> None:
    if count > MAX_FRAMES:
        raise SettingsError(
            f"source: {count} frames are selected, a clip has at most {MAX_FRAMES}; choose an earlier source_end, a "
            "lower source_fps, a higher source_every, or give frames"
        )


def playable(fps: float) -> float:
    """The rate nearest to `fps` that a clip may have."""
    return min(max(fps, 0.1), 120.0)


class SourceVideo:
    """The frames of a job's source, its masks and its sound. Raises SettingsError if they cannot be had as `settings` asks."""

    def __init__(self, settings: Settings, undo: ExitStack, is_api: bool):
        path = file_of("source", settings.source, undo, is_api)
        self.source = opened("source", path)
        self.selection = settings.selection
        with in_words("source"):
            self.picks = self.source.picks(self.selection)
            self.fps = float(self.source.clip_fps(self.selection))
        check_count(len(self.picks))
        self.name = path.name
        self.size = self.source.info.size
        self.masks = self._masks(settings, undo, is_api) if settings.mask else None
        self.settings = replace(settings, frames=len(self.picks), fps=settings.fps or playable(self.fps))
        """The settings with the frames and the rate of the source where they were left to it."""
        if settings.source_audio and not self.source.info.has_audio:
            raise SettingsError(f"source_audio: true is not allowed, {self.name} has no sound; give false")

    def __len__(self) -> int:
        return len(self.picks)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the source."""
        notes = []
        if self.selection.frames and len(self) < self.selection.frames:
            notes.append(
                f"The source has {len(self)} frames where {self.selection.frames} were asked for: the clip has {len(self)}."
            )
        if self.source.info.hdr:
            notes.append("The source is HDR, which is not tone-mapped: its colours look pale.")
        return notes

    def frames(self) -> Iterator[Image.Image]:
        """The selected frames, RGB, read one by one."""
        with in_words("source"):
            for _, picture in self.source.read(self.picks):
                yield picture

    def _masks(self, settings: Settings, undo: ExitStack, is_api: bool) -> Masks:
        source = opened(
            "mask", file_of("mask", settings.mask, undo, is_api), background="black"
        )  # transparent: not masked
        count, whole = len(self.picks), self.source.info.frames
        width, height = self.size
        if source.info.size[0] * height != source.info.size[1] * width:
            raise SettingsError(
                f"mask: its pictures are {source.info.size[0]}x{source.info.size[1]}, those of the source {width}x{height}; "
                "give masks of the source's shape"
            )
        if source.info.frames == 1:
            picks = np.zeros(count, np.int64)
        elif source.info.frames == whole:
            picks = self.picks
        elif source.info.frames == count:
            picks = np.arange(count)
        else:
            raise SettingsError(
                f"mask: it has {source.info.frames} frames, the source {whole}, of which {count} are selected; give one mask, one for each "
                "frame of the source, or one for each selected frame"
            )
        return Masks(source, picks, self.size)

    def add_sound(self, clip: Path) -> None:
        """Gives the MP4 or WebM file `clip` the sound of the selection. Raises ValueError."""
        add_audio(clip, self.source, self.selection)


class Masks:
    """The masks of the frames: `iter(masks)` reads them one by one, grey, of the source's size."""

    def __init__(self, source: Source, picks: np.ndarray, size: tuple[int, int]):
        self.source, self.picks, self.size = source, picks, size

    def __iter__(self) -> Iterator[Image.Image]:
        with in_words("mask"):
            for _, picture in self.source.read(self.picks):
                yield picture.convert("L").resize(self.size)


class Frames(Sequence):
    """The frames as `p.init_images`: other scripts look there. They are read anew each time, not kept."""

    def __init__(self, video: SourceVideo):
        self.video = video

    def __len__(self) -> int:
        return len(self.video)

    def __iter__(self) -> Iterator[Image.Image]:
        return self.video.frames()

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = self.video.picks[range(len(self))[index]]
        with in_words("source"):
            return next(self.video.source.read(np.array([number])))[1]


class OnDisk(Sequence):
    """Pictures in a folder, of which only those that are looked at are in memory."""

    def __init__(self, folder: str):
        self.folder, self.count = Path(folder), 0

    def append(self, picture: Image.Image) -> None:
        picture.save(self.folder / f"{self.count}.png", compress_level=1)
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        with Image.open(self.folder / f"{range(len(self))[index]}.png") as picture:
            picture.load()
        return picture


# --- the frames as init images ---------------------------------------------------------------------------


def edit(p, video: SourceVideo, undo: ExitStack) -> None:
    """Makes the frames of `video` the init images of `p`, an img2img job with a frame for each row of its batch.

    The host's own `p.init` runs once per frame, so that each is what it would be for a still, and what it leaves for the
    sampler is put together on the CPU. What a mask keeps of each frame (`p.overlay_images`), and the masks to lay it over the
    result with (`p.zs2_masks`), wait on the disk.
    """
    init = p.init
    override(undo, p, "init_images", Frames(video))
    if video.masks:
        override(undo, p, "image_mask", next(iter(video.masks)))

    def init_frames(all_prompts, all_seeds, all_subseeds):
        with ExitStack() as during:
            for name in (
                "init_images",
                "batch_size",
                "image_mask",
                "overlay_images",
                "color_corrections",
                "mask_for_overlay",
            ):
                override(during, p, name, getattr(p, name))
            colors, only_masked = p.color_corrections, p.inpaint_full_res
            masks = _keep_crop(p, init, video, during) if p.image_mask or video.masks else None
            rows: dict[str, list] = {name: [] for name in (*INIT_RESULTS, "color_corrections")}
            overlays, overlay_masks = OnDisk(_temporary_folder(undo)), OnDisk(_temporary_folder(undo))
            for number, frame in enumerate(video.frames(), 1):
                if shared.state.interrupted:  # the host looks for it next
                    return
                shared.state.textinfo = f"Reading frame {number} of {len(video)}"
                p.init_images, p.batch_size = [frame], 1
                p.overlay_images, p.color_corrections, p.mask_for_overlay = None, colors, None
                p.mask = p.nmask = None
                p.inpaint_full_res = only_masked  # which the host switches off where a mask is blank
                if masks is not None:
                    p.image_mask = next(masks)
                with same_draws():
                    init(all_prompts, all_seeds[:1], all_subseeds[:1])
                for name in INIT_RESULTS:
                    value = getattr(p, name, None)
                    rows[name].append(value.cpu() if value is not None else None)
                rows["color_corrections"] += p.color_corrections or []
                if p.overlay_images:
                    overlays.append(p.overlay_images[0])
                    overlay_masks.append(p.mask_for_overlay)
        shared.state.textinfo = None
        _put_together(p, rows)
        p.overlay_images, p.zs2_masks = overlays or None, overlay_masks
        p.mask_for_overlay = overlay_masks[0] if overlay_masks else None

    override(undo, p, "init", init_frames)


def _put_together(p, rows: dict[str, list]) -> None:
    for name in INIT_RESULTS:
        first = rows[name][0]
        if first is None:
            setattr(p, name, None)
        elif name in ("mask", "nmask"):  # (channels, height, width) each
            setattr(p, name, torch.stack(rows[name]).to(shared.device))
        else:
            setattr(p, name, torch.cat(rows[name]).to(shared.device))
    p.color_corrections = rows["color_corrections"] or None


@contextmanager
def same_draws():
    """Torch's draws inside, which the host does not seed for the VAE, are the same for each frame: else they flicker."""
    devices = [shared.device] if shared.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


class _CropFound(Exception):
    pass


def _keep_crop(p, init, video: SourceVideo, during: ExitStack) -> Iterator[Image.Image]:
    """The mask of each frame. With "Only masked" all frames are cropped alike, to where any of them is masked."""
    masks = video.masks or [p.image_mask] * len(video)
    if not (p.inpaint_full_res and video.masks):
        return iter(masks)

    union = None
    for mask in masks:  # what is not masked in any frame, if the mask is inverted
        combine = ImageChops.darker if p.inpainting_mask_invert else ImageChops.lighter
        union = mask if union is None else combine(union, mask)
    crop_region = masking.get_crop_region_v2
    found = []

    def find(mask, padding):
        found.append(crop_region(mask, padding))
        raise _CropFound

    with ExitStack() as finding:
        override(finding, masking, "get_crop_region_v2", find)
        p.image_mask, p.init_images = union, []
        try:
            init(None, [0], [0])
        except _CropFound:
            pass
    override(during, masking, "get_crop_region_v2", lambda mask, padding: found[0])
    return iter(masks)


# --- the panel's preview -----------------------------------------------------------------------------------


def preview(source: str, selection: Selection, fps: float) -> tuple[Image.Image, str]:
    """A strip of the frames that will be used, and a line that says how many there are and how fast the clip of them plays.

    `fps` is the rate that is set for the clip, 0 the source's. Raises SettingsError where they could not be used.
    """
    with ExitStack() as undo:
        opened_source = opened("source", file_of("source", source, undo, is_api=False))
        with in_words("source"):
            count = opened_source.count(selection)
            check_count(count)
            fps = fps or playable(float(opened_source.clip_fps(selection)))
            strip = opened_source.contact_strip(selection)
    width, height = opened_source.info.size
    text = f"{count} frames of {width}x{height}, {fps:.4g} per second, {count / fps:.3g} s"
    text += f" (of {opened_source.info.frames} frames, {opened_source.info.duration:.3g} s)"
    return strip, text + (", with sound" if opened_source.info.has_audio else "")
