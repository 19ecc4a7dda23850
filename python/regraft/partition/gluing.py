"""The graph that calls engines where their parts were."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from regraft._program import weight_specs
from regraft.effects import has_effect
from regraft.errors import CompileError
from regraft.glue import Glue, run_engine
from regraft.partition.copying import is_tensor
from regraft.partition.parts import Region

__all__ = ["Extracted", "glued"]


@dataclass(frozen=True)
class Extracted:
    """A region with the nodes of the whole program that it replaces."""

    nodes: tuple[torch.fx.Node, ...]
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]
    region: Region


def glued(program: ExportedProgram, regions: Sequence[Extracted], mutated: Sequence[str]) -> Glue:
    """The graph of ``program`` with one call in the place of each region."""
    graph = torch.fx.Graph()
    serving = graph.placeholder("serving")
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    inside = {node: index for index, region in enumerate(regions) for node in region.nodes}
    weights = {name: target for name, target, _ in weight_specs(program)}
    # Weights of PyTorch's parts first, then the tensors of the call.
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    outside = [n for n in placeholders if n.name in weights and any(user not in inside for user in n.users)]
    outside += [
        n for n in placeholders if n.name in weights and weights[n.name] in mutated and n not in outside
    ]
    tensors = [node for node in placeholders if node.name not in weights and is_tensor(node)]
    for node in [*outside, *tensors]:
        copies[node] = graph.placeholder(node.name)
    pending = _in_order(program, regions, inside)
    for item in pending:
        if isinstance(item, torch.fx.Node):
            copies[item] = graph.node_copy(item, copies.__getitem__)
        else:
            index, region = item
            call = graph.call_function(
                run_engine, (serving, index, *(copies[node] for node in region.inputs))
            )
            for position, node in enumerate(region.outputs):
                copies[node] = graph.call_function(operator.getitem, (call, position))
    results = program.graph.output_node().args[0]
    assert isinstance(results, (tuple, list))
    specs = program.graph_signature.output_specs
    are_tensors = [isinstance(spec.arg, TensorArgument) for spec in specs]
    graph.output(
        [
            copies[r]
            for r, tensor in zip(results, are_tensors, strict=True)
            if tensor and isinstance(r, torch.fx.Node)
        ]
    )
    graph.eliminate_dead_code(lambda node: node.is_impure() or has_effect(node))
    graph.lint()
    return Glue(graph, [weights[node.name] for node in outside], mutated)


def _in_order(
    program: ExportedProgram, regions: Sequence[Extracted], inside: dict[torch.fx.Node, int]
) -> list[torch.fx.Node | tuple[int, Extracted]]:
    """Nodes outside and whole regions, each after what it reads."""
    order: list[torch.fx.Node | tuple[int, Extracted]] = []
    done: set[torch.fx.Node] = {node for node in program.graph.nodes if node.op == "placeholder"}
    waiting: list[torch.fx.Node | tuple[int, Extracted]] = []
    seen: set[int] = set()
    for node in program.graph.nodes:
        if node in inside:
            if inside[node] not in seen:
                seen.add(inside[node])
                waiting.append((inside[node], regions[inside[node]]))
        elif node.op == "call_function":
            waiting.append(node)
    # What has an effect happens in the order of the program.
    effects = [node for node in program.graph.nodes if has_effect(node)]
    before = dict(zip(effects[1:], effects, strict=False))
    while waiting:
        blocked = []
        for item in waiting:
            if isinstance(item, torch.fx.Node):
                needs = [*item.all_input_nodes, *([before[item]] if item in before else [])]
            else:
                needs = list(item[1].inputs)
            if all(need in done for need in needs):
                order.append(item)
                done.update([item] if isinstance(item, torch.fx.Node) else item[1].nodes)
            else:
                blocked.append(item)
        if len(blocked) == len(waiting):
            raise CompileError(
                "the parts of the program depend on each other: leave operators to PyTorch with "
                "torch_executed_ops"
            )
        waiting = blocked
    return order
