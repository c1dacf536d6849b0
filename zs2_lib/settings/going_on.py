"""Going on from a clip: the settings of one that has more frames than another, or another take of some of them.

Each function takes the `Settings` of a clip, and raises SettingsError where it cannot be gone on from like that.
"""

from __future__ import annotations

from dataclasses import replace

from .kinds import SettingsError, WholeNumber
from .table import ROWS, Settings

LOOP = (
    'clip: it is a loop ("seamless"), which cannot be {done}: every frame of it follows from the noise of all, so that '
    "nothing would stay the same; make it anew with other settings, or as a clip that is no loop"
)


def extended(clip: Settings, frames: int) -> Settings:
    """The clip with so many more frames."""
    if clip.closed:
        raise SettingsError(LOOP.format(done="extended"))
    frames = WholeNumber(1, ROWS["frames"].kind.high).check("frames", frames)
    return replace(clip, frames=clip.frames + frames, extended=(*(clip.extended or ()), clip.frames))


def retaken(clip: Settings, frame: int, take: int | None = None) -> Settings:
    """The clip with another take from `frame` (counted from 0) on: the one of that number, or one that it has not had
    there.
    """
    if clip.closed:
        raise SettingsError(LOOP.format(done="retaken"))
    try:
        frame = WholeNumber(1, clip.frames - 1).check("frame", frame)
    except SettingsError as error:
        raise SettingsError(f"{error}, the last of the clip (frame 0 is the still: choose another seed)") from None
    if take is not None:
        take = WholeNumber(1, 999_999_999).check("take", take)
    before = clip.retakes or ()
    if take is None:
        take = max((number for _, number in before), default=0) + 1
    retakes = [(begin, number) for begin, number in before if begin < frame]
    return replace(clip, retakes=(*retakes, (frame, take)))


def with_in_betweens(clip: Settings, times: int) -> Settings:
    """The clip with `times` as many frames."""
    return replace(clip, in_betweens=ROWS["in_betweens"].kind.check("in_betweens", times))


def kept_frames(before: Settings, after: Settings) -> dict[int, int]:
    """Which frames of `after`, a clip that was made of `before`, are the same pictures as which of that (counted from
    0, in-betweens among them).
    """
    same = min(before.frames, after.frames)
    starts = sorted({frame for clip in (before, after) for frame, _ in clip.retakes or ()})
    changed = next((frame for frame in starts if take_at(before, frame) != take_at(after, frame)), same)
    kept = range(min(same, changed))
    return {frame * after.in_betweens: frame * before.in_betweens for frame in kept}


def take_at(clip: Settings, frame: int) -> int:
    """The number of the take that a frame is of."""
    return next((take for begin, take in reversed(clip.retakes or ()) if begin <= frame), 0)
