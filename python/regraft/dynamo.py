"""The backend of ``torch.compile``.

.. code-block:: python

    import regraft.dynamo  # not needed where the package is installed

    fast = torch.compile(model, backend="regraft")
    with torch.inference_mode():
        y = fast(x)
        model.load_state_dict(tuned)  # or any other change of weights
        y = fast(x)  # with the new ones
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch._dynamo import register_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from regraft.errors import CompileError, InputError
from regraft.mutable import MutableModule

__all__ = ["regraft"]

# Values of numbers that a graph is compiled for; with more of them PyTorch runs it.
_MOST_NUMBERS = 8


def regraft(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Any:
    """Compiles a graph of Dynamo's at its first call.

    Weights stay live: a change of any kind is seen as :class:`regraft.MutableModule` sees it, and refitted at
    the next call. PyTorch runs the graph when gradients are asked for, when it writes to its inputs or
    weights, and, with a warning, when it cannot be compiled.

    Args:
        graph: the graph; parameters and buffers are among its inputs.
        example_inputs: its inputs when it was traced.
        options: settings of :func:`regraft.compile`, given as ``torch.compile(..., options={...})``.

    Raises:
        CompileError: when an option is unknown.
    """
    settings = dict(options or {})
    # Says at once what is wrong with the settings.
    MutableModule(nn.Identity(), **settings)
    return _Graph(graph, settings)


# PyTorch itself loads and registers the backend of an installed package, and takes no name twice.
if not entry_points(group="torch_dynamo_backends", name="regraft"):
    register_backend(compiler_fn=regraft, name="regraft")


@dataclass(frozen=True)
class _Inputs:
    """What the inputs of a graph are, by position."""

    weights: tuple[int, ...]
    tensors: tuple[int, ...]
    numbers: tuple[int, ...]
    """Numbers, some as tensors that the graph reads as numbers: it is compiled for their values."""
    sizes: dict[int, tuple[int, int]]
    """Integers that are the size of an input, given by position and axis."""
    ranges: tuple[dict[int, Any], ...]
    """For each of ``tensors`` its axes of variable size."""


class _Graph:
    """A graph with the programs that it was compiled to: one for each set of numbers."""

    def __init__(self, graph: torch.fx.GraphModule, settings: Mapping[str, Any]) -> None:
        self._graph = graph
        self._settings = settings
        self._compiled: dict[tuple[float, ...], MutableModule] = {}
        self._in_pytorch = False
        self._inputs: _Inputs | None = None
        try:
            self._inputs = _inputs_of(graph)
        except CompileError as error:
            self._give_up(error)

    def __call__(self, *args: Any) -> Any:
        if self._inputs is None or self._in_pytorch or _wants_gradients(args):
            return self._graph(*args)
        numbers = tuple(_number(args[index]) for index in self._inputs.numbers)
        mutable = self._compiled.get(numbers)
        if mutable is None:
            if len(self._compiled) == _MOST_NUMBERS:
                self._give_up(CompileError(f"it was called with more than {_MOST_NUMBERS} sets of numbers"))
                return self._graph(*args)
            made = self._made(self._inputs, args, numbers)
            if made is None:
                return self._graph(*args)
            mutable = self._compiled[numbers] = made
        lifted = mutable.module
        assert isinstance(lifted, _Lifted)
        lifted.take([args[index] for index in self._inputs.weights])
        try:
            return mutable(*(args[index] for index in self._inputs.tensors))
        except (CompileError, InputError) as error:
            self._give_up(error)
            return self._graph(*args)

    def _made(self, inputs: _Inputs, args: Sequence[Any], numbers: Sequence[float]) -> MutableModule | None:
        """What runs the graph with these numbers; ``None`` when that is PyTorch."""
        weights = [args[index] for index in inputs.weights]
        graph = _without_sizes(self._graph, inputs, numbers)
        order = sorted((*inputs.weights, *inputs.tensors))
        try:
            self._in_pytorch = _shares_memory(graph, [args[index] for index in order])
        except Exception as error:
            self._give_up(error)
        if self._in_pytorch:
            return None
        mutable = MutableModule(_Lifted(graph, weights, inputs), autograd="ignore", **self._settings)
        if any(inputs.ranges):
            mutable.set_expected_dynamic_shape_range(inputs.ranges)
        return mutable

    def _give_up(self, error: Exception) -> None:
        self._in_pytorch = True
        warnings.warn(f"regraft: a graph of torch.compile runs in PyTorch: {error}", stacklevel=4)


class _Lifted(nn.Module):
    """A graph as a module: with its weights as parameters and buffers again."""

    def __init__(self, graph: torch.fx.GraphModule, weights: Sequence[torch.Tensor], inputs: _Inputs) -> None:
        super().__init__()
        self._run = graph.forward
        self._order = [*inputs.weights, *inputs.tensors]
        self._names = [f"weight_{index}" for index in range(len(weights))]
        for name, weight in zip(self._names, weights, strict=True):
            if isinstance(weight, nn.Parameter):
                self.register_parameter(name, weight)
            else:
                self.register_buffer(name, weight)
        self.eval()

    def take(self, weights: Sequence[torch.Tensor]) -> None:
        """Holds these weights from now on."""
        for name, weight in zip(self._names, weights, strict=True):
            held = self._parameters if name in self._parameters else self._buffers
            if held[name] is not weight:
                held[name] = weight  # type: ignore[assignment]

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = [*(getattr(self, name) for name in self._names), *tensors]
        ordered = sorted(zip(self._order, given, strict=True), key=lambda item: item[0])
        return self._run(*(value for _, value in ordered))


def _wants_gradients(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _number(value: Any) -> float:
    return value.item() if isinstance(value, torch.Tensor) else value


def _placeholders(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _inputs_of(graph: torch.fx.GraphModule) -> _Inputs:
    """What the inputs of ``graph`` are.

    Raises:
        CompileError: when one is neither a tensor nor a number.
    """
    weights, tensors, numbers, integers = [], [], [], []
    nodes = _placeholders(graph)
    for index, node in enumerate(nodes):
        value = node.meta.get("example_value")
        if not isinstance(value, torch.Tensor):
            integers.append(index)
        elif node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type") or isinstance(
            value, nn.Parameter
        ):
            weights.append(index)
        elif value.dim() == 0 and node.users and all(_reads_number(user) for user in node.users):
            numbers.append(index)
        else:
            tensors.append(index)
    values = [nodes[index].meta["example_value"] for index in tensors]
    sizes = {}
    for index in integers:
        found = _size_of(nodes[index], tensors, values)
        if found is not None:
            sizes[index] = found
        elif isinstance(nodes[index].meta.get("example_value"), (int, float, torch.SymInt, torch.SymFloat)):
            numbers.append(index)
        else:
            raise CompileError(f"its input {nodes[index].name} is neither a tensor nor a number")
    return _Inputs(tuple(weights), tuple(tensors), tuple(numbers), sizes, tuple(map(_ranges, values)))


def _reads_number(node: torch.fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"


def _size_of(
    node: torch.fx.Node, tensors: Sequence[int], values: Sequence[torch.Tensor]
) -> tuple[int, int] | None:
    wanted = node.meta.get("example_value")
    if isinstance(wanted, torch.SymInt):
        for index, value in zip(tensors, values, strict=True):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
                    return index, axis
    return None


def _ranges(value: torch.Tensor) -> dict[int, Any]:
    """Axes whose sizes are symbols."""
    ranges: dict[int, Any] = {}
    for axis, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
            known = size.node.shape_env.var_to_range[size.node.expr]
            # Without limits they are infinities.
            least = int(known.lower) if known.lower.is_Integer else 0
            most = int(known.upper) if known.upper.is_Integer else None
            ranges[axis] = torch.export.Dim(str(size.node.expr), min=max(least, 1), max=most)
    return ranges


def _without_sizes(
    graph: torch.fx.GraphModule, inputs: _Inputs, numbers: Sequence[float]
) -> torch.fx.GraphModule:
    """``graph`` without the inputs that are numbers: sizes are read off tensors, other numbers are
    constants.
    """
    copied = torch.fx.GraphModule(graph, _copy(graph.graph))
    nodes = _placeholders(copied)
    kept = {index: nodes[index] for index in (*inputs.weights, *inputs.tensors)}
    first = next((node for node in copied.graph.nodes if node.op != "placeholder"), None)
    for index, node in enumerate(nodes):
        if index in inputs.sizes:
            source, axis = inputs.sizes[index]
            with copied.graph.inserting_before(first):
                size = copied.graph.call_function(torch.ops.aten.sym_size.int, (kept[source], axis))
            node.replace_all_uses_with(size)
        elif index in inputs.numbers:
            number = numbers[inputs.numbers.index(index)]
            for user in list(node.users):
                if not _reads_number(user):
                    _replace(user, node, number)
                    continue
                for reader in list(user.users):
                    _replace(reader, user, number)
                copied.graph.erase_node(user)
        if index not in kept:
            copied.graph.erase_node(node)
    copied.recompile()
    return copied


def _copy(graph: torch.fx.Graph) -> torch.fx.Graph:
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _replace(node: torch.fx.Node, value: torch.fx.Node, number: float) -> None:
    def number_for(arg: torch.fx.Node) -> Any:
        return number if arg is value else arg

    node.args, node.kwargs = torch.fx.map_arg((node.args, node.kwargs), number_for)


def _shares_memory(graph: torch.fx.GraphModule, given: Sequence[torch.Tensor]) -> bool:
    """Whether ``graph`` writes to its inputs, or gives parts of them away: found by running it without
    data.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        inputs = [mode.from_tensor(tensor) for tensor in given]
        versions = [tensor._version for tensor in inputs]
        outputs = graph(*inputs)
    memory = {tensor.untyped_storage()._cdata for tensor in inputs}
    leaves = (leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
    is_written = versions != [tensor._version for tensor in inputs]
    return is_written or any(leaf.untyped_storage()._cdata in memory for leaf in leaves)
