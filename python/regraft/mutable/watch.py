"""What changed since the last look."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from operator import attrgetter

import torch

from regraft import _regraft
from regraft.mutable.tree import Tree

__all__ = ["Changes", "Watcher", "readable"]

_version = attrgetter("_version")
_address = torch.Tensor.data_ptr
_stride = torch.Tensor.stride
_size = torch.Tensor.numel


@dataclass(frozen=True)
class Changes:
    """What a look found."""

    structure: bool
    """Whether anything but the content of tensors changed: which objects modules hold, or how tensors lie in
    memory.
    """
    tensors: Collection[int]
    """Indices of tensors of the tree that were written to, or are elsewhere."""


class Watcher:
    """Looks at a tree that was taken apart once, again and again. What it finds is exact for:

    - which modules, parameters, buffers, forward hooks and attributes modules hold, and what their dicts and
      lists hold;
    - the version counter of each tensor, which every in-place operation and optimiser step increases (tensors
      made in inference mode have none: writes to them count as those below);
    - the memory that each tensor is in, its number of elements and its strides.

    Writes that bypass the version counter (through ``.data``, NumPy or raw pointers) are found when they
    change a bit of what is sampled: tensors of up to 512 bytes are read whole, of larger ones both ends and
    six lines of 64 bytes between them.
    """

    def __init__(self, tree: Tree) -> None:
        self._native = _regraft.Watch()
        self._native.watch_containers(tree.containers)
        self._native.expect_tensors(tree.tensors)
        # Tensors made in inference mode have no version counter.
        self._counted = [tensor for tensor in tree.tensors if not tensor.is_inference()]
        self._in_memory = [tensor for tensor in tree.tensors if _has_memory(tensor)]
        self._indices = {id(tensor): index for index, tensor in enumerate(tree.tensors)}
        self._seen = self._read()
        self.rebase()

    def rebase(self) -> None:
        """Takes the tensors for unchanged as the last look found them."""
        self._versions, self._strides, self._sizes = self._seen
        sizes = [readable(tensor) for tensor in self._in_memory]
        self._native.watch_memory(list(map(_address, self._in_memory)), sizes)

    def look(self) -> Changes | None:
        """What changed since they were last taken for unchanged, ``None`` for nothing."""
        containers = self._native.changed_containers()
        self._seen = versions, strides, sizes = self._read()
        addresses = list(map(_address, self._in_memory))
        moved: list[int] = []
        if strides != self._strides or sizes != self._sizes:
            layouts = zip(strides, sizes, self._strides, self._sizes, strict=True)
            moved = [
                i for i, (stride, size, old, count) in enumerate(layouts) if stride != old or size != count
            ]
            for index in moved:
                # It may be smaller than it was, and is not read.
                addresses[index] = 0
        memory = self._native.changed_memory(addresses)
        if not containers and not memory and not moved and versions == self._versions:
            return None
        written = {self._indices[id(self._in_memory[index])] for index in (*memory, *moved)}
        counters = zip(versions, self._versions, self._counted, strict=True)
        written |= {self._indices[id(tensor)] for now, before, tensor in counters if now != before}
        return Changes(bool(containers) or bool(moved), written)

    def _read(self) -> tuple[list[int], list[tuple[int, ...]], list[int]]:
        """Version counters, strides, and numbers of elements."""
        tensors = self._in_memory
        return list(map(_version, self._counted)), list(map(_stride, tensors)), list(map(_size, tensors))


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether it has an address: sparse tensors, and classes that consist of other tensors, have none."""
    return (
        tensor.layout == torch.strided and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    )


def readable(tensor: torch.Tensor) -> int:
    """Bytes that a tensor spans in memory of the CPU."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
