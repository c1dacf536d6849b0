"""What a user can set for a clip: one table for the panel, the API, the infotext and the command line."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from zs2_lib.core.anchors import DEPTHS
from zs2_lib.core.clip import Clip
from zs2_lib.core.noise import MODELS, SOLVERS, ClipNoise
from zs2_lib.media.formats import FORMATS, check_clip
from zs2_lib.media.source import Selection

from .schedule import Schedule, number_text
from .travel import PromptKeyframes

MAX_FRAMES = 1024
RETURNS = ("frames", "video", "both")
FROM_SOURCE = "source"
"""An entry of `control`: the frames of the source video."""


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the key, the value, what is allowed and a remedy."""


# --- checks: (key, value) -> the value in its proper type ----------------------------------------------


def boolean(key: str, value) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{key}: {value!r} is not allowed; give true or false")
    return value


def whole(low: int, high: int) -> Callable:
    def check(key: str, value) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value not in range(low, high + 1):
            raise SettingsError(f"{key}: {value!r} is not allowed; give a whole number from {low} to {high}")
        return int(value)

    return check


def number(low: float, high: float) -> Callable:
    def check(key: str, value) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
            raise SettingsError(f"{key}: {value!r} is not allowed; give a number from {low:g} to {high:g}")
        return float(value)

    return check


def schedule(low: float, high: float = float("inf")) -> Callable:
    allowed = f"from {low:g} to {high:g}" if high < float("inf") else f"of {low:g} or more"
    allowed = (
        f"a number {allowed}, or keyframes of such numbers such as '0:0.01, 8:0.05' (frame:value, frames count from 0)"
    )

    def check(key: str, value) -> Schedule:
        try:
            parsed = Schedule.parse(value)
        except ValueError as error:
            raise SettingsError(f"{key}: {value!r} is not allowed: {error}; give {allowed}") from None
        if parsed.bounds[0] < low or parsed.bounds[1] > high:
            raise SettingsError(f"{key}: {value!r} is not allowed; give {allowed}")
        return parsed

    return check


def text(key: str, value) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{key}: {value!r} is not allowed; give a text")
    return value.strip()


