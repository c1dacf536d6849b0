"""What calls would ask of a GPU, counted without one: torch's `meta` tensors have a shape and a place, and no numbers.

A `meta` tensor stands for one on the GPU, a CPU tensor for itself. Nothing is listed of the library that is counted:
every operation that torch dispatches is seen, whoever calls it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

FROM_LISTS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
"""They make a tensor of Python's numbers; to a GPU these are copied in a way that no operation shows."""
ONLY_WRITE = ("copy_", "fill_", "zero_")
"""Operations in place that do not read what they change."""
COPIES = ("_to_copy", "copy_")
"""What `to`, `cpu`, `cuda` and `copy_` come down to: from one place to another, or in one place a kernel."""


@dataclass
class Counts:
    """What was asked of the GPU.

    `kernels` are operations that compute or move something: one whose result lies in its input's memory, and is not
    written, is none, nor is the allocation of memory. One operation counts once, also where a library launches several
    kernels for it; attention is one. `bytes` are those that kernels read and write, each tensor once, without caches.
    `copies` go from the main memory to the GPU or back; for `waits` of them the CPU waits until they are done, and for
    a copy back until all is done that the GPU was asked before.
    """

    kernels: int = 0
    bytes: int = 0
    copies: int = 0
    waits: int = 0

    def kernel(self, read: Iterable[torch.Tensor], written: Iterable[torch.Tensor]) -> None:
        self.kernels += 1
        self.bytes += sum(stored(x) for tensors in (read, written) for x in tensors)

    def clear(self) -> None:
        """Begins anew."""
        self.__init__()

    def copy(self, waits: bool) -> None:
        self.copies += 1
        self.waits += waits


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Scope in which everything that is called on `meta` tensors is counted.

    What needs the numbers of such a tensor (`item`, `tolist`) raises an error of torch, as its meaning is to wait.
    """
    counts = Counts()
    with torch.inference_mode(False), torch.no_grad(), _Functions(counts), _Operations(counts):
        yield counts


def stored(x: torch.Tensor) -> int:
    """The bytes in memory of `x`, if it is on the GPU; an expanded tensor is stored once."""
    if not x.is_meta:
        return 0
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride()) if stride or not size)


class _Functions(TorchFunctionMode):
    """Sees torch's functions as they are called: attention before it is taken apart."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        result = function(*args, **kwargs)
        if function in FROM_LISTS and result.is_meta and not isinstance(args[0], torch.Tensor):
            self.counts.copy(waits=True)
        return result

    def attention(self, query, key, value, attn_mask=None, *args, **kwargs) -> torch.Tensor:
        """One kernel; its result (…, query, channel) lies in memory as the queries do, like that of fused kernels."""
        result = torch.empty_like(query)
        self.counts.kernel(_tensors((query, key, value, attn_mask)), [result])
        return result


class _Operations(TorchDispatchMode):
    """Sees the operations that are left when torch has taken functions apart."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, columns = operation._schema.name.removeprefix("aten::"), operation._schema.arguments
        arguments = {**{column.name: value for column, value in zip(columns, args)}, **kwargs}
        if name in COPIES:
            source = arguments["src" if name == "copy_" else "self"]
            target = arguments["self"].device if name == "copy_" else arguments.get("device") or source.device
            if source.device.type != target.type:
                self.counts.copy(waits=not arguments.get("non_blocking"))
                if source.is_meta:  # which has no numbers that could be copied
                    dtype = arguments.get("dtype") or source.dtype
                    return args[0] if name == "copy_" else torch.empty(source.shape, dtype=dtype, device=target)
                return operation(*args, **kwargs)
        result = operation(*args, **kwargs)
        given, results = _tensors(arguments), _tensors(result)
        if any(x.is_meta for x in given + results):  # else it is the CPU's own work
            for x in given:
                if not x.is_meta and x.ndim:  # a single number comes with the kernel's arguments
                    self.counts.copy(waits=True)
            self._count(name, columns, arguments, results)
        return result

    def _count(self, name: str, columns: list, arguments: dict, results: list[torch.Tensor]) -> None:
        """An operation on the GPU, as a kernel if it is one."""
        memory = {_memory(x) for x in _tensors(arguments)}
        new = [x for x in results if _memory(x) not in memory]
        changed = [column for column in columns if column.alias_info and column.alias_info.is_write]
        if not changed and (not new or "empty" in name):  # "empty", "new_empty", …: the allocation of memory
            return
        unread = {column.name for column in changed if column.is_out or name in ONLY_WRITE}
        written = new + _tensors([arguments.get(column.name) for column in changed])
        if name.startswith("new_") or name.endswith("_like"):  # made like a tensor that is not read
            unread = {"self"}
        if name in ("index", "index_select"):  # read no more of it than they take
            unread, written = {"self"}, 2 * new
        if name in ("index_put_", "index_copy_"):  # write no more to it than they are given
            unread, written = {"self"}, _tensors([arguments.get("values"), arguments.get("source")])
        self.counts.kernel(_tensors([value for key, value in arguments.items() if key not in unread]), written)


def _tensors(value) -> list[torch.Tensor]:
    """The tensors in `value`, in lists and dicts as well, each once."""
    return list({id(x): x for x in tree_flatten(value)[0] if isinstance(x, torch.Tensor)}.values())


def _memory(x: torch.Tensor) -> int:
    """Which memory `x` lies in."""
    return x.untyped_storage()._cdata
