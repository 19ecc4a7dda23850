"""Weights as a few blocks of bytes with a manifest of what lies where: how they travel between processes.

Tensors keep their names and types; those of half precision are bytes like all others, so no PyTorch is needed
where they arrive.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from regraft._regraft import Array, StateDict
from regraft.errors import WeightsError

__all__ = ["Bytes", "Given", "Manifest", "Place", "View", "fill", "known_type", "over", "view_of", "views"]

Bytes = npt.NDArray[np.uint8]

# Where tensors begin: a cache line.
_LINE = 64
# A bucket is full with this many bytes; a larger tensor has one of its own.
_BUCKET = 1 << 30
# Longer manifests are refused.
_LONGEST = 64 << 20

# Types of NumPy and PyTorch by their names there, and what the engine calls them.
_NAMES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}
_SIZES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1}


class Given(Protocol):
    """A tensor that is to be given a place."""

    @property
    def dtype(self) -> str:
        """As the engine calls it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""

    @property
    def memory(self) -> tuple[int, int]:
        """Where it is, and its bytes: names that are tied have one memory."""


@dataclass(frozen=True)
class View:
    """A tensor as its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.data.nbytes

    @property
    def memory(self) -> tuple[int, int]:
        """Where it is: names that are tied have one memory."""
        return int(self.data.__array_interface__["data"][0]), self.data.nbytes


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bucket: int
    start: int

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return prod(self.shape) * _SIZES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    """What lies where."""

    places: tuple[Place, ...]
    buckets: tuple[int, ...]
    """Bytes of each."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buckets."""
        return sum(self.buckets)

    @classmethod
    def of(cls, tensors: Mapping[str, Given], limit: int = _BUCKET) -> Manifest:
        """A place for each tensor, in the order given; tied ones have one. A bucket of several tensors has
        at most ``limit`` bytes.
        """
        places: list[Place] = []
        buckets: list[int] = []
        known: dict[tuple[int, int], tuple[int, int]] = {}
        for name, view in tensors.items():
            size = view.nbytes
            place = known.get(view.memory) if size else None
            if place is None:
                if not buckets or buckets[-1] + size > limit:
                    buckets.append(0)
                place = len(buckets) - 1, buckets[-1]
                buckets[-1] += -(-size // _LINE) * _LINE
                known[view.memory] = place
            places.append(Place(name, view.dtype, view.shape, *place))
        return cls(tuple(places), tuple(buckets))

    def to_json(self) -> str:
        """As text."""
        places = [[p.name, p.dtype, list(p.shape), p.bucket, p.start] for p in self.places]
        return json.dumps({"buckets": self.buckets, "tensors": places}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads what :meth:`to_json` wrote.

        Raises:
            WeightsError: when it is not a manifest, or puts a tensor outside of every bucket.

        """
        if len(text) > _LONGEST:
            raise WeightsError(f"a manifest of {len(text)} characters; at most {_LONGEST} are read")
        try:
            value = json.loads(text)
            buckets = tuple(_number(size) for size in value["buckets"])
            places = tuple(_place(item, buckets) for item in value["tensors"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"no manifest of weights: {error}") from error
        if len({place.name for place in places}) != len(places):
            raise WeightsError("no manifest of weights: a name is there twice")
        return cls(places, buckets)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0 or value > 1 << 48:
        raise ValueError(f"expected a size, found {value!r}")
    return value


def _place(item: Any, buckets: tuple[int, ...]) -> Place:
    name, dtype, shape, bucket, start = item
    if not isinstance(name, str) or dtype not in _SIZES:
        raise ValueError(f"no tensor: {name!r} of type {dtype!r}")
    place = Place(name, dtype, tuple(_number(size) for size in shape), _number(bucket), _number(start))
    if place.bucket >= len(buckets) or place.start + place.nbytes > buckets[place.bucket]:
        raise ValueError(f"{name} lies outside of the buckets")
    return place


def views(weights: Mapping[str, Any] | StateDict | str | PathLike[str]) -> dict[str, View]:
    """The tensors of a state dict or weight file as their bytes; those on the CPU without a copy.

    Raises:
        WeightsError: for what is not a tensor, or of a type that no engine has.

    """
    if not isinstance(weights, (Mapping, StateDict)):
        weights = StateDict.open(weights)
    names = weights.keys()
    return {name: view_of(name, weights[name]) for name in names}


def view_of(name: str, tensor: Any) -> View:
    """A tensor of PyTorch or NumPy, or an array of Regraft, as its bytes; one on the CPU without a copy.

    Raises:
        WeightsError: for what is not a tensor, or of a type that no engine has.

    """
    torch = sys.modules.get("torch")
    if isinstance(tensor, Array):
        return View(tensor.dtype, tuple(tensor.shape), np.asarray(tensor.as_bytes()))
    if torch is not None and isinstance(tensor, torch.Tensor):
        dtype = known_type(name, str(tensor.dtype).removeprefix("torch."))
        dense = tensor.detach().cpu().contiguous()
        return View(dtype, tuple(dense.shape), dense.reshape(-1).view(torch.uint8).numpy())
    if isinstance(tensor, np.ndarray):
        dtype = known_type(name, tensor.dtype.name)
        if not tensor.dtype.isnative:
            raise WeightsError(f"{name}: bytes in the order of another machine: convert it")
        return View(dtype, tensor.shape, np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    raise WeightsError(f"{name}: expected a tensor (PyTorch, NumPy), found {type(tensor).__name__}")


def known_type(name: str, dtype: str) -> str:
    """What the engine calls a type of NumPy or PyTorch.

    Raises:
        WeightsError: when it has none such.

    """
    if dtype not in _NAMES:
        raise WeightsError(f"{name}: tensors of {dtype} are not supported: convert it")
    return _NAMES[dtype]


def fill(manifest: Manifest, tensors: Mapping[str, View], buckets: Sequence[Bytes]) -> None:
    """Copies the tensors that the manifest was made of to their places."""
    written: set[tuple[int, int]] = set()
    for place in manifest.places:
        if (place.bucket, place.start) not in written and place.nbytes:
            written.add((place.bucket, place.start))
            part = buckets[place.bucket][place.start : place.start + place.nbytes]
            np.copyto(part, tensors[place.name].data)


def over(manifest: Manifest, buckets: Sequence[Bytes]) -> StateDict:
    """The tensors where they lie, without a copy. The memory must not change while they are read.

    Raises:
        WeightsError: when a tensor does not lie in its bucket.

    """
    places = [(p.name, p.dtype, p.shape, p.bucket, p.start) for p in manifest.places]
    return StateDict.from_buffers(buckets, places)
