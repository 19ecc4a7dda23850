"""Weights as flat blocks of bytes in PyTorch's memory, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from regraft._regraft import StateDict
from regraft.errors import WeightsError
from regraft.flat import Manifest, Place, known_type, view_of

__all__ = ["Room", "Source", "sources"]

_TYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
# Places begin at multiples of the largest type, wherever a manifest comes from.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Source:
    """A tensor that is copied to its place."""

    dtype: str
    shape: tuple[int, ...]
    data: torch.Tensor
    """Its elements in one dimension, or its bytes."""

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.data.nbytes

    @property
    def memory(self) -> tuple[int, int]:
        """Where it is, and its bytes."""
        return self.data.data_ptr(), self.data.nbytes


def sources(weights: Mapping[str, Any] | StateDict | str | PathLike[str]) -> dict[str, Source]:
    """The tensors of a state dict or weight file, on the device that each is on. Those of PyTorch are not
    copied where they are contiguous.

    Raises:
        WeightsError: for what is not a tensor, or of a type that no engine has.

    """
    if not isinstance(weights, (Mapping, StateDict)):
        weights = StateDict.open(weights)
    return {name: _source(name, weights[name]) for name in weights.keys()}  # noqa: SIM118


def _source(name: str, tensor: Any) -> Source:
    if isinstance(tensor, torch.Tensor):
        dtype = _NAMES.get(tensor.dtype) or known_type(name, str(tensor.dtype).removeprefix("torch."))
        return Source(dtype, tuple(tensor.shape), tensor.detach().contiguous().reshape(-1))
    view = view_of(name, tensor)
    # PyTorch has no tensors that are only read.
    data = view.data if view.data.flags.writeable else view.data.copy()
    return Source(view.dtype, view.shape, torch.from_numpy(data))


class Room:
    """Memory for one version of the weights, on one device.

    Args:
        manifest: which tensors there are, and where.
        device: where the memory is.
        handles: of another process's memory on this GPU, see :meth:`handles`; otherwise it is new.

    Raises:
        WeightsError: when a tensor begins where none of its type can, or the handles are none.
        RuntimeError: when there is not as much memory, or that of the other process cannot be opened.

    """

    def __init__(self, manifest: Manifest, device: torch.device, handles: Any = None) -> None:
        self.manifest = manifest
        sizes = manifest.buckets
        # Tensors made in inference mode could be written to in no other.
        with torch.inference_mode(False):
            if handles is None:
                self.buckets = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
            else:
                self.buckets = [_opened(handle, size, device) for handle, size in _paired(handles, sizes)]
            self._flat = {place.name: self._part(place) for place in manifest.places}
            self.tensors = {place.name: self._flat[place.name].view(place.shape) for place in manifest.places}
            """By name, in the memory of the buckets."""

    def _part(self, place: Place) -> torch.Tensor:
        if place.start % _ALIGNMENT:
            raise WeightsError(f"no manifest of weights: {place.name} begins at byte {place.start}")
        part = self.buckets[place.bucket][place.start : place.start + place.nbytes]
        return part.view(_TYPES[place.dtype])

    def handles(self) -> list[Any]:
        """What one other process on the same GPU opens the memory by, as JSON: each has handles of its own,
        by which PyTorch counts who has the memory open.
        """
        shared: list[Any] = []
        for bucket in self.buckets:
            storage: Any = bucket.untyped_storage()
            # What PyTorch gives to its own processes, without the number of the GPU there.
            parts = storage._share_cuda_()[1:] if len(bucket) else ()
            shared.append([part.hex() if isinstance(part, bytes) else part for part in parts])
        return shared

    def fill(self, given: Mapping[str, Source]) -> None:
        """Copies the tensors that the manifest was made of to their places; on a GPU, in the order of its
        current stream.
        """
        written: set[tuple[int, int]] = set()
        # Tensors of one type are copied by few kernels.
        pairs: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for place in self.manifest.places:
            source = given[place.name].data
            if (place.bucket, place.start) in written or not source.nbytes:
                continue
            written.add((place.bucket, place.start))
            to, of = pairs.setdefault(source.dtype, ([], []))
            part = self._flat[place.name]
            to.append(part if part.dtype == source.dtype else part.view(source.dtype))
            of.append(source)
        with torch.no_grad():
            for to, of in pairs.values():
                torch._foreach_copy_(to, of)


def _paired(handles: Any, buckets: tuple[int, ...]) -> list[tuple[Any, int]]:
    if not isinstance(handles, list) or len(handles) != len(buckets):
        raise WeightsError(f"{len(buckets)} buckets were announced, other handles came")
    return list(zip(handles, buckets, strict=True))


def _opened(handle: Any, size: int, device: torch.device) -> torch.Tensor:
    if not size:
        return torch.empty(0, dtype=torch.uint8, device=device)
    try:
        memory, length, start, counter, at, event, is_awaited = handle
        memory, counter, event = (bytes.fromhex(part) for part in (memory, counter, event))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"no handle of memory on a GPU: {error}") from error
    if length != size:
        raise WeightsError(f"expected memory of {size} bytes, found {length}")
    storage = torch.UntypedStorage._new_shared_cuda(
        device.index, memory, length, start, counter, at, event, is_awaited
    )
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
