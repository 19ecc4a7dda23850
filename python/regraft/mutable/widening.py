"""Ranges that a mutable module finds by itself, when calls differ in sizes alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import Dim

from regraft.checks import listed
from regraft.mutable.inputs import Call

__all__ = ["Widening", "as_code", "where"]

# Programs of calls that differ in sizes alone: the next one takes all sizes.
_PATIENCE = 3
# Kinds of calls whose sizes are remembered.
_MOST_KINDS = 64


@dataclass
class _Kind:
    """Calls that differ in sizes alone."""

    shapes: list[tuple[Any, ...]] = field(default_factory=list)
    """The sizes that programs were made for."""
    is_fixed: bool = False
    """Whether the module cannot be exported for other sizes."""
    wide: Sequence[Collection[int]] | None = None
    """For each leaf the axes whose sizes may change, once a program was made for that."""


class Widening:
    """Sizes that programs were made for."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def of(self, call: Call, dims: Sequence[dict[int, Any]]) -> list[dict[int, Any]] | None:
        """``dims`` with the axes whose sizes were others in programs before; ``None`` when it is too
        early, or there are none.
        """
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds.setdefault(call.kind(), _Kind())
        shapes = tuple(tuple(value) if isinstance(of, torch.dtype) else () for of, value in call.key)
        before, known = kind.shapes, shapes in kind.shapes
        if not known:
            kind.shapes = [*before[-7:], shapes]
        if kind.is_fixed or (kind.wide is None and (known or len(before) < _PATIENCE)):
            return None
        wider, is_wider = [], False
        for index, (axes, sizes) in enumerate(zip(dims, shapes, strict=True)):
            seen = () if kind.wide is None else kind.wide[index]
            varied = [
                axis
                for axis, size in enumerate(sizes)
                # PyTorch takes sizes of 0 and 1 for fixed.
                if axis not in axes
                and size >= 2
                and (axis in seen or any(other[index][axis] != size for other in before))
            ]
            is_wider |= bool(varied)
            wider.append({**axes, **dict.fromkeys(varied, Dim.AUTO)})
        return wider if is_wider else None

    def widened(self, call: Call, wider: Sequence[dict[int, Any]]) -> None:
        """Notes that there is a program for all sizes."""
        self._kinds[call.kind()].wide = [frozenset(axes) for axes in wider]

    def refused(self, call: Call) -> None:
        """Notes that such calls cannot be widened."""
        self._kinds[call.kind()].is_fixed = True


def where(places: Sequence[str], dims: Sequence[dict[int, Any]], wider: Sequence[dict[int, Any]]) -> str:
    """Which axes ``wider`` has more than ``dims``, in words."""
    found = [
        f"axis {axis} of {place}"
        for place, axes, more in zip(places, dims, wider, strict=True)
        for axis in more
        if axis not in axes
    ]
    return listed(found)


class _Code(str):
    """A text that stands for itself in the text of a container."""

    def __repr__(self) -> str:
        return str(self)


def as_code(call: Call, wider: Sequence[dict[int, Any]]) -> str:
    """The call of ``set_expected_dynamic_shape_range`` that declares ``wider``."""
    texts = [
        _Code("{" + ", ".join(f"{axis}: {_dim(dim)}" for axis, dim in axes.items()) + "}" if axes else "None")
        for axes in wider
    ]
    spec = call.spec or pytree.tree_flatten((call.args, {}))[1]
    args, kwargs = pytree.tree_unflatten(texts, spec)
    named = {name: value for name, value in kwargs.items() if str(value) != "None"}
    return f"set_expected_dynamic_shape_range({args!r}" + (f", {named!r})" if named else ")")


def _dim(dim: Any) -> str:
    return f"Dim({dim.__name__!r})" if isinstance(dim, Dim) else f"Dim.{dim.type.name}"
