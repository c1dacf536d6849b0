"""Videos, decoded by FFmpeg: opened, their frames in order up to a damage, deinterlaced.

PyAV itself and not imageio, whose plugin finds a frame by a constant rate alone, opens playlists as well, and hides
packets, colour tags and the display matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

from .source import MAX_PIXELS, check_size, in_words

# Containers, and streams without one. No playlists or scripts: they make FFmpeg open other files, or addresses.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,dv,ivf,yuv4mpegpipe,rm,wtv,gxf,"
    "h264,hevc,vvc,m4v,mpegvideo,vc1,obu,dirac,dnxhd"
)
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones skip the alpha channel


class Damaged(Exception):
    """A part of the file cannot be decoded."""


def import_av():
    """PyAV, imported only here: without it folders and animated images still work."""
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f'cannot read videos without PyAV ({error}): install it ("pip install av"), or give a GIF, WebP or APNG '
            "or a folder of images"
        ) from error
    return av


def _text_that_is_no_utf8(av) -> dict[str, str]:
    """What `av.open` is told, so that tags in another encoding are no error; since PyAV 19 they never are."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened_video(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[tuple]:
    """(container, video stream) of the file, both of PyAV. Raises ValueError for what is no video or too large."""
    av = import_av()
    with in_words(path):
        try:
            # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
            container = av.open(
                os.path.abspath(path),
                **_text_that_is_no_utf8(av),
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            )
        except (FileNotFoundError, PermissionError):
            raise
        except av.FFmpegError as error:
            raise ValueError(
                f"{path.name} is no video, or it is damaged or incomplete ({error.strerror}): give an MP4, MOV, MKV, "
                "WebM, GIF, WebP, APNG or a folder of images"
            ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kind = "sound but no video" if container.streams.audio else "no video"
            raise ValueError(f"{path.name} holds {kind}: give a file with moving pictures")
        if stream.codec_context is None:
            raise ValueError(
                f"{path.name} is compressed in a way that this build of PyAV cannot decode: convert it to MP4 with "
                "H.264"
            )
        size = stream.codec_context.width, stream.codec_context.height
        if 0 in size:
            raise ValueError(f"{path.name} is damaged: how large its frames are cannot be told")
        check_size(size, path.name, max_pixels)
        yield container, stream


def decoder_of(stream):
    """The decoder (av.VideoCodecContext) for a stream's packets.

    It decodes one frame at a time: with several, whether FFmpeg notices that a frame is damaged before it hands it out
    is a matter of luck.
    """
    av = import_av()
    has_alpha = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode") == "1"
    alpha_decoder = _ALPHA_DECODERS.get(stream.codec_context.name)
    if has_alpha and alpha_decoder in av.codecs_available:
        return av.CodecContext.create(alpha_decoder, "r")
    stream.codec_context.thread_count = 1
    return stream.codec_context


def decoded(packets: Iterable, decoder, only_whole: bool = True) -> Iterator:
    """The frames (av.VideoFrame) in the order they are shown in. Raises Damaged after the last before a damage.

    only_whole: frames that FFmpeg has mended (`is_corrupt`) are a damage.

    The decoder is left at rest: freed while one of its threads reports an error, which takes Python's lock where PyAV's
    log is on (as torchvision switches it), it would wait for that thread, with the lock, for ever.
    """
    try:
        yield from _decoded_until_damage(packets, decoder, only_whole)
    finally:
        decoder.flush_buffers()


def _decoded_until_damage(packets: Iterable, decoder, only_whole: bool) -> Iterator:
    """What follows a damage builds on it, up to the next keyframe. What comes before the first frame that is whole is
    no damage: the stream begins in the middle of something.
    """
    av = import_av()
    started, damage = False, None
    try:
        for packet in packets:
            if not packet.size:
                continue
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                if not started:
                    continue
                damage = error
                break
            for frame in frames:
                if frame.is_corrupt and started and only_whole:
                    raise Damaged
                started = started or not frame.is_corrupt
                if started:
                    yield frame
    except av.FFmpegError as error:
        damage = error
    with suppress(av.FFmpegError):
        for frame in decoder.decode(None):
            if frame.is_corrupt and only_whole:
                raise Damaged
            yield frame
    if damage is not None:
        raise Damaged from damage


def deinterlaced(frames: Iterable, time_base: Fraction) -> Iterator:
    """Each frame as it is, from the first interlaced one on through a filter, which leaves progressive ones alone."""
    graph = graph_takes = damage = None
    try:
        for frame in frames:
            if graph is None and not frame.interlaced_frame:
                yield frame
                continue
            kind = frame.width, frame.height, frame.format.name
            if kind != graph_takes:
                yield from _filtered(graph, None, time_base)
                graph, graph_takes = _deinterlacer(frame, time_base), kind
            yield from _filtered(graph, frame, time_base)
    except Damaged as error:
        damage = error
    yield from _filtered(graph, None, time_base)
    if damage is not None:
        raise damage


def _deinterlacer(frame, time_base: Fraction):
    graph = import_av().filter.Graph()
    buffer = graph.add_buffer(template=frame, time_base=time_base)
    deinterlace = graph.add("bwdif", mode="send_frame", deint="interlaced")
    graph.link_nodes(buffer, deinterlace, graph.add("buffersink")).configure()
    return graph


def _filtered(graph, frame, time_base: Fraction) -> Iterator:
    for filtered in pulled(graph, frame):
        filtered.pts = int(filtered.pts * filtered.time_base / time_base)  # the filter counts in halves
        yield filtered


def pulled(graph, frame) -> Iterator:
    """What comes out of a filter graph, if there is one, when `frame` or the end (None) goes in."""
    av = import_av()
    if graph is None:
        return
    graph.push(frame)
    with suppress(av.error.BlockingIOError, av.error.EOFError):  # it wants more, or is at its end
        while True:
            yield graph.pull()
