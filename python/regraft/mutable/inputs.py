"""Arguments of calls: which program takes them, and which sizes may change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree

from regraft.errors import InputError

__all__ = ["Call", "Ranges", "Takes"]

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))

Leaf = tuple[Any, ...]
"""``(dtype, shape)`` of a tensor, ``(type, value)`` of anything else."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: Sequence[Any]
    spec: pytree.TreeSpec | None
    """``None`` where all arguments are positional tensors."""
    key: tuple[Leaf, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Looks at the arguments. Keywords count whatever their order."""
        if not kwargs and all(isinstance(arg, torch.Tensor) for arg in args):
            return cls(args, kwargs, args, None, tuple([(arg.dtype, arg.shape) for arg in args]))
        kwargs = dict(sorted(kwargs.items()))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        return cls(args, kwargs, leaves, spec, tuple(map(_leaf, leaves)))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Those among the arguments, at any depth."""
        return (leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))


def _leaf(value: Any) -> Leaf:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    # Equal numbers of other types are other constants; objects without a value are told by identity.
    return type(value), value if isinstance(value, _CONSTANTS) else id(value)


@dataclass(frozen=True)
class Size:
    """A size that may change: from ``least`` to ``most``, the same wherever ``name`` is."""

    name: str
    least: int
    most: int | None


@dataclass(frozen=True)
class Takes:
    """Which calls a program takes."""

    spec: pytree.TreeSpec | None
    leaves: tuple[Leaf, ...]
    """With a :class:`Size` in the place of each size that may change."""

    def fits(self, call: Call) -> bool:
        """Whether it takes this call."""
        if len(call.key) != len(self.leaves) or call.spec != self.spec:
            return False
        sizes: dict[str, int] = {}
        return all(_fits(want, found, sizes) for want, found in zip(self.leaves, call.key, strict=True))


def _fits(want: Leaf, found: Leaf, sizes: dict[str, int]) -> bool:
    if want[0] is not found[0]:
        return False
    if not isinstance(want[0], torch.dtype):
        return bool(want[1] == found[1])
    if len(want[1]) != len(found[1]):
        return False
    for expected, size in zip(want[1], found[1], strict=True):
        if isinstance(expected, Size):
            in_range = expected.least <= size and (expected.most is None or size <= expected.most)
            if not in_range or sizes.setdefault(expected.name, size) != size:
                return False
        elif expected != size:
            return False
    return True


