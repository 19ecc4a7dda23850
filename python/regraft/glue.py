"""The parts of a module that stay in PyTorch, with the calls of its engines between them."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from regraft.errors import EngineFileError

if TYPE_CHECKING:
    from regraft._compiled import Serving
    from regraft._regraft import Model

__all__ = ["Glue", "run_engine"]

# Functions on sizes that exported graphs call; nothing else is called by name from a file.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.truediv,
        operator.mod,
        operator.neg,
        operator.pow,
        operator.eq,
        operator.ne,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        operator.getitem,
        operator.and_,
        operator.or_,
        operator.not_,
        torch.sym_max,
        torch.sym_min,
        torch.sym_float,
        torch.sym_int,
        torch.sym_not,
        torch.sym_ite,
    )
}
_NAMESPACES = ("aten", "prims")
_ENUMS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def run_engine(serving: Serving, index: int, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Runs an engine of the module that is being called."""
    return serving.run_engine(index, inputs)


class Glue:
    """A graph over flat inputs: the weights that PyTorch's parts read, then the tensors of the call.

    Its results are the new values of mutated buffers, then the tensors of the module's result.
    """

    def __init__(self, graph: torch.fx.Graph, weights: Sequence[str], mutated: Sequence[str]) -> None:
        self.graph = graph
        self.weights = tuple(weights)
        """Fully qualified names of the weights, in the order of their placeholders."""
        self.mutated = tuple(mutated)
        """Fully qualified names of the buffers whose new values come first among the results."""
        self._call = torch.fx.GraphModule(torch.nn.Module(), graph)

    def __call__(self, serving: Serving, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the graph on the tensors of a call; mutated buffers get their new values."""
        kept = serving.kept
        # The program has the types that it was exported with.
        with contextlib.ExitStack() as without_autocast:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    without_autocast.enter_context(torch.autocast(device, enabled=False))
            results = self._call(serving, *(kept[name] for name in self.weights), *inputs)
        # What PyTorch's parts return may be memory of a weight, of an input or of another result, or see it.
        taken = {_memory(value) for value in (*kept.values(), *inputs)}
        count, owned = len(self.mutated), []
        for index, value in enumerate(results):
            memory = _memory(value)
            owned.append(value.clone() if memory in taken else value)
            # New values of buffers are copied: their memory is a result's when that has it, too.
            if index >= count:
                taken.add(memory)
        for name, value in zip(self.mutated, owned, strict=False):
            kept[name].copy_(value)
        return owned[count:]

    def fits(self, inputs: int, outputs: int, models: Sequence[Model]) -> bool:
        """Whether the graph takes so many tensors, gives so many results, and calls engines as they are."""
        taken = sum(node.op == "placeholder" for node in self.graph.nodes)
        given = self.graph.output_node().args[0]
        if taken != 1 + len(self.weights) + inputs or not isinstance(given, (tuple, list)):
            return False
        if not all(isinstance(result, torch.fx.Node) for result in given):
            return False
        calls = [node for node in self.graph.nodes if node.target is run_engine]
        serving = next(iter(self.graph.nodes))
        return len(given) == len(self.mutated) + outputs and all(
            call.args[0] is serving
            and type(call.args[1]) is int
            and 0 <= call.args[1] < len(models)
            and len(call.args) == 2 + len(models[call.args[1]].inputs)
            for call in calls
        )

    def to_json(self) -> dict[str, Any]:
        """The graph as JSON holds it."""
        numbers = {node: index for index, node in enumerate(self.graph.nodes)}
        nodes = [
            {
                "op": node.op,
                "name": node.name,
                "target": _target_name(node),
                "args": _encode((node.args, node.kwargs), numbers),
            }
            for node in self.graph.nodes
        ]
        return {"nodes": nodes, "weights": list(self.weights), "mutated": list(self.mutated)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Glue:
        """The inverse of :meth:`to_json`; operators are looked up among those of PyTorch, nothing is
        executed.

        Raises:
            EngineFileError: when the file names anything else.

        """
        graph = torch.fx.Graph()
        made: list[torch.fx.Node] = []
        for item in data["nodes"]:
            args, kwargs = _decode(item["args"], made)
            if item["op"] == "placeholder":
                made.append(graph.placeholder(item["name"]))
            elif item["op"] == "call_function":
                made.append(graph.call_function(_target_of(item["target"]), tuple(args), kwargs))
            elif item["op"] == "output":
                made.append(graph.output(args[0]))
            else:
                raise EngineFileError(f"expected a placeholder, a call or the output, found `{item['op']}`")
        return cls(graph, data["weights"], data["mutated"])


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _target_name(node: torch.fx.Node) -> str:
    if node.op != "call_function":
        return ""
    if node.target is run_engine:
        return "engine"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(_harmless(node.target))
    name = getattr(node.target, "__name__", str(node.target))
    if _FUNCTIONS.get(name) is not node.target:
        raise EngineFileError(f"{node.name}: the function {name} cannot be saved")
    return name


def _target_of(name: str) -> Callable[..., Any]:
    if name == "engine":
        return run_engine
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] in _NAMESPACES and all(part.isidentifier() for part in parts):
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        overload = getattr(packet, parts[2], None)
        if isinstance(overload, torch._ops.OpOverload):
            return _harmless(overload)
    raise EngineFileError(f"`{name}` is not an operator that this version of PyTorch has")


def _harmless(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """Parts in PyTorch compute tensors from tensors: they write to none, and know no files."""
    schema = op._schema
    if schema.is_mutable or any(argument.name == "filename" for argument in schema.arguments):
        raise EngineFileError(f"`{op}` does more than compute, which no saved module needs")
    return op


def _encode(value: Any, numbers: Mapping[torch.fx.Node, int]) -> Any:
    if isinstance(value, torch.fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, Mapping):
        return {"map": {key: _encode(item, numbers) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        return [_encode(item, numbers) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _ENUMS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise EngineFileError(f"an operand of type {type(value).__name__} cannot be saved")


def _decode(value: Any, made: Sequence[torch.fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, item)] = value.items()
    if kind == "node":
        if type(item) is not int or not 0 <= item < len(made):
            raise EngineFileError(f"there is no node {item!r} before")
        return made[item]
    if kind == "map":
        return {key: _decode(inner, made) for key, inner in item.items()}
    if kind == "float":
        return float.fromhex(item)
    if kind == "device":
        return torch.device(item)
    if kind in _ENUMS and str(item).isidentifier():
        found = getattr(torch, item, None)
        if isinstance(found, _ENUMS[kind]):
            return found
    raise EngineFileError(f"`{kind}` is not an operand that is known")
