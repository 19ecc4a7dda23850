"""Caches of transformers among the arguments and results of a call, and other objects that no program knows.

A program takes the tensors of a cache and gives the new ones. What else a cache consists of is part of
the program, but for lengths that grow: a program takes each as the size of a tensor without elements.
Results go back into the objects of the caller: those of a static cache in place.

PyTorch and this module only: transformers is used only when it has been imported already.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch.export import Dim, ExportedProgram

from regraft.errors import CompileError, EngineFileError
from regraft.inputs import InputTypes, Size

__all__ = ["CannotTake", "Carry", "Parts", "Tracer", "is_length", "open_axes", "taken_apart"]

# Classes whose attributes are tensors, lengths and constants.
_KNOWN = frozenset(
    (
        "Cache",
        "DynamicCache",
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "EncoderDecoderCache",
        "StaticCache",
        "StaticLayer",
        "StaticSlidingWindowLayer",
    )
)
# Classes of results that consist of tensors and constants.
_RESULTS = frozenset((("diffusers.models.autoencoders.vae", "DiagonalGaussianDistribution"),))
# Numbers that change from call to call, or from cache to cache.
_LENGTHS = frozenset(("batch_size", "cumulative_length", "cumulative_length_int", "max_cache_len"))
_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device, type)
# PyTorch takes sizes of 0 and 1 for fixed.
_LEAST = 2
_MARK = "regraft.cache."

Ref = tuple[Any, ...]
"""``(kind, ...)``: what a value of a cache is, see :func:`_described`."""


class CannotTake(Exception):
    """A cache that programs cannot take."""


class Parts:
    """A cache taken apart: tensors, and everything else as a value that can be compared."""

    def __init__(self, form: Ref, tensors: Sequence[torch.Tensor]) -> None:
        self.form = form
        self.tensors = tensors


def _dumped(ref: Ref) -> Any:
    """A description as JSON holds it."""
    kind, *what = ref
    if kind == "constant":
        value = what[0]
        if isinstance(value, type):
            return {"class": f"{value.__module__}.{value.__name__}"}
        if isinstance(value, (torch.dtype, torch.device)):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        return {"constant": value}
    if kind in ("list", "tuple"):
        return {kind: [_dumped(part) for part in what[0]]}
    if kind == "dict":
        return {kind: [[key, _dumped(part)] for key, part in what[0]]}
    if kind == "object":
        return {
            kind: f"{what[0].__module__}.{what[0].__name__}",
            "attributes": [[key, _dumped(part)] for key, part in what[1]],
        }
    return {kind: what}


def _loaded(data: Any) -> Ref:
    """The inverse of :func:`_dumped`. Classes are those of caches alone; nothing is executed.

    Raises:
        EngineFileError: when it is something else.

    """
    kind = next(iter(data))
    value = data[kind]
    if kind == "constant" and isinstance(value, (bool, int, float, str, type(None))):
        return kind, value
    if kind == "class":
        return "constant", _class(value)
    if kind in ("dtype", "device"):
        found = torch.device(value) if kind == "device" else getattr(torch, value)
        if isinstance(found, (torch.dtype, torch.device)):
            return "constant", found
    if kind in ("list", "tuple"):
        return kind, tuple(map(_loaded, value))
    if kind == "dict":
        return kind, tuple((key, _loaded(part)) for key, part in value)
    if kind == "object":
        return kind, _class(value), tuple((str(key), _loaded(part)) for key, part in data["attributes"])
    if kind in ("tensor", "length", "same", "size", "generator"):
        return kind, *map(_frozen, value)
    raise EngineFileError(f"`{kind}` is not a part of a cache")


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if type(value) is not int:
        raise EngineFileError(f"{value!r} is not a number of a cache")
    return value


def _class(name: str) -> type:
    """A class of caches, or of results."""
    module, _, plain = name.rpartition(".")
    is_known = module == "transformers.cache_utils" and plain in _KNOWN
    if not is_known and (module, plain) not in _RESULTS:
        raise EngineFileError(f"{name} is not a class of caches")
    try:
        return cast(type, getattr(importlib.import_module(module), plain))
    except ImportError as error:
        raise EngineFileError(f"calls take or give a {plain}, which cannot be imported: {error}") from error


pytree.register_pytree_node(
    Parts,
    lambda parts: (list(parts.tensors), parts.form),
    lambda tensors, form: Parts(form, list(tensors)),
    serialized_type_name="regraft.caches.Parts",
    to_dumpable_context=_dumped,
    from_dumpable_context=_loaded,
    flatten_with_keys_fn=lambda parts: (
        [(pytree.SequenceKey(index), tensor) for index, tensor in enumerate(parts.tensors)],
        parts.form,
    ),
)


def _is_cache(value: Any) -> bool:
    library = sys.modules.get("transformers.cache_utils")
    return library is not None and isinstance(value, library.Cache)


def _is_object(value: Any) -> bool:
    """Whether a part of a result is not a pytree, and is put together again after the call."""
    return _is_cache(value) or (type(value).__module__, type(value).__name__) in _RESULTS


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
        if not _is_cache(value):
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
    return _outline(value, name, lambda inner, key: _described(inner, key, tensors))


def _outline(value: Any, name: str, inside: Any) -> Ref:
    """What a value is that is neither a tensor nor a length."""
    if isinstance(value, _CONSTANTS):
        return "constant", value
    if type(value) in (list, tuple):
        return type(value).__name__, tuple(inside(part, name) for part in value)
    if type(value) is dict and all(isinstance(key, (int, str)) for key in value):
        return "dict", tuple((key, inside(part, str(key))) for key, part in value.items())
    kind = type(value)
    is_known = kind.__module__ == "transformers.cache_utils" and kind.__name__ in _KNOWN
    if not is_known and (kind.__module__, kind.__name__) not in _RESULTS:
        where = f" in {name}" if name else ""
        raise CannotTake(f"a {kind.__name__}{where} is not a cache that programs take")
    if getattr(value, "offloading", False):
        raise CannotTake(f"a {kind.__name__} that offloads its layers is not a cache that programs take")
    return "object", kind, tuple((key, inside(part, key)) for key, part in vars(value).items())


def _made(ref: Ref, tensors: Sequence[torch.Tensor], done: bool = False) -> Any:
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
        parts = [_made(part, tensors, done) for part in what[0]]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {key: _made(part, tensors, done) for key, part in what[0]}
    cls, attributes = what
    made = object.__new__(cls)
    for name, part in attributes:
        value = _made(part, tensors, done or _is_done(name, attributes))
        if part[0] == "tensor" and _is_static(cls) and not done:
            # It is written to in place, which must not reach the input of the program.
            value = value.clone()
        made.__dict__[name] = value
    return made


def _is_static(cls: type) -> bool:
    """Whether a layer of a cache keeps its memory."""
    return bool(getattr(cls, "is_compileable", False)) and hasattr(cls, "lazy_initialization")


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
            made = _made(value.form, value.tensors)
            if _is_cache(made):
                given.update((id(tensor), index) for index, tensor in enumerate(value.tensors))
                caches.append(made)
            return made

        args = tuple(map(put_together, args))
        kwargs = {name: put_together(value) for name, value in kwargs.items()}
        count = len(caches)
        result = self._forward(*args, **kwargs)

        def marked(value: Any) -> Any:
            if not _is_object(value):
                return value
            index = next((i for i, cache in enumerate(caches) if cache is value), len(caches))
            if index == len(caches):
                caches.append(value)
            return f"{_MARK}{index}"

        result = pytree.tree_map(marked, result, is_leaf=_is_object)
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
    return _outline(value, name, lambda inner, key: _after(inner, key, given, tensors))


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


@dataclass(frozen=True)
class Carry:
    """What becomes of the caches of a call: what each consists of afterwards, whether it came with the
    call or is new.
    """

    caches: tuple[tuple[bool, Ref], ...] = field(default=())

    def to_json(self) -> list[Any]:
        """It as JSON holds it."""
        return [[is_given, _dumped(ref)] for is_given, ref in self.caches]

    @classmethod
    def from_json(cls, data: list[Any]) -> Carry:
        """The inverse of :meth:`to_json`.

        Raises:
            EngineFileError: when it is something else.

        """
        return cls(tuple((bool(is_given), _loaded(ref)) for is_given, ref in data))

    def result(self, made: Any, inputs: Sequence[torch.Tensor], caches: Sequence[Any]) -> Any:
        """The result of a call, after its caches got their new tensors."""
        result, tensors = made
        after = list(caches)
        for index, (is_given, ref) in enumerate(self.caches):
            put = _Put(tensors, inputs)
            if is_given:
                put.into(caches[index], ref)
            else:
                after.append(put.value(ref, None, False))

        def unmarked(value: Any) -> Any:
            is_mark = type(value) is str and value.startswith(_MARK)
            return after[int(value.removeprefix(_MARK))] if is_mark else value

        return pytree.tree_map(unmarked, result)


class _Put:
    """Puts the results of a call into caches."""

    def __init__(self, tensors: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._inputs = inputs

    def into(self, target: Any, ref: Ref) -> None:
        """Makes an object of a cache what ``ref`` says."""
        in_place, held = _is_static(type(target)), target.__dict__
        for name, part in ref[2]:
            before = held.get(name)
            after = self.value(part, before, in_place)
            if after is not before:
                held[name] = after

    def value(self, ref: Ref, before: Any, in_place: bool) -> Any:
        """What ``ref`` says, in the place of ``before``."""
        kind, *what = ref
        if kind == "same":
            return before
        if kind == "tensor":
            made = self._tensors[what[0]]
            if in_place and isinstance(before, torch.Tensor) and before.shape == made.shape:
                before.copy_(made)
                return before
            return made
        if kind == "constant":
            return before if type(before) is type(what[0]) and before == what[0] else what[0]
        if kind == "size":
            return what[0] + sum(coefficient * self._symbol(*place) for place, coefficient in what[1])
        if kind == "object":
            target = before if type(before) is what[0] else object.__new__(what[0])
            self.into(target, ref)
            return target
        if kind == "dict":
            known = before if isinstance(before, dict) else {}
            found = {key: self.value(part, known.get(key), False) for key, part in what[0]}
            known.update(found)
            return known
        parts = [
            self.value(
                part, before[i] if isinstance(before, (list, tuple)) and i < len(before) else None, False
            )
            for i, part in enumerate(what[0])
        ]
        if isinstance(before, list):
            before[:] = parts
            return before
        return parts if kind == "list" else tuple(parts)

    def _symbol(self, index: int, axis: int, factor: int, offset: int) -> int:
        return (self._inputs[index].shape[axis] - offset) // factor
