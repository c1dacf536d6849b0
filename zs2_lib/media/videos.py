"""Videos as sources: any frame by its number, as a player shows it."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from .decode import Damaged, decoded, decoder_of, deinterlaced, import_av, opened_video
from .pictures import rgb_picture, turned, turned_size
from .source import Clock, Source, check_size
from .tone import HDR_TRANSFERS, to_sdr
from .video_index import read_index

# H.273 codes, as FFmpeg uses them
_BT709, _UNSPECIFIED, _BT601, _BT2020 = 1, 2, 6, 9
# swscale's flags for its best: luma bicubic and chroma bilinear, interpolated to full size, exact rounding.
_BEST_CONVERSION = 0x40 | 0x2000 | 0x40000
# The first numbers (a, b, c, d) of a display matrix: pixel (x, y) goes to (a·x + c·y, b·x + d·y), y pointing down.
_DISPLAY_MATRICES = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Video(Source):
    """A video file, read by FFmpeg. After the first pass, `read_index`, a frame is known by its time."""

    _SEEK_GAP = 32  # frames; fewer are decoded rather than jumped over

    def __init__(self, path: Path, background: str, max_pixels: int) -> None:
        super().__init__(path, background, max_pixels)
        index = read_index(path, max_pixels)
        self._pts = index.pts
        self._keys = np.searchsorted(index.pts, index.keys)  # as numbers of frames
        self.zero = index.pts[0].item() * index.time_base  # when the first frame appears, in the file's own time
        times = (index.pts - index.pts[0]) * index.time_base.numerator / index.time_base.denominator
        end = float(times[-1]) + float(index.last * index.time_base)
        self.clock = Clock.of(times, end, 0.001, index.rate, index.broken)

        self._interlaced, self._counted = index.interlaced, index.counted
        run, frame = self._reach(0)
        run.close()
        self._turn = _display_turn(frame)
        self._size = max(1, round(frame.width * index.pixel_aspect)), frame.height
        check_size(self._size, path.name, max_pixels)
        self._transfer = index.hdr or (frame.color_trc if frame.color_trc in HDR_TRANSFERS else 0)
        self.info = self.clock.info(turned_size(self._size, self._turn), index.has_audio, self._transfer > 0)

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        run, reached = self._run(0), -math.inf
        try:
            for number in numbers:
                frame = None
                if self._keyframe(number) - reached <= self._SEEK_GAP:
                    frame = _advance(run, number)
                if frame is None:
                    run.close()
                    run, frame = self._reach(number)
                reached = number
                yield self._shown(frame, number)
        finally:
            run.close()

    def _keyframe(self, number: int) -> int:
        """The number of the keyframe that decoding has to begin with for this frame."""
        if self._interlaced:
            number -= 1  # what deinterlacing compares it with
        position = np.searchsorted(self._keys, number, side="right") - 1
        return int(self._keys[position]) if position >= 0 else 0

    def _reach(self, number: int) -> tuple[Iterator, object]:
        """The frame with this number, and the run that leads to it and goes on after it.

        Seeking may land behind the keyframe, or on one that cannot be decoded without what comes before it. Then the
        keyframe before it is tried, and at last the beginning of the file.
        """
        keyframe = self._keyframe(number)
        for start in dict.fromkeys((keyframe, self._keyframe(keyframe - 1), 0)):
            run = self._run(start)
            frame = _advance(run, number)
            if frame is not None:
                return run, frame
            run.close()
        raise ValueError(
            f"{self.path.name} is damaged: the frame at {self.clock.times[number]:.2f} s cannot be decoded; set the "
            "end to that time or the start some seconds after it, or repair the file"
        )

    def _run(self, start: int) -> Iterator[tuple[int, object]]:
        """Yields (number, av.VideoFrame) in order, from around the keyframe `start`. Raises Damaged."""
        with opened_video(self.path, self.max_pixels) as (container, stream):
            packets = container.demux(stream)
            if start > 0:
                try:
                    container.seek(self._pts[start].item(), stream=stream)
                except import_av().FFmpegError as error:
                    raise Damaged from error
                packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)
            frames = self._timed(decoded(packets, decoder_of(stream)))
            for frame in deinterlaced(frames, stream.time_base):
                number = int(np.searchsorted(self._pts, frame.pts))
                if number < len(self._pts) and self._pts[number] == frame.pts:
                    yield number, frame

    def _timed(self, frames: Iterator) -> Iterator:
        """The frames that have a time, which those that are counted get here."""
        if not self._counted:
            yield from (frame for frame in frames if frame.pts is not None)
            return
        for pts, frame in zip(self._pts.tolist(), frames):
            frame.pts = pts
            yield frame

    def _shown(self, frame, number: int) -> Image.Image:
        """The frame (av.VideoFrame) as a player shows it."""
        transfer = frame.color_trc if frame.color_trc in HDR_TRANSFERS else self._transfer
        if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
            frame.colorspace = _BT2020 if transfer else _BT709 if frame.height >= 720 else _BT601
        transparent = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
        pixel_format = {
            (False, False): "rgb24", (True, False): "rgba", (False, True): "rgb48le", (True, True): "rgba64le",
        }[transparent, bool(transfer)]  # fmt: skip
        width, height = self._size
        pixels = frame.to_ndarray(format=pixel_format, width=width, height=height, interpolation=_BEST_CONVERSION)
        if transfer:
            colours = to_sdr(pixels[..., :3], transfer, frame.color_primaries)
            pixels = np.dstack([colours, (pixels[..., 3:] >> 8).astype(np.uint8)])
        return turned(rgb_picture(pixels, number + 1, self.background), self._turn)


def _advance(run: Iterator[tuple[int, object]], number: int):
    """The frame with this number, or None if the run does not lead to it undamaged."""
    with suppress(Damaged):
        for reached, frame in run:
            if reached >= number:
                return frame if reached == number and not frame.is_corrupt else None
    return None


def _display_turn(frame) -> Image.Transpose | None:
    """How the frame has to be turned or mirrored to be upright; its `rotation` does not tell what is mirrored."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 and older stumble over kinds of side data that they do not know
        return _ROTATIONS.get(frame.rotation % 360)
    if matrix is None:
        return None
    a, b, _, c, d = struct.unpack("5i", bytes(matrix)[:20])
    return _DISPLAY_MATRICES.get(tuple(round(number / 65536) for number in (a, b, c, d)))
