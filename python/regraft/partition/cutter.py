"""Searches for the parts of a program that become engines."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from regraft import _regraft
from regraft._program import import_program, weight_specs
from regraft.effects import has_effect
from regraft.errors import CompileError, Unsupported
from regraft.partition.copying import Copier, makes_tensors
from regraft.partition.functional import written
from regraft.partition.gluing import Extracted, glued
from regraft.partition.parts import BETWEEN, NO_PROGRAM, SIZES, Partitioned, PartitionReport, region_of

__all__ = ["Cutter"]

_DTYPES = frozenset(
    (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
)
# Attempts to find regions: each leaves at least one more node to PyTorch.
_MOST_ROUNDS = 100


class Cutter(OperatorSupportBase):
    """Finds the parts of a program by trial: a node that the import of its part refuses stays in PyTorch,
    and the rest is cut again.
    """

    def __init__(self, program: ExportedProgram, min_block_size: int, left_to_torch: set[str]) -> None:
        self.program = program
        self.min_block_size = min_block_size
        self.left_to_torch = left_to_torch
        self.refused: dict[str, Unsupported] = {}
        """Nodes that turned out not to be supported, by name."""
        self.mutated = written(program)
        # What the program writes to is not a source of an engine: its parts take it as an input.
        self.weights = {
            name: (target, kind) for name, target, kind in weight_specs(program) if target not in self.mutated
        }

    def is_node_supported(self, submodules: Any, node: torch.fx.Node) -> bool:
        """Whether a node may be in a region. PyTorch's partitioner asks."""
        if node.op != "call_function":
            return False
        if node.target is operator.getitem:
            source = node.args[0]
            return isinstance(source, torch.fx.Node) and self.is_node_supported(submodules, source)
        return self.reason(node) is None

    def reason(self, node: torch.fx.Node) -> Unsupported | None:
        """Why a node stays in PyTorch."""
        op = str(node.target)
        if node.name in self.refused:
            return self.refused[node.name]
        if has_effect(node):
            return Unsupported(node.name, op, "it does something besides computing")
        if not isinstance(node.target, torch._ops.OpOverload) or not makes_tensors(node):
            return Unsupported(node.name, op, SIZES)
        if op in self.left_to_torch:
            return Unsupported(node.name, op, "torch_executed_ops names it")
        if not _regraft.is_known(f"torch.ops.{op}"):
            return Unsupported(node.name, op, "the operator has no translation")
        for dtype in _dtypes(node):
            if dtype not in _DTYPES:
                return Unsupported(node.name, op, f"{str(dtype).removeprefix('torch.')} is not supported")
        return None

    def cut(self) -> Partitioned:
        """The program in regions, and the graph between them.

        Raises:
            CompileError: when refusals do not end.

        """
        small: dict[str, Unsupported] = {}
        for _ in range(_MOST_ROUNDS):
            regions, again = [], False
            for nodes in self.propose():
                if sum(node.target is not operator.getitem for node in nodes) < self.min_block_size:
                    reason = f"a part of fewer than {self.min_block_size} nodes"
                    small.update({n.name: Unsupported(n.name, str(n.target), reason) for n in nodes})
                    continue
                extracted = self.extract(nodes)
                if extracted is None:
                    again = True
                else:
                    regions.append(extracted)
            if not again:
                return self.assemble(regions, small)
        raise CompileError(
            "no cut of the program was found: leave operators to PyTorch with torch_executed_ops"
        )

    def propose(self) -> list[list[torch.fx.Node]]:
        """Nodes of regions that may work, each in the order of the program."""
        partitioner = CapabilityBasedPartitioner(
            self.program.graph_module, self, allows_single_node_partition=True
        )
        order = {node: index for index, node in enumerate(self.program.graph.nodes)}
        parts = [sorted(part.nodes, key=order.__getitem__) for part in partitioner.propose_partitions()]
        return sorted(parts, key=lambda nodes: order[nodes[0]])

    def extract(self, nodes: Sequence[torch.fx.Node]) -> Extracted | None:
        """The region of ``nodes``; ``None`` when some turned out to be unsupported."""
        copier = Copier(self.program, nodes, self.weights)
        try:
            part = copier.copy()
            imported = import_program(part)
        except CompileError as error:
            self.refuse(nodes, error)
            return None
        except SpecViolationError as error:
            # Sizes that only running tells, which a program of its own cannot take.
            self.refuse(nodes, CompileError(f"{NO_PROGRAM}: {error}"))
            return None
        return Extracted(
            tuple(nodes), tuple(copier.inputs), tuple(copier.outputs), region_of(imported, nodes)
        )

    def refuse(self, nodes: Sequence[torch.fx.Node], error: CompileError) -> None:
        """Leaves those of ``nodes`` to PyTorch that ``error`` is about."""
        names = {node.name: node for node in nodes}
        blamed = {
            name: part.reason
            for part in error.unsupported
            for name, node in names.items()
            if name == part.node or (not part.node and f"torch.ops.{node.target}" == part.op)
        }
        # An error about no node in particular leaves the whole part to PyTorch.
        blamed = blamed or dict.fromkeys(names, str(error).splitlines()[0])
        for name, reason in blamed.items():
            self.refused[name] = Unsupported(name, str(names[name].target), reason)

    def assemble(self, regions: Sequence[Extracted], small: dict[str, Unsupported]) -> Partitioned:
        """The result of the regions; ``small`` says why nodes of small parts are in none."""
        glue = glued(self.program, regions, self.mutated)
        taken = {name for region in regions for name in region.region.nodes}
        in_pytorch = []
        for node in self.program.graph.nodes:
            if (
                node.op == "call_function"
                and node.name not in taken
                and isinstance(node.target, torch._ops.OpOverload)
            ):
                reason = small.get(node.name) or self.reason(node)
                in_pytorch.append(reason or Unsupported(node.name, str(node.target), BETWEEN))
        report = PartitionReport(tuple(r.region.operators for r in regions), tuple(in_pytorch))
        return Partitioned(tuple(r.region for r in regions), glue, report)


def _dtypes(node: torch.fx.Node) -> set[torch.dtype]:
    """Of the tensors that a node reads and makes."""
    values = pytree.tree_leaves([other.meta.get("val") for other in (node, *node.all_input_nodes)])
    return {value.dtype for value in values if isinstance(value, torch.Tensor)}
