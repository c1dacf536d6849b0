"""The first pass over a video: the times of its frames, exact to the frame, mostly without decoding.

By hand and not through imageio, which counts by the rate: asked for each of 90 frames, it gave the right one 90 times
in a plain MP4, 61 times in an MKV of short groups with B-frames and 2 times in a transport stream.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from .decode import Damaged, decoded, decoder_of, import_av, opened_video
from .tone import HDR_TRANSFERS
from .video_end import last_frames, without_gap


@dataclass(frozen=True)
class Index:
    """What the first pass over a video finds. pts, keys: times in units of `time_base` from the file's own zero.

    pts: of all frames, ascending; keys: of those where decoding can begin. (n,) int64
    last: how long the last frame stays.
    interlaced: whether frames have to be deinterlaced.
    counted: the file does not say when each frame is shown; they are known by their order from the beginning on.
    broken: the file ends before its frames do.
    rate (frames per second), pixel_aspect (width by height), has_audio, hdr (which of `HDR_TRANSFERS`, or 0): what the
        file says.
    """

    pts: np.ndarray
    keys: np.ndarray
    last: int
    interlaced: bool
    counted: bool
    broken: bool
    time_base: Fraction
    rate: Fraction
    pixel_aspect: Fraction
    has_audio: bool
    hdr: int


def read_index(path: Path, max_pixels: int) -> Index:
    """Reads through the file for the times of its frames: those of its packets, without decoding, where these are the
    same. They are not where pictures are stored that are never shown, or fields in packets of their own.
    """
    broken = _ends_in_pictures(path)
    with opened_video(path, max_pixels) as (container, stream):
        facts = {
            "time_base": stream.time_base,
            "rate": _rate(container, stream),
            "pixel_aspect": stream.sample_aspect_ratio or Fraction(1),
            "has_audio": any(is_sound(audio) for audio in container.streams.audio),
            "hdr": transfer if (transfer := stream.codec_context.color_trc) in HDR_TRANSFERS else 0,
        }
        times = None if _has_no_clock(container) else _packet_times(container, stream, broken)
        tells_its_size = container.format.name.startswith(_TELLING_THEIR_SIZE)
    if times is None:
        with opened_video(path, max_pixels) as (container, stream):
            times = _frame_times(container, stream, broken)
    if not tells_its_size and len(times["pts"]):
        times = _until_damage(times, *last_frames(path, max_pixels))
    index = Index(**times, **facts)

    if not len(index.pts):
        raise ValueError(
            f"{path.name} holds no frame that can be decoded: it is incomplete or protected, or of a kind that this "
            "build of PyAV does not know; convert it to MP4 with H.264"
        )
    if (np.diff(index.pts) < 0).any():
        raise ValueError(f"{path.name} does not say in which order its frames are shown: convert it to MP4")
    pts = np.unique(index.pts)  # of two frames with one time, one is never seen
    last = index.last
    if not last:
        last = int(pts[-1] - pts[0]) // (len(pts) - 1) if len(pts) > 1 else round(1 / (index.rate * index.time_base))
    return replace(index, pts=pts, last=last)


_TELLING_THEIR_SIZE = ("mov", "matroska")  # containers: `_ends_in_pictures` knows what is missing
_NO_TIMESTAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS


def _has_no_clock(container) -> bool:
    """Whether the file is nothing but the stream of a codec."""
    return bool(container.format.flags & _NO_TIMESTAMPS)


def _rate(container, stream) -> Fraction:
    """Frames per second, as the file says; 25 if it does not."""
    rate = stream.guessed_rate if _has_no_clock(container) else stream.average_rate
    return Fraction(rate or 25)


_PROBE = 24  # packets


def _packet_times(container, stream, broken: bool) -> dict | None:
    """What `Index` says of the frames, or None if it takes decoding."""
    pts, keys = array("q"), array("q")
    head, head_pts = [], []  # the first packets, and the times of the frames they should give
    final = last_dts = None
    cut = False  # whether the last packet is incomplete
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue  # marks the end
            if packet.pts is None or (last_dts is not None and packet.dts is not None and packet.dts < last_dts):
                return None  # it has no clock, or one that jumps back
            cut = packet.is_corrupt
            if packet.is_keyframe:
                keys.append(packet.pts)
            # Not shown: what the file's edit list cuts away, and what belongs to a keyframe before its beginning.
            shown = not packet.is_discard and len(keys) > 0 and packet.pts >= keys[0]
            if shown:
                pts.append(packet.pts)
                final = packet if final is None or packet.pts > final.pts else final
            if not cut:
                last_dts = packet.dts
                if len(head) < _PROBE:
                    head.append(packet)
                    head_pts += [packet.pts] if shown else []
    except import_av().FFmpegError:
        cut = True

    probed, interlaced, damaged = _probed(head, stream)
    expected = sorted(set(head_pts).intersection(probed) if damaged else head_pts)
    if not probed or probed != expected:
        return None
    times, last = np.sort(np.frombuffer(pts, np.int64)), final.duration or 0
    broken = broken or cut
    if broken:
        if last_dts is None:
            return None
        # Frames are stored in another order than they are shown in. Up to the last time of decoding none is missing.
        times, last = times[times <= last_dts], 0
    keys = np.frombuffer(keys, np.int64)
    return {
        "pts": times, "keys": keys, "last": last, "interlaced": interlaced, "counted": False, "broken": broken,
    }  # fmt: skip


def _until_damage(times: dict, shown: list[int | None], lost: int, decoding: int | None) -> dict:
    """What `Index` says of the frames, without those at the end that are not whole, see `last_frames`."""
    pts = times["pts"]
    if times["counted"]:
        pts = pts[: len(pts) - lost]
    elif shown := [time for time in shown if time is not None]:
        missing = np.setdiff1d(pts[pts > shown[0]], np.array(shown, np.int64))
        pts = without_gap(pts[pts < missing[0]] if len(missing) else pts, decoding)
    else:
        pts = pts[:0]
    return times if len(pts) == len(times["pts"]) else {**times, "pts": pts, "last": 0, "broken": True}


def _probed(packets: list, stream) -> tuple[list[int], bool, bool]:
    """The times of the frames that the first packets of a stream give, whether one of them is interlaced, and whether a
    damage ends them.
    """
    times, interlaced = [], False
    try:
        for frame in decoded(packets, decoder_of(stream)):
            times.append(frame.pts)
            interlaced = interlaced or frame.interlaced_frame
    except Damaged:
        return times, interlaced, True
    return times, interlaced, False


def _frame_times(container, stream, broken: bool) -> dict:
    """What `Index` says of the frames, by decoding all of them."""
    pts, keys, interlaced, decoding, delay = [], array("q"), False, [], 0

    def noted(packets):
        for packet in packets:
            if packet.size and packet.dts is not None:
                decoding.append(packet.dts)
            yield packet

    try:
        for frame in decoded(noted(container.demux(stream)), decoder_of(stream), only_whole=False):
            delay = delay or len(decoding)  # packets, before the first frame
            pts.append(frame.pts)
            if frame.key_frame and frame.pts is not None:
                keys.append(frame.pts)
            interlaced = interlaced or frame.interlaced_frame
    except Damaged:
        broken = True
    step = 1 / (_rate(container, stream) * stream.time_base)
    if _has_no_clock(container):
        times = _spaced([None] * len(pts), step)
    elif None in pts:
        times = _spaced(pts, step)
    elif pts != sorted(pts) and decoding and decoding == sorted(decoding):  # only the times of decoding are right
        times = np.array(sorted(pts), np.int64) - min(pts) + decoding[0]
    else:
        times = None
    counted = times is not None
    if counted and broken:  # some of the last frames may follow others that are missing
        times = times[: max(len(times) - delay, 0)]
    times = times if counted else np.array(pts, np.int64)
    keys = times[:1] if counted else np.frombuffer(keys, np.int64)
    return {
        "pts": times, "keys": keys, "last": 0, "interlaced": interlaced, "counted": counted, "broken": broken,
    }  # fmt: skip


def _spaced(pts: list[int | None], step: Fraction) -> np.ndarray:
    """The times of all frames, of which some may be known: the others lie evenly between, and `step` apart elsewhere.
    (n,) int64
    """
    known = [number for number, time in enumerate(pts) if time is not None] or [0]
    first, last = known[0], known[-1]
    times = np.interp(np.arange(len(pts)), known, [pts[number] or 0 for number in known])
    for number in [*range(first), *range(last + 1, len(pts))]:
        nearest = first if number < first else last
        times[number] += (number - nearest) * float(step)
    if (np.diff(times) < float(step) / 2).any():  # what is known cannot be right
        times = times[0] + np.arange(len(times)) * float(step)
    return times.round().astype(np.int64)


def is_sound(stream) -> bool:
    """Whether an audio stream holds sound that can be decoded, and is not only announced."""
    context = stream.codec_context
    return context is not None and bool(context.sample_rate) and context.layout.nb_channels > 0


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def _ends_in_pictures(path: Path) -> bool:
    """Whether the file ends within a part that holds pictures: "mdat" of an MP4 or MOV, a cluster of an MKV or WebM,
    "movi" of an AVI.

    By hand, because FFmpeg does not tell: of an MKV that lost its last packet it reads the rest without an error, up to
    the duration that the file announces.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = {b"\x1a\x45\xdf\xa3": _ebml_head, b"RIFF": _avi_head}.get(file.read(4), _mp4_head)
        position = 0
        while position < size:
            file.seek(position)
            name, start, length = head(file.read(16))
            if name == _SEGMENT:
                length = 0  # go into it
            if length is None:
                return False
            position += start + length
    return position > size and name in (b"mdat", _CLUSTER, b"movi")


