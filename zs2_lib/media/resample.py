"""Temporal super-resolution by flow: the pictures of a clip at a higher frame rate.

The pictures that are there stay as they are, at their times; an interpolator makes those in between. It is FFmpeg's
`minterpolate` or any of `interpolators`. Pictures are taken one by one, at most two ahead of the one that is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from .decode import import_av, pulled
from .interpolators import MINTERPOLATE, loaded
from .pictures import rgb_pictures

_BLOCK, _LEAST_BLOCKS = 16, 2  # of minterpolate, which refuses fewer and works by whole ones
_FLOW = {"mi_mode": "mci", "mc_mode": "aobmc", "me_mode": "bidir", "vsbmc": "1", "scd": "fdiff"}


def interpolated(
    pictures: Iterable[Image.Image | np.ndarray],
    fps: Fraction | float,
    to: Fraction | float,
    interpolator: str = MINTERPOLATE,
    closed: bool = False,
) -> Iterator[Image.Image]:
    """Yields the pictures at `to` frames per second, which are there at `fps`.

    pictures: as `write_clip` takes them, of one size.
    interpolator: one of `interpolators.names()`.
    closed: the clip goes on with its first picture after the last one.

    Output k is the picture at time k / to. Where that is the time of a picture that is there it is this one, bit for
    bit, in RGB; so with to = n * fps the output n * i is input i. Between two equal pictures nothing is made. The last
    output is at the last picture's time or before it, or with `closed` before the first one comes again: there are
    `interpolated_count` of them, and the clip lasts as long as before, to within one frame of the lower rate.

    At a scene cut minterpolate repeats the nearer picture (`scd`: the mean change in brightness is 10 % or more, and
    differs that much from the one before).

    Raises ValueError for rates that are not positive or a `to` below `fps`, for an unknown interpolator, pictures of
    unequal size; InterpolatorError from an interpolator; RuntimeError if PyAV is missing.
    """
    fps, to = Fraction(fps), Fraction(to)
    if not 0 < fps <= to:
        raise ValueError(f"the frame rate is to be {float(to):g}, but has to be {float(fps):g} or more, as it is now")
    between = _Flow(fps, to) if interpolator == MINTERPOLATE else _Pairs(interpolator, fps, to)
    return _interpolated(rgb_pictures(pictures), fps / to, between, closed)


def interpolated_count(frames: int, fps: Fraction | float, to: Fraction | float, closed: bool = False) -> int:
    """How many pictures `interpolated` makes of so many, at least one."""
    ratio = Fraction(to) / Fraction(fps)
    return math.ceil(frames * ratio) if closed else math.floor((frames - 1) * ratio) + 1


def _interpolated(pictures: Iterator[Image.Image], step: Fraction, between: _Flow | _Pairs, closed: bool):
    """step: from output to output, in pictures."""
    last = next(pictures, None)
    if last is None:
        return
    number = output = 0
    for number, (before, after, following) in enumerate(_windows(last, pictures, closed), start=1):
        first, output = output, math.ceil(number / step)
        if first * step == number - 1:
            yield before
            first += 1
        yield from between.made(before, after, following, range(first, output))
        last = after
    if not closed and output * step == number:
        yield last


def _windows(first: Image.Image, rest: Iterator[Image.Image], closed: bool) -> Iterator[tuple]:
    """Each picture, the one after it, and the one after that (at the end the one after it again)."""
    before, after = first, next(rest, None)
    while after is not None:
        following = next(rest, None)
        if following is None and closed:
            yield before, after, first
            yield after, first, first
            return
        yield before, after, following or after
        before, after = after, following
    if closed:
        yield first, first, first


class _Pairs:
    """In-betweens by a function of the two pictures and the time between them."""

    def __init__(self, interpolator: str, fps: Fraction, to: Fraction):
        self._function, self._step = loaded(interpolator), fps / to

    def made(
        self, before: Image.Image, after: Image.Image, following: Image.Image, outputs: Sequence[int]
    ) -> Iterator[Image.Image]:
        """The pictures of these `outputs`, which lie between `before` and `after`."""
        equal = _equal(before, after)
        for output in outputs:
            yield before.copy() if equal else self._function(before, after, float(output * self._step % 1))


class _Flow:
    """In-betweens by FFmpeg's minterpolate: motion estimated in both directions, overlapped blocks.

    https://ffmpeg.org/ffmpeg-filters.html#minterpolate

    It estimates motion on the first plane of a picture alone, and knows no RGB. So it is given four planes, of which
    the first is the brightness, and the others are red, green and blue, which it takes for colour and transparency:
    nothing is lost by a conversion. It gives what lies before a picture when the next one comes.
    """

    def __init__(self, fps: Fraction, to: Fraction):
        self._av, self._fps, self._to = import_av(), fps, to
        self._graph, self._pushed = None, 0
        self._ready: dict[int, Image.Image] = {}

    def made(
        self, before: Image.Image, after: Image.Image, following: Image.Image, outputs: Sequence[int]
    ) -> Iterator[Image.Image]:
        """The pictures of these `outputs`, which lie between `before` and `after`."""
        wanted = () if _equal(before, after) else outputs
        for picture in (following,) if self._graph else (before, after, following):
            self._push(picture, wanted)
        for output in outputs:
            yield self._ready.pop(output) if wanted else before.copy()

    def _push(self, picture: Image.Image, wanted: Sequence[int]) -> None:
        planes = _planes(picture)
        self._graph = self._graph or self._opened(*planes.shape[2:0:-1])
        frame = self._av.VideoFrame(planes.shape[2], planes.shape[1], "yuva444p")
        for plane, values in zip(frame.planes, planes):
            _rows(plane)[:] = values
        frame.pts, frame.time_base = self._pushed, 1 / self._fps
        self._pushed += 1
        for made in pulled(self._graph, frame):
            if made.pts in wanted:
                rgb = np.stack([_rows(plane) for plane in made.planes[1:]], axis=-1)
                self._ready[made.pts] = Image.fromarray(rgb[: picture.height, : picture.width])

    def _opened(self, width: int, height: int):
        graph = self._av.filter.Graph()
        pixels = self._av.VideoFormat("yuva444p", width, height)
        chain = [
            graph.add_buffer(width=width, height=height, format=pixels, time_base=1 / self._fps),
            graph.add("minterpolate", fps=str(self._to), **_FLOW),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*chain).configure()
        return graph


def _planes(picture: Image.Image) -> np.ndarray:
    """Brightness, red, green and blue (4, height, width), each in whole blocks: the last row and column repeated."""
    planes = np.stack([np.asarray(picture.convert("L")), *np.moveaxis(np.asarray(picture), -1, 0)])
    missing = [max(_LEAST_BLOCKS * _BLOCK, -(-side // _BLOCK) * _BLOCK) - side for side in planes.shape[1:]]
    return np.pad(planes, ((0, 0), *((0, more) for more in missing)), mode="edge")


def _rows(plane) -> np.ndarray:
    """The values of a plane of a frame, (height, width)."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _equal(a: Image.Image, b: Image.Image) -> bool:
    return a is b or a.tobytes() == b.tobytes()
