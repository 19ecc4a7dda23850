"""Types of the tensors of a call, for programs whose parts in PyTorch would take others without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from regraft.errors import InputError
from regraft.kept import plain_tensor, short_name, type_of

__all__ = ["InputTypes", "Size"]

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """A size that may change: ``factor`` times a symbol, plus ``offset``."""

    symbol: str
    factor: int
    offset: int

    def __str__(self) -> str:
        scaled = self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"
        return f"{scaled} + {self.offset}" if self.offset else scaled


@dataclass(frozen=True)
class InputType:
    """What one tensor of a call must be.

    A size that follows no simple rule is ``None``, and left to PyTorch.
    """

    name: str
    dtype: str
    shape: tuple[int | Size | None, ...]


@dataclass(frozen=True)
class InputTypes:
    """What all tensors of a call must be."""

    inputs: tuple[InputType, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    """Smallest and largest value of each symbol."""

    @classmethod
    def of(cls, program: ExportedProgram) -> InputTypes:
        """Those of ``program``."""
        nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        inputs = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
                value = nodes[spec.arg.name].meta["val"]
                shape = tuple(_size(size) for size in value.shape)
                inputs.append(InputType(spec.arg.name, str(value.dtype).removeprefix("torch."), shape))
        used = {size.symbol for one in inputs for size in one.shape if isinstance(size, Size)}
        constraints = {str(symbol): found for symbol, found in program.range_constraints.items()}
        ranges = {symbol: _ends(constraints[symbol]) for symbol in used & constraints.keys()}
        return cls(tuple(inputs), ranges)

    @property
    def names(self) -> set[str]:
        """Of the inputs."""
        return {one.name for one in self.inputs}

    def checked(self, values: Sequence[Any], home: torch.device | None = None) -> list[torch.Tensor]:
        """The tensors of a call, moved to ``home`` where that is given.

        Raises:
            InputError: when one is of another type.

        """
        tensors = []
        sizes: dict[str, int] = {}
        for wanted, value in zip(self.inputs, values, strict=True):
            try:
                tensor = plain_tensor(value, home)
            except InputError as error:
                raise InputError(f"input `{wanted.name}`: {error}") from error
            if not self._fits(wanted, tensor, sizes):
                raise InputError(
                    f"input `{wanted.name}`: expected {self._text(wanted)}, found {type_of(tensor)}"
                )
            tensors.append(tensor)
        return tensors

    def help_with(self, values: Sequence[Any]) -> str | None:
        """What to declare for a call whose sizes are others than fixed ones; ``None`` when that is not it."""
        for wanted, value in zip(self.inputs, values, strict=False):
            shape = tuple(getattr(value, "shape", ()))
            if len(shape) != len(wanted.shape):
                continue
            other = [
                axis for axis, size in enumerate(wanted.shape) if type(size) is int and size != shape[axis]
            ]
            if other:
                name = "batch" if other[0] == 0 else f"size_{other[0]}"
                return (
                    f"axis {other[0]} of {wanted.name} is fixed: compile with "
                    f"dynamic_shapes={{'{wanted.name}': "
                    f"{{{other[0]}: torch.export.Dim('{name}')}}}} to change it from call to call"
                )
        return None

    def _fits(self, wanted: InputType, tensor: torch.Tensor, sizes: dict[str, int]) -> bool:
        if str(tensor.dtype).removeprefix("torch.") != wanted.dtype or tensor.dim() != len(wanted.shape):
            return False
        return all(
            self._is_size(want, found, sizes) for want, found in zip(wanted.shape, tensor.shape, strict=True)
        )

    def _is_size(self, wanted: int | Size | None, found: int, sizes: dict[str, int]) -> bool:
        if wanted is None or isinstance(wanted, int):
            return wanted is None or wanted == found
        value, rest = divmod(found - wanted.offset, wanted.factor)
        low, high = self.ranges.get(wanted.symbol, (0, None))
        in_range = rest == 0 and low <= value and (high is None or value <= high)
        return in_range and sizes.setdefault(wanted.symbol, value) == value

    def _text(self, wanted: InputType) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in wanted.shape)
        symbols = dict.fromkeys(size.symbol for size in wanted.shape if isinstance(size, Size))
        ranges = [(symbol, *self.ranges.get(symbol, (0, None))) for symbol in symbols]
        notes = [f"{symbol} in {low}..{'' if high is None else f'={high}'}" for symbol, low, high in ranges]
        return f"{short_name(wanted.dtype)}[{shape}]" + (f" with {', '.join(notes)}" if notes else "")

    def to_json(self) -> dict[str, Any]:
        """The types as JSON holds them."""

        def plain(size: int | Size | None) -> Any:
            return [size.symbol, size.factor, size.offset] if isinstance(size, Size) else size

        return {
            "inputs": [[one.name, one.dtype, [plain(size) for size in one.shape]] for one in self.inputs],
            "ranges": {symbol: list(ends) for symbol, ends in self.ranges.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputTypes:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError: when it is something else.

        """

        def size(item: Any) -> int | Size | None:
            if isinstance(item, list):
                symbol, factor, offset = item
                return Size(_is(symbol, str), _is(factor, int), _is(offset, int))
            return None if item is None else _is(item, int)

        inputs = (
            InputType(_is(name, str), _is(dtype, str), tuple(map(size, shape)))
            for name, dtype, shape in data["inputs"]
        )
        ranges = {
            symbol: (_is(low, int), None if high is None else _is(high, int))
            for symbol, (low, high) in data["ranges"].items()
        }
        return cls(tuple(inputs), ranges)


def _ends(found: Any) -> tuple[int, int | None]:
    """Of a range of PyTorch's, where infinity is a number of its own kind."""
    low, high = (
        end if bool(end > -(2**62)) and bool(end < 2**62) else None for end in (found.lower, found.upper)
    )
    return int(low or 0), None if high is None else int(high)


def _is(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value


def _size(size: int | torch.SymInt) -> int | Size | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1:
        return int(expression) if not symbols else None
    offset, factor = expression.as_coeff_add(*symbols)[0], expression.coeff(symbols[0])
    is_linear = bool(expression == factor * symbols[0] + offset)
    if is_linear and factor.is_integer and offset.is_integer and factor > 0:
        return Size(str(symbols[0]), int(factor), int(offset))
    return None
