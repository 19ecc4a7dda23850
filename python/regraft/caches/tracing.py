"""Exports modules whose calls take or give caches."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram

from regraft.caches.carry import MARK, Carry
from regraft.caches.form import Ref, is_cache, is_object, outline
from regraft.caches.parts import Parts, value_of
from regraft.errors import CompileError
from regraft.inputs import InputTypes, Size

__all__ = ["Tracer"]


class Tracer:
    """Exports a module as a program over the parts of caches.

    ``module`` is the module with a ``forward`` that takes :class:`Parts`, and gives the result and the
    tensors of all caches that are not what they were.
    """

    def __init__(self, root: torch.nn.Module, method: Callable[..., Any]) -> None:
        self._after: list[tuple[bool, Ref]] = []
        self._forward = method
        tracer = self

        @functools.wraps(method)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return tracer._traced(args, kwargs)

        signature = inspect.signature(method)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[this, *signature.parameters.values()]
        )

        def fill(namespace: dict[str, Any]) -> None:
            namespace.update(
                __module__=type(root).__module__, __qualname__=type(root).__qualname__, forward=forward
            )

        made: Any = types.new_class(type(root).__name__, (type(root),), exec_body=fill)
        self.module: torch.nn.Module = object.__new__(made)
        # A forward of the object's own would come first.
        self.module.__dict__.update(
            {name: value for name, value in root.__dict__.items() if name != "forward"}
        )

    def _traced(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        caches: list[Any] = []
        given: dict[int, int] = {}

        def put_together(value: Any) -> Any:
            if not isinstance(value, Parts):
                return value
            made = value_of(value.form, value.tensors)
            if is_cache(made):
                given.update((id(tensor), index) for index, tensor in enumerate(value.tensors))
                caches.append(made)
            return made

        args = tuple(map(put_together, args))
        kwargs = {name: put_together(value) for name, value in kwargs.items()}
        count = len(caches)
        result = self._forward(*args, **kwargs)

        def marked(value: Any) -> Any:
            if not is_object(value):
                return value
            index = next((i for i, cache in enumerate(caches) if cache is value), len(caches))
            if index == len(caches):
                caches.append(value)
            return f"{MARK}{index}"

        result = pytree.tree_map(marked, result, is_leaf=is_object)
        self._after = []
        if not caches:
            return result
        tensors: list[torch.Tensor] = []
        self._after = [(i < count, _after(cache, "", given, tensors)) for i, cache in enumerate(caches)]
        return result, tensors

    def carry(self, program: ExportedProgram) -> Carry | None:
        """What becomes of the caches of a call of ``program``, which was exported from the module;
        ``None`` where it has none.

        Raises:
            CompileError: when a length follows no simple rule.

        """
        if not self._after:
            return None
        places = _places_of(InputTypes.of(program))
        return Carry(tuple((is_given, _settled(ref, places)) for is_given, ref in self._after))


def _after(value: Any, name: str, given: Mapping[int, int], tensors: list[torch.Tensor]) -> Ref:
    """What a value of a cache is after the call."""
    if isinstance(value, torch.Tensor):
        if id(value) in given:
            return ("same",)
        tensors.append(value)
        return "tensor", len(tensors) - 1
    if isinstance(value, torch.SymInt):
        return "size", value
    return outline(value, name, lambda inner, key: _after(inner, key, given, tensors))


Terms = tuple[tuple[tuple[int, int, int, int], int], ...]
"""``((input, axis, factor, offset), coefficient)`` for each symbol: its value is read off a size of an
input.
"""


def _places_of(types: InputTypes) -> dict[str, tuple[int, int, int, int]]:
    """Where each symbol of a program is read off: ``(input, axis, factor, offset)``."""
    places: dict[str, tuple[int, int, int, int]] = {}
    for index, one in enumerate(types.inputs):
        for axis, size in enumerate(one.shape):
            if isinstance(size, Size):
                places.setdefault(size.symbol, (index, axis, size.factor, size.offset))
    return places


def _settled(ref: Ref, places: Mapping[str, tuple[int, int, int, int]]) -> Ref:
    """``ref`` with sizes as sums over sizes of inputs."""
    kind, *what = ref
    if kind == "size":
        return "size", *_sum_of(what[0], places)
    if kind in ("list", "tuple"):
        return kind, tuple(_settled(part, places) for part in what[0])
    if kind == "dict":
        return kind, tuple((key, _settled(part, places)) for key, part in what[0])
    if kind == "object":
        return kind, what[0], tuple((name, _settled(part, places)) for name, part in what[1])
    return ref


def _sum_of(size: torch.SymInt, places: Mapping[str, tuple[int, int, int, int]]) -> tuple[int, Terms]:
    expression = size.node.expr
    constant, terms = 0, []
    for part, coefficient in expression.expand().as_coefficients_dict().items():
        if not part.free_symbols:
            constant += int(part * coefficient)
        elif str(part) in places and coefficient.is_integer:
            terms.append((places[str(part)], int(coefficient)))
        else:
            raise CompileError(f"the length {expression} of a cache is not a sum of sizes of the call")
    return constant, tuple(terms)
