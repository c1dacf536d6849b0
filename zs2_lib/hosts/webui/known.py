"""What earlier jobs on this machine have shown beside their pace: UNet calls of samplers, sizes of files."""

from __future__ import annotations

from modules import sd_samplers

from . import pace

CALLS, FILE = "calls of {}", "bytes of a pixel in {}"
"""Kinds of rates that `pace` keeps."""
OF_A_STEP = "of a step"


def record_calls(sampler: str, steps: int, calls: int) -> None:
    """A sampler has called the denoiser so often."""
    pace.record(CALLS.format(sampler), {str(steps): calls, OF_A_STEP: calls / steps})


def calls_of(sampler: str, steps: int) -> int:
    """How often a sampler calls the denoiser: as it did here, and before its first run as the host's table says."""
    kind = CALLS.format(sampler)
    if known := pace.rate(kind, str(steps)):
        return round(known)
    if rate := pace.rate(kind, OF_A_STEP):
        return max(round(rate * steps), 1)
    config = sd_samplers.find_sampler_config(sampler) if sampler else None
    total = config.total_steps(steps) if config else steps
    return total - 1 if total > steps else total  # the last step of one of second order is of the first


def record_file(format: str, size: int, frames: int, width: int, height: int) -> None:
    """A clip's file of `size` bytes was written."""
    if size and frames:
        pace.record(FILE.format(format), {_class_of(width, height): size / (frames * width * height)})


def bytes_of(format: str, frames: int, width: int, height: int) -> int | None:
    """How large a clip's file will be, as the last ones of about its size were; None before the first."""
    rate = pace.rate(FILE.format(format), _class_of(width, height))
    return None if rate is None else round(rate * frames * width * height)


def _class_of(width: int, height: int) -> str:
    """What pictures have in common whose files take about as much for a pixel: their pixels, to a factor of two."""
    return f"2^{(width * height).bit_length()}"
