"""A part of a program as a program of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from regraft._program import call_entry
from regraft.errors import CompileError
from regraft.partition.parts import NUMBERS

__all__ = ["Copier", "is_tensor", "makes_tensors"]


class Copier:
    """Copies nodes of a program into a program of their own."""

    def __init__(
        self,
        program: ExportedProgram,
        nodes: Sequence[torch.fx.Node],
        weights: dict[str, tuple[str, InputKind]],
    ) -> None:
        self.program = program
        self.nodes = nodes
        self.weights = weights
        inside = set(nodes)
        used = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside)
        self.weight_nodes = [arg for arg in used if arg.name in weights]
        self.inputs = [arg for arg in used if arg.name not in weights and makes_tensors(arg)]
        self.outputs = [
            node for node in nodes if any(user not in inside for user in node.users) and is_tensor(node)
        ]
        self.graph = torch.fx.Graph()
        self.copies: dict[torch.fx.Node, torch.fx.Node] = {}

    def copy(self) -> ExportedProgram:
        """The program, which takes ``inputs`` and returns ``outputs``."""
        specs = []
        for node in self.weight_nodes:
            target, kind = self.weights[node.name]
            persistent = target in self.program.state_dict if kind == InputKind.BUFFER else None
            specs.append(InputSpec(kind, TensorArgument(self._placeholder(node).name), target, persistent))
        for node in self.inputs:
            specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(self._placeholder(node).name), None))
        for node in self.nodes:
            copy = self.graph.node_copy(node, self._copied)
            copy.name = node.name
            self.copies[node] = copy
        results = tuple(self.copies[node] for node in self.outputs)
        self.graph.output(results)
        outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
        named = {**self.program.state_dict, **self.program.constants}
        held = {spec.target: named[spec.target] for spec in specs if spec.target is not None}
        in_state = {name: value for name, value in held.items() if name in self.program.state_dict}
        return ExportedProgram(
            root={},
            graph=self.graph,
            graph_signature=ExportGraphSignature(specs, outputs),
            state_dict=in_state,
            range_constraints=self.program.range_constraints,
            module_call_graph=[call_entry(len(self.inputs), len(results))],
            constants={name: value for name, value in held.items() if name not in in_state},
            verifiers=self.program.verifiers,
        )

    def _placeholder(self, node: torch.fx.Node) -> torch.fx.Node:
        copy = self.graph.placeholder(node.name)
        copy.meta = dict(node.meta)
        self.copies[node] = copy
        return copy

    def _copied(self, node: torch.fx.Node) -> torch.fx.Node:
        return self.copies[node] if node in self.copies else self._size(node)

    def _size(self, node: torch.fx.Node) -> torch.fx.Node:
        """A number that is computed outside: read off an input, or computed again."""
        wanted = node.meta.get("val")
        found = None
        for source in self.inputs:
            for axis, size in enumerate(source.meta["val"].shape):
                if (
                    isinstance(size, torch.SymInt)
                    and isinstance(wanted, torch.SymInt)
                    and size.node.expr == wanted.node.expr
                ):
                    found = self.graph.call_function(torch.ops.aten.sym_size.int, (self.copies[source], axis))
        if found is None:
            if node.op != "call_function" or makes_tensors(node):
                reason = f"{NUMBERS} {node.name}, which no tensor of its part has as a size"
                users = [user.name for user in node.users if user in set(self.nodes)]
                raise CompileError(reason, tuple((name, "", reason) for name in users))
            found = self.graph.node_copy(node, self._copied)
        found.meta = dict(node.meta)
        self.copies[node] = found
        return found


def makes_tensors(node: torch.fx.Node) -> bool:
    """Whether all values of ``node`` are tensors."""
    values = pytree.tree_leaves(node.meta.get("val"))
    return bool(values) and all(value is None or isinstance(value, torch.Tensor) for value in values)


def is_tensor(node: torch.fx.Node) -> bool:
    """Whether the value of ``node`` is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)
