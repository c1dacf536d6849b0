"""HDR videos look as an SDR player shows them: grey and white where BT.2408 and BT.2390 put them, hues as they are.

What is in the files is computed here, by BT.2100.
"""

import numpy as np
import pytest
from media_files import SIZE, write_video
from test_videos import yuv

from zs2_lib.media.read import open_source

av = pytest.importorskip("av")

PQ, HLG = 16, 18
BT2020_FROM_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def pq(light):
    """The level, 0 to 1, of light in cd/m²."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light):
    """The levels of R, G and B, 0 to 1, on a screen of 1000 cd/m², whose gamma is 1.2."""
    luminance = max(float(light @ [0.2627, 0.6780, 0.0593]), 1e-9) / 1000
    scene = np.maximum(light / 1000 * luminance ** (1 / 1.2 - 1), 0)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def shown_light(light):
    """What BT.2390, section 5.4.1, makes of the light of grey from a master of 1000 cd/m² for a screen of 203."""
    level, most = pq(light) / pq(1000), pq(203) / pq(1000)
    knee = 1.5 * most - 0.5
    if level < knee:
        return light
    t = (min(level, 1) - knee) / (1 - knee)
    wanted = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    lights = np.geomspace(1, 1000, 100000)
    return float(np.interp(wanted * pq(1000), pq(lights), lights))


def bt1886(light):
    return 255 * (np.clip(light, 0, 203) / 203) ** (1 / 2.4)


def write_hdr(path, lights, transfer, size=SIZE, tagged=True):
    """A lossless video of frames of one colour each: lights (n, 3) in cd/m² of BT.709's primaries."""

    def setup(stream):
        stream.codec_context.color_trc = transfer
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_primaries = 9, 9

    def frame(number):
        light = BT2020_FROM_BT709 @ np.asarray(lights[number], float)
        levels = pq(light) if transfer == PQ else hlg(light)
        picture = av.VideoFrame(*size, "yuv444p10le")
        for plane, value in zip(picture.planes, yuv(255 * levels, "BT.2020", False, 10)):
            plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
        if tagged:
            picture.colorspace = 9
        return picture

    return write_video(path, len(lights), "ffv1", {}, pix_fmt="yuv444p10le", size=size, frame=frame, setup=setup)


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "only the curve"])
def test_greys(tmp_path, transfer, tagged):
    lights = [0, 5, 26, 50, 94, 140, 203, 400, 700, 1000]
    source = open_source(write_hdr(tmp_path / "a.mkv", [[light] * 3 for light in lights], transfer, tagged=tagged))
    assert source.info.hdr
    levels = []
    for light, (_, picture) in zip(lights, source.frames()):
        levels.append(picture.getpixel((30, 20))[0])
        assert np.abs(np.asarray(picture, int) - bt1886(shown_light(light))).max() <= 2.5, light
    assert levels == sorted(levels)
    grey, white = levels[lights.index(26)], levels[lights.index(203)]
    assert 100 <= grey <= 112  # 18 % grey is 104 in BT.709, 108 as light on a screen of BT.1886
    assert 225 <= white <= 240  # below the peak, for highlights
    assert levels[-1] >= 254


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
def test_colours_of_bt709_stay_what_they_are(tmp_path, transfer):
    lights = np.array([[60, 1, 1], [1, 60, 1], [1, 1, 60], [80, 40, 16], [10, 50, 70], [90, 90, 2]], float)
    source = open_source(write_hdr(tmp_path / "a.mkv", lights, transfer))
    for light, (_, picture) in zip(lights, source.frames()):
        assert np.abs(np.asarray(picture, int) - bt1886(light)).max() <= 5, light


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
def test_bright_colours_keep_their_hue(tmp_path, transfer):
    source = open_source(write_hdr(tmp_path / "a.mkv", [[600, 300, 120]], transfer))
    ((_, picture),) = source.frames()
    red, green, blue = (level**2.4 for level in picture.getpixel((30, 20)))
    assert (green / red, blue / red) == pytest.approx((0.5, 0.2), abs=0.02)


def test_wide_pictures_and_pixels_of_another_shape(tmp_path):
    """The curve is applied band by band, after scaling."""
    path = write_hdr(tmp_path / "a.mkv", [[26] * 3, [203] * 3], PQ, size=(3000, 200))
    for light, (_, picture) in zip((26, 203), open_source(path).frames()):
        assert np.abs(np.asarray(picture, int) - bt1886(shown_light(light))).max() <= 2.5
