"""The part of the command line that samples nothing: a clip that is there gets larger frames, or more per second."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from PIL import Image

from zs2_lib.cli_job import Faster, Targets, add_sound, in_between, on_disk
from zs2_lib.cli_read import check_output, check_packages, read_faster, read_targets, refusals
from zs2_lib.cli_say import Failed, Meter, ModelRefused
from zs2_lib.cli_upscale import Larger, read_upscale
from zs2_lib.hosts.diffusers import devices
from zs2_lib.media.pictures import by
from zs2_lib.media.read import open_source
from zs2_lib.media.text import read_text
from zs2_lib.media.upscalers import large_size
from zs2_lib.media.write import write_clip
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import FinishedClip, interpolated_to
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.postprocessing import INTERPOLATED_TO

ALLOWED = ("quiet", "progress", "input", "output", "interpolate", "interpolator", "upscale", "device", "dtype")
"""Options that are of use with --input."""


@dataclass(frozen=True)
class Work:
    """What is to be made of a clip that is there: larger frames first, then more of them, as in the WebUI."""

    clip: FinishedClip
    upscale: Larger | None
    faster: Faster | None
    targets: Targets
    device: str | None
    dtype: torch.dtype | None


def read_input(options: argparse.Namespace) -> Work:
    """What is to be made of the clip that --input names; refuses what cannot be done."""
    with refusals():
        others = [name for name, value in vars(options).items() if value is not None and name not in ALLOWED]
        if others:
            name = others[0] if others[0] == "prompt" else "--" + others[0].replace("_", "-")
            raise SettingsError(f"{name} is not allowed with --input, which samples nothing; leave it out")
        if options.interpolate is None and options.upscale is None:
            raise SettingsError("--input: there is nothing to do; give --upscale or --interpolate as well")
        device = None if options.device is None else devices.read_device("--device", options.device)
        devices.read_precision(device, options.dtype, None, False)
        targets, formats = read_targets(options.output)
        upscale = read_upscale(options)
        try:
            clip = FinishedClip(open_source(options.input), read_text(options.input))
            faster = read_faster(options, clip.rate, clip.closed, formats)
            clip.source.picks()  # which refuses a broken file
        except SettingsError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"--input: {error}") from None
        check_output(targets, clip.source.path)
    check_packages(formats, faster)
    return Work(clip, upscale, faster, targets, device, devices.DTYPES.get(options.dtype))


def finish(work: Work) -> None:
    """Writes the files of a clip that is there, with its text and its sound, and says where they are."""
    clip, faster = work.clip, work.faster
    frames, size, rate = clip.source.info.frames, clip.source.info.size, faster.to if faster else clip.rate
    count, values = faster.count(frames) if faster else frames, {}
    if work.upscale:
        values, size = dict(work.upscale.texts), large_size(size, work.upscale.scale)
    if faster:
        values[INTERPOLATED_TO] = interpolated_to(count, rate)
    text = recipe.with_values(clip.text, values)
    with ExitStack() as scope:
        shown = pictures(clip)
        if work.upscale:
            shown = larger(scope, shown, work)
        if faster:
            shown = in_between(scope, shown, faster, work.targets, count)
        for target, format in work.targets:
            file = write_clip(shown, target, format, rate, text)
            add_sound(clip, file, format, count, rate)
            print(f"{file}: {count} frames of {by(size)}, {float(count / rate):.3g} s")


def pictures(clip: FinishedClip) -> Iterator[Image.Image]:
    """Those of the file."""
    try:
        for _, picture in clip.source.frames():
            yield picture
    except ValueError as error:  # it is damaged
        raise Failed(error) from error


def larger(scope: ExitStack, frames: Iterator[Image.Image], work: Work) -> Iterable[Image.Image]:
    """`frames`, larger; where they are all and there are several files, they wait on the disk."""
    try:
        upscale = work.upscale.open(work.device, work.dtype)
    except ValueError as error:
        raise ModelRefused(error) from None
    if work.faster:  # which says how far it is
        return map(upscale, frames)

    def shown() -> Iterator[Image.Image]:
        count = work.clip.source.info.frames
        with Meter() as meter:
            for number, frame in enumerate(frames, 1):
                large = upscale(frame)
                meter.show(number / count, f"upscaled frame {number} of {count}", upscaled=number, of=count)
                yield large

    return scope.enter_context(on_disk(shown(), work.targets[0][0])) if len(work.targets) > 1 else shown()
