"""What changed since the last look."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from regraft import _regraft
from regraft.mutable.tree import Tree

__all__ = ["Changes", "Watcher", "readable"]

_version = attrgetter("_version")
_address = torch.Tensor.data_ptr
# PyTorch keeps sizes and strides of more elsewhere.
_MOST_AXES = 5


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
    - the version counter of each tensor, which every in-place operation and optimizer step increases (tensors
      made in inference mode have none: writes to them count as those below);
    - the memory that each tensor is in, its data type, sizes and strides.

    Writes that bypass the version counter (through ``.data``, NumPy or raw pointers) are found when they
    change a bit of what is sampled: tensors of up to 512 bytes are read whole, of larger ones both ends and
    six lines of 64 bytes between them.
    """

    def __init__(self, tree: Tree) -> None:
        self._native = _regraft.Watch()
        self._native.watch_containers(tree.containers)
        self._in_memory = [tensor for tensor in tree.tensors if _has_memory(tensor)]
        self._indices = {id(tensor): index for index, tensor in enumerate(tree.tensors)}
        reads_versions = _reads_versions(self._native)
        known = [(tensor, tensor._cdata, tensor.untyped_storage()._cdata) for tensor in self._in_memory]
        unknown = self._native.watch_tensors(known)
        # Those of many axes have sizes and strides elsewhere.
        many = (i for i, tensor in enumerate(self._in_memory) if tensor.dim() > _MOST_AXES)
        self._asked = sorted({*unknown, *many})
        # Whose counter is asked for. Tensors made in inference mode have none.
        left = {id(self._in_memory[index]) for index in unknown} if reads_versions else set(self._indices)
        left |= self._indices.keys() - set(map(id, self._in_memory))
        self._counted = [t for t in tree.tensors if id(t) in left and not t.is_inference()]
        # Whether PyTorch need not be asked.
        self._is_native = not self._asked and not self._counted
        self._versions = self._seen = list(map(_version, self._counted))
        self._layouts = dict(enumerate(map(_layout, self._in_memory)))
        self._new_layouts: dict[int, tuple[Any, ...]] = {}
        self._watch_memory()

    def rebase(self) -> None:
        """Takes the tensors for unchanged as the last look found them."""
        self._versions = self._seen
        self._layouts.update(self._new_layouts)
        self._native.rebase_tensors()
        self._watch_memory()

    def _watch_memory(self) -> None:
        sizes = [readable(tensor) for tensor in self._in_memory]
        self._native.watch_memory(list(map(_address, self._in_memory)), sizes)

    def look(self) -> Changes | None:
        """What changed since they were last taken for unchanged, ``None`` for nothing."""
        if self._is_native and self._native.is_unchanged():
            return None
        containers = self._native.changed_containers()
        suspects, counted = self._native.changed_tensors()
        moved = self._moved(suspects) if suspects or self._asked else []
        # What moved may be smaller than it was, and is not read.
        memory = self._native.changed_samples(moved)
        self._seen = versions = list(map(_version, self._counted)) if self._counted else []
        if not (containers or moved or counted or memory) and versions == self._versions:
            # Something else of tensors changed, such as whether they require gradients.
            if suspects:
                self._native.rebase_tensors()
            return None
        written = {self._indices[id(self._in_memory[index])] for index in (*moved, *counted, *memory)}
        counters = zip(versions, self._versions, self._counted, strict=True)
        written |= {self._indices[id(tensor)] for now, before, tensor in counters if now != before}
        return Changes(bool(containers) or bool(moved), written)

    def _moved(self, suspects: list[int]) -> list[int]:
        """Those of some tensors, and of those that must be asked, that lie otherwise in memory."""
        self._new_layouts = {i: _layout(self._in_memory[i]) for i in sorted({*suspects, *self._asked})}
        return [i for i, layout in self._new_layouts.items() if layout != self._layouts[i]]


def _reads_versions(native: _regraft.Watch) -> bool:
    """Whether the counters of tensors are found where they are looked for."""
    with torch.inference_mode(False):
        one = torch.zeros(2)
        # Of these the first shares the counter, and the other has its own.
        counted, other = one.detach(), one.data
        for _ in range(3):
            if not native.find_versions(one._cdata, counted._cdata, other._cdata, one._version):
                return False
            one.add_(1)
    return True


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


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
