"""The sound of a source, added to a clip: copied where the clip's players know it, otherwise encoded anew.

PyAV itself and not imageio, which knows no sound.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from .decode import import_av, opened_video, pulled
from .encode import Encoding, import_encoder
from .formats import FORMATS
from .source import EVERYTHING, Selection, Source
from .video_index import is_sound
from .videos import Video
from .write import all_or_nothing

_AUDIO_RATE = 48000  # of what is encoded, in samples per second
_AUDIO_BIT_RATE = 192000
_OPUS_DELAY = 0.0075  # seconds that an Opus stream begins before its time
_SEEK_MARGIN = 2  # seconds


def add_audio(clip: str | os.PathLike, source: Source, selection: Selection = EVERYTHING) -> None:
    """Gives the MP4 or WebM file `clip`, made of `source.frames(selection)`, the sound of the same time.

    The pictures and the text of the clip stay as they are; sound that it has is replaced. The source's sound is copied
    if it fits into the file (AAC, MP3, Opus, FLAC into MP4; Opus, Vorbis into WebM), which cuts it at packets of about
    20 ms, though it stays in time; otherwise it is encoded anew, in mono or stereo, and cut exactly. A failure leaves
    the clip as it was.

    Raises ValueError if the source has no sound (`info.has_audio`), none in that time, or the clip does not last as
    long as the selection (as it does at `clip_fps`), since the sound would drift away from it.
    """
    clip = Path(clip)
    format = FORMATS.get(clip.suffix[1:].lower())
    if format is None or not format.sound:
        able = " and ".join(row.suffix for row in FORMATS.values() if row.sound)
        raise ValueError(f"cannot add sound to {clip.name}: only {able} clips hold sound")
    if not source.info.has_audio:
        raise ValueError(f"{source.path.name} has no sound to add to {clip.name}")
    picks = source.picks(selection)
    begin = selection.start if selection.fps else float(source.clock.times[picks[0]])
    seconds = float(len(picks) / source.clip_fps(selection))
    av = import_encoder(format.encoding.sound_encoder, format.name)
    try:
        _mux_audio(clip, format.encoding, source, begin, seconds, tolerance=seconds / len(picks))
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # the disk is full, for example
        raise ValueError(
            f"the sound of {source.path.name} cannot be added to {clip.name} ({error.strerror}): it is damaged or of "
            "an unusual kind, convert it to AAC"
        ) from error


def _mux_audio(clip: Path, encoding: Encoding, source: Video, begin: float, seconds: float, tolerance: float) -> None:
    """Writes `clip` anew, with the sound of the source's `seconds` from `begin` on."""
    av = import_av()
    file_begin = source.zero + Fraction(begin)  # in the source file's own time
    with all_or_nothing(clip) as unfinished:
        with opened_video(clip) as (old, old_pictures), opened_video(source.path, source.max_pixels) as (container, _):
            lasts = (old.duration or 0) / av.time_base
            if abs(lasts - seconds) > tolerance + 0.01:
                raise ValueError(
                    f"{clip.name} lasts {lasts:.2f} s, but the selection of {source.path.name} {seconds:.2f} s: the "
                    "sound would drift away, write the clip at the frame rate that clip_fps gives"
                )
            with av.open(
                os.path.abspath(unfinished), "w", format=encoding.container, options=encoding.container_options
            ) as new:
                for key, value in old.metadata.items():
                    if key.lower() in encoding.text_tags:
                        new.metadata[key.lower()] = value
                pictures = _copied_pictures(old, old_pictures, new.add_stream_from_template(old_pictures))
                if file_begin > _SEEK_MARGIN:
                    container.seek(int((file_begin - _SEEK_MARGIN) * av.time_base))
                sound = _sound(container, new, encoding, file_begin, seconds)
                first = next(sound, None)
                if first is None:
                    raise ValueError(
                        f"{source.path.name} has no sound from {begin:.2f} to {begin + seconds:.2f} s to add to "
                        f"{clip.name}"
                    )
                sound = itertools.chain([first], sound)
                for packet in heapq.merge(pictures, sound, key=lambda packet: packet.dts * packet.time_base):
                    new.mux(packet)


