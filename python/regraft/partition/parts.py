"""A program cut into parts, and the report about them."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from regraft import _regraft
from regraft.errors import Unsupported
from regraft.glue import Glue

__all__ = [
    "BETWEEN",
    "FOLLOWS",
    "NO_PROGRAM",
    "NUMBERS",
    "SIZES",
    "PartitionReport",
    "Partitioned",
    "Region",
    "region_of",
]

# Why nodes stay in PyTorch that could be compiled if others were not there.
SIZES = "it computes sizes"
BETWEEN = "it lies between parts"
NO_PROGRAM = "PyTorch does not take it as a program"
NUMBERS = "it needs the number"
FOLLOWS = (SIZES, BETWEEN, NO_PROGRAM, NUMBERS)


@dataclass(frozen=True)
class Region:
    """A part of a program that becomes an engine."""

    program: _regraft.Program
    nodes: tuple[str, ...]
    """Names of its nodes."""
    operators: dict[str, int]
    """How often it uses each operator."""


@dataclass(frozen=True)
class PartitionReport:
    """Which nodes of a program are in engines, and which stay in PyTorch. ``print`` it."""

    engines: tuple[dict[str, int], ...] = ()
    """For each engine how often it uses each operator."""
    in_pytorch: tuple[Unsupported, ...] = ()
    """The nodes that stay in PyTorch, with the reason."""

    @property
    def is_whole(self) -> bool:
        """Whether the whole program is one engine."""
        return len(self.engines) == 1 and not self.in_pytorch

    def __str__(self) -> str:
        total = sum(sum(operators.values()) for operators in self.engines)
        count = len(self.engines)
        lines = [
            f"{total} nodes in {count} engine{'' if count == 1 else 's'}, "
            f"{len(self.in_pytorch)} nodes in PyTorch"
        ]
        for index, operators in enumerate(self.engines):
            most = sorted(operators.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{number} {name.removeprefix('aten.')}" for name, number in most[:5])
            rest = sum(number for _, number in most[5:])
            lines.append(
                f"  engine {index}: {sum(operators.values())} nodes "
                f"({shown}{f', {rest} others' if rest else ''})"
            )
        for (op, reason), number in Counter((part.op, part.reason) for part in self.in_pytorch).items():
            lines.append(
                f"  PyTorch: {number} {op.removeprefix('torch.ops.').removeprefix('aten.')}: {reason}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Partitioned:
    """A program cut into regions, with what lies between them."""

    regions: tuple[Region, ...]
    glue: Glue | None
    """``None`` when the whole program is one region."""
    report: PartitionReport


def region_of(imported: _regraft.Program, nodes: Iterable[torch.fx.Node]) -> Region:
    """The region of ``nodes``, whose program is ``imported``."""
    nodes = tuple(nodes)
    operators = Counter(str(node.target) for node in nodes if isinstance(node.target, torch._ops.OpOverload))
    return Region(imported, tuple(node.name for node in nodes), dict(operators))
