"""Sizes of arguments that a mutable module expects, as code that derives from it looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import regraft
from regraft.mutable.inputs import Call, Ranges

__all__ = ["DynamicShapeOutOfRangeException", "ranges_of", "same_shapes", "takes"]


class DynamicShapeOutOfRangeException(Exception):
    """Sizes are outside of what was declared."""


def ranges_of(mutable: regraft.MutableModule) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
    """What ``set_expected_dynamic_shape_range`` was given; ``None`` for nothing."""
    ranges = mutable._regraft_state.ranges
    return tuple(ranges.args) or None, dict(ranges.kwargs) or None


def same_shapes(one: Any, other: Any, dynamic_shapes: Any = None) -> bool:
    """Whether two sets of arguments have the same structure, and tensors of the same types but for sizes that
    may change.

    Raises:
        DynamicShapeOutOfRangeException: when such a size is outside of its range.
    """
    if isinstance(one, Mapping):
        first, second = Call.of((), dict(one)), Call.of((), dict(other))
    else:
        first, second = Call.of(tuple(one), {}), Call.of(tuple(other), {})
    if first.spec != second.spec or len(first.leaves) != len(second.leaves):
        return False
    is_named = isinstance(dynamic_shapes, Mapping)
    ranges = Ranges((), dynamic_shapes) if is_named else Ranges(tuple(dynamic_shapes or ()))
    declared, fitting = ranges.of(second), ranges.fitting(second)
    for a, b, axes, in_range in zip(first.leaves, second.leaves, declared, fitting, strict=True):
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            if type(a) is not type(b) or a != b:
                return False
            continue
        if a.dtype != b.dtype or a.dim() != b.dim():
            return False
        outside = sorted(axes.keys() - in_range.keys())
        if outside:
            raise DynamicShapeOutOfRangeException(f"axis {outside[0]} of {list(b.shape)} is out of its range")
        if any(axis not in axes and size != b.shape[axis] for axis, size in enumerate(a.shape)):
            return False
    return True


def takes(mutable: regraft.MutableModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether there is a program for a call. Where sizes are outside of their ranges these are given up, as
    Torch-TensorRT does.
    """
    state = mutable._regraft_state
    call = Call.of(tuple(args), dict(kwargs))
    with state.lock:
        if any(entry.verified and entry.takes.fits(call) for entry in state.entries):
            return True
        if state.ranges.of(call) != state.ranges.fitting(call):
            state.ranges = Ranges()
        return False
