"""What a user can set for a clip: one table for the panel, the API, the infotext and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from zs2_lib.core.blocks import DEPTHS
from zs2_lib.core.clip import SEGMENT, Clip
from zs2_lib.core.noise import MODELS, SOLVERS, ClipNoise
from zs2_lib.core.timeline import Timeline
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.on_disk import Part
from zs2_lib.media.source import Selection

from . import together
from .kinds import (
    MAX_FRAMES,
    Choice,
    Choices,
    Counts,
    File,
    Files,
    Number,
    NumberSchedule,
    OldYesNo,
    Prompts,
    SettingsError,
    Takes,
    WholeNumber,
    YesNo,
    nearest,
)
from .row import Row, setting
from .schedule import PromptKeyframes, Schedule

RETURNS = ("frames", "video", "both")
LOOPS = ("off", "ping-pong", "seamless")
FROM_SOURCE = "source"
"""An entry of `control`: the frames of the source video."""


@dataclass(frozen=True)
class Settings:
    """The settings of one clip, checked: a value that is not allowed raises SettingsError. `ROWS` describes them."""

    enabled: bool = setting(
        False,
        YesNo(),
        "ZS² Video",
        "Makes a video of the prompt instead of single images: each batch becomes one clip.",
    )
    frames: int = setting(
        8,
        WholeNumber(1, MAX_FRAMES),
        "Frames",
        "How many frames the clip has. More frames take more time, not more memory: a long clip is sampled in segments "
        "that join without a seam. 1 gives the plain image. With a source video 0 takes all of its frames.",
        kind_with_source=WholeNumber(1, MAX_FRAMES, or_zero=True),
    )
    fps: float = setting(
        8.0,
        Number(0.1, 120),
        "Frames per second",
        "How fast the clip plays. It does not change the frames. With a source video 0 plays as fast as the source.",
        slider=(0, 60, 1),
        kind_with_source=Number(0.1, 120, or_zero=True),
    )
    motion: Schedule = setting(
        Schedule.parse(0.05),
        NumberSchedule(0),
        "Motion λ",
        "How far the picture may move from one frame to the next. 0 is a still image; 0.01 to 0.05 is calm, 0.25 "
        "lively; from 1.65 on frames have nothing in common but the prompt. It is the noise that moves by λ; the "
        "picture follows differently with each sampler, number of steps and CFG scale: at 0.05 the small checkpoint by "
        "3 to 15 of 255, with DPM2 a at 10 steps or CFG 9 by 22 to 28.",
        slider=(0, 0.5, 0.005),
    )
    inertia: Schedule = setting(
        Schedule.parse(0),
        NumberSchedule(0, 1),
        "Inertia β",
        "How much of its direction a movement keeps. 0 trembles around a place, near 1 the picture travels "
        "smoothly and further.",
        slider=(0, 1, 0.05),
    )
    momentum: Schedule = setting(
        Schedule.parse(0.98),
        NumberSchedule(0, 1),
        "Momentum μ",
        "How strongly looks are carried from frame to frame. 1 keeps those of the first frame, 0.98 lets them "
        "change slowly, 0 lets every frame look as it likes.",
        slider=(0, 1, 0.01),
    )
    loop: str = setting(
        "off",
        OldYesNo(LOOPS, yes="seamless", no="off"),
        "Loop",
        "How the clip repeats. seamless: the last frame leads back to the first without a jump; ping-pong: the files "
        "play forth and back.",
    )
    in_betweens: int = setting(
        1,
        WholeNumber(1, 4),
        "In-betweens ×",
        "How many times as many frames: 2 puts one between any two, made by the checkpoint itself, and the clip plays "
        "as many times as fast. The other frames stay the same, bit for bit. Frames, keyframes and frames per second "
        "are counted without them.",
        slider=(1, 4, 1),
    )
    prompts: PromptKeyframes | None = setting(
        None,
        Prompts(),
        "Prompts by frame",
        "What the clip shows when: lines of frame: prompt, such as 0: a red circle and 12: a blue square; frames "
        "count from 0. Each follows the tab's prompt, and one changes into the next. Leave it empty for the same "
        "prompt in all frames.",
        placeholder="0: a red circle\n12: a blue square",
    )
    noise_model: str = setting(
        "dependency",
        Choice(MODELS),
        "Noise model",
        "How the noises of the frames depend on each other. dependency: by Motion λ (the method itself); mixed and "
        "progressive: by α, for comparison; independent: no relation, the frames are different pictures.",
    )
    alpha: float = setting(
        0.9,
        Number(0, 1),
        "α of mixed and progressive noise",
        "How much noise neighbouring frames share under the models mixed and progressive. 1 is a still image, 0 is "
        "independent.",
        slider=(0, 1, 0.01),
    )
    candidates: int = setting(
        1,
        WholeNumber(1, 1000),
        "Candidates per frame",
        "Of so many random directions the one nearest to Motion λ is taken for each frame (the paper: 10). 1 "
        "leaves the direction to chance; more move further at a small λ, and make the noise of long clips stronger "
        "than it should be.",
        slider=(1, 50, 1),
    )
    solver: str = setting(
        "exact",
        Choice(SOLVERS),
        "Solver",
        "How each step is brought to Motion λ. exact: at once and precisely; search: the paper's search, nearly, "
        "for comparison.",
    )
    frames_per_pass: int = setting(
        0,
        WholeNumber(0, 1024),
        "Frames per UNet pass",
        "How many frames the UNet computes at once. Fewer need less memory and give the same clip. 0 chooses by "
        "the picture's size and halves it when memory runs out.",
        slider=(0, 64, 1),
    )
    anchor_stride: int = setting(
        1,
        WholeNumber(1, 16),
        "Anchor stride",
        "Only every so many frames go through the deep part of the UNet; what it makes of the others is taken from "
        "between them. 1 computes all frames in full; 8 takes about half the time, and the clip changes a little.",
        slider=(1, 16, 1),
    )
    anchor_depth: str = setting(
        "medium",
        Choice(DEPTHS),
        "Anchor depth",
        "Which part of the UNet is deep. gentle: little of it, least difference; strong: most of it, fastest.",
    )
    anchor_start: float = setting(
        0.18,
        Number(0, 1),
        "Anchor start",
        "With an anchor stride: up to this part of the way from noise to picture all frames are computed in full; "
        "there it is decided what moves. Less is faster and moves less. 0: the first step alone.",
        slider=(0, 1, 0.02),
    )
    retakes: tuple[tuple[int, int], ...] | None = setting(
        None,
        Takes(),
        "Retakes",
        "From which frame on the clip goes another way, and the number of that take: 9:1 changes frame 9 and all after "
        "it, 9:2 once more. Frames before stay the same, bit for bit; frames count from 0. Leave it empty for the "
        "first take.",
        placeholder="9:1",
    )
    extended: tuple[int, ...] | None = setting(
        None,
        Counts(),
        "Extended at",
        "How many frames the clip had each time before it was given more, such as 8, 16: those frames stay what they "
        "were, bit for bit, and not only within rounding.",
        placeholder="8",
    )
    kept_clip: str = setting(
        "",
        File(),
        "Clip to go on from",
        "The clip that this one is made of, with in_betweens, extended or retakes: what is kept of it are its "
        "pictures, if they are there without loss (PNG, APNG), whatever a GPU makes of them now.",
        key="clip",
    )
    formats: tuple[str, ...] = setting(
        ("mp4",),
        Choices(tuple(FORMATS)),
        "Output formats",
        "The files written for each clip, beside its frames. mp4 plays everywhere; gif, webp and apng also play in "
        "the gallery and carry the settings for PNG Info; png is a folder of numbered images.",
    )
    returns: str = setting(
        "video",
        Choice(RETURNS),
        "Returned by the API",
        "The pictures of an answer are the frames. video: the clip's files come as well, as data of zs2_clips in info; "
        "both: and an animated picture of the clip before its frames; frames: neither.",
        key="return",
    )
    sidecar: bool = setting(
        False,
        YesNo(),
        "JSON beside it",
        "Writes a JSON file beside each clip that is saved: its infotext, prompts, seed, and all settings.",
    )
    preflight: bool = setting(
        False,
        YesNo(),
        "Preflight",
        "Makes the clip small and in few steps, with all other settings and the same seed; nothing is saved.",
    )

    source: str = setting(
        "",
        File(),
        "Source video",
        "A video whose frames are edited: each becomes the init image of one frame of the clip. A video, an "
        "animated GIF, WebP or APNG, or a folder of images.",
        group="source",
    )
    source_start: float = setting(
        0.0,
        Number(0, 360_000),
        "Start",
        "Where in the source the clip begins, in seconds.",
        group="source",
    )
    source_end: float = setting(
        0.0,
        Number(0, 360_000),
        "End",
        "Where in the source the clip ends, in seconds. 0 is the source's end.",
        group="source",
    )
    source_fps: float = setting(
        0.0,
        Number(0, 120),
        "Frames per second taken",
        "How many frames of each second of the source are used. 0 takes every frame.",
        group="source",
    )
    source_every: int = setting(
        1,
        WholeNumber(1, 1000),
        "Every n-th frame",
        "Takes only every n-th of these frames: the clip moves in larger steps and takes less time.",
        group="source",
    )
    source_audio: bool = setting(
        False,
        YesNo(),
        "Keep the sound",
        "Gives the clip the sound of the same part of the source, in MP4 and WebM.",
        group="source",
    )
    mask: str = setting(
        "",
        File(),
        "Mask video",
        "Where the source is repainted, white, frame by frame: a video or a folder of images with as many frames "
        "as the source, or one image for all frames. It takes the place of the tab's mask.",
        group="source",
    )

    control: tuple[str, ...] = setting(
        (),
        Files(),
        "Control images",
        "Where each ControlNet unit takes the images of the frames from: an entry for each unit, source for the "
        "source video, a video or folder of images, or nothing for the unit's own image (without one, the source).",
        group="control",
    )
    control_fit: str = setting(
        "hold",
        Choice(("hold", "loop", "stretch")),
        "Too few control images",
        "What a ControlNet unit shows when its video is shorter than the clip. hold: its last image; loop: it "
        "begins again; stretch: it is spread over the clip.",
        group="control",
    )
    control_momentum: bool = setting(
        False,
        YesNo(),
        "Momentum in ControlNet",
        "Carries looks from frame to frame inside the ControlNet models as well. Frames follow their control "
        "images less closely.",
        group="control",
    )

    def __post_init__(self):
        for name, row in ROWS.items():
            object.__setattr__(self, name, row.kind_for(self.source).check(row.key, getattr(self, name)))
        together.check(self)

    @classmethod
    def from_mapping(cls, values: Mapping) -> Settings:
        """Settings from an API request's keys; those left out have their defaults.

        Raises SettingsError for an unknown key (with the nearest valid one) or a value that is not allowed.
        """
        names = {row.key: name for name, row in ROWS.items()}
        for key in values:
            if key not in names:
                raise SettingsError(
                    f"{key!r} is not a setting of ZS²; the settings are {', '.join(names)}{nearest(key, names)}"
                )
        if values.get("source"):  # which decides what is left open
            values = {"frames": 0, "fps": 0, **values}
        return cls(**{names[key]: value for key, value in values.items()})

    @property
    def selection(self) -> Selection:
        """Which frames of the source are used."""
        return together.selection(self)

    @property
    def notes(self) -> list[str]:
        """What a user should know about these settings together."""
        return together.notes(self)

    @property
    def closed(self) -> bool:
        """Whether the noise leads from the last frame back to the first."""
        return self.loop == "seamless" and self.frames > 1

    @property
    def length(self) -> int:
        """How many frames the clip has with its in-betweens."""
        return Timeline(self.frames, self.in_betweens, self.closed).frames

    @property
    def rate(self) -> float:
        """How many of them are shown in a second."""
        return self.fps * self.in_betweens

    @property
    def segment(self) -> int | None:
        """The most frames to sample at once; None: all of them."""
        return None if self.closed else SEGMENT * self.in_betweens

    def played(self, frames: Sequence) -> Sequence:
        """The pictures of the clip's files, for its frames: those of a ping-pong come back."""
        if self.loop != "ping-pong":
            return frames
        return Part(frames, [*range(len(frames)), *range(len(frames) - 2, 0, -1)])

    def clip(self, seed: int, segment: int | None = None) -> Clip:
        """The clip with this seed, for a host to sample in segments of `segment` frames; None: at once."""
        noise = ClipNoise(
            seed,
            self.motion.values(self.frames),
            self.inertia.values(self.frames),
            model=self.noise_model,
            alpha=self.alpha,
            loop=self.closed,
            candidates=self.candidates,
            solver=self.solver,
            in_betweens=self.in_betweens,
            retakes=self.retakes or (),
        )
        return Clip(
            self.momentum.values(self.frames),
            noise,
            anchor_stride=self.anchor_stride,
            anchor_depth=self.anchor_depth,
            anchor_start=self.anchor_start,
            frames_per_pass=self.frames_per_pass,
            segment=segment,
            in_betweens=self.in_betweens,
            closed=self.closed,
            extended=self.extended or (),
        )


ROWS = {
    option.name: Row(option.name, option.default, **{"key": option.name, **option.metadata})
    for option in fields(Settings)
}
"""Each setting's row, by its name."""
