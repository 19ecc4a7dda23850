"""The engine cache under Torch-TensorRT's names."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

import regraft

__all__ = ["BaseEngineCache", "DiskEngineCache", "engine_cache_of"]


# Settings that decide what an engine is.
_DECIDING = (
    "immutable_weights",
    "min_block_size",
    "torch_executed_ops",
    "require_full_compilation",
    "optimization_level",
)


def _named(target: Any) -> str:
    return (
        str(target) if isinstance(target, torch._ops.OpOverload) else str(getattr(target, "__name__", target))
    )


class BaseEngineCache(ABC):
    """What a cache of one's own is derived from: it stores bytes under a hash.

    Entries hold no weights. The hash stands for everything that decides the code of an engine; an entry that
    does not fit is detected and built again.

    Example:
        >>> class InMemory(BaseEngineCache):
        ...     def __init__(self):
        ...         self.entries = {}
        ...
        ...     def save(self, hash, blob, *args, **kwargs):
        ...         self.entries[hash] = blob
        ...
        ...     def load(self, hash, *args, **kwargs):
        ...         return self.entries.get(hash)
    """

    @staticmethod
    def get_hash(gm: Any, input_specs: Sequence[Any] = (), settings: Any = None) -> str:
        """A hash of what a graph computes, of its inputs, and of the settings that decide its engine;
        weights and names of weights say nothing.
        """
        numbers = {node: index for index, node in enumerate(gm.graph.nodes)}
        program = [
            f"{node.op} {_named(node.target) if node.op == 'call_function' else ''} "
            f"{torch.fx.map_arg((node.args, node.kwargs), lambda arg: numbers[arg])!r}"
            for node in gm.graph.nodes
        ]
        inputs = list(map(repr, input_specs))
        chosen = {} if settings is None else {name: repr(getattr(settings, name, None)) for name in _DECIDING}
        return hashlib.sha256(json.dumps([program, inputs, chosen], sort_keys=True).encode()).hexdigest()

    @staticmethod
    def pack(serialized_engine: bytes, *facts: Any) -> bytes:
        """An engine with facts about it, as one entry.

        Raises:
            TypeError: for facts that JSON does not hold.
        """
        text = json.dumps(facts).encode()
        return len(text).to_bytes(8, "little") + text + bytes(serialized_engine)

    @staticmethod
    def unpack(packed_obj: bytes) -> tuple[Any, ...]:
        """The inverse of :meth:`pack`.

        Raises:
            regraft.EngineFileError: when it is something else.
        """
        size = int.from_bytes(packed_obj[:8], "little")
        try:
            if len(packed_obj) < 8 + size:
                raise ValueError("it ends too early")
            facts = json.loads(packed_obj[8 : 8 + size])
            if not isinstance(facts, list):
                raise TypeError("its facts are not a list")
            return (bytes(packed_obj[8 + size :]), *facts)
        except (ValueError, TypeError, RecursionError) as error:
            raise regraft.EngineFileError(f"not a packed engine, or a damaged one: {error}") from error

    def insert(self, hash: str, entry: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        """Stores an engine with facts about it, as :meth:`pack` takes them."""
        self.save(hash, self.pack(*entry), *args, **kwargs)

    def check(self, hash: str, *args: Any, **kwargs: Any) -> tuple[Any, ...] | None:
        """What :meth:`insert` stored, or None when there is nothing.

        Raises:
            regraft.EngineFileError: when it is something else.
        """
        entry = self.load(hash, *args, **kwargs)
        return self.unpack(entry) if entry else None

    @abstractmethod
    def save(self, hash: str, blob: bytes, *args: Any, **kwargs: Any) -> None:
        """Stores an entry."""

    @abstractmethod
    def load(self, hash: str, *args: Any, **kwargs: Any) -> bytes | None:
        """The entry, or None when there is none."""

    # What regraft.compile takes as engine_cache.

    def get(self, key: str) -> bytes | None:
        """The entry; an empty one counts as none."""
        return self.load(key) or None

    def put(self, key: str, entry: bytes) -> None:
        """Stores an entry."""
        self.save(key, entry)

    def remove(self, key: str) -> None:
        """Forgets an entry that does not fit. Torch-TensorRT's caches have no word for it: an empty one
        takes its place.
        """
        self.save(key, b"")


def DiskEngineCache(
    engine_cache_dir: str | os.PathLike[str] | None = None, engine_cache_size: int | None = None
) -> regraft.DiskCache:
    """Regraft's cache on disk, which processes may share: its folder, and the most bytes that it may take."""
    return regraft.DiskCache(engine_cache_dir, engine_cache_size)


class _Limited:
    """A cache that is only read, or only written."""

    def __init__(self, cache: Any, stores: bool, reads: bool) -> None:
        self.cache = cache
        self.stores = stores
        self.reads = reads

    def get(self, key: str) -> bytes | None:
        entry: bytes | None = self.cache.get(key) if self.reads else None
        return entry

    def put(self, key: str, entry: bytes) -> None:
        if self.stores:
            self.cache.put(key, entry)

    def remove(self, key: str) -> None:
        if self.stores:
            self.cache.remove(key)


def engine_cache_of(
    custom: Any, *, folder: str | os.PathLike[str] | None, limit: int | None, stores: bool, reads: bool
) -> Any:
    """What :func:`regraft.compile` takes as ``engine_cache``; None when engines are neither stored nor
    reused.
    """
    if not stores and not reads:
        return None
    if custom is None:
        return DiskEngineCache(folder, limit)
    missing = [name for name in ("get", "put", "remove") if not hasattr(custom, name)]
    if missing and not isinstance(custom, regraft.DiskCache):
        raise TypeError(f"custom_engine_cache: expected a BaseEngineCache, found {type(custom).__name__}")
    if (stores and reads) or isinstance(custom, regraft.DiskCache):
        return custom
    return _Limited(custom, stores, reads)
