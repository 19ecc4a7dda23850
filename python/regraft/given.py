"""Checks of what calls and refits are given, and its parts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regraft import _regraft
from regraft.devices import CPU
from regraft.errors import InputError, Problem, WeightsError
from regraft.kept import KeptRefit, plain_tensor, same_bits
from regraft.naming import renamed
from regraft.report import RefitReport

if TYPE_CHECKING:
    from os import PathLike

    from regraft._compiled import Compiled

__all__ = [
    "allows",
    "check_overwritten",
    "config_text",
    "help_with",
    "only",
    "overwrite",
    "part_of",
    "scaled",
    "share_ties",
    "with_kept",
    "with_ties",
]


def check_overwritten(tensors: Sequence[Any], compiled: Compiled) -> None:
    """Checks that tensors that the program writes to share no memory with other inputs."""
    named = [
        name
        for name, leaf in zip(compiled.convention.names, compiled.convention.inputs, strict=True)
        if leaf is None
    ]
    memory = [
        tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None for tensor in tensors
    ]
    for place in compiled.overwritten:
        if memory[place] is None:
            raise InputError(f"input {named[place]}: the program writes to it: give a tensor of PyTorch")
        if memory.count(memory[place]) > 1:
            raise InputError(
                f"input {named[place]}: the program writes to it, and another input shares its memory: "
                "give a copy (.clone())"
            )


def overwrite(tensors: Sequence[Any], places: Sequence[int], made: list[Any]) -> list[Any]:
    """Writes the first results to the tensors of a call; the others."""
    with torch.no_grad():
        for place, value in zip(places, made, strict=False):
            tensors[place].copy_(value)
    return made[len(places) :]


def help_with(weights: Any) -> str:
    """Advice for something that is not a state dict."""
    if isinstance(weights, torch.nn.Module):
        return "\n  help: give its state_dict()"
    if hasattr(weights, "graph_signature"):
        return "\n  help: give its state_dict, or regraft.refit_module_weights takes programs"
    return ""


def config_text(config: str | PathLike[str] | Mapping[str, Any] | None) -> str | None:
    """The JSON of an adapter's configuration."""
    if config is None or (isinstance(config, str) and not config.endswith(".json")):
        return config
    if isinstance(config, Mapping):
        return json.dumps(
            config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
        )
    return Path(config).read_text(encoding="utf-8")


def scaled(adapters: Any) -> list[tuple[_regraft.Adapter, float]]:
    """``adapters`` as a list, of which each was looked at."""
    pairs = list(adapters) if isinstance(adapters, Iterable) else [adapters]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], _regraft.Adapter):
            raise WeightsError(
                f"adapters: expected pairs of an adapter and its scale, found {pair!r}\n"
                "  help: read one with module.adapter(name, file), then give [(adapter, 1.0)]"
            )
        if not isinstance(pair[1], (int, float)) or not math.isfinite(pair[1]):
            raise WeightsError(f"{pair[0].name}: expected a finite scale, found {pair[1]!r}")
    return [(adapter, float(scale)) for adapter, scale in pairs]


def only(weights: Any, names: list[str]) -> Any:
    """The weights with these names."""
    if isinstance(weights, _regraft.StateDict):
        return weights.only(names)
    return {name: weights[name] for name in names}


def with_ties(changed: Any, ties: Sequence[Sequence[str]]) -> Any:
    """Names that changed, with all other names of the same weights."""
    if changed is None or isinstance(changed, str):
        return changed
    names = set(changed)
    return names.union(*(group for group in ties if names & set(group)))


def share_ties(given: dict[str, Any], ties: Sequence[Sequence[str]]) -> list[Problem]:
    """Gives all names of a weight the value that one of them has; what speaks against it."""
    problems: list[Problem] = []
    for group in ties:
        present = [name for name in group if name in given]
        if not present:
            continue
        value = given[present[0]]
        for name in present[1:]:
            if given[name] is not value and not same_bits(
                plain_tensor(given[name], CPU), plain_tensor(value, CPU)
            ):
                what = f"is the same weight as {present[0]}, and has another value"
                problems.append(Problem("tied_differ", name, what))
        given.update(dict.fromkeys(group, value))
    return problems


def allows(constants: Any, name: str) -> bool:
    """Whether a weight that no state dict holds may be changed."""
    return constants == "all" if constants is None or isinstance(constants, str) else name in constants


def part_of(weights: Any, key: str) -> Any:
    """What is under ``key`` in a checkpoint that was loaded, or the tensors whose names begin with it."""
    value: Any = weights
    for part in [key] if key in weights else key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        return value
    front = f"{key}."
    names = {name: name.removeprefix(front) for name in map(str, weights.keys()) if name.startswith(front)}
    if not names:
        raise WeightsError(f"there are no weights under {key!r}")
    return renamed(weights, names)


def with_kept(report: RefitReport, kept: KeptRefit) -> RefitReport:
    """The report of the engines, with what was done to the parts in PyTorch."""
    applied = tuple(dict.fromkeys((*report.applied, *kept.applied)))
    return replace(
        report,
        applied=applied,
        unchanged=tuple(
            n for n in dict.fromkeys((*report.unchanged, *kept.unchanged)) if n not in set(applied)
        ),
        kept=tuple(dict.fromkeys((*report.kept, *kept.not_given))),
    )
