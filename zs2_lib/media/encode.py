"""MP4 and WebM: writes pictures through FFmpeg.

PyAV itself and not imageio, whose plugin takes no options of an encoder or a container and tags no colours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

_BT709 = 1  # of the codes in ITU-T H.273, which FFmpeg uses for primaries, transfer and matrix alike
_LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG


@dataclass(frozen=True)
class Encoding:
    """container, encoder: FFmpeg's names. options, container_options: for these two, the quality aside.
    sound_encoder: for sound that is encoded anew.
    sound_copied: the codecs of sound that is copied, because the container's players know them.
    text_tags: where the generation parameters are kept.
    """

    container: str
    encoder: str
    options: dict[str, str]
    container_options: dict[str, str]
    sound_encoder: str
    sound_copied: tuple[str, ...]
    text_tags: tuple[str, ...]


def write_video(
    encoding: Encoding,
    pictures: Iterator[Image.Image],
    file: Path,
    rate: Fraction,
    text: str | None,
    loop: bool,
    quality: int,
) -> None:
    """8-bit 4:2:0 in BT.709, which every player knows. An odd width or height grows by one pixel."""
    av = import_encoder(encoding.encoder, encoding.container)
    # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
    with av.open(
        os.path.abspath(file), "w", format=encoding.container, options=encoding.container_options
    ) as container:
        for tag in encoding.text_tags if text else ():
            container.metadata[tag] = text
        options = {"crf": str(quality), **encoding.options}
        stream = container.add_stream(encoding.encoder, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / rate
        stream.codec_context.colorspace = _BT709
        stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc = _BT709
        stream.codec_context.color_range = _LIMITED_RANGE

        for number, picture in enumerate(pictures):
            pixels = _pad_to_even(np.asarray(picture))  # (height, width, 3)
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
                if encoding.encoder == "libx264" and -(-stream.width // 16) % 8:
                    # x264's fast code for a row of blocks reads beyond its end, and another file comes of it each time
                    stream.codec_context.options = {**options, "mbtree": "0"}
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range=_LIMITED_RANGE, interpolation="AREA"
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def import_encoder(encoder: str, container: str):
    """PyAV, imported only here: without it the image formats still work.

    Raises RuntimeError if it or its `encoder` is missing.
    """
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f'cannot write {container} without PyAV ({error}): install it ("pip install av") '
            "or choose webp, gif, apng or png"
        ) from error
    if encoder not in av.codecs_available:
        raise RuntimeError(
            f"cannot write {container}: this build of PyAV lacks the encoder {encoder}; install PyAV's own "
            'wheel ("pip install --force-reinstall av") or choose webp, gif, apng or png'
        )
    return av


def _pad_to_even(pixels: np.ndarray) -> np.ndarray:
    """Repeats the last row and column where 4:2:0 needs an even size. (height, width, 3)"""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
