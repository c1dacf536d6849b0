"""The end of a video that does not tell its size, such as a transport stream: what is whole of it shows in decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from .decode import Damaged, decoded, decoder_of, import_av, opened_video

_REORDERED = 16  # frames at most that are stored before one that is shown before them
# Decoders that read on behind the end of a frame's data without noticing, in containers that do not tell where that is.
_OVERREADING, _ENDLESS = ("h264", "hevc", "vvc"), ("mpegts", "mpeg", "h264", "hevc", "vvc")
_MORE = b"\xa5\x5b\x93\xd7" * 64


def last_frames(path: Path, max_pixels: int) -> tuple[list[int | None], int, int | None]:
    """The times of frames at the end of the video that can be decoded whole, how many after them cannot, and when the
    last one is decoded.
    """
    decoding = None
    with opened_video(path, max_pixels) as (container, stream), suppress(import_av().FFmpegError):
        keys, count = [0], 0
        overreading = stream.codec_context.name in _OVERREADING and container.format.name in _ENDLESS
        for packet in container.demux(stream):
            if packet.size:
                keys += [count] if packet.is_keyframe else []
                count, decoding = count + 1, packet.dts
    frames, begin = [], 0
    for key in dict.fromkeys(keys[max(len(keys) - back, 0)] for back in (2, 3, len(keys))):
        frames = list(_frames(path, max_pixels, key))
        whole = [number for number, (_, _, is_corrupt, _) in enumerate(frames) if not is_corrupt]
        if whole:
            begin = whole[0]
            break
    lost = _lost(frames, begin)
    if not lost and overreading:
        other = list(_frames(path, max_pixels, key, last=count - 1))
        differing = (number for number, (one, two) in enumerate(zip(frames, other)) if one != two)
        lost = len(frames) - next(differing, min(len(frames), len(other)))
    return [pts for pts, *_ in frames[begin : len(frames) - lost]], lost, decoding


def without_gap(pts: np.ndarray, decoding: int | None) -> np.ndarray:
    """The times (n,) without those at the end that come after a gap, if all others are equally far apart: frames are
    stored in another order than they are shown in, and behind the time `decoding` some may be missing.
    """
    steps = np.diff(pts)
    if decoding is None or len(steps) < 3:
        return pts
    gaps = np.flatnonzero(steps > 1.5 * np.median(steps))
    if not len(gaps) or pts[gaps[0] + 1] <= decoding:
        return pts
    return pts[: gaps[0] + 1]


def _lost(frames: list[tuple], begin: int) -> int:
    """How many of the frames at the end are, or build on, one that is damaged, if not many others follow."""
    corrupt = [number for number in range(begin, len(frames)) if frames[number][2]]
    if not corrupt or len(frames) - corrupt[-1] > _REORDERED:
        return 0
    keys = [number for number in range(begin, corrupt[-1]) if frames[number][1] and not frames[number][2]]
    key = max(keys, default=0)
    return len(frames) - min(number for number in corrupt if number >= key)


def _frames(path: Path, max_pixels: int, key: int, last: int | None = None) -> Iterator[tuple]:
    """(time, whether a keyframe, whether corrupt, digest) of each frame from the packet number `key` on.

    last: the number of a packet that is decoded with more data behind it. A picture that is whole stays the same.
    """
    av = import_av()
    with opened_video(path, max_pixels) as (container, stream), suppress(Damaged, av.FFmpegError):
        packets = (packet for packet in container.demux(stream) if packet.size)
        for frame in decoded(_lengthened(packets, key, last), decoder_of(stream), only_whole=False):
            pixels = np.ascontiguousarray(frame.to_ndarray(format="yuv444p"))
            yield frame.pts, frame.key_frame, frame.is_corrupt, hashlib.sha1(pixels).digest()


def _lengthened(packets: Iterator, key: int, last: int | None) -> Iterator:
    for number, packet in enumerate(packets):
        if number == last:
            longer = import_av().Packet(bytes(packet) + _MORE)
            longer.pts, longer.dts, longer.time_base = packet.pts, packet.dts, packet.time_base
            longer.is_keyframe = packet.is_keyframe
            packet = longer
        if number >= key:
            yield packet
