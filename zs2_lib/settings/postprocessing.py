"""What a user can set for working on a finished clip: more frames, larger frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from zs2_lib.media import interpolators
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.interpolators import MINTERPOLATE, InterpolatorError

from .kinds import Choice, Choices, File, Kind, Number, SettingsError, WholeNumber, nearest
from .row import Row, setting

UPSCALE_FIRST, INTERPOLATE_FIRST = "upscale first", "interpolate first"
KEYS = UPSCALER, UPSCALED_BY, INTERPOLATED_TO = "ZS2 upscaler", "ZS2 upscaled by", "ZS2 interpolated to"
"""Keys in the infotext of the result, behind the recipe of the clip."""
NO_UPSCALER = "None"
"""As hosts name the upscaler that does nothing."""


class Name(Kind):
    """One of what the host lists, which is not known here."""

    def check(self, key: str, value) -> str:
        if not isinstance(value, str):
            raise SettingsError(f"{key}: {value!r} is not allowed; give its name")
        return value.strip()


class SomeOf(Choices):
    """The same as `Choices`, or none."""

    def check(self, key: str, value) -> tuple[str, ...]:
        return () if value in ((), [], None) else super().check(key, value)

    def schema(self) -> dict:
        return {**super().schema(), "minItems": 0}


@dataclass(frozen=True)
class Postprocessing:
    """What to do with a clip, checked: a value that is not allowed raises SettingsError. `ROWS` describes them."""

    clip: str = setting(
        "",
        File(),
        "Clip",
        "The clip to work on: a video, an animated image, or a folder of frames. It stays as it is; the result gets a "
        "name of its own.",
    )
    upscaler: str = setting(
        NO_UPSCALER,
        Name(),
        "Upscaler",
        "Makes every frame larger, one by one, with an upscaler of the WebUI; None leaves the size. As on the tab "
        "Extras, one whose model is not there yet may download it.",
    )
    scale: float = setting(
        2.0,
        Number(1, 8),
        "Upscale by",
        "How many times as wide and high the frames become, cut to multiples of 8 pixels as the WebUI does.",
        slider=(1, 8, 0.05),
    )
    interpolate: int = setting(
        1,
        WholeNumber(1, 4),
        "Interpolate",
        "How many times as many frames the clip gets. The frames that are there stay as they are, those between follow "
        "their movement; the clip lasts as long as before. 1: no more frames.",
        slider=(1, 4, 1),
    )
    fps: float = setting(
        0.0,
        Number(0.1, 240, or_zero=True),
        "Frames per second of the result",
        "The frames per second that the clip gets, in the place of a factor; 0 leaves it to the factor.",
    )
    interpolator: str = setting(
        MINTERPOLATE,
        Name(),
        "Interpolator",
        "What makes the frames between. minterpolate is FFmpeg's, and always there; packages and other extensions can "
        "offer more, such as RIFE.",
    )
    order: str = setting(
        UPSCALE_FIRST,
        Choice((UPSCALE_FIRST, INTERPOLATE_FIRST)),
        "Order",
        "upscale first: fewer frames to upscale, larger ones to interpolate; interpolate first: the other way round.",
    )
    formats: tuple[str, ...] = setting(
        (),
        SomeOf(tuple(FORMATS)),
        "Formats",
        "What kinds of files are written; none: that of the clip.",
    )

    def __post_init__(self):
        for name, row in ROWS.items():
            object.__setattr__(self, name, row.kind.check(name, getattr(self, name)))
        if not self.clip:
            raise SettingsError("clip: none is given; give the path or the base64 of a clip's file")
        if self.interpolate > 1 and self.fps:
            raise SettingsError(
                f"fps: {self.fps:g} is not allowed with interpolate {self.interpolate}; give the one or the other"
            )
        if not self.upscales and not self.interpolates:
            raise SettingsError(
                "upscaler, interpolate, fps: there is nothing to do; give an upscaler, interpolate (2 to 4) or fps"
            )

    @property
    def upscales(self) -> bool:
        return self.upscaler not in ("", NO_UPSCALER)

    @property
    def interpolates(self) -> bool:
        return self.interpolate > 1 or self.fps > 0

    @classmethod
    def from_mapping(cls, values: Mapping) -> Postprocessing:
        """From an API request's keys; those left out have their defaults. Raises SettingsError."""
        for key in values:
            if key not in ROWS:
                raise SettingsError(
                    f"{key!r} is not known for a finished clip; the keys are {', '.join(ROWS)}{nearest(key, ROWS)}"
                )
        return cls(**values)


ROWS = {
    option.name: Row(option.name, option.default, **{"key": option.name, **option.metadata})
    for option in fields(Postprocessing)
}
"""Each setting's row, by its name."""


def check_interpolator(name: str, key: str = "interpolator") -> None:
    """Raises SettingsError that names `key` if there is no interpolator of that name, or it cannot be loaded."""
    if name not in interpolators.names():
        raise SettingsError(
            f"{key}: {name!r} is not allowed; give one of {', '.join(interpolators.names())}"
            f"{nearest(name, interpolators.names())}"
        )
    try:
        if name != MINTERPOLATE:
            interpolators.loaded(name)
    except InterpolatorError as error:
        raise SettingsError(f"{key}: {error}") from error
