"""Which frames of a source, of its masks, and of control images the frames of a clip show."""

from __future__ import annotations

import numpy as np

TOO_FEW = {"hold": "the last is held", "loop": "they begin again", "stretch": "they are spread over the clip"}
"""What becomes of the frames that there is no control image for, by the setting `control_fit`."""


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


def picks_of_control(count: int, frames: int, fit: str, at_first: int) -> np.ndarray:
    """Which of `count` control images belongs to each of `frames` kept frames (frames,): the first ones if there are
    enough, else by `fit`: "hold" keeps the last, "loop" begins again, "stretch" spreads them evenly.

    A clip that has been extended had so many frames `at_first`, which keep their images.
    """
    index = np.arange(frames)
    if fit == "loop":
        return index % count
    if fit == "stretch" and count < at_first:
        index = np.rint(index * (count - 1) / (at_first - 1)).astype(int)
    return np.minimum(index, count - 1)
