"""What a value of a cache consists of, as a value that can be compared and written as JSON."""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

import torch

from regraft.errors import EngineFileError

__all__ = ["CannotTake", "Ref", "dumped", "is_cache", "is_object", "is_static", "loaded", "outline"]

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
_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device, type)

Ref = tuple[Any, ...]
"""``(kind, ...)``: what a value of a cache is, see :func:`outline`."""


class CannotTake(Exception):
    """A cache that programs cannot take."""


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of transformers."""
    library = sys.modules.get("transformers.cache_utils")
    return library is not None and isinstance(value, library.Cache)


def is_object(value: Any) -> bool:
    """Whether a part of a result is not a pytree, and is put together again after the call."""
    return is_cache(value) or (type(value).__module__, type(value).__name__) in _RESULTS


def is_static(cls: type) -> bool:
    """Whether a layer of a cache keeps its memory."""
    return bool(getattr(cls, "is_compileable", False)) and hasattr(cls, "lazy_initialization")


def outline(value: Any, name: str, inside: Any) -> Ref:
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


def dumped(ref: Ref) -> Any:
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
        return {kind: [dumped(part) for part in what[0]]}
    if kind == "dict":
        return {kind: [[key, dumped(part)] for key, part in what[0]]}
    if kind == "object":
        return {
            kind: f"{what[0].__module__}.{what[0].__name__}",
            "attributes": [[key, dumped(part)] for key, part in what[1]],
        }
    return {kind: what}


def loaded(data: Any) -> Ref:
    """The inverse of :func:`dumped`. Classes are those of caches alone; nothing is executed.

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
        return kind, tuple(map(loaded, value))
    if kind == "dict":
        return kind, tuple((key, loaded(part)) for key, part in value)
    if kind == "object":
        return kind, _class(value), tuple((str(key), loaded(part)) for key, part in data["attributes"])
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
