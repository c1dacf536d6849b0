"""What a clip will be and cost, before it is made, and what of the host and the settings is worth knowing first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from modules.shared import opts

from zs2_lib.core.blocks import attention_inputs
from zs2_lib.core.passes import automatic_frames_per_pass
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.measured_motion import measured
from zs2_lib.settings.table import Settings

from . import host, known, options, pace, selected
from .clips import MOST_IN_PAGE
from .edit import SourceVideo
from .estimate import FULL, SAMPLING
from .limits import check_frames
from .segments import AT_ONCE
from .tab import Sampling, Tab

PICTURE_BYTES = 4
"""Of a pixel that waits in memory, as Pillow keeps it."""
TOKEN_MERGING = "token_merging_ratio"
TOKEN_MERGING_NOTE = "Token merging is off while a clip is sampled: it merges other tokens in each frame."
BATCH_NOTE = "The batch size is not used: a batch is one clip. Batch count makes more clips."
SCRIPT_NOTE = "This is one job of the script {script}, which may run several."
WHOLE_SOURCE = "In txt2img a source video is used by ControlNet units alone; send it to img2img to edit its frames."


class Forecast(NamedTuple):
    """The clip, its samplings, and what they cost."""

    settings: Settings
    tab: Tab
    samplings: list[Sampling]

    @property
    def frames(self) -> int:
        """Of the clip's files."""
        return len(self.settings.played(range(self.settings.length)))

    @property
    def segments(self) -> int:
        return -(-self.settings.length // (self.settings.segment or self.settings.length))

    @property
    def passes(self) -> int:
        """Of a call of the first sampling, in a whole segment."""
        of, latents = self.settings, self.samplings[0]
        frames = min(of.segment or of.length, of.length)
        kept = -(-frames // of.in_betweens)
        of_pass = of.frames_per_pass or automatic_frames_per_pass(
            latents.height, latents.width, options.latents_per_pass()
        )
        return -(-kept // of_pass) + -(-(frames - kept) // of_pass)

    @property
    def rows(self) -> int:
        """UNet rows of all calls for all clips."""
        return self.settings.length * self.tab.n_iter * self._rows(lambda sampling: 1)

    def _rows(self, weight: Callable[[Sampling], int]) -> int:
        """UNet rows of a frame in all calls, each as often as `weight` of its sampling says."""
        return sum(host.rows_of_a_frame(each.cfg_scale) * each.calls * weight(each) for each in self.samplings)

    @property
    def _positions(self) -> int:
        """The same, times their latent positions."""
        return self._rows(lambda sampling: sampling.positions)

    def seconds(self) -> tuple[float | None, int]:
        """(seconds, of how many jobs they are known) that all clips take; None before the first of this kind, or its
        preflight.
        """
        kind, frames = (self.settings.anchor_stride, self.settings.anchor_depth), self.settings.length * self.tab.n_iter
        for preflight in (False, True):
            of_kind = pace.kind_of(*kind, preflight)
            name = SAMPLING if self.settings.anchor_stride > 1 else FULL  # of calls alone, without what comes first
            seconds, jobs = pace.seconds_for(of_kind, frames * self._positions, name, self.samplings[0].positions)
            if seconds is not None:
                return seconds + (pace.seconds_after(of_kind, frames, self.samplings[-1].positions) or 0), jobs
        return None, 0

    def carried(self) -> int | None:
        """Bytes of main memory that one segment leaves behind for the next; None while no model is loaded."""
        if self.segments == 1 or not self.settings.momentum.bounds[1]:
            return 0
        unet = host.loaded_unet()
        if unet is None:
            return None
        return round(attention_inputs(unet) * self._positions * _value_bytes(unet))

    def pictures(self) -> int:
        """Bytes of the finished frames that the host holds until the job ends."""
        width, height = self.tab.size
        most = MOST_IN_PAGE if self.segments > 1 else AT_ONCE
        return min(self.settings.length, most) * self.tab.n_iter * width * height * PICTURE_BYTES

    def sizes(self) -> dict[str, int | None]:
        """Bytes of a clip's file in each format, as the last ones were; None before the first."""
        width, height = self.tab.size
        return {format: known.bytes_of(format, self.frames, width, height) for format in self.settings.formats}

    def answer(self) -> dict:
        """All of it, as a client gets it."""
        seconds, jobs = self.seconds()
        return {
            "frames": self.frames,
            "fps": self.settings.rate,
            "clip_seconds": self.frames / self.settings.rate,
            "clips": self.tab.n_iter,
            "segments": self.segments,
            "steps": [sampling.steps for sampling in self.samplings],
            "unet_calls": [sampling.calls for sampling in self.samplings],
            "unet_passes_per_step": self.passes,
            "unet_rows": self.rows,
            "seconds": None if seconds is None else round(seconds, 2),
            "known_from_jobs": jobs,
            "memory": {"pictures": self.pictures(), "between_segments": self.carried()},
            "bytes": self.sizes(),
            "notes": list(notes(self)),
        }


def forecast(settings: Settings, tab: Tab, is_api: bool) -> Forecast:
    """Raises SettingsError for what would be refused, as far as that is known before."""
    if refusal := refused(settings, tab):
        raise SettingsError(refusal)
    with ExitStack() as undo:
        if settings.source:
            settings = SourceVideo(settings, undo, is_api).settings
    check_frames(settings.length, "give fewer frames")
    return Forecast(settings, tab, tab.samplings)


def refused(settings: Settings, tab: Tab) -> str | None:
    """Why the host would refuse the job, as far as that is known before."""
    found = (
        selected.refusal(tab.script_name, settings),
        host.model_refusal(),
        host.controlnet_refusal(settings, tab.img2img),
    )
    return next(filter(None, found), None)


def notes(of: Forecast) -> Iterator[str]:
    """What applies right now."""
    yield from of.settings.notes
    ends = ("", "_img2img") if of.tab.img2img else ("", "_hr")[: 1 + of.tab.enable_hr]
    if any(getattr(opts, TOKEN_MERGING + end, 0) for end in ends):
        yield TOKEN_MERGING_NOTE
    if of.tab.batch_size > 1:
        yield BATCH_NOTE
    if of.tab.script_name:
        yield SCRIPT_NOTE.format(script=of.tab.script_name)
    if of.settings.source and not of.tab.img2img:
        yield WHOLE_SOURCE
    moves = of.settings.noise_model == "dependency" and of.settings.motion.bounds[1] and of.settings.frames > 1
    if moves and (found := measured(of.tab.sampler_name, of.tab.steps, of.tab.cfg_scale)):
        yield found.text(of.settings.motion)


def _value_bytes(unet) -> int:
    """Of a value that goes into self-attention."""
    of_weights = next(unet.parameters()).element_size()
    return max(4, of_weights) if host.normalizes_in_float() else of_weights
