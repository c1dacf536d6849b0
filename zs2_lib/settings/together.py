"""What settings mean together: combinations that are not allowed, and what a user should know about others.

Each function takes the `Settings` of a clip.
"""

from __future__ import annotations

from zs2_lib.media.formats import check_clip
from zs2_lib.media.source import Selection

from .kinds import Counts, SettingsError, Takes
from .schedule import PromptKeyframes

MOST_OF_A_LOOP = 1024
"""Frames."""


def check(settings) -> None:
    """Raises SettingsError for a combination that is not allowed."""
    if settings.mask and not settings.source:
        raise SettingsError(
            "mask: a mask video is not allowed without a source; give `source`, or the mask to the host itself"
        )
    selection(settings)
    _check_rate(settings)
    _check_loop(settings)


def selection(settings) -> Selection:
    """The settings' selection. Raises SettingsError where they make none."""
    start, end, fps = settings.source_start, settings.source_end or None, settings.source_fps or None
    try:
        return Selection(start, end, fps, settings.source_every, settings.frames or None)
    except ValueError as error:
        raise SettingsError(f"source_{error}") from None  # it begins with "start is", "end is" or "fps is"


def _check_rate(settings) -> None:
    for format in settings.formats if settings.fps else ():
        try:
            check_clip(format, settings.rate)
        except ValueError as error:
            more = f"in_betweens {settings.in_betweens} and " if settings.in_betweens > 1 else ""
            raise SettingsError(
                f"fps: {settings.fps:g} is not allowed with {more}the format {format!r}: {error}"
            ) from None


def _check_loop(settings) -> None:
    if settings.loop != "seamless":
        return
    if settings.noise_model != "dependency":
        raise SettingsError(
            f'loop: "seamless" is not allowed with noise_model "{settings.noise_model}"; '
            'only the model "dependency" closes a loop'
        )
    if not settings.motion.is_constant:
        raise SettingsError(
            f"loop: \"seamless\" is not allowed with motion keyframes '{settings.motion}'; "
            "all steps of a loop are alike: give one number"
        )
    if settings.frames > MOST_OF_A_LOOP:
        raise SettingsError(
            f'loop: "seamless" is not allowed with {settings.frames} frames; the noise of a loop is drawn as a whole: '
            f"give at most {MOST_OF_A_LOOP} frames, or another loop"
        )
    parts = (("retakes", Takes(), "retake a part of it"), ("extended", Counts(), "extend it"))
    for name, kind, what in parts:
        if text := kind.print(getattr(settings, name)):
            raise SettingsError(
                f'{name}: {text} is not allowed with loop "seamless": every frame of such a loop follows from the '
                f"noise of all, so that nothing stays the same if you {what}; choose another loop, or another seed"
            )


def notes(settings) -> list[str]:
    """Sentences about settings that are allowed, and do not do what one may expect."""
    found = []
    if settings.closed and settings.inertia.bounds[1] > 0:
        found.append(f"Inertia {settings.inertia} has no effect on a loop: its path is smooth by itself.")
    if settings.noise_model != "dependency" and settings.inertia.bounds[1] > 0:
        found.append(f'Inertia {settings.inertia} has no effect with the noise model "{settings.noise_model}".')
    if settings.prompts:
        found += _notes_on_prompts(settings.prompts, settings.frames, settings.closed)
    if settings.in_betweens > 1 and settings.frames == 1:
        found.append("A clip of 1 frame has no in-betweens.")
    if settings.retakes and settings.motion.bounds[1] == 0 and settings.noise_model == "dependency":
        found.append(f"Retakes have no effect with motion {settings.motion}: all frames have the same noise.")
    if settings.retakes and settings.anchor_stride > 1 and not settings.kept_clip:
        found.append(
            "With anchors the frames just before a retake follow from those behind it as well, and change; "
            "Retake of the clip's file keeps its pictures."
        )
    if settings.retakes and settings.frames and settings.retakes[-1][0] >= settings.frames:
        found.append(
            f"The retake at frame {settings.retakes[-1][0]} is not reached: the last of {settings.frames} frames is "
            f"frame {settings.frames - 1}."
        )
    return found


def _notes_on_prompts(prompts: PromptKeyframes, frames: int, loop: bool) -> list[str]:
    notes = []
    beyond = [frame for frame in prompts.beyond(frames) if not (loop and frame == frames)]
    if beyond:
        listed = ", ".join(map(str, beyond))
        notes.append(f"Prompts at frame {listed} are not reached: the last of {frames} frames is frame {frames - 1}.")
    if loop and prompts.at(frames) != prompts.at(0):
        notes.append(
            "The loop jumps from its last prompt to its first; to lead back, end the prompts with "
            f"'{frames}: {prompts.at(0).before}'."
        )
    return notes
