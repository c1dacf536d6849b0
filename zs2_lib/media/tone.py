"""HDR to SDR: pictures meant for screens of 1000 cd/m² and more, as a screen of an SDR video shows them.

By a curve in numpy: of FFmpeg's filters PyAV's wheels lack zscale and libplacebo, and its `tonemap` takes linear light,
which only these two make. What is in the file becomes light by ITU-R BT.2100 (PQ; HLG for a screen of 1000 cd/m²). The
colours of BT.2020 become those of BT.709 (BT.2087). The light is compressed by BT.2390, section 5.4.1, from 1000 cd/m²
to 203, the white of graphics and paper in BT.2408; below 94 it stays as it is, as does grey (26). It becomes levels by
BT.1886. All channels of a pixel are scaled alike, which keeps its hue.
"""

from __future__ import annotations

from functools import cache

import numpy as np

PQ, HLG = HDR_TRANSFERS = 16, 18
"""H.273's codes."""

_WHITE, _PEAK = 203.0, 1000.0  # cd/m²
_FROM_BT2020 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
_FROM_P3 = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0196, -0.0786, 1.0979]]
_TO_BT709 = {9: _FROM_BT2020, 2: _FROM_BT2020, 11: _FROM_P3, 12: _FROM_P3}  # H.273's codes of primaries; 2: not said
_BAND = 2**18  # pixels at once


def to_sdr(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """(height, width, 3) of uint8 from R'G'B' (height, width, 3) of uint16, full range.

    transfer: `PQ` or `HLG`. primaries: H.273's code.
    """
    height, width, _ = pixels.shape
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        light = _light(transfer)[pixels[top : top + rows]]  # (rows, width, 3), cd/m²; of HLG the scene's, up to 1
        if transfer == HLG:
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light *= _PEAK * luminance[..., None] ** 0.2  # the system's gamma is 1.2
        if primaries in _TO_BT709:
            light = light @ np.array(_TO_BT709[primaries], np.float32).T
        light = np.maximum(light, 0)
        scale, levels = _scale(), _levels()
        brightest = np.minimum(light.max(axis=2) * ((len(scale) - 1) / 10000), len(scale) - 1)
        light *= scale[brightest.astype(np.int32)][..., None]
        result[top : top + rows] = levels[(np.minimum(light, 1) * (len(levels) - 1)).astype(np.int32)]
    return result


def _pq(light: np.ndarray) -> np.ndarray:
    """Levels from 0 to 1 of cd/m²."""
    power = (np.asarray(light) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def _from_pq(levels: np.ndarray) -> np.ndarray:
    power = levels ** (32 / 2523)
    return 10000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)


@cache
def _light(transfer: int) -> np.ndarray:
    """The light of each of 65536 levels: cd/m² for PQ, the scene's from 0 to 1 for HLG."""
    levels = np.arange(65536) / 65535
    if transfer == PQ:
        return _from_pq(levels).astype(np.float32)
    bright = (np.exp((levels - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(levels <= 0.5, levels**2 / 3, bright).astype(np.float32)


@cache
def _scale() -> np.ndarray:
    """What to multiply light of 0 to 10000 cd/m², in 65536 equal steps, with, so that 1 is the white of SDR."""
    light = np.linspace(0, 10000, 65536)
    level, most = _pq(light) / _pq(_PEAK), _pq(_WHITE) / _pq(_PEAK)
    knee = 1.5 * most - 0.5
    part = np.clip((level - knee) / (1 - knee), 0, 1)
    curve = (2 * part**3 - 3 * part**2 + 1) * knee + (part**3 - 2 * part**2 + part) * (1 - knee)
    curve += (3 * part**2 - 2 * part**3) * most
    shown = np.where(level < knee, light, _from_pq(curve * _pq(_PEAK)))
    return (np.divide(shown, light, out=np.ones_like(light), where=light > 0) / _WHITE).astype(np.float32)


@cache
def _levels() -> np.ndarray:
    """The levels (uint8) of light from 0 to 1 in 2**20 equal steps, fine enough for the darkest ones."""
    return np.rint(255 * np.linspace(0, 1, 2**20) ** (1 / 2.4)).astype(np.uint8)