def prompt_keyframes(key: str, value) -> PromptKeyframes | None:
    """None for an empty text: the same prompt for all frames."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return PromptKeyframes.parse(value)
    except ValueError as error:
        raise SettingsError(
            f"{key}: {value!r} is not allowed: {error}; give a line 'frame: prompt' for each keyframe (frames count from 0), "
            "or nothing"
        ) from None


def one_of(*choices: str) -> Callable:
    def check(key: str, value) -> str:
        if value not in choices:
            raise SettingsError(
                f"{key}: {value!r} is not allowed; give one of {_quoted(choices)}{_nearest(value, choices)}"
            )
        return value

    return check


def some_of(*choices: str) -> Callable:
    def check(key: str, value) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise SettingsError(f"{key}: {value!r} is not allowed; give a list of one or more of {_quoted(choices)}")
        for item in value:
            if item not in choices:
                raise SettingsError(
                    f"{key}: {item!r} is not allowed; the list may hold {_quoted(choices)}{_nearest(item, choices)}"
                )
        return tuple(dict.fromkeys(value))

    return check


def texts(key: str, value) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise SettingsError(f"{key}: {value!r} is not allowed; give a list of texts, one for each")
    return tuple(value)


def _quoted(choices) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)


def _nearest(value, choices) -> str:
    match = difflib.get_close_matches(value, choices, n=1, cutoff=0.0) if isinstance(value, str) else []
    return f'; did you mean "{match[0]}"?' if match else ""


def or_zero(check: Callable) -> Callable:
    """0 as well, which leaves it to the source."""

    def check_or_zero(key: str, value):
        is_zero = isinstance(value, numbers.Real) and not isinstance(value, bool) and value == 0
        return value if is_zero else check(key, value)

    return check_or_zero


clip_frames = whole(1, MAX_FRAMES)
clip_fps = number(0.1, 120)


# --- the settings ------------------------------------------------------------------------------------------


def setting(default, check: Callable, label: str, tooltip: str, **extra):
    return field(default=default, metadata={"check": check, "label": label, "tooltip": tooltip, **extra})


@dataclass(frozen=True)
class Settings:
    """The settings of one clip, checked: a value that is not allowed raises SettingsError.

    Each field's metadata has its check, the label and the tooltip of its control, and the limits of its slider.
    """

    enabled: bool = setting(
        False,
        boolean,
        "ZS² Video",
        "Makes a video of the prompt instead of single images: each batch becomes one clip.",
    )
    frames: int = setting(
        8,
        clip_frames,
        "Frames",
        "How many frames the clip has. More frames take more time, not more memory. 1 gives the plain image. With a source "
        "video 0 takes all of its frames.",
        slider=(0, MAX_FRAMES, 1),
        check_with_source=or_zero(clip_frames),
    )
    fps: float = setting(
        8.0,
        clip_fps,
        "Frames per second",
        "How fast the clip plays. It does not change the frames. With a source video 0 plays as fast as the source.",
        slider=(0, 60, 1),
        check_with_source=or_zero(clip_fps),
    )
    motion: Schedule = setting(
        Schedule.parse(0.05),
        schedule(0),
        "Motion λ",
        "How far the picture may move from one frame to the next. 0 is a still image; 0.01 to 0.05 is calm, "
        "0.25 lively; from 1.65 on frames have nothing in common but the prompt.",
        slider=(0, 0.5, 0.005),
    )
    inertia: Schedule = setting(
        Schedule.parse(0),
        schedule(0, 1),
        "Inertia β",
        "How much of its direction a movement keeps. 0 trembles around a place, near 1 the picture travels "
        "smoothly and further.",
        slider=(0, 1, 0.05),
    )
    momentum: Schedule = setting(
        Schedule.parse(0.98),
        schedule(0, 1),
        "Momentum μ",
        "How strongly looks are carried from frame to frame. 1 keeps those of the first frame, 0.98 lets them "
        "change slowly, 0 lets every frame look as it likes.",
        slider=(0, 1, 0.01),
    )
    loop: bool = setting(
        False, boolean, "Loop", "The last frame leads back to the first, so that the clip can repeat without a jump."
    )
    prompts: PromptKeyframes | None = setting(
        None,
        prompt_keyframes,
        "Prompts by frame",
        "What the clip shows when: lines of frame: prompt, such as 0: a red circle and 12: a blue square; frames count from 0. "
        "Each follows the tab's prompt, and one changes into the next. Leave it empty for the same prompt in all frames.",
        lines=3,
        placeholder="0: a red circle\n12: a blue square",
    )
    noise_model: str = setting(
        "dependency",
        one_of(*MODELS),
        "Noise model",
        "How the noises of the frames depend on each other. dependency: by Motion λ (the method itself); mixed and "
        "progressive: by α, for comparison; independent: no relation, the frames are different pictures.",
        choices=MODELS,
    )
    alpha: float = setting(
        0.9,
        number(0, 1),
        "α of mixed and progressive noise",
        "How much noise neighbouring frames share under the models mixed and progressive. 1 is a still image, 0 is independent.",
        slider=(0, 1, 0.01),
    )
    candidates: int = setting(
        1,
        whole(1, 1000),
        "Candidates per frame",
        "Of so many random directions the one nearest to Motion λ is taken for each frame (the paper: 10). 1 leaves the "
        "direction to chance; more move further at a small λ, and make the noise of long clips stronger than it should be.",
        slider=(1, 50, 1),
    )
    solver: str = setting(
        "exact",
        one_of(*SOLVERS),
        "Solver",
        "How each step is brought to Motion λ. exact: at once and precisely; search: the paper's search, nearly, for comparison.",
        choices=SOLVERS,
    )
    frames_per_pass: int = setting(
        0,
        whole(0, 1024),
        "Frames per UNet pass",
        "How many frames the UNet computes at once. Fewer need less memory and give the same clip. 0 chooses by the "
        "picture's size and halves it when memory runs out.",
        slider=(0, 64, 1),
    )
    anchor_stride: int = setting(
        1,
        whole(1, 16),
        "Anchor stride",
        "Only every so many frames go through the deep part of the UNet; what it makes of the others is taken from between them. "
        "1 computes all frames in full; 8 takes about half the time, and the clip changes a little.",
        slider=(1, 16, 1),
    )
    anchor_depth: str = setting(
        "medium",
        one_of(*DEPTHS),
        "Anchor depth",
        "Which part of the UNet is deep. gentle: little of it, least difference; strong: most of it, fastest.",
        choices=DEPTHS,
    )
    anchor_start: float = setting(
        0.18,
        number(0, 1),
        "Anchor start",
        "With an anchor stride: up to this part of the way from noise to picture all frames are computed in full; there it is decided "
        "what moves. Less is faster and moves less. 0: the first step alone.",
        slider=(0, 1, 0.02),
    )
    formats: tuple[str, ...] = setting(
        ("mp4",),
        some_of(*FORMATS),
        "Output formats",
        "The files written for each clip, beside its frames. mp4 plays everywhere; gif, webp and apng also play in "
        "the gallery and carry the settings for PNG Info; png is a folder of numbered images.",
        choices=tuple(FORMATS),
    )
    returns: str = setting(
        "both",
        one_of(*RETURNS),
        "Returned by the API",
        "frames: the clip's images; video: one file per format; both: the files, then the images.",
        key="return",
    )

    source: str = setting(
        "",
        text,
        "Source video",
        "A video whose frames are edited: each becomes the init image of one frame of the clip. A video, an animated GIF, "
        "WebP or APNG, or a folder of images.",
        group="source",
    )
    source_start: float = setting(
        0.0, number(0, 360_000), "Start", "Where in the source the clip begins, in seconds.", group="source"
    )
    source_end: float = setting(
        0.0,
        number(0, 360_000),
        "End",
        "Where in the source the clip ends, in seconds. 0 is the source's end.",
        group="source",
    )
    source_fps: float = setting(
        0.0,
        number(0, 120),
        "Frames per second taken",
        "How many frames of each second of the source are used. 0 takes every frame.",
        group="source",
    )
    source_every: int = setting(
        1,
        whole(1, 1000),
        "Every n-th frame",
        "Takes only every n-th of these frames: the clip moves in larger steps and takes less time.",
        group="source",
    )
    source_audio: bool = setting(
        False,
        boolean,
        "Keep the sound",
        "Gives the clip the sound of the same part of the source, in MP4 and WebM.",
        group="source",
    )
    mask: str = setting(
        "",
        text,
        "Mask video",
        "Where the source is repainted, white, frame by frame: a video or a folder of images with as many frames as the "
        "source, or one image for all frames. It takes the place of the tab's mask.",
        group="source",
    )

    control: tuple[str, ...] = setting(
        (),
        texts,
        "Control images",
        "Where each ControlNet unit takes the images of the frames from: an entry for each unit, source for the source video, a video "
        "or folder of images, or nothing for the unit's own image (without one, the source).",
        group="control",
    )
    control_fit: str = setting(
        "hold",
        one_of("hold", "loop", "stretch"),
        "Too few control images",
        "What a ControlNet unit shows when its video is shorter than the clip. hold: its last image; loop: it begins again; stretch: it is "
        "spread over the clip.",
        choices=("hold", "loop", "stretch"),
        group="control",
    )
    control_momentum: bool = setting(
        False,
        boolean,
        "Momentum in ControlNet",
        "Carries looks from frame to frame inside the ControlNet models as well. Frames follow their control images less closely.",
        group="control",
    )

    def __post_init__(self):
        for option in fields(self):
            check = (self.source and option.metadata.get("check_with_source")) or option.metadata["check"]
            value = check(key_of(option), getattr(self, option.name))
            object.__setattr__(
                self, option.name, type(option.default)(value) if isinstance(option.default, (int, float)) else value
            )
        if self.mask and not self.source:
            raise SettingsError(
                "mask: a mask video is not allowed without a source; give `source`, or the mask to the host itself"
            )
        try:
            self.selection
        except ValueError as error:
            raise SettingsError(f"source_{error}") from None  # it begins with "start is", "end is" or "fps is"
        for format in self.formats if self.fps else ():
            try:
                check_clip(format, self.fps)
            except ValueError as error:
                raise SettingsError(f"fps: {self.fps:g} is not allowed with the format {format!r}: {error}") from None
        if self.loop and self.noise_model != "dependency":
            raise SettingsError(
                f'loop: true is not allowed with noise_model "{self.noise_model}"; only the model "dependency" closes a loop'
            )
        if self.loop and not self.motion.is_constant:
            raise SettingsError(
                f"loop: true is not allowed with motion keyframes '{self.motion}'; all steps of a loop are alike: give one number"
            )

    @classmethod
    def from_mapping(cls, values: Mapping) -> Settings:
        """Settings from an API request's keys; those left out have their defaults.

        Raises SettingsError for an unknown key (with the nearest valid one) or a value that is not allowed.
        """
        names = {key_of(option): option.name for option in fields(cls)}
        for key in values:
            if key not in names:
                raise SettingsError(
                    f"{key!r} is not a setting of ZS²; the settings are {', '.join(names)}{_nearest(key, list(names))}"
                )
        if values.get("source"):  # which decides what is left open
            values = {"frames": 0, "fps": 0, **values}
        return cls(**{names[key]: value for key, value in values.items()})

    @property
    def selection(self) -> Selection:
        """Which frames of the source are used."""
        return Selection(
            self.source_start, self.source_end or None, self.source_fps or None, self.source_every, self.frames or None
        )

    @property
    def infotext(self) -> dict[str, str]:
        """What the host writes into its images: one key for each setting that belongs to the clip."""
        values = {
            infotext_key(option): getattr(self, option.name)
            for option in INFOTEXT_OPTIONS
            if option.metadata.get("group")
            in (None, *(group for group in ("source", "control") if getattr(self, group)))
        }
        return {key: _as_text(value) for key, value in values.items() if value is not None}

    def clip(self, seed: int) -> Clip:
        """The clip with this seed, for a host to sample."""
        noise = ClipNoise(
            seed,
            self.motion.values(self.frames),
            self.inertia.values(self.frames),
            model=self.noise_model,
            alpha=self.alpha,
            loop=self.loop,
            candidates=self.candidates,
            solver=self.solver,
        )
        return Clip(
            self.momentum.values(self.frames),
            noise,
            anchor_stride=self.anchor_stride,
            anchor_depth=self.anchor_depth,
            anchor_start=self.anchor_start,
            frames_per_pass=self.frames_per_pass,
        )

    @property
    def notes(self) -> list[str]:
        """What a user should know about these settings together."""
        notes = []
        if self.loop and self.inertia.bounds[1] > 0:
            notes.append(f"Inertia {self.inertia} has no effect on a loop: its path is smooth by itself.")
        if self.noise_model != "dependency" and self.inertia.bounds[1] > 0:
            notes.append(f'Inertia {self.inertia} has no effect with the noise model "{self.noise_model}".')
        if self.prompts:
            notes += self._notes_on_prompts
        return notes

    @property
    def _notes_on_prompts(self) -> list[str]:
        notes, prompts, frames = [], self.prompts, self.frames
        beyond = [frame for frame in prompts.beyond(frames) if not (self.loop and frame == frames)]
        if beyond:
            listed = ", ".join(map(str, beyond))
            notes.append(
                f"Prompts at frame {listed} are not reached: the last of {frames} frames is frame {frames - 1}."
            )
        if self.loop and prompts.at(frames) != prompts.at(0):
            notes.append(
                "The loop jumps from its last prompt to its first; to lead back, end the prompts with "
                f"'{frames}: {prompts.at(0).before}'."
            )
        return notes


INFOTEXT_OPTIONS = tuple(
    option for option in fields(Settings) if option.name not in ("enabled", "returns", "source", "mask", "control")
)
"""The settings that an infotext carries. That it carries them says that ZS² was enabled; files it can't carry."""


def infotext_key(option) -> str:
    """A field's key in the host's infotext: "ZS2 frames", "ZS2 noise model"."""
    return "ZS2 " + option.name.replace("_", " ")


def _as_text(value) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return number_text(value) if isinstance(value, float) else str(value)


def key_of(option) -> str:
    """A field's key in API requests and messages: its name, except where Python reserves that."""
    return option.metadata.get("key", option.name)
