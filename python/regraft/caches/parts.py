"""Caches taken apart into the tensors that a program takes, and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import Dim

from regraft.caches.form import CannotTake, Ref, dumped, is_cache, is_static, loaded, outline

__all__ = ["CannotTake", "Parts", "is_length", "open_axes", "taken_apart", "value_of"]

# Numbers that change from call to call, or from cache to cache.
_LENGTHS = frozenset(("batch_size", "cumulative_length", "cumulative_length_int", "max_cache_len"))
# PyTorch takes sizes of 0 and 1 for fixed.
_LEAST = 2


class Parts:
    """A cache taken apart: tensors, and everything else as a value that can be compared."""

    def __init__(self, form: Ref, tensors: Sequence[torch.Tensor]) -> None:
        self.form = form
        self.tensors = tensors


pytree.register_pytree_node(
    Parts,
    lambda parts: (list(parts.tensors), parts.form),
    lambda tensors, form: Parts(form, list(tensors)),
    serialized_type_name="regraft.caches.Parts",
    to_dumpable_context=dumped,
    from_dumpable_context=loaded,
    flatten_with_keys_fn=lambda parts: (
        [(pytree.SequenceKey(index), tensor) for index, tensor in enumerate(parts.tensors)],
        parts.form,
    ),
)


class _Unused:
    """In the place of a generator of random numbers: programs draw none."""

    def __getattr__(self, name: str) -> Any:
        raise CannotTake("it draws random numbers from a generator")


def taken_apart(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
    """The arguments with :class:`Parts` in the place of caches, and the caches.

    Raises:
        CannotTake: for a cache of another kind.

    """
    found: list[Any] = []

    def taken(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return Parts(("generator",), [])
        if not is_cache(value):
            return value
        found.append(value)
        tensors: list[torch.Tensor] = []
        return Parts(_described(value, "", tensors), tensors)

    return tuple(map(taken, args)), {name: taken(value) for name, value in kwargs.items()}, found


def _described(value: Any, name: str, tensors: list[torch.Tensor]) -> Ref:
    """What a value consists of; its tensors are added to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return "tensor", len(tensors) - 1
    if type(value) is int and name in _LENGTHS:
        tensors.append(torch.empty((value + _LEAST, 0), dtype=torch.uint8))
        return "length", len(tensors) - 1
    return outline(value, name, lambda inner, key: _described(inner, key, tensors))


def value_of(ref: Ref, tensors: Sequence[torch.Tensor], done: bool = False) -> Any:
    """The value that ``ref`` describes; ``done``: nothing writes to it."""
    kind, *what = ref
    if kind == "generator":
        return _Unused()
    if kind == "tensor":
        return tensors[what[0]]
    if kind == "length":
        return tensors[what[0]].shape[0] - _LEAST
    if kind == "constant":
        return what[0]
    if kind in ("list", "tuple"):
        parts = [value_of(part, tensors, done) for part in what[0]]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {key: value_of(part, tensors, done) for key, part in what[0]}
    cls, attributes = what
    made = object.__new__(cls)
    for name, part in attributes:
        value = value_of(part, tensors, done or _is_done(name, attributes))
        if part[0] == "tensor" and is_static(cls) and not done:
            # It is written to in place, which must not reach the input of the program.
            value = value.clone()
        made.__dict__[name] = value
    return made


def _is_done(name: str, attributes: Sequence[tuple[str, Ref]]) -> bool:
    """Whether an attribute is the cross-attention of a cache that has all of it."""
    flags = dict(attributes).get("is_updated")
    is_full = flags is not None and bool(flags[1]) and all(flag == ("constant", True) for _, flag in flags[1])
    return name == "cross_attention_cache" and is_full


def is_length(leaf: Any) -> bool:
    """Whether a leaf of the arguments stands for a length."""
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.uint8 and leaf.shape[1:] == (0,)


def open_axes(leaves: Sequence[Any]) -> list[dict[int, Any]]:
    """For each leaf of the arguments of a call with caches the axes whose size may change: all that
    PyTorch does not find to be fixed, but for the batch.
    """
    found: list[dict[int, Any]] = []
    for leaf in leaves:
        axes: Sequence[int] = ()
        if isinstance(leaf, torch.Tensor):
            axes = (0,) if is_length(leaf) else range(1, leaf.dim())
        found.append({axis: Dim.AUTO for axis in axes if leaf.shape[axis] >= _LEAST})
    return found
