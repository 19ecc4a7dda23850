"""A compiled program of a mutable module, and which weights it still has to take in."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram

from regraft import _regraft
from regraft._program import tensors_of
from regraft.checks import listed
from regraft.kept import same_bits
from regraft.module import Module
from regraft.mutable import peft
from regraft.mutable.inputs import Takes
from regraft.mutable.tree import Tree
from regraft.report import RefitReport

__all__ = ["Entry", "Refitted", "types_of"]


@dataclass
class Entry:
    """A compiled program, the calls that it takes, and what it lacks."""

    takes: Takes
    compiled: Module
    types: dict[str, tuple[Any, ...]]
    """Dtype, shape and place of each weight of the program."""
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights that are not a parameter, buffer or attribute of a module, as exporting found them: in the
    memory that the module reads.
    """
    pending: set[str] = field(default_factory=set)
    """Sources that may differ from what serves."""
    stale_adapters: bool = False
    """Whether other adapters may be active than those that serve."""
    scale: float = 1.0
    """What adapters are scaled with besides, by the call."""
    verified: bool = True
    """Whether the module is known to be this program still."""
    adapters: dict[str, tuple[dict[str, torch.Tensor], _regraft.Adapter]] = field(default_factory=dict)
    """Adapters that serve, with copies of what they were made of."""

    @property
    def writes(self) -> bool:
        """Whether the program writes to buffers, which would be its own copies of them."""
        glue = self.compiled._compiled.glue
        return any(self.compiled._serving.sessions) or (glue is not None and bool(glue.mutated))

    @property
    def native(self) -> Collection[str]:
        """Sources that adapters may be given for."""
        if len(self.compiled.models) != 1 or self.compiled._compiled.glue is not None:
            return ()
        return {name for source in self.compiled.models[0].sources for name in (source.name, *source.aliases)}

    def bring_up_to_date(self, tree: Tree, scale: float) -> Refitted | None:
        """Refits the program with what is pending in ``tree`` and adapters scaled with ``scale``
        besides; ``None`` when nothing was to do.

        Raises:
            peft.CannotMerge: when PyTorch must compute the adapters.

        """
        if tree.tuners and self.scale != scale:
            self.pending |= tree.sources_within(tree.tuners)
            self.stale_adapters = True
        if not self.pending and not self.stale_adapters:
            return None
        native = self.native
        peft.check_ties(tree.tuners, tree.ties(), native)
        layers = peft.layers_with_values(tree.tuners, native)
        wanted = {name for name in layers if any(map(peft.is_within(name), self.pending))}
        overlay = peft.overlay(tree.tuners, native, wanted, scale)
        current = {**self.constants, **tree.sources, **overlay.values}
        weights = {
            name: current[name].detach()
            for name in sorted(self.pending)
            if name in self.types and name in current
        }
        adapters, serving = None, self.adapters
        if self.stale_adapters:
            serving = self._adapters_of(overlay.native)
            if {name: adapter for name, (_, adapter) in serving.items()} != {
                name: adapter for name, (_, adapter) in self.adapters.items()
            }:
                adapters = [(adapter, 1.0) for _, adapter in serving.values()]
        refitted = None
        if weights or adapters is not None:
            start = time.perf_counter()
            report = self.compiled.refit(weights or None, partial=True, constants="all", adapters=adapters)
            refitted = Refitted(report, adapters is not None, time.perf_counter() - start)
        self.pending, self.stale_adapters, self.adapters, self.scale = set(), False, serving, scale
        return refitted

    def _adapters_of(
        self, wanted: Mapping[str, dict[str, torch.Tensor]]
    ) -> dict[str, tuple[dict[str, torch.Tensor], _regraft.Adapter]]:
        """Adapters of these factors: those that serve already where nothing differs."""
        result = {}
        for name, factors in wanted.items():
            before = self.adapters.get(name)
            if before is None or not _equal(before[0], factors):
                copies = {key: factor.clone() for key, factor in factors.items()}
                # The scale is in the factors.
                before = copies, self.compiled.adapter(name, copies, {"scaling": 1.0})
            result[name] = before
        return result


@dataclass(frozen=True)
class Refitted:
    """A refit of a program."""

    report: RefitReport
    has_adapters: bool
    """Whether adapters were given."""
    seconds: float

    def why(self) -> str:
        """What changed, in words."""
        parts = []
        if self.report.applied:
            parts.append(f"{listed(self.report.applied)} changed")
        if self.has_adapters:
            names = [f"{name} x {scale:g}" for name, scale in self.report.adapters]
            parts.append(f"adapters: {listed(names)}" if names else "no adapters any more")
        return "; ".join(parts) or "weights changed"


def types_of(program: ExportedProgram) -> dict[str, tuple[Any, ...]]:
    """Dtype, shape, the first name of the same tensor, and the place of each weight."""
    first: dict[int, str] = {}
    return {
        name: (tensor.dtype, tuple(tensor.shape), first.setdefault(id(tensor), name), str(tensor.device))
        for name, tensor in tensors_of(program).items()
    }


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(value, other[key]) for key, value in one.items())
