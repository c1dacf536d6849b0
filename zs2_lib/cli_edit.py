"""The part of the command line that edits: a source video or an image, a mask, and how far they are changed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.picks import picks_of_masks, with_in_betweens
from zs2_lib.media.read import open_source
from zs2_lib.media.sound import add_audio
from zs2_lib.media.source import Selection, Source
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import Number, SettingsError
from zs2_lib.settings.row import Row
from zs2_lib.settings.table import ROWS, Settings

FLAGS = {
    "--source": "source",
    "--start": "source_start",
    "--end": "source_end",
    "--source-fps": "source_fps",
    "--every": "source_every",
    "--audio": "source_audio",
}
"""The options of a source, and their settings."""
STRENGTH, IMAGE_CFG, SOURCE, MASK = "Denoising strength", "Image CFG scale", "ZS2 source", "ZS2 mask"
KEYS = (STRENGTH, IMAGE_CFG, SOURCE, MASK)
"""Keys of a recipe that are followed here."""
DEFAULT_STRENGTH = 0.75
"""As `hosts.diffusers.editing` has it."""
Size = tuple[int, int]
"""Width and height in pixels."""


# --- options -------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "editing",
        "Frames that are made of pictures: of those of a source video, or all of one image. Without --frames and --fps "
        "a clip has as many frames as are taken of the source, and plays as fast; without --size they have its size.",
    )
    one = group.add_mutually_exclusive_group()
    one.add_argument("--source", metavar="FILE|FOLDER", help=_help(ROWS["source"]))
    one.add_argument("--image", metavar="FILE", help="One image that is animated: every frame begins with it.")
    for flag, name in FLAGS.items():
        if flag not in ("--source", "--audio"):
            group.add_argument(flag, metavar="X", help=_help(ROWS[name]))
    audio = ROWS["source_audio"]
    group.add_argument("--audio", action="store_const", const=audio.kind.print(True), help=_help(audio))
    group.add_argument(
        "--mask",
        metavar="FILE|FOLDER",
        help="Where the pictures are made anew, white: a mask for each frame, or one image for all of them.",
    )
    group.add_argument(
        "--strength",
        metavar="X",
        help="How far the pictures may change, from 0 to 1: the part of the steps that is sampled. Default "
        f"{DEFAULT_STRENGTH}.",
    )
    group.add_argument(
        "--image-cfg",
        metavar="X",
        help="How closely an Instruct-Pix2Pix checkpoint follows the pictures, 1 or more. Default 1.5.",
    )


def _help(row: Row) -> str:
    return f"{row.label}. {row.tooltip}".replace("%", "%%")


# --- what they describe --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """The pictures of a clip's frames: those of `source` with the numbers `picks` (frames,), fitted to `size`."""

    source: Source
    picks: np.ndarray
    size: Size
    mode: str = "RGB"

    def __call__(self, frames: range) -> list[Image.Image]:
        """Those of some frames, counted from 0, read one by one. Raises ValueError where the file is damaged."""
        return [picture for _, picture in self.read(self.picks[frames.start : frames.stop])]

    def read(self, picks: np.ndarray) -> Iterator[tuple[float, Image.Image]]:
        """(time, picture) of these frames of the source."""
        for time, picture in self.source.read(picks):
            yield time, self._fitted(picture)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        """As the WebUI fits it, "Just resize"."""
        picture = picture.convert(self.mode)
        return picture if picture.size == self.size else picture.resize(self.size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Edit:
    """What the frames of a clip are made of, checked: the fields of `hosts.diffusers.editing.Editing`, and the sound's.

    selection: of the source; None for an image.
    """

    pictures: Shown
    masks: Shown | None
    strength: float | None
    image_guidance: float | None
    selection: Selection | None

    @property
    def size(self) -> Size:
        return self.pictures.size

    @property
    def texts(self) -> dict[str, str]:
        """What a recipe says of them, by key."""
        source = {SOURCE: self.pictures.source.path.name} if self.selection else {}
        return source | ({MASK: self.masks.source.path.name} if self.masks else {})

    def add_sound(self, clip: Path) -> None:
        """Gives the file the sound of the selection. Raises ValueError."""
        add_audio(clip, self.pictures.source, self.selection)


def source_values(options: argparse.Namespace, made_of: Mapping[str, str]) -> dict[str, object]:
    """The settings, by name, that the options about a source say; frames and their rate are left to it where neither
    the options nor the recipe `made_of` (texts by key) say more. Raises SettingsError.
    """
    given = {flag: getattr(options, _name(flag)) for flag in FLAGS}
    given = {flag: text for flag, text in given.items() if text is not None}
    if given and not options.source:
        flag = next(iter(given))
        raise SettingsError(f"{flag}: there is no source; give --source FILE as well")
    values = {FLAGS[flag]: ROWS[FLAGS[flag]].kind.read(flag, text) for flag, text in given.items()}
    if options.source and not recipe.is_of_clip(made_of):
        values = {"frames": 0, "fps": 0.0, **values}
    _check_times(values)
    if options.source and options.mask:
        values["mask"] = options.mask
    return values


def _check_times(values: Mapping[str, object]) -> None:
    start, end = values.get("source_start", 0), values.get("source_end") or None
    try:
        Selection(start, end, values.get("source_fps") or None)
    except ValueError as error:  # it begins with "start is", "end is" or "fps is"
        raise SettingsError(f"--{'source-' if str(error).startswith('fps') else ''}{error}") from None


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def check_given(step: str, values: Mapping[str, str], options: argparse.Namespace) -> None:
    """Raises SettingsError for a recipe, texts by key, of a clip that was made of pictures, where none are given."""
    if options.source or options.image:
        return
    if SOURCE in values:
        raise SettingsError(
            f"--{step}: the clip was made of the source {values[SOURCE]!r}, which its file does not carry; give it "
            "again by --source FILE"
        )
    if IMAGE_CFG in values or _strength_of(values) is not None:
        raise SettingsError(
            f"--{step}: the clip was made of an image, which its file does not carry; give it again by --image FILE, "
            "or a video by --source FILE"
        )


def _strength_of(values: Mapping[str, str]) -> str | None:
    """That of a recipe, where it is not that of hires. fix."""
    return None if any(key.startswith("Hires ") for key in values) else values.get(STRENGTH)


def read(
    options: argparse.Namespace,
    settings: Settings,
    size: tuple[int | None, int | None],
    steps: int,
    made_of: Mapping[str, str],
) -> tuple[Edit | None, Settings, list[str]]:
    """What the options say about pictures, `settings` with what is left to the source, and what a user should know.

    size: that of the clip; None for that of the pictures.
    made_of: the texts of a recipe, by key.

    Raises SettingsError.
    """
    strength, image_guidance = _changes(options, made_of)
    if not options.source and not options.image:
        for flag in ("--mask", "--strength", "--image-cfg"):
            if getattr(options, _name(flag)) is not None:
                raise SettingsError(f"{flag}: there is nothing to edit; give --source or --image as well")
        return None, settings, []
    if image_guidance is None:  # Instruct-Pix2Pix samples all steps
        _check_steps(strength, steps)
    flag = "--source" if options.source else "--image"
    source = _opened(flag, options.source or options.image)
    if options.source:
        settings, picks, notes = _of_source(settings, source)
    else:
        if source.info.frames > 1:
            raise SettingsError(
                f"--image: {options.image} has {source.info.frames} frames; give one image, or the video by --source"
            )
        picks, notes = np.zeros(settings.length, np.int64), []
    notes += _notes_on(made_of, options)
    shown = Shown(source, picks, _size(size, source.info.size))
    edit = Edit(
        shown,
        _masks(options, shown, settings),
        strength,
        image_guidance,
        settings.selection if options.source else None,
    )
    return edit, settings, notes


def _notes_on(made_of: Mapping[str, str], options: argparse.Namespace) -> list[str]:
    notes = []
    if MASK in made_of and not options.mask:
        notes.append(f"the clip was made with the mask {made_of[MASK]}; --mask FILE gives it again")
    if "Version" in made_of and STRENGTH in made_of and options.strength is None:
        notes.append("of the steps of an edit the WebUI samples one more: it changes the pictures a little further")
    return notes


def _changes(options: argparse.Namespace, made_of: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Strength and image guidance, None where nothing says one; a recipe of Instruct-Pix2Pix, which has both in the
    WebUI, says the latter.
    """

    def read(flag: str, text: str | None, kind: Number, key: str, said: str | None) -> float | None:
        if text is not None:
            return kind.read(flag, text)
        return None if said is None else kind.read(f"{key} of the recipe", said)

    said = made_of.get(IMAGE_CFG) if options.strength is None else None
    image_guidance = read("--image-cfg", options.image_cfg, Number(1, 100), IMAGE_CFG, said)
    said = _strength_of(made_of) if image_guidance is None else None
    return read("--strength", options.strength, Number(0, 1), STRENGTH, said), image_guidance


def _check_steps(strength: float | None, steps: int) -> None:
    strength = DEFAULT_STRENGTH if strength is None else strength
    if int(steps * strength) < 1:  # as diffusers counts them
        raise SettingsError(
            f"--strength: {strength:g} is not allowed with --steps {steps}: it leaves none of them; give at least "
            f"{math.ceil(100 / steps) / 100:g}, or more steps"
        )


def _opened(flag: str, path: str, background: str = "white") -> Source:
    try:
        return open_source(path, background=background)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(f"{flag}: {error}") from None


def _of_source(settings: Settings, source: Source) -> tuple[Settings, np.ndarray, list[str]]:
    """The settings with the frames and the rate of the source where they were left to it, the number of the source's
    frame for each frame of the clip, and notes.
    """
    selection, name = settings.selection, source.path.name
    if settings.source_audio:
        if not source.info.has_audio:
            raise SettingsError(f"--audio is not allowed: {name} has no sound; leave it out")
        if not any(FORMATS[format].sound for format in settings.formats):
            able = " or ".join(row.suffix for row in FORMATS.values() if row.sound)
            raise SettingsError(f"--audio is not allowed: no --output holds sound; give a name that ends in {able}")
    try:
        kept = source.picks(selection)
        fps = float(source.clip_fps(selection))
    except ValueError as error:
        raise SettingsError(f"--source: {error}") from None
    limits = ROWS["fps"].kind
    settings = replace(settings, frames=len(kept), fps=settings.fps or min(max(fps, limits.low), limits.high))
    picks = with_in_betweens(kept, settings.length, settings.in_betweens)
    notes = []
    if selection.frames and len(kept) < selection.frames:
        notes.append(f"the source has {len(kept)} frames where {selection.frames} were asked for: so many has the clip")
    if settings.in_betweens > 1 and len(set(picks)) < len(picks):
        notes.append(
            "the source has too few frames between those of the clip: several in-betweens begin with the same one; a "
            "higher --every, or a lower --source-fps, leaves some between"
        )
    if source.info.hdr:
        notes.append("the source is HDR: its colours are tone-mapped to those of an SDR screen")
    return settings, picks, notes


def _size(size: tuple[int | None, int | None], own: Size) -> Size:
    """That of the clip, or else the pictures' own, down to multiples of 8."""
    if size[0] is not None:
        return size
    width, height = (side - side % 8 for side in own)
    if not all(64 <= side <= 4096 for side in (width, height)):
        raise SettingsError(
            f"--size: the pictures are {own[0]}x{own[1]}; give the size of the clip, multiples of 8 from 64 to 4096"
        )
    return width, height


def _masks(options: argparse.Namespace, shown: Shown, settings: Settings) -> Shown | None:
    if not options.mask:
        return None
    masks = _opened("--mask", options.mask, background="black")  # transparent: not masked
    (width, height), own = masks.info.size, shown.source.info.size
    if width * own[1] != height * own[0]:
        raise SettingsError(
            f"--mask: its pictures are {width}x{height}, those to be edited {own[0]}x{own[1]}; give masks of that shape"
        )
    picks, whole = shown.picks, shown.source.info.frames
    if options.image:
        picks, whole = np.arange(settings.length), settings.length
    try:
        picks = picks_of_masks(masks.info.frames, picks, whole, settings.frames, settings.in_betweens)
    except ValueError as error:
        raise SettingsError(f"--mask: {error}") from None
    return Shown(masks, picks, shown.size, "L")