@dataclass
class Ranges:
    """Sizes that may change, by the structure of the arguments, as ``set_expected_dynamic_shape_range`` takes
    them.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def of(self, call: Call) -> list[dict[int, Any]]:
        """For each leaf of ``call`` its axes with a ``torch.export.Dim``, whether or not the sizes are in its
        range.

        Raises:
            InputError: when the ranges are of another structure than the call.

        """
        found: list[dict[int, Any]] = []
        given = [*self.args, *[None] * (len(call.args) - len(self.args))]
        if len(given) > len(call.args):
            raise InputError(
                f"ranges are set for {len(given)} positional arguments, the call has {len(call.args)}\n"
                "  help: set them as the module is called, with set_expected_dynamic_shape_range"
            )
        for index, (value, shapes) in enumerate(zip(call.args, given, strict=True)):
            _collect(value, shapes, f"argument {index}", found)
        for name, value in call.kwargs.items():
            _collect(value, self.kwargs.get(name), f"argument {name}", found)
        return found

    def fitting(self, call: Call) -> tuple[Takes, list[dict[int, Any]]]:
        """What a program for ``call`` takes: sizes outside of their range, and of different sizes under one
        name, are fixed. And for each leaf the axes whose sizes may change.
        """
        dims = self.of(call)
        sizes: dict[str, set[int]] = {}
        for leaf, axes in zip(call.leaves, dims, strict=True):
            for axis, dim in axes.items():
                sizes.setdefault(dim.__name__, set()).add(leaf.shape[axis])
        kept = [
            {axis: dim for axis, dim in axes.items() if _may_change(dim, sizes[dim.__name__])}
            for axes in dims
        ]
        leaves = []
        for key, axes in zip(call.key, kept, strict=True):
            if axes:
                key = (key[0], tuple(_size(axes[i]) if i in axes else size for i, size in enumerate(key[1])))
            leaves.append(key)
        return Takes(call.spec, tuple(leaves)), kept


def _may_change(dim: Any, sizes: set[int]) -> bool:
    # PyTorch takes sizes of 0 and 1 for fixed.
    return len(sizes) == 1 and bool(dim.max >= 2) and all(dim.min <= size <= dim.max for size in sizes)


def _size(dim: Any) -> Size:
    # Without a limit the largest is a symbol.
    return Size(dim.__name__, int(dim.min), int(dim.max) if isinstance(dim.max, int) else None)


def _collect(value: Any, shapes: Any, where: str, found: list[dict[int, Any]]) -> None:
    """Walks an argument and its ranges together, leaf by leaf in the order of pytrees."""
    if isinstance(value, torch.Tensor):
        found.append(_axes(value, shapes, where))
        return
    if isinstance(value, dict):
        inner = shapes or {}
        if not isinstance(inner, Mapping) or not set(inner) <= set(value):
            raise _mismatch(where, f"a mapping with keys among {list(value)}", shapes)
        for key, part in value.items():
            _collect(part, inner.get(key), f"{where}[{key!r}]", found)
        return
    if isinstance(value, (list, tuple)):
        inner = shapes or [None] * len(value)
        if not isinstance(inner, (list, tuple)) or len(inner) != len(value):
            raise _mismatch(where, f"a sequence of {len(value)}", shapes)
        for index, (part, part_shapes) in enumerate(zip(value, inner, strict=True)):
            _collect(part, part_shapes, f"{where}[{index}]", found)
        return
    if shapes:
        raise _mismatch(where, f"none, for a {type(value).__name__}", shapes)
    found.extend({} for _ in pytree.tree_leaves(value))


def _axes(value: torch.Tensor, shapes: Any, where: str) -> dict[int, Any]:
    if isinstance(shapes, (list, tuple)):
        shapes = dict(enumerate(shapes))
    if shapes is not None and not isinstance(shapes, Mapping):
        raise _mismatch(where, "a mapping from axes to torch.export.Dim", shapes)
    given = {axis: dim for axis, dim in (shapes or {}).items() if dim is not None}
    if not all(isinstance(axis, int) for axis in given):
        raise _mismatch(where, "numbers of axes", list(given))
    axes = {axis + value.dim() if axis < 0 else axis: dim for axis, dim in given.items()}
    for axis, dim in axes.items():
        if not all(hasattr(dim, name) for name in ("min", "max", "__name__")) or hasattr(dim, "root"):
            expected = 'a torch.export.Dim with its range, such as Dim("batch", min=1, max=64)'
            raise _mismatch(f"{where}, axis {axis}", expected, dim)
        if not 0 <= axis < value.dim():
            raise _mismatch(where, f"axes of a tensor of {value.dim()}", axis)
    return axes


def _mismatch(where: str, expected: str, found: Any) -> InputError:
    return InputError(f"ranges of {where}: expected {expected}, found {found!r}")


def for_export(
    forward: Callable[..., Any], call: Call, dims: Sequence[dict[int, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any] | None]:
    """Positional and keyword arguments to export with, and ``dynamic_shapes`` in PyTorch's form."""
    spec = call.spec or pytree.tree_flatten((call.args, {}))[1]
    if not any(dims):
        return call.args, call.kwargs, None
    wide = [_widened(leaf, axes) for leaf, axes in zip(call.leaves, dims, strict=True)]
    args, kwargs = pytree.tree_unflatten(wide, spec)
    shapes = [dict(axes) or None for axes in dims]
    args_shapes, kwargs_shapes = pytree.tree_unflatten(shapes, spec)
    bound = inspect.signature(forward).bind(*args_shapes, **kwargs_shapes)
    return args, kwargs, dict(bound.arguments)


def _widened(leaf: Any, axes: Mapping[int, Any]) -> Any:
    """A tensor without axes of size 0 and 1 where sizes may change: PyTorch takes these for fixed."""
    for axis, dim in axes.items():
        if leaf.shape[axis] < 2:
            size = min(max(2, dim.min), dim.max)
            if leaf.shape[axis] == 0:
                shape = list(leaf.shape)
                shape[axis] = size
                leaf = leaf.new_zeros(shape)
            else:
                leaf = leaf.repeat_interleave(size, dim=axis)
    return leaf
