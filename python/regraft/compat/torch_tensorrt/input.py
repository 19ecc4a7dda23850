"""Specifications of inputs: shapes and ranges of shapes instead of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
import torch.utils._pytree as pytree

from regraft.compat.torch_tensorrt.enums import dtype, memory_format

__all__ = ["Input", "example_of"]

_FIELDS = ("min_shape", "opt_shape", "max_shape")


class Input:
    """What an input looks like: a shape, or the least, usual and largest shape.

    A size that differs between ``min_shape`` and ``max_shape`` may change from call to call. Axes that
    ``shared_dims`` (or the fields of a named tuple) give the same name are one size; the others may still
    turn out to be equal.

    Example:
        >>> Input((1, 3, 32, 32))
        Input(shape=(1, 3, 32, 32), dtype=float32)
        >>> Input(min_shape=(1, 16), opt_shape=(4, 16), max_shape=(8, 16), dtype=torch.int64, name="ids")
        Input(min_shape=(1, 16), opt_shape=(4, 16), max_shape=(8, 16), dtype=int64, name='ids')

    Raises:
        ValueError: when neither a shape nor all three shapes are given, or they contradict each other.
        TypeError: when a shape is not a sequence of sizes, or the data type is not known.
    """

    def __init__(
        self,
        *args: Sequence[int],
        shape: Sequence[int] | None = None,
        min_shape: Sequence[int] | None = None,
        opt_shape: Sequence[int] | None = None,
        max_shape: Sequence[int] | None = None,
        dtype: dtype | torch.dtype | None = None,
        format: memory_format | torch.memory_format = torch.contiguous_format,
        tensor_domain: tuple[float, float] | None = None,
        torch_tensor: torch.Tensor | None = None,
        name: str = "",
        shared_dims: Mapping[int, str] | None = None,
        profiles: Sequence[Mapping[str, Sequence[int]]] | None = None,
        is_shape_tensor: bool = False,
    ) -> None:
        shapes = _shapes(args, shape, (min_shape, opt_shape, max_shape), profiles)
        self.min_shape, self.opt_shape, self.max_shape = shapes
        self.dtype = _dtype_of(dtype)
        self.format = memory_format(format) if isinstance(format, torch.memory_format) else format
        if not isinstance(self.format.value, torch.memory_format):
            raise ValueError(f"Input: {self.format} is an order that only TensorRT has")
        self.tensor_domain = tensor_domain or (0.0, Input.DOMAIN_OFFSET)
        self.profiles = None if profiles is None else list(profiles)
        self.torch_tensor = torch_tensor
        # What is done with values that shapes depend on is found out.
        self.is_shape_tensor = is_shape_tensor
        self.name = name
        fields = getattr(min_shape, "_fields", None)
        others = [of for of in (opt_shape, max_shape) if getattr(of, "_fields", None) != fields]
        if others:
            found = " and ".join(str(getattr(of, "_fields", None)) for of in (min_shape, *others))
            raise ValueError(f"Input: the shapes name their axes differently: {found}")
        if fields and shared_dims:
            raise ValueError("Input: give shared_dims, or named tuples as shapes, not both")
        named = dict(enumerate(fields)) if fields else dict(shared_dims or {})
        self.shared_dims = {axis: dim for axis, dim in named.items() if axis in self.dynamic_axes}
        if shared_dims and self.shared_dims.keys() != shared_dims.keys():
            static = sorted(shared_dims.keys() - self.shared_dims.keys())
            raise ValueError(f"Input: shared_dims names axes that do not change: {static}")

    DOMAIN_OFFSET = 2.0
    """What values of examples are below, by default."""

    @property
    def low_tensor_domain_incl(self) -> float:
        """The least value of an example."""
        return self.tensor_domain[0]

    @property
    def high_tensor_domain_excl(self) -> float:
        """What values of an example are below."""
        return self.tensor_domain[1]

    @classmethod
    def from_tensor(cls, t: torch.Tensor, disable_memory_format_check: bool = False) -> Input:
        """The specification that a tensor fits, which keeps the tensor as its example."""
        return cls(shape=t.shape, dtype=t.dtype, torch_tensor=t)

    @classmethod
    def from_tensors(
        cls, ts: Sequence[torch.Tensor], disable_memory_format_check: bool = False
    ) -> list[Input]:
        """The same for each of several tensors."""
        return [cls.from_tensor(t, disable_memory_format_check) for t in ts]

    @staticmethod
    def equivalent_spec(a: Input, b: Input) -> bool:
        """Whether two specifications say the same, whatever their names and examples."""
        facts = [
            (one.min_shape, one.opt_shape, one.max_shape, one.dtype, one.format, one.tensor_domain)
            for one in (a, b)
        ]
        return facts[0] == facts[1]

    class _ShapeMode(Enum):
        STATIC = 0
        DYNAMIC = 1

    @property
    def shape_mode(self) -> _ShapeMode:
        """Whether sizes may change from call to call."""
        return Input._ShapeMode.DYNAMIC if self.dynamic_axes else Input._ShapeMode.STATIC

    @property
    def shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """The shape, or the three shapes by their names."""
        if not self.dynamic_axes:
            return self.opt_shape
        return dict(zip(_FIELDS, (self.min_shape, self.opt_shape, self.max_shape), strict=True))

    @property
    def dynamic_axes(self) -> list[int]:
        """The axes whose size may change from call to call."""
        return [axis for axis, low in enumerate(self.min_shape) if low != self.max_shape[axis]]

    def example_tensor(self, optimization_profile_field: str | None = None) -> torch.Tensor:
        """A tensor with random content: of ``opt_shape``, or of the shape that is named.

        Raises:
            ValueError: for a name that is not a shape's.
        """
        if optimization_profile_field not in (None, *_FIELDS):
            raise ValueError(f"expected one of {', '.join(_FIELDS)}, found {optimization_profile_field!r}")
        sizes = getattr(self, optimization_profile_field or "opt_shape")
        low, high = self.tensor_domain
        values = low + torch.rand(sizes) * (high - low)
        example = values.to(self.dtype.to(torch.dtype, use_default=True))
        wanted: torch.memory_format = self.format.value
        return example if wanted is torch.contiguous_format else example.contiguous(memory_format=wanted)

    def __repr__(self) -> str:
        shape = self.shape
        parts = [f"{n}={s}" for n, s in shape.items()] if isinstance(shape, dict) else [f"shape={shape}"]
        parts.append(f"dtype={str(self.dtype.to(use_default=True)).removeprefix('torch.')}")
        return f"Input({', '.join(parts)}" + (f", name={self.name!r})" if self.name else ")")


def example_of(inputs: Any) -> Any:
    """``inputs`` with an example in place of each :class:`Input`.

    A size that may change is at least 2 in an example, because PyTorch takes a size of 1 for one that stays
    1.
    """

    def example(leaf: Any) -> Any:
        if not isinstance(leaf, Input):
            return leaf
        if leaf.torch_tensor is not None:
            return leaf.torch_tensor
        small = [axis for axis in leaf.dynamic_axes if leaf.opt_shape[axis] < 2 <= leaf.max_shape[axis]]
        if not small:
            return leaf.example_tensor()
        sizes = tuple(2 if axis in small else size for axis, size in enumerate(leaf.opt_shape))
        return Input(
            sizes, dtype=leaf.dtype, format=leaf.format, tensor_domain=leaf.tensor_domain
        ).example_tensor()

    return pytree.tree_map(example, inputs, is_leaf=lambda leaf: isinstance(leaf, Input))


def _shapes(
    args: Sequence[Any],
    shape: Sequence[int] | None,
    three: tuple[Sequence[int] | None, ...],
    profiles: Sequence[Mapping[str, Sequence[int]]] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    given = [*args, *([] if shape is None else [shape])]
    has_three = any(part is not None for part in three)
    if len(given) + has_three + (profiles is not None) != 1:
        raise ValueError("Input: give a shape, or min_shape, opt_shape and max_shape, or profiles")
    if given:
        static = _sizes(given[0], "shape")
        return static, static, static
    if profiles is not None:
        if not profiles:
            raise ValueError("Input: profiles holds none")
        three = _envelope(profiles)
    if any(part is None for part in three):
        raise ValueError("Input: min_shape, opt_shape and max_shape are given together")
    low, usual, high = (_sizes(part, name) for part, name in zip(three, _FIELDS, strict=True))
    if not len(low) == len(usual) == len(high):
        raise ValueError(f"Input: shapes of different rank: {low}, {usual}, {high}")
    if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        raise ValueError(f"Input: expected min_shape <= opt_shape <= max_shape, found {low}, {usual}, {high}")
    return low, usual, high


def _envelope(profiles: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Sequence[int], ...]:
    """The shapes that contain those of all profiles; the usual one is that of the first."""
    lows = zip(*(profile["min_shape"] for profile in profiles), strict=True)
    highs = zip(*(profile["max_shape"] for profile in profiles), strict=True)
    return [min(sizes) for sizes in lows], profiles[0]["opt_shape"], [max(sizes) for sizes in highs]


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(size, int) for size in value):
        raise TypeError(f"Input: {name} is a sequence of sizes, found {value!r}")
    return tuple(value)


def _dtype_of(value: Any) -> dtype:
    return dtype.of(value)
