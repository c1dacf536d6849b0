"""The source video of a clip in a WebUI: its frames as the init images of one batch, its masks, and its preview."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from modules import masking, shared
from PIL import Image, ImageChops

from zs2_lib.hosts.undo import override, wrap
from zs2_lib.media.on_disk import OnDisk
from zs2_lib.media.picks import picks_of_masks, with_in_betweens
from zs2_lib.media.sound import add_audio
from zs2_lib.media.source import Selection, Source
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.table import Settings

from .files import file_of, in_words, opened, temporary_folder
from .limits import check_frames

INIT_RESULTS = ("init_latent", "image_conditioning", "mask", "nmask")
"""What `p.init` leaves on `p` for the sampler, one row per image (the masks, on most hosts, without that dimension)."""


# --- the source of a job ---------------------------------------------------------------------------------


FEWER_FRAMES = "choose an earlier source_end, a lower source_fps, a higher source_every, or give frames"


def playable(fps: float) -> float:
    """The rate nearest to `fps` that a clip may have."""
    return min(max(fps, 0.1), 120.0)


class SourceVideo:
    """The frames of a job's source, its masks and its sound.

    Raises SettingsError if they cannot be had as `settings` asks.
    """

    def __init__(self, settings: Settings, undo: ExitStack, is_api: bool):
        path = file_of("source", settings.source, undo, is_api)
        self.source = opened("source", path)
        self.selection = settings.selection
        with in_words("source"):
            picks = self.source.picks(self.selection)
            self.fps = float(self.source.clip_fps(self.selection))
        self.settings = replace(settings, frames=len(picks), fps=settings.fps or playable(self.fps))
        """The settings with the frames and the rate of the source where they were left to it."""
        self.picks = with_in_betweens(picks, self.settings.length, settings.in_betweens)
        """The number of the source's frame for each frame of the clip: in-betweens take those that lie between."""
        self.kept = len(picks)
        check_frames(len(self.picks), FEWER_FRAMES, "source")
        self.name = path.name
        self.size = self.source.info.size
        self.masks = self._masks(settings, undo, is_api) if settings.mask else None
        if settings.source_audio and not self.source.info.has_audio:
            raise SettingsError(f"source_audio: true is not allowed, {self.name} has no sound; give false")

    def __len__(self) -> int:
        return len(self.picks)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the source."""
        notes = []
        if self.selection.frames and self.kept < self.selection.frames:
            notes.append(
                f"The source has {self.kept} frames where {self.selection.frames} were asked for: the clip has "
                f"{self.kept}."
            )
        if len(set(self.picks)) < len(self.picks) and self.settings.in_betweens > 1:
            notes.append(
                "The source has too few frames between those of the clip: several in-betweens begin with the same one. "
                "A higher source_every, or a lower source_fps, leaves some between."
            )
        if self.source.info.hdr:
            notes.append("The source is HDR: its colours are tone-mapped to those of an SDR screen.")
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
        whole = self.source.info.frames
        width, height = self.size
        if source.info.size[0] * height != source.info.size[1] * width:
            raise SettingsError(
                f"mask: its pictures are {source.info.size[0]}x{source.info.size[1]}, those of the source "
                f"{width}x{height}; give masks of the source's shape"
            )
        with in_words("mask"):
            picks = picks_of_masks(source.info.frames, self.picks, whole, self.kept, self.settings.in_betweens)
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


# --- the frames as init images ---------------------------------------------------------------------------


def edit(p, video: SourceVideo, undo: ExitStack, device: Callable[[], torch.device]) -> None:
    """Makes the frames of `video` the init images of `p`, an img2img job with a frame for each row of its batch.

    The host's own `p.init` runs once per frame, so that each is what it would be for a still, and what it leaves for
    the sampler is put together on `device()`. What a mask keeps of each frame (`p.overlay_images`), and the masks to
    lay it over the result with (`p.zs2_masks`), wait on the disk.
    """
    override(undo, p, "init_images", Frames(video))
    if video.masks:
        override(undo, p, "image_mask", next(iter(video.masks)))

    def init_frames(init, all_prompts, all_seeds, all_subseeds) -> None:
        overlays, overlay_masks = OnDisk(temporary_folder(undo)), OnDisk(temporary_folder(undo))
        with ExitStack() as during:
            rows = _rows_of_frames(
                p, video, overlays, overlay_masks, during, init, all_prompts, all_seeds, all_subseeds
            )
        if rows is None:
            return
        _put_together(p, rows, device())
        p.overlay_images, p.zs2_masks = overlays or None, overlay_masks
        p.mask_for_overlay = overlay_masks[0] if overlay_masks else None

    wrap(undo, p, "init", init_frames)


def _rows_of_frames(
    p,
    video: SourceVideo,
    overlays: OnDisk,
    masks_of_overlays: OnDisk,
    during: ExitStack,
    init,
    prompts,
    seeds,
    subseeds,
) -> dict[str, list] | None:
    """What the host's `init` makes of each frame for itself: lists by the attributes of `p`, and the overlays.

    What it changes on `p` is undone with `during`. None if the job was interrupted.
    """
    for name in ("init_images", "batch_size", "image_mask", "overlay_images", "color_corrections", "mask_for_overlay"):
        override(during, p, name, getattr(p, name))
    colors, only_masked = p.color_corrections, p.inpaint_full_res
    masks = _keep_crop(p, init, video, during) if p.image_mask or video.masks else None
    rows: dict[str, list] = {name: [] for name in (*INIT_RESULTS, "color_corrections")}
    for number, frame in enumerate(video.frames(), 1):
        if shared.state.interrupted:  # the host looks for it next
            return None
        shared.state.textinfo = f"Reading frame {number} of {len(video)}"
        p.init_images, p.batch_size = [frame], 1
        p.overlay_images, p.color_corrections, p.mask_for_overlay = None, colors, None
        p.mask = p.nmask = None
        p.inpaint_full_res = only_masked  # which the host switches off where a mask is blank
        if masks is not None:
            p.image_mask = next(masks)
        with same_draws():
            init(prompts, seeds[:1], subseeds[:1])
        for name in INIT_RESULTS:
            value = getattr(p, name, None)
            rows[name].append(value.cpu() if value is not None else None)
        rows["color_corrections"] += p.color_corrections or []
        if p.overlay_images:
            overlays.append(p.overlay_images[0])
            masks_of_overlays.append(p.mask_for_overlay)
    shared.state.textinfo = None
    return rows


def _put_together(p, rows: dict[str, list], device: torch.device) -> None:
    for name in INIT_RESULTS:
        first = rows[name][0]
        if first is None:
            setattr(p, name, None)
        elif first.ndim == 3:  # masks, (channels, height, width) each; Forge Neo has them like the others
            setattr(p, name, torch.stack(rows[name]).to(device))
        else:  # (1, channels, height, width) each
            setattr(p, name, torch.cat(rows[name]).to(device))
    p.color_corrections = rows["color_corrections"] or None


@contextmanager
def same_draws():
    """Torch's draws inside, which the host does not seed for the VAE, are the same for each frame: no flicker."""
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
    found = []

    def find(crop_region, mask, padding):
        found.append(crop_region(mask, padding))
        raise _CropFound

    with ExitStack() as finding:
        wrap(finding, masking, "get_crop_region_v2", find)
        p.image_mask, p.init_images = union, []
        with suppress(_CropFound):
            init(None, [0], [0])
    wrap(during, masking, "get_crop_region_v2", lambda crop_region, mask, padding: found[0])
    return iter(masks)


# --- the panel's preview -----------------------------------------------------------------------------------


def preview(source: str, selection: Selection, fps: float) -> tuple[Image.Image, str]:
    """A strip of the frames that will be used, and a line that says how many there are and how fast their clip plays.

    `fps` is the rate that is set for the clip, 0 the source's. Raises SettingsError where they could not be used.
    """
    with ExitStack() as undo:
        opened_source = opened("source", file_of("source", source, undo, is_api=False))
        with in_words("source"):
            count = opened_source.count(selection)
            check_frames(count, FEWER_FRAMES, "source")
            fps = fps or playable(float(opened_source.clip_fps(selection)))
            strip = opened_source.contact_strip(selection)
    width, height = opened_source.info.size
    text = f"{count} frames of {width}x{height}, {fps:.4g} per second, {count / fps:.3g} s"
    text += f" (of {opened_source.info.frames} frames, {opened_source.info.duration:.3g} s)"
    return strip, text + (", with sound" if opened_source.info.has_audio else "")