def _ebml_head(data: bytes) -> tuple[bytes, int, int | None]:
    """(name, where its content begins, how long that is) of the part of a Matroska file that begins with `data`. The
    length is None if the file does not say, as that of a live stream. https://www.rfc-editor.org/rfc/rfc8794
    """
    width = 9 - data[0].bit_length()  # leading zeros tell how many bytes a number has
    name, data = data[:width], data[width:]
    size = 9 - data[0].bit_length() if data else 9
    if size > 8:
        return name, width, None
    unknown = (1 << 7 * size) - 1
    length = int.from_bytes(data[:size], "big") & unknown
    return name, width + size, None if length == unknown else length


def _mp4_head(data: bytes) -> tuple[bytes, int, int | None]:
    """The same of an MP4 or MOV file, where None is a part that goes on to the end."""
    length, name = int.from_bytes(data[:4], "big"), data[4:8]
    if length == 1:
        return name, 16, max(int.from_bytes(data[8:16], "big") - 16, 0)
    return name, 8, length - 8 if length >= 8 else None


def _avi_head(data: bytes) -> tuple[bytes, int, int | None]:
    """The same of an AVI file, where the part "RIFF" is gone into, and a list has the name of what it holds."""
    name, length = data[:4], int.from_bytes(data[4:8], "little")
    if name == b"RIFF":
        return name, 12, 0
    return (data[8:12] if name == b"LIST" else name), 8, length + length % 2
