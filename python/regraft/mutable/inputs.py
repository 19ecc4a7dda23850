"""Arguments of calls: which program takes them, and which sizes may change."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from regraft.errors import InputError
from regraft.inputs import InputTypes, Size

__all__ = ["Call", "Ranges", "Takes", "for_export", "is_hint"]

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
    method: str = "forward"
    """The method that is called."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], method: str = "forward") -> Call:
        """Looks at the arguments. Keywords count whatever their order."""
        if not kwargs and all(isinstance(arg, torch.Tensor) for arg in args):
            return cls(args, kwargs, args, None, tuple([(arg.dtype, arg.shape) for arg in args]), method)
        kwargs = dict(sorted(kwargs.items()))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        return cls(args, kwargs, leaves, spec, tuple(map(_leaf, leaves)), method)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Those among the arguments, at any depth."""
        return (leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    def kind(self) -> tuple[Any, ...]:
        """What is the same for calls that differ in sizes alone."""
        leaves = (
            (kind, len(value)) if isinstance(kind, torch.dtype) else (kind, value) for kind, value in self.key
        )
        return (self.method, str(self.spec), *leaves)

    def places(self, forward: Callable[..., Any]) -> list[str]:
        """What each leaf is called, for messages: ``x``, ``data['more'][0]``."""
        named, _ = pytree.tree_flatten_with_path((self.args, self.kwargs))
        names = list(inspect.signature(forward).parameters)
        found = []
        for path, _ in named:
            key = path[1].idx if isinstance(path[1], pytree.SequenceKey) else path[1].key  # type: ignore[attr-defined]
            if isinstance(key, int):
                key = names[key] if key < len(names) else f"argument {key}"
            found.append(f"{key}{pytree.keystr(path[2:])}")
        return found


def _leaf(value: Any) -> Leaf:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    # Equal numbers of other types are other constants; objects without a value are told by identity.
    return type(value), value if isinstance(value, _CONSTANTS) else id(value)


@dataclass(frozen=True)
class Takes:
    """Which calls a program takes."""

    spec: pytree.TreeSpec | None
    leaves: tuple[Leaf, ...]
    """With a :class:`Size` in the place of each size that may change, ``None`` where any will do."""
    ranges: tuple[tuple[str, int, int | None], ...] = ()
    """Smallest and largest value of each symbol."""
    method: str = "forward"
    """The method that it is."""

    @classmethod
    def of(cls, call: Call, program: ExportedProgram) -> Takes:
        """Those that ``program`` takes, which was exported for ``call``."""
        types = InputTypes.of(program)
        wanted = iter(types.inputs)
        by_leaf = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                by_leaf.append(next(wanted) if spec.arg.name in types.names else None)
        names: dict[str, str] = {}
        leaves = list(call.key)
        for index, place in enumerate(_order_of(call, program)):
            found = by_leaf[place]
            if found is not None:
                shape = tuple(_renamed(size, names) for size in found.shape)
                leaves[index] = (leaves[index][0], shape)
        ranges = tuple((new, *types.ranges.get(old, (0, None))) for old, new in names.items())
        return cls(call.spec, tuple(leaves), ranges, call.method)

    def fits(self, call: Call) -> bool:
        """Whether it takes this call."""
        if len(call.key) != len(self.leaves) or call.spec != self.spec or call.method != self.method:
            return False
        sizes: dict[str, int] = {}
        return all(self._fits(want, found, sizes) for want, found in zip(self.leaves, call.key, strict=True))

    @functools.cached_property
    def _ends(self) -> dict[str, tuple[int, int | None]]:
        return {name: (least, most) for name, least, most in self.ranges}

    def _fits(self, want: Leaf, found: Leaf, sizes: dict[str, int]) -> bool:
        if want[0] is not found[0]:
            return False
        if not isinstance(want[0], torch.dtype):
            return bool(want[1] == found[1])
        return len(want[1]) == len(found[1]) and all(
            expected is None
            or (self._is_size(expected, size, sizes) if isinstance(expected, Size) else expected == size)
            for expected, size in zip(want[1], found[1], strict=True)
        )

    def _is_size(self, wanted: Size, found: int, sizes: dict[str, int]) -> bool:
        value, rest = divmod(found - wanted.offset, wanted.factor)
        least, most = self._ends[wanted.symbol]
        in_range = rest == 0 and least <= value and (most is None or value <= most)
        return in_range and sizes.setdefault(wanted.symbol, value) == value


def _order_of(call: Call, program: ExportedProgram) -> list[int]:
    """For each leaf of ``call`` which leaf of the program's arguments it is: keywords may be in another
    order.
    """
    in_spec = program.call_spec.in_spec
    assert in_spec is not None
    args, kwargs = pytree.tree_unflatten(list(range(in_spec.num_leaves)), in_spec)
    return pytree.tree_leaves((args, dict(sorted(kwargs.items()))))


def _renamed(size: int | Size | None, names: dict[str, str]) -> int | Size | None:
    """With symbols numbered as they come, so that two exports of one program have the same."""
    if not isinstance(size, Size):
        return size
    return Size(names.setdefault(size.symbol, f"d{len(names)}"), size.factor, size.offset)


@dataclass(frozen=True)
class _Linear:
    """A size that is ``factor`` times a named dimension plus ``offset``."""

    root: Any
    factor: int
    offset: int

    @classmethod
    def of(cls, dim: Any) -> _Linear | None:
        """``None`` for a hint, which is a dimension of its own."""
        if is_hint(dim):
            return None
        root = getattr(dim, "root", None)
        if root is None:
            return cls(dim, 1, 0)
        inner = cls.of(root)
        assert inner is not None
        offset = int(dim.fn(0))
        factor = int(dim.fn(1)) - offset
        return cls(inner.root, factor * inner.factor, factor * inner.offset + offset)

    def root_of(self, size: int) -> int | None:
        """The value of the dimension for a size; ``None`` when there is none in its range."""
        value, rest = divmod(size - self.offset, self.factor)
        return value if rest == 0 and bool(self.root.min <= value) and bool(value <= self.root.max) else None


def is_hint(dim: Any) -> bool:
    """Whether it is ``Dim.AUTO`` or ``Dim.DYNAMIC``, with or without a range."""
    return type(dim) is type(Dim.AUTO) and dim.type != Dim.STATIC.type


@dataclass
class Ranges:
    """Sizes that may change, by the structure of the arguments, as ``set_expected_dynamic_shape_range`` takes
    them.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def of(self, call: Call) -> list[dict[int, Any]]:
        """For each leaf of ``call`` its axes with a dimension of ``torch.export``, whether or not the
        sizes are in its range.

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

    def fitting(self, call: Call) -> list[dict[int, Any]]:
        """For each leaf the axes whose sizes may change in a program for ``call``: sizes outside of
        their range, and of different sizes under one name, are fixed.
        """
        dims = self.of(call)
        roots: dict[str, set[int | None]] = {}
        for leaf, axes in zip(call.leaves, dims, strict=True):
            for axis, dim in axes.items():
                linear = _Linear.of(dim)
                if linear is not None:
                    roots.setdefault(linear.root.__name__, set()).add(linear.root_of(leaf.shape[axis]))
        return [
            {axis: dim for axis, dim in axes.items() if _may_change(dim, leaf.shape[axis], roots)}
            for leaf, axes in zip(call.leaves, dims, strict=True)
        ]


def _may_change(dim: Any, size: int, roots: Mapping[str, set[int | None]]) -> bool:
    # PyTorch takes sizes of 0 and 1 for fixed.
    linear = _Linear.of(dim)
    if linear is None:
        return size >= 2 and (dim.min or 0) <= size and (dim.max is None or size <= dim.max)
    values = roots[linear.root.__name__]
    return len(values) == 1 and None not in values and bool(linear.root.max >= 2)


def _collect(value: Any, shapes: Any, where: str, found: list[dict[int, Any]]) -> None:
    """Walks an argument and its ranges together, leaf by leaf in the order of pytrees."""
    if isinstance(value, torch.Tensor):
        found.append(_axes(value, shapes, where))
        return
    if type(value) not in pytree.SUPPORTED_NODES and not pytree.is_namedtuple_instance(value):
        if shapes:
            raise _mismatch(where, f"none, for a {type(value).__name__}", shapes)
        found.append({})
        return
    keys, parts = _children(value)
    for key, part, inner in zip(keys, parts, _inner(shapes, keys, type(value), where), strict=True):
        _collect(part, inner, f"{where}{key}", found)


def _children(value: Any) -> tuple[list[str], list[Any]]:
    """The parts of a container with their names: ``['key']``, ``[0]``, ``.field``."""
    if isinstance(value, Mapping):
        return [f"[{key!r}]" for key in value], list(value.values())
    if pytree.is_namedtuple_instance(value):
        return [f".{name}" for name in value._fields], list(value)
    parts = list(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0])
    return [f"[{index}]" for index in range(len(parts))], parts


def _inner(shapes: Any, keys: Sequence[str], kind: type, where: str) -> list[Any]:
    """The ranges of the parts of a container: of the same form, a mapping by key or field, or a sequence."""
    if not shapes:
        return [None] * len(keys)
    if isinstance(shapes, Mapping) and not issubclass(kind, list) and kind is not tuple:
        named = {key.strip("[].'\""): index for index, key in enumerate(keys)}
        inner: list[Any] = [None] * len(keys)
        for key, part in shapes.items():
            if str(key) not in named:
                raise _mismatch(where, f"a mapping with keys among {list(named)}", shapes)
            inner[named[str(key)]] = part
        return inner
    is_mapping = isinstance(shapes, Mapping)
    is_container = isinstance(shapes, (list, tuple)) or (
        type(shapes) in pytree.SUPPORTED_NODES and not is_mapping
    )
    parts = _children(shapes)[1] if is_container else None
    if parts is None or len(parts) != len(keys):
        expected = (
            f"a mapping with keys among {list(keys)}"
            if issubclass(kind, Mapping)
            else f"a sequence of {len(keys)}"
        )
        raise _mismatch(where, expected, shapes)
    return parts


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
        if not 0 <= axis < value.dim():
            raise _mismatch(where, f"axes of a tensor of {value.dim()}", axis)
        is_fixed = type(dim) is int or (type(dim) is type(Dim.AUTO) and not is_hint(dim))
        if not is_fixed and not isinstance(dim, Dim) and not is_hint(dim):
            expected = (
                'a dimension of torch.export: Dim("batch", min=1, max=64), 2 * Dim("half"), Dim.AUTO, '
                "Dim.DYNAMIC or a size"
            )
            raise _mismatch(f"{where}, axis {axis}", expected, dim)
    return {axis: dim for axis, dim in axes.items() if isinstance(dim, Dim) or is_hint(dim)}


def _mismatch(where: str, expected: str, found: Any) -> InputError:
    return InputError(f"ranges of {where}: expected {expected}, found {found!r}")


def for_export(
    forward: Callable[..., Any], call: Call, dims: Sequence[dict[int, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any] | None]:
    """Positional and keyword arguments to export with, and ``dynamic_shapes`` in PyTorch's form."""
    spec = call.spec or pytree.tree_flatten((call.args, {}))[1]
    if not any(dims):
        return call.args, call.kwargs, None
    args, kwargs = pytree.tree_unflatten(_widened(call.leaves, dims), spec)
    args_shapes, kwargs_shapes = _shapes(spec, iter(dims))
    bound = inspect.signature(forward).bind(*args_shapes, **kwargs_shapes)
    return args, kwargs, dict(bound.arguments)


