"""Small tensors that come again in every step, brought to the device once."""

from __future__ import annotations

import torch

MOST = 4096
"""How many are kept, a few kB each; a clip has a few, one whose momentum changes from frame to frame many."""


class Constants:
    """Matrices and indices on the devices where they are used, by their values.

    Bringing one there makes the host wait for nothing: not in the first step, when it is copied beside what the device
    does, nor later, when it is there.
    """

    def __init__(self):
        self._known: dict[tuple, torch.Tensor] = {}

    def on(self, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        """`values`, a small tensor in main memory, on the `device`."""
        if values.device == device:
            return values
        bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values  # NumPy has none
        key = bits.numpy().tobytes(), tuple(values.shape), values.dtype, device
        if key not in self._known:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = values.to(device, non_blocking=device.type == "cuda")
        return self._known[key]