def _sound(container, new, encoding: Encoding, begin: Fraction, seconds: float) -> Iterator:
    """The packets of the sound of `container` for a stream that is added to `new`, from the file's time `begin` on."""
    best = container.streams.best("audio")
    old = best if is_sound(best) else next(filter(is_sound, container.streams.audio))
    if old.codec_context.codec.canonical_name in encoding.sound_copied:
        return _copied_sound(container, old, new.add_stream_from_template(old), begin, seconds)
    layout = "mono" if old.layout.nb_channels == 1 else "stereo"
    stream = new.add_stream(encoding.sound_encoder, rate=_AUDIO_RATE, layout=layout, bit_rate=_AUDIO_BIT_RATE)
    return _encoded_sound(container, old, stream, begin, seconds)


def _copied_pictures(container, stream, target) -> Iterator:
    for packet in container.demux(stream):
        if packet.size:
            packet.stream = target
            yield packet


def _copied_sound(container, stream, target, begin: Fraction, seconds: float) -> Iterator:
    """The packets of `stream` from the file's time `begin` on, so many seconds, moved to begin at 0."""
    in_mp4 = target.container.format.name == "mp4"
    early = _OPUS_DELAY if stream.codec_context.name == "opus" else 0
    shift = round(begin / stream.time_base)
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:
            continue
        packet.pts -= shift
        packet.dts = packet.pts
        time = float(packet.pts * stream.time_base)
        lasts = float((packet.duration or 0) * stream.time_base)
        if time + lasts / 2 >= seconds:
            break
        if in_mp4:
            early = 2 * lasts  # two packets to tune in with, which the edit list hides
        if time < -early:
            continue
        packet.stream = target
        yield packet


def _encoded_sound(container, stream, target, begin: Fraction, seconds: float) -> Iterator:
    """The packets of the same, decoded, cut exactly, gaps filled with silence, and encoded for `target`."""
    graph = None
    for frame in _timed(container.decode(stream), stream.time_base):
        if frame.pts * stream.time_base >= begin + Fraction(seconds):
            break
        if graph is None:
            graph = _sound_cutter(frame, stream.time_base, target.layout.name, begin, seconds)
        for cut in pulled(graph, frame):
            yield from target.encode(cut)
    if graph is not None:
        for cut in pulled(graph, None):
            yield from target.encode(cut)
        yield from target.encode(None)


def _timed(frames: Iterator, time_base: Fraction) -> Iterator:
    """The frames from the first on that has a time. Of several in a packet only the first one may have one: the others
    begin where the one before ends.
    """
    end = None
    for frame in frames:
        if frame.pts is not None:
            end = frame.pts * time_base
        elif end is None:
            continue
        frame.pts = round(end / time_base)
        end += Fraction(frame.samples, frame.sample_rate)
        yield frame


def _sound_cutter(frame, time_base: Fraction, layout: str, begin: Fraction, seconds: float):
    """A filter graph from frames like this one (av.AudioFrame) to the range asked for, from 0 on."""
    graph = import_av().filter.Graph()
    chain = [
        graph.add(
            "abuffer",
            sample_rate=str(frame.sample_rate),
            sample_fmt=frame.format.name,
            channel_layout=frame.layout.name,
            time_base=str(time_base),
        ),
        graph.add("asetpts", f"PTS-{round(begin / time_base)}"),
        graph.add("atrim", start="0", end=str(seconds)),
        graph.add("aresample", **{"async": "1", "first_pts": "0"}),
        graph.add("aformat", sample_rates=str(_AUDIO_RATE), channel_layouts=layout),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*chain).configure()
    return graph
