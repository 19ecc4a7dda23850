"""Graphs of ``torch.compile`` taken apart: weights, inputs, and results that only PyTorch can give."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.utils._pytree as pytree
from torch.export import Dim

__all__ = ["Cut", "CutError", "cut", "number", "numbers_of"]

# What makes another view of memory, or a size, and writes nothing.
_VIEWS = frozenset(
    (
        "add",
        "chunk",
        "contiguous",
        "detach",
        "diagonal",
        "dim",
        "expand",
        "expand_as",
        "flatten",
        "floordiv",
        "getitem",
        "item",
        "mod",
        "movedim",
        "mul",
        "narrow",
        "neg",
        "numel",
        "permute",
        "pow",
        "reshape",
        "select",
        "size",
        "split",
        "squeeze",
        "sub",
        "swapaxes",
        "sym_max",
        "sym_min",
        "t",
        "tensor_split",
        "to",
        "transpose",
        "truediv",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
    )
)
# What turns gradients on and off in a graph.
_GRAD_MODES = frozenset(("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode"))
_AUTOCAST = frozenset(("_enter_autocast", "_exit_autocast"))


class CutError(Exception):
    """Why PyTorch runs a graph."""


@dataclass(frozen=True)
class Cut:
    """What is around the module that a graph is compiled as."""

    weights: tuple[str, ...]
    """Names of its weights."""
    places: tuple[int, ...]
    """Where the first of these weights are among the arguments of the graph."""
    constants: tuple[torch.Tensor, ...]
    """The other weights: tensors of the graph itself."""
    inputs: tuple[int, ...]
    """Where the inputs of the module are among the arguments."""
    dynamic_shapes: tuple[dict[int, Any] | None, ...]
    """For each input of the module its axes that may change."""
    orders: tuple[tuple[int, ...] | None, ...]
    """For each result of the module the order of its axes in memory, where that is not theirs."""
    rest: torch.fx.GraphModule | None
    """Takes the arguments of the graph and the results of the module, and gives those of the graph."""

    def weights_of(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The weights of a call, in the order of ``weights``."""
        return [*[args[place] for place in self.places], *self.constants]

    def inputs_of(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The inputs of the module in a call."""
        return [args[place] for place in self.inputs]

    def results_of(self, made: Sequence[torch.Tensor], args: Sequence[Any]) -> tuple[Any, ...]:
        """The results of the graph from those of the module."""
        made = [
            tensor if order is None else _in_order(tensor, order)
            for tensor, order in zip(made, self.orders, strict=True)
        ]
        return tuple(made) if self.rest is None else tuple(self.rest(*args, *made))


def numbers_of(gm: torch.fx.GraphModule) -> tuple[int, ...]:
    """Where among the arguments of ``gm`` numbers are that are not sizes of tensors; some are tensors that it
    reads as numbers.
    """
    return tuple(place for place, node in enumerate(_placeholders(gm)) if node.users and _is_number(gm, node))


def number(value: Any) -> Any:
    """The number that an argument is."""
    return value.item() if isinstance(value, torch.Tensor) else value


def cut(gm: torch.fx.GraphModule, args: Sequence[Any]) -> tuple[torch.fx.GraphModule, Cut] | None:
    """Takes ``gm`` apart as it is called with ``args``; ``None`` when it computes nothing.

    The module takes the tensors of the call that are not weights, and gives tensors in memory of their own.
    Numbers are compiled in.

    Raises:
        CutError: when PyTorch must run it.

    """
    return _Cutter(gm, args).cut()


class _Cutter:
    def __init__(self, gm: torch.fx.GraphModule, args: Sequence[Any]) -> None:
        self.gm = gm
        self.args = args
        self.nodes = list(gm.graph.nodes)
        self.placeholders = _placeholders(gm)
        self.outputs = [*pytree.tree_leaves(gm.graph.output_node().args[0])]

    def cut(self) -> tuple[torch.fx.GraphModule, Cut] | None:
        self.check()
        made, later = self.split()
        if not made:
            return None
        places = {node: place for place, node in enumerate(self.placeholders) if _is_tensor(node)}
        written = self.written()
        weights = {n: place for n, place in places.items() if _is_weight(n) and n not in written}
        numbers = {node: number(self.args[place]) for node, place in self.numbers()}
        inputs = {node: p for node, p in places.items() if node not in weights and node not in numbers}
        held = self.held()
        constants = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        held.update((node.name, _own(self.args[place])) for node, place in weights.items())
        module = torch.fx.GraphModule(held, self.computing(weights, inputs, numbers, made))
        return module.eval(), Cut(
            weights=(*(node.name for node in weights), *constants),
            places=tuple(weights.values()),
            constants=tuple(constants.values()),
            inputs=tuple(inputs.values()),
            dynamic_shapes=tuple(_dynamic(node) for node in inputs),
            orders=tuple(map(_order, made)),
            rest=torch.fx.GraphModule({}, self.rest(made)) if later else None,
        )

    def written(self) -> set[torch.fx.Node]:
        """Arguments that are written to in place."""
        memory = {storage for node in self.nodes if _writes(node) for storage in _storages(node.args[0])}
        return {node for node in self.placeholders if not memory.isdisjoint(_storages(node))}

    def numbers(self) -> Iterator[tuple[torch.fx.Node, int]]:
        return ((self.placeholders[place], place) for place in numbers_of(self.gm))

    def check(self) -> None:
        """Whether what the graph is called with, and what it sets, is within reach."""
        for node, value in zip(self.placeholders, self.args, strict=True):
            if isinstance(value, torch.Tensor):
                _check_tensor(node, value)
        for node in self.nodes:
            name = _name(node)
            if name in _AUTOCAST:
                raise CutError("it sets autocast")
            if name in _GRAD_MODES and (name != "_set_grad_enabled" or node.args[0] is not False):
                raise CutError("it turns gradients on")

    def held(self) -> dict[str, Any]:
        """What the graph refers to besides its arguments."""
        targets = {str(node.target) for node in self.nodes if node.op in ("get_attr", "call_module")}
        return {target: _attribute(self.gm, target) for target in sorted(targets)}

    # Results

    def split(self) -> tuple[list[torch.fx.Node], bool]:
        """The nodes that are to be computed, and whether the results of the graph are anything else.

        Tensors that share memory with arguments or with each other must do so afterwards, too: they are made
        of the argument, or of one tensor.
        """
        given = {storage for node in self.nodes if _is_given(node) for storage in _storages(node)}
        first: dict[int, torch.fx.Node] = {}
        for node in self.nodes:
            for storage in _storages(node) if _is_tensor(node) else ():
                first.setdefault(storage, node)
        of_storage: dict[int, list[torch.fx.Node]] = {}
        for node in self.outputs:
            if isinstance(node, torch.fx.Node) and _is_tensor(node):
                (storage,) = _storages(node)
                if storage not in given:
                    of_storage.setdefault(storage, []).append(node)
        made = [nodes[0] if len(set(nodes)) == 1 else first[storage] for storage, nodes in of_storage.items()]
        return made, made != self.outputs

    def rest(self, made: Sequence[torch.fx.Node]) -> torch.fx.Graph:
        """The graph from arguments and what was made to the results."""
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in [*self.placeholders, *made]:
            copies[node] = graph.placeholder(node.name)
        wanted = {node for node in self.outputs if isinstance(node, torch.fx.Node)}
        pending = [node for node in wanted if node not in copies]
        needed: set[torch.fx.Node] = set()
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                before = node.all_input_nodes[:1] if _writes(node) else node.all_input_nodes
                pending += [arg for arg in before if arg not in copies]
        memory = {storage for node in copies for storage in _storages(node)}
        for node in self.nodes:
            if node in needed and _writes(node):
                # It was written to before.
                copies[node] = copies[node.args[0]]
            elif node in needed:
                if not _makes_view(node):
                    raise CutError(f"its results share memory through {_name(node)}")
                if not memory.issuperset(_storages(node)):
                    raise CutError(f"results that share memory depend on what {_name(node)} computes")
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(torch.fx.map_arg(tuple(self.outputs), copies.__getitem__))
        return graph

    # Computation

    def computing(
        self,
        weights: Collection[torch.fx.Node],
        inputs: Collection[torch.fx.Node],
        numbers: Mapping[torch.fx.Node, Any],
        made: Sequence[torch.fx.Node],
    ) -> torch.fx.Graph:
        """The graph with weights as attributes, sizes read off inputs, numbers as constants, and tensors as
        results.
        """
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, Any] = {node: graph.placeholder(node.name) for node in inputs}
        copies.update(numbers)
        for node in self.placeholders:
            if node in weights:
                copies[node] = graph.get_attr(node.name)
            elif node not in copies and node.users:
                source, axis = _size(node, inputs) or _not_compiled(node)
                copies[node] = graph.call_method("size", (copies[source], axis))
        for node in self.nodes:
            if node.op in ("placeholder", "output") or _name(node) in _GRAD_MODES:
                continue
            if _name(node) == "item" and node.args[0] in numbers:
                copies[node] = copies[node.args[0]]
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in made))
        return graph


def _placeholders(gm: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def _is_number(gm: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    value = _value(node)
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and all(_name(user) == "item" for user in node.users)
    tensors = [other for other in _placeholders(gm) if _is_tensor(other) and not _is_weight(other)]
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and _size(node, tensors) is None


def _size(node: torch.fx.Node, tensors: Iterable[torch.fx.Node]) -> tuple[torch.fx.Node, int] | None:
    """The tensor and the axis whose size a number is."""
    wanted = _value(node)
    for source in tensors:
        for axis, size in enumerate(_value(source).shape):
            if _is_symbolic(wanted) and _is_symbolic(size) and size.node.expr == wanted.node.expr:
                return source, axis
    return None


def _not_compiled(node: torch.fx.Node) -> NoReturn:
    raise CutError(f"it takes {node.name}, which is neither a tensor nor a number")


def _is_weight(node: torch.fx.Node) -> bool:
    """Whether dynamo found a tensor in a module rather than among the arguments of a call."""
    value, facts = _value(node), node.meta.get("tensor_dict", {})
    is_of_module = isinstance(value, torch.nn.Parameter) or "_dynamo_static_input_type" in facts
    return is_of_module and not any(map(_is_symbolic, value.shape))


def _own(weight: torch.Tensor) -> torch.Tensor:
    """What can be exported: tensors made in inference mode cannot."""
    return weight.clone() if weight.is_inference() else weight


def _check_tensor(node: torch.fx.Node, value: torch.Tensor) -> None:
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise CutError(f"{node.name} is a {type(value).__name__}")
    if value.device.type not in ("cpu", "cuda"):
        raise CutError(f"{node.name} is on {value.device}, where no engine runs")
    if value.layout != torch.strided:
        raise CutError(f"{node.name} is {value.layout}")


def _attribute(gm: torch.fx.GraphModule, target: str) -> Any:
    found: Any = gm
    for name in target.split("."):
        found = getattr(found, name)
    return found


def _name(node: torch.fx.Node) -> str:
    """Of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _makes_view(node: torch.fx.Node) -> bool:
    is_call = node.op in ("call_function", "call_method") and "out" not in node.kwargs
    return is_call and _name(node) in _VIEWS


def _writes(node: torch.fx.Node) -> bool:
    """Whether it writes to its first argument, and gives that."""
    name = _name(node)
    in_place = node.op in ("call_function", "call_method") and name.endswith("_") and name[-2:-1] != "_"
    return in_place and bool(node.args) and isinstance(node.args[0], torch.fx.Node)


def _value(node: torch.fx.Node) -> Any:
    return node.meta.get("example_value")


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(_value(node), torch.Tensor)


def _is_given(node: torch.fx.Node) -> bool:
    return node.op in ("placeholder", "get_attr")


def _storages(node: torch.fx.Node) -> Iterator[int]:
    """Which memory the tensors of a node are in."""
    for value in pytree.tree_leaves(_value(node)):
        if isinstance(value, torch.Tensor):
            try:
                yield value.untyped_storage()._cdata
            except NotImplementedError as error:
                # Under vmap and the like.
                raise CutError(f"{node.name} is a tensor within a transformation of functions") from error


def _is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt)


def _dynamic(node: torch.fx.Node) -> dict[int, Any] | None:
    axes = [axis for axis, size in enumerate(_value(node).shape) if _is_symbolic(size)]
    return dict.fromkeys(axes, Dim.AUTO) or None


def _order(node: torch.fx.Node) -> tuple[int, ...] | None:
    """The axes from the one with the largest stride to the one with the smallest, ``None`` if in order."""
    value = _value(node)
    order = sorted(range(value.dim()), key=lambda axis: -_hint(value.stride(axis)))
    axes = [axis for axis in order if not isinstance(value.shape[axis], int) or value.shape[axis] != 1]
    return None if axes == sorted(axes) else tuple(order)


def _hint(size: Any) -> int:
    return int(size.node.hint) if _is_symbolic(size) else int(size)


def _in_order(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