def _shapes(spec: pytree.TreeSpec, dims: Iterator[dict[int, Any]]) -> Any:
    """``dims`` in the structure of the arguments. PyTorch wants that of other containers than its own as
    lists.
    """
    if spec.is_leaf():
        return dict(next(dims)) or None
    parts = [_shapes(child, dims) for child in spec.children()]
    if spec.type in pytree.BUILTIN_TYPES:
        made = pytree.SUPPORTED_NODES[spec.type].unflatten_fn(parts, spec.context)
        return made
    return parts


def _widened(leaves: Sequence[Any], dims: Sequence[Mapping[int, Any]]) -> list[Any]:
    """The leaves without sizes of 0 and 1 where sizes may change: PyTorch takes these for fixed. All
    sizes under one name change together.
    """
    members: dict[str, list[tuple[int, int, _Linear]]] = {}
    for index, axes in enumerate(dims):
        for axis, dim in axes.items():
            linear = _Linear.of(dim)
            if linear is not None:
                members.setdefault(linear.root.__name__, []).append((index, axis, linear))
    wide = list(leaves)
    for places in members.values():
        root = places[0][2].root
        sizes = [(linear, leaves[index].shape[axis]) for index, axis, linear in places]
        if all(size >= 2 and (linear.root_of(size) or 0) >= 2 for linear, size in sizes):
            continue
        value = max(2, int(root.min))
        while any(linear.factor * value + linear.offset < 2 for _, _, linear in places):
            value += 1
        value = int(min(value, root.max)) if isinstance(root.max, int) else value
        for index, axis, linear in places:
            wide[index] = _resized(wide[index], axis, linear.factor * value + linear.offset)
    return wide


def _resized(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Of another size along an axis, with the values that are there again and again."""
    if tensor.shape[axis] == 0:
        shape = list(tensor.shape)
        shape[axis] = size
        return tensor.new_zeros(shape)
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
