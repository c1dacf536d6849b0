"""The noise that torch draws on an NVIDIA GPU, drawn anywhere.

WebUIs draw the noise of a picture on the GPU unless they are told otherwise, so a recipe of theirs makes the same
picture with these numbers alone (their "NV" among the sources of random numbers draws them too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_ROUNDS = 10
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Philox 4×32 with 10 rounds: (4, n) random integers of 32 bits for as many counters, as uint64.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3. The key has 64 bits.
    """
    a, b, c, d = counters.astype(np.uint64)
    keys = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(_ROUNDS):
        first, second = a * np.uint64(_FACTORS[0]), c * np.uint64(_FACTORS[1])
        a, c = second >> np.uint64(32) ^ b ^ np.uint64(keys[0]), first >> np.uint64(32) ^ d ^ np.uint64(keys[1])
        b, d = second & _LOW, first & _LOW
        keys = [(each + step) & 0xFFFFFFFF for each, step in zip(keys, _STEPS)]
    return np.stack([a, b, c, d])


class NvidiaNoise:
    """What a generator of torch on an NVIDIA GPU draws, with this seed, one draw after the other.

    The n-th number of a draw comes from a counter of its own: so it is for tensors that a GPU draws with a thread for
    each number, such as latents, and elsewhere up to rounding.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.draws = 0

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        """The next normally distributed numbers, float32 on the CPU, by Box and Muller, of which it takes the sine."""
        count = math.prod(shape)
        counters = np.zeros((4, count), np.uint64)
        counters[0], counters[2] = self.draws, np.arange(count)
        self.draws += 1
        first, second = philox(counters, self.seed)[:2].astype(np.float32)
        part = np.float32(2.0**-32)
        length = np.sqrt(np.float32(-2) * np.log(first * part + part / 2))
        turn = np.float32(2 * math.pi) * part
        return torch.from_numpy(length * np.sin(second * turn + turn / 2)).reshape(tuple(shape))
