"""Compiled modules as graphs of their parts, which code for Torch-TensorRT looks through."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regraft.glue import run_engine
from regraft.module import Module

__all__ = ["WEIGHTS", "Between", "graph_of", "parts_of", "written_by"]

WEIGHTS = "_weights"
"""The child that gives weights which engines take as inputs."""


@dataclass(frozen=True)
class Between:
    """What stays in PyTorch between two engines."""

    graph: torch.fx.Graph
    """Over weights, then what other parts give; its result is a tuple."""
    weights: tuple[str, ...]
    """Names of the weights, in the order of their placeholders."""
    inputs: tuple[torch.fx.Node, ...]
    """Nodes of the whole that the other placeholders stand for."""
    outputs: tuple[torch.fx.Node, ...]
    """Nodes of the whole that others read."""
    computed: frozenset[str]
    """Names of all of its nodes in the whole."""

    @property
    def operators(self) -> list[str]:
        """Names of what PyTorch computes here."""
        return [
            str(node.target)
            for node in self.graph.nodes
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        ]


def parts_of(module: Module) -> list[int | Between]:
    """In the order of their work: numbers of engines, and what is between them."""
    glue = module._compiled.glue
    if glue is None:
        return list(range(len(module.models)))
    placeholders = [node for node in glue.graph.nodes if node.op == "placeholder"]
    weights = dict(zip(placeholders[1:], glue.weights, strict=False))
    parts: list[int | Between] = []
    between: list[torch.fx.Node] = []

    def end() -> None:
        if any(isinstance(node.target, torch._ops.OpOverload) for node in between):
            parts.append(_between(between, weights))
        between.clear()

    for node in glue.graph.nodes:
        if node.target is run_engine:
            end()
            parts.append(int(node.args[1]))
        elif node.op == "call_function" and not _is_result_of_engine(node):
            between.append(node)
    end()
    return parts


def _is_result_of_engine(node: torch.fx.Node) -> bool:
    of = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(of, torch.fx.Node) and of.target is run_engine


def _between(nodes: Sequence[torch.fx.Node], weights: dict[torch.fx.Node, str]) -> Between:
    own = set(nodes)
    read = list(dict.fromkeys(of for node in nodes for of in node.all_input_nodes if of not in own))
    held = [node for node in read if node in weights]
    inputs = [node for node in read if node not in weights]
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    graph = torch.fx.Graph()
    known = {node: graph.placeholder(node.name) for node in (*held, *inputs)}
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[node] for node in outputs))
    names = frozenset(node.name for node in nodes)
    return Between(graph, tuple(weights[node] for node in held), tuple(inputs), tuple(outputs), names)


def written_by(module: Module, index: int) -> list[tuple[int, int]]:
    """``(output, input)`` of an engine for each input of the program, and each buffer, that the output is the
    new value of.
    """
    compiled = module._compiled
    if compiled.glue is None:
        return list(enumerate(compiled.overwritten))
    graph, weights = compiled.glue.graph, compiled.glue.weights
    taken = [node for node in graph.nodes if node.op == "placeholder"][1:]
    before = [taken[weights.index(name)] for name in compiled.glue.mutated]
    before += [taken[len(weights) + place] for place in compiled.overwritten]
    results = graph.output_node().args[0]
    assert isinstance(results, (list, tuple))
    found = []
    for old, new in zip(before, results, strict=False):
        made = new.args[0] if isinstance(new, torch.fx.Node) and new.target is operator.getitem else None
        if isinstance(made, torch.fx.Node) and made.target is run_engine and made.args[1] == index:
            inputs = made.args[2:]
            if old in inputs:
                found.append((int(str(new.args[1])), inputs.index(old)))
    return found


def graph_of(module: Module, parts: Sequence[int | Between], names: Sequence[str]) -> torch.fx.Graph:
    """The module as calls of its parts, which have these names, over the tensors of a call. Its results are
    the tensors of the module's result, in their order.
    """
    glue = module._compiled.glue
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(one.name) for one in module._compiled.takes.inputs]
    if glue is None:
        made = graph.call_module(names[0], tuple(inputs)) if parts else None
        count = len(module.models[0].outputs) if parts else 0
        taken = len(module._compiled.overwritten)
        results = [graph.call_function(operator.getitem, (made, i)) for i in range(taken, count)]
        graph.output(tuple(results))
        return graph
    _Joined(graph, inputs, module, parts, names).join()
    return graph


class _Joined:
    """The graph of a module of several parts, while it is made."""

    def __init__(
        self,
        graph: torch.fx.Graph,
        inputs: Sequence[torch.fx.Node],
        module: Module,
        parts: Sequence[int | Between],
        names: Sequence[str],
    ) -> None:
        glue = module._compiled.glue
        assert glue is not None
        self.graph = graph
        self.glue = glue
        self.overwritten = len(module._compiled.overwritten)
        self.names = {
            part if isinstance(part, int) else id(part): name for part, name in zip(parts, names, strict=True)
        }
        self.last = {part.outputs[-1]: part for part in parts if isinstance(part, Between) and part.outputs}
        placeholders = [node for node in glue.graph.nodes if node.op == "placeholder"]
        self.weights = dict(zip(placeholders[1:], glue.weights, strict=False))
        self.known: dict[torch.fx.Node, torch.fx.Node] = dict(
            zip(placeholders[1 + len(glue.weights) :], inputs, strict=True)
        )

    def join(self) -> None:
        """Calls of all parts: of what is between engines where the last of its results is computed."""
        inner = {name for part in self.last.values() for name in part.computed}
        for node in self.glue.graph.nodes:
            if node.target is run_engine:
                inputs = tuple(self._value(of) for of in node.args[2:])
                self.known[node] = self.graph.call_module(self.names[node.args[1]], inputs)
            elif node in self.last:
                self._call_between(self.last[node])
            elif node.op == "call_function" and node.name not in inner:
                self.known[node] = self.graph.node_copy(node, self._value)
        results = self.glue.graph.output_node().args[0]
        count = len(self.glue.mutated) + self.overwritten
        assert isinstance(results, (list, tuple))
        self.graph.output(tuple(self._value(node) for node in results[count:]))

    def _call_between(self, part: Between) -> None:
        made = self.graph.call_module(self.names[id(part)], tuple(map(self._value, part.inputs)))
        for index, node in enumerate(part.outputs):
            self.known[node] = self.graph.call_function(operator.getitem, (made, index))

    def _value(self, node: object) -> torch.fx.Node:
        assert isinstance(node, torch.fx.Node)
        if node not in self.known and node in self.weights:
            self.known[node] = self.graph.call_module(WEIGHTS, (self.weights[node],))
        return self.known[node]
