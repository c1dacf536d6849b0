"""Which frames of a source, and of its masks, the frames of a clip show."""

from __future__ import annotations

import numpy as np


def with_in_betweens(picks: np.ndarray, frames: int, in_betweens: int) -> np.ndarray:
    """For each of the `frames` of a clip (frames,) what lies between the `picks` (kept frames,) around it, rounded
    down: where nothing lies between, an in-between shows what the kept frame before it shows.
    """
    kept, part = np.divmod(np.arange(frames), in_betweens)
    after = picks[np.minimum(kept + 1, len(picks) - 1)]
    return picks[kept] + (after - picks[kept]) * part // in_betweens


def picks_of_masks(masks: int, picks: np.ndarray, whole: int, kept: int, in_betweens: int) -> np.ndarray:
    """The number of the mask for each frame of a clip (frames,).

    picks: the number of the source's frame for each of them.
    whole: how many frames the source has; `kept`: how many are selected, without in-betweens.

    There may be one mask, one for each frame of the source, of the clip, or of the selection. Raises ValueError for
    another number of `masks`.
    """
    if masks == 1:
        return np.zeros(len(picks), np.int64)
    if masks == whole:
        return picks
    if masks == len(picks):
        return np.arange(len(picks))
    if masks == kept:
        return with_in_betweens(np.arange(kept), len(picks), in_betweens)
    raise ValueError(
        f"it has {masks} frames; give one mask, one for each of the {whole} frames of the source, or one for each of "
        f"the {kept} that the clip is made of"
    )
