"""Small tensors that come again in every step, brought to the device once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MOST = 4096
"""How many are kept, a few kB each; a clip has a few, one whose momentum changes from frame to frame many."""


class Constants:
    """Matrices and indices on the devices where they are used, by their values.

    Nobody waits while one is brought to a GPU: it is copied beside what the GPU does, and later it is there.
    """

    def __init__(self):
        self._known: dict[tuple, torch.Tensor] = {}

    def on(self, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        """`values`, a small tensor in main memory, on the `device`."""
        if values.device == device:
            return values
        bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values  # NumPy has none
        key = bits.numpy().tobytes(), tuple(values.shape), values.dtype, device
        return self._known[key] if key in self._known else self._bring(key, values, device)

    def index(self, numbers: Sequence[int], device: torch.device) -> torch.Tensor:
        """`numbers` as a tensor on the `device`."""
        key = tuple(numbers), device
        return self._known[key] if key in self._known else self._bring(key, torch.tensor(numbers), device)

    def take(self, values: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
        """values[index]; a view where it can be."""
        if is_range(index):
            return values[index[0] : index[-1] + 1]
        return values.index_select(0, self.index(index, values.device))

    def put(self, values: torch.Tensor, index: Sequence[int], part: torch.Tensor) -> None:
        """values[index] = part, which may come from another device."""
        if is_range(index):
            values[index[0] : index[-1] + 1].copy_(part, non_blocking=True)
        else:
            values.index_copy_(0, self.index(index, values.device), part.to(values))

    def add(self, values: torch.Tensor, index: Sequence[int], part: torch.Tensor) -> None:
        """values[index] += part, where no number comes twice."""
        if is_range(index):
            values[index[0] : index[-1] + 1].add_(part)
        else:
            values.index_add_(0, self.index(index, values.device), part.to(values.dtype))

    def _bring(self, key: tuple, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[key] = values.to(device, non_blocking=device.type != "mps")  # which may read it too late
        return self._known[key]


def is_range(numbers: Sequence[int]) -> bool:
    """Whether each number is one more than the one before."""
    return all(number == numbers[0] + place for place, number in enumerate(numbers))


def product(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """weights (rows, n) times x (n, …): (rows, …), in the precision that both have.

    With a place for its result, as inside `torch.autocast`, which a host may be in, a product would have half of it.
    """
    flat = x.reshape(len(x), -1)
    result = torch.mm(weights, flat, out=flat.new_empty(len(weights), flat.shape[1]))
    return result.view(len(weights), *x.shape[1:])
