"""Programs whose operators do something besides computing, such as checking a value, without the tokens by
which PyTorch keeps such operators in order: their order in the graph says it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind

from regraft.errors import CompileError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["has_effect", "without_tokens"]

_MARK = "regraft_effect"


def has_effect(node: torch.fx.Node) -> bool:
    """Whether a node of a program :func:`without_tokens` does something besides computing."""
    return _MARK in node.meta


def without_tokens(program: ExportedProgram) -> ExportedProgram:
    """``program`` with plain calls in the place of those that take and give a token. It is changed in place.

    Raises:
        CompileError: when something else than an operator has an effect.

    """
    signature = program.graph_signature
    tokens = [spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.TOKEN]
    if not tokens:
        return program
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.higher_order.with_effects:
            _replace(graph, node)
    output = graph.output_node()
    specs = signature.output_specs
    results = zip(output.args[0], specs, strict=True)
    output.args = (tuple(value for value, spec in results if spec.kind != OutputKind.TOKEN),)
    for node in reversed(list(graph.nodes)):
        is_chain = node.target in (torch.ops.higher_order.with_effects, operator.getitem)
        if not node.users and (is_chain or node.name in tokens):
            graph.erase_node(node)
    program._graph_signature = ExportGraphSignature(
        [spec for spec in signature.input_specs if spec.kind != InputKind.TOKEN],
        [spec for spec in specs if spec.kind != OutputKind.TOKEN],
    )
    program.graph_module.recompile()
    return program


def _replace(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Puts the call of the operator in the place of ``node``, for all that uses its results."""
    _, target, *args = node.args
    if not isinstance(target, torch._ops.OpOverload):
        raise CompileError(f"{node.name}: an effect of {target}, which is not an operator, is not supported")
    made: Any = node.meta.get("val")
    with graph.inserting_before(node):
        call = graph.call_function(target, tuple(args), dict(node.kwargs))
    results = len(target._schema.returns)
    values = tuple(made[1:]) if isinstance(made, (tuple, list)) else ()
    call.meta = {**node.meta, "val": values[0] if results == 1 and values else values or None, _MARK: True}
    for user in list(node.users):
        index: Any = user.args[1]
        if index == 0:
            continue
        if results == 1:
            user.replace_all_uses_with(call)
        else:
            user.args = (call, index - 1)
