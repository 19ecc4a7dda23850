"""Mutable modules as folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

import regraft
from regraft._folder import replaced_folder
from regraft.checks import dtype_name
from regraft.errors import CompileError, EngineFileError
from regraft.inputs import Size
from regraft.mutable.inputs import Leaf, Ranges, Takes, is_hint
from regraft.mutable.state import Entry, State

__all__ = ["load", "save"]

_FORMAT = 3
_DESCRIPTION = "mutable.json"


def save(state: State, path: str | os.PathLike[str], strip: bool) -> None:
    """Writes the folder; one that is there is replaced when it is of this kind."""
    with replaced_folder(path, _DESCRIPTION, "saved mutable module") as folder, state.lock:
        _write(state, folder, strip)


def _write(state: State, folder: Path, strip: bool) -> None:
    entries: list[dict[str, Any]] = []
    for entry in state.entries:
        try:
            description = _entry_to_json(entry)
            regraft.save(entry.compiled, folder / str(len(entries)), strip=strip)
        except CompileError:
            # Arguments or results of a class without a name in files: it is compiled again.
            continue
        entries.append(description)
    description = {
        "format": _FORMAT,
        "version": regraft.__version__,
        "autograd": state.autograd,
        "watch": state.watch,
        "auto_ranges": state.auto_ranges,
        "methods": list(state.methods),
        "fallback": state.fallback,
        "settings": {
            name: list(value) if isinstance(value, (set, frozenset, tuple)) else value
            for name, value in _named(state.settings).items()
            # An object of this process.
            if name != "engine_cache"
        },
        "ranges": {
            "args": _ranges_to_json(tuple(state.ranges.args)),
            "kwargs": _ranges_to_json(state.ranges.kwargs),
        },
        "entries": entries,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1))


def load(path: str | os.PathLike[str], module: nn.Module) -> State:
    """The state of a mutable module around ``module``."""
    folder = Path(path)
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        if description["format"] != _FORMAT:
            raise EngineFileError(
                f"{folder}: format {description['format']}, this version reads {_FORMAT}: save it again"
            )
        state = State(
            module,
            description["autograd"],
            description["watch"],
            description["settings"],
            bool(description["auto_ranges"]),
            tuple(map(str, description["methods"])),
            bool(description["fallback"]),
        )
        ranges = description["ranges"]
        state.ranges = Ranges(_ranges_from_json(ranges["args"]), _ranges_from_json(ranges["kwargs"]))
        threads = state.settings.get("threads")
        state.entries = [
            _entry_from_json(entry, folder / str(index), state, threads)
            for index, entry in enumerate(description["entries"])
        ]
    except EngineFileError:
        raise
    except Exception as error:
        # Whatever a description can be wrong about: PyTorch checks ranges and structures with assertions.
        raise EngineFileError(f"{folder}: no saved mutable module, or a damaged one: {error}") from error
    state.share_slots()
    # Every program from now on is one after the first.
    state.compilations = min(1, len(state.entries))
    return state


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    takes = entry.takes
    try:
        spec = None if takes.spec is None else pytree.treespec_dumps(takes.spec)
    except Exception as error:
        raise CompileError(f"the structure of the arguments cannot be saved: {error}") from error
    return {
        "method": takes.method,
        "spec": spec,
        "leaves": [_leaf_to_json(leaf) for leaf in takes.leaves],
        "symbols": [list(ends) for ends in takes.ranges],
        "types": {
            name: [str(dtype), list(shape), first, place]
            for name, (dtype, shape, first, place) in entry.types.items()
        },
    }


def _entry_from_json(data: Mapping[str, Any], folder: Path, state: State, threads: int | None) -> Entry:
    types = {
        name: (_dtype(dtype), tuple(shape), first, str(place))
        for name, (dtype, shape, first, place) in data["types"].items()
    }
    compiled = regraft.load(folder, threads=threads)
    spec = None if data["spec"] is None else pytree.treespec_loads(data["spec"])
    return Entry(
        takes=Takes(
            spec,
            tuple(_leaf_from_json(leaf) for leaf in data["leaves"]),
            tuple(map(_symbol, data["symbols"])),
            str(data["method"]),
        ),
        compiled=compiled,
        types=types,
        pending=set(types),
        stale_adapters=bool(state.tree.tuners),
        # Code is not saved: which program the module is, an export tells.
        verified=False,
    )


def _leaf_to_json(leaf: Leaf) -> dict[str, Any]:
    kind, value = leaf
    if isinstance(kind, torch.dtype):
        sizes = [
            [size.symbol, size.factor, size.offset] if isinstance(size, Size) else size for size in value
        ]
        return {"dtype": str(kind), "shape": sizes}
    if kind not in _CONSTANTS.values():
        raise CompileError(f"an argument is a {kind.__name__}, which cannot be saved")
    return {"type": kind.__name__, "value": value}


_CONSTANTS = {kind.__name__: kind for kind in (bool, int, float, str, type(None))}


def _leaf_from_json(data: Mapping[str, Any]) -> Leaf:
    if "dtype" in data:
        return _dtype(data["dtype"]), tuple(map(_size_from_json, data["shape"]))
    return _CONSTANTS[data["type"]], data["value"]


def _size_from_json(data: Any) -> int | Size | None:
    if isinstance(data, int | None):
        return data
    symbol, factor, offset = data
    if (
        not isinstance(symbol, str)
        or not isinstance(factor, int)
        or not isinstance(offset, int)
        or factor < 1
    ):
        raise ValueError(f"{data} is not a size")
    return Size(symbol, factor, offset)


def _symbol(data: Any) -> tuple[str, int, int | None]:
    name, least, most = data
    if not isinstance(name, str) or not isinstance(least, int) or not isinstance(most, int | None):
        raise ValueError(f"{data} is not a range")
    return name, least, most


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return {name: dtype_name(value) if name == "dtype" else value for name, value in settings.items()}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is not a dtype")
    return dtype


def _ranges_to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"map": [[key, _ranges_to_json(part)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_ranges_to_json(part) for part in value]}
    if is_hint(value):
        return {"hint": [value.type.name, value.min, value.max]}
    if hasattr(value, "root"):
        offset = int(value.fn(0))
        return {"derived": [_ranges_to_json(value.root), int(value.fn(1)) - offset, offset]}
    if isinstance(value, torch.export.Dim):
        return {
            "dim": [value.__name__, int(value.min), int(value.max) if isinstance(value.max, int) else None]
        }
    return None


def _ranges_from_json(data: Any) -> Any:
    if data is None:
        return None
    if "map" in data:
        return {key: _ranges_from_json(part) for key, part in data["map"]}
    if "list" in data:
        return tuple(_ranges_from_json(part) for part in data["list"])
    if "hint" in data:
        kind, least, most = data["hint"]
        hint = {"AUTO": torch.export.Dim.AUTO, "DYNAMIC": torch.export.Dim.DYNAMIC}[kind]
        return hint if least is None and most is None else hint(min=least, max=most)
    if "derived" in data:
        root, factor, offset = data["derived"]
        return _ranges_from_json(root) * factor + offset
    name, least, most = data["dim"]
    return torch.export.Dim(name, min=least, max=most)
