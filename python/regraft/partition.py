"""Which parts of a program become engines, and which stay in PyTorch."""

from __future__ import annotations

import html
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from regraft import _regraft
from regraft._program import call_entry, import_program, weight_specs
from regraft.effects import has_effect, without_tokens
from regraft.errors import CompileError, Unsupported
from regraft.glue import Glue, run_engine

__all__ = [
    "PartitionReport",
    "Partitioned",
    "Region",
    "buffers_written",
    "partition",
    "unused_operators",
]

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
# Why nodes stay in PyTorch that could be compiled if others were not there.
_SIZES = "it computes sizes"
_BETWEEN = "it lies between parts"
_NO_PROGRAM = "PyTorch does not take it as a program"
_NUMBERS = "it needs the number"
_FOLLOWS = (_SIZES, _BETWEEN, _NO_PROGRAM, _NUMBERS)
# Attempts to find regions: each leaves at least one more node to PyTorch.
_MOST_ROUNDS = 100


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


def partition(
    program: ExportedProgram,
    *,
    min_block_size: int,
    torch_executed_ops: Collection[str],
    allow_torch: bool,
    state_outside: bool = False,
) -> Partitioned:
    """Cuts ``program`` into parts that Regraft compiles and parts that stay in PyTorch. ``state_outside``:
    buffers that it writes to are PyTorch's, and the engine takes them as inputs.

    Raises:
        CompileError: when not everything can be compiled and ``allow_torch`` is false, or when nothing can be
        cut.

    """
    used = {str(node.target) for node in program.graph.nodes}
    left_to_torch = {name for op in torch_executed_ops for name in _meant_by(op, used)}
    named = sorted(left_to_torch & used)
    if named:
        if not allow_torch:
            raise CompileError(
                "require_full_compilation and torch_executed_ops contradict each other: "
                f"the program uses {', '.join(named)}"
            )
        return _Cutter(_functional(program), min_block_size, left_to_torch).cut()
    whole = _whole(program)
    if isinstance(whole, Partitioned):
        return _with_state_outside(program, whole) if state_outside else whole
    if any(node.op not in ("placeholder", "call_function", "output") for node in program.graph.nodes):
        # Programs inside of the program, such as the branches of torch.cond.
        raise whole
    functional = _functional(program)
    again = _whole(functional)
    if isinstance(again, Partitioned):
        return _with_state_outside(functional, again) if state_outside else again
    if not allow_torch:
        raise _not_whole(functional, again, _Cutter(functional, 1, left_to_torch).cut().report)
    return _Cutter(functional, min_block_size, left_to_torch).cut()


def _with_state_outside(program: ExportedProgram, whole: Partitioned) -> Partitioned:
    """``program`` as one engine that takes the buffers that it writes to as inputs; ``whole``, which keeps
    them itself, where it writes to none or would be cut.
    """
    if not whole.regions[0].program.has_state:
        return whole
    cut = _Cutter(_functional(program), 1, set()).cut()
    return cut if cut.report.is_whole else whole


def _not_whole(program: ExportedProgram, refusal: CompileError, report: PartitionReport) -> CompileError:
    """What stands in the way of one engine: what the import of the whole program refuses, and what was found
    when it was cut, less what stays in PyTorch only because other nodes do.
    """
    first = [part for part in refusal.unsupported if part.node]
    known = {part.node for part in first}
    others = [part for part in report.in_pytorch if part.node not in known]
    own = [part for part in others if not part.reason.startswith(_FOLLOWS)]
    parts = (*first, *own) or tuple(others)
    modules = {node.name: _module_of(node) for node in program.graph.nodes}
    lines = [f"{len(parts)} node{'' if len(parts) == 1 else 's'} cannot be compiled"]
    for part in parts:
        where = f" in {modules[part.node]}" if modules.get(part.node) else ""
        lines.append(f"  {part.node}  {part.op.removeprefix('torch.ops.')}{where}: {part.reason}")
    helps = [line for line in str(refusal).splitlines() if line.strip().startswith("help:")] if first else []
    lines += [f"  {line.strip()}" for line in dict.fromkeys(helps)]
    lines.append("  help: without require_full_compilation they stay in PyTorch")
    return CompileError("\n".join(lines), parts)


def _module_of(node: torch.fx.Node) -> str:
    """The path of the module that a node is from; empty for the outermost."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _whole(program: ExportedProgram) -> Partitioned | CompileError:
    try:
        imported = import_program(program)
    except CompileError as error:
        return error
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    region = _region(imported, nodes)
    return Partitioned((region,), None, PartitionReport((region.operators,)))


def _region(imported: _regraft.Program, nodes: Iterable[torch.fx.Node]) -> Region:
    nodes = tuple(nodes)
    operators = Counter(str(node.target) for node in nodes if isinstance(node.target, torch._ops.OpOverload))
    return Region(imported, tuple(node.name for node in nodes), dict(operators))


def _functional(program: ExportedProgram) -> ExportedProgram:
    """``program`` without writes in place, which could cross the cuts.

    Operators that have no translation are expressed by others where PyTorch knows how.
    """
    known: Any = torch.export.default_decompositions()
    table = {
        op: decomposition for op, decomposition in known.items() if not _regraft.is_known(f"torch.ops.{op}")
    }
    try:
        functional: ExportedProgram = program.run_decompositions(table)
    except Exception as error:
        raise CompileError(
            "the program cannot be cut into parts: PyTorch does not express it without writes in place: "
            f"{error}"
        ) from error
    return without_tokens(functional)


def buffers_written(program: ExportedProgram) -> tuple[str, ...]:
    """Buffers that ``program``, which keeps state, writes to."""
    try:
        functional: ExportedProgram = program.run_decompositions({})
    except Exception:
        # It is compiled as it is, and any of them may be.
        return tuple(name for _, name, kind in weight_specs(program) if kind == InputKind.BUFFER)
    return _written(functional)


def _written(functional: ExportedProgram) -> tuple[str, ...]:
    mutations = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    specs = functional.graph_signature.output_specs
    return tuple(spec.target for spec in specs if spec.kind in mutations and spec.target)


def _meant_by(op: str, used: Collection[str]) -> set[str]:
    """The operators of a program that ``op`` names: itself, or those that become it when PyTorch
    decomposes them.

    Raises:
        CompileError: when there is no such operator.

    """
    name = _full_name(op)
    packet = name.rsplit(".", 1)[0]
    found = {name} & set(used) or {
        one for one in used if one.rsplit(".", 1)[0] in _DECOMPOSED.get(packet, ())
    }
    if not found and not _is_operator(name):
        raise CompileError(
            f"torch_executed_ops: PyTorch has no operator {op}\n  help: report() and dry_run() name "
            f"those of a program"
        )
    return {name} | found


def unused_operators(program: ExportedProgram, ops: Iterable[str], report: PartitionReport) -> list[str]:
    """Those of ``ops`` that ``program`` has nothing of, in no overload, as it is or cut."""
    names = {str(node.target) for node in program.graph.nodes}
    names |= {part.op.removeprefix("torch.ops.") for part in report.in_pytorch}
    used = {name.rsplit(".", 1)[0] for name in names}
    packets = dict.fromkeys(_full_name(op).rsplit(".", 1)[0] for op in ops)
    return [packet for packet in packets if used.isdisjoint((packet, *_DECOMPOSED.get(packet, ())))]


# What operators of decomposed programs are in programs as they are exported.
_DECOMPOSED = {
    "aten.convolution": ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose2d"),
    "aten.addmm": ("aten.linear",),
    "aten.mm": ("aten.linear", "aten.matmul"),
    "aten.bmm": ("aten.matmul",),
    "aten.native_layer_norm": ("aten.layer_norm",),
    "aten.native_group_norm": ("aten.group_norm",),
    "aten._native_batch_norm_legit_no_training": ("aten.batch_norm",),
    "aten._softmax": ("aten.softmax",),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("aten.scaled_dot_product_attention",),
    "aten.max_pool2d_with_indices": ("aten.max_pool2d",),
    "aten._adaptive_avg_pool2d": ("aten.adaptive_avg_pool2d",),
    "aten._to_copy": ("aten.to",),
}


def _is_operator(name: str) -> bool:
    namespace, packet, overload = name.split(".", 2) if name.count(".") >= 2 else ("", "", "")
    found = getattr(getattr(torch.ops, namespace, None), packet, None) if namespace else None
    return found is not None and (overload in found.overloads() or overload == "default")


def _full_name(op: str) -> str:
    """``aten.relu.default`` of ``torch.ops.aten.relu.default`` and of ``aten.relu``."""
    name = str(op).removeprefix("torch.ops.")
    return f"{name}.default" if name.count(".") == 1 else name


class _Cutter(OperatorSupportBase):
    def __init__(self, program: ExportedProgram, min_block_size: int, left_to_torch: set[str]) -> None:
        self.program = program
        self.min_block_size = min_block_size
        self.left_to_torch = left_to_torch
        self.refused: dict[str, Unsupported] = {}
        """Nodes that turned out not to be supported, by name."""
        self.mutated = _written(program)
        # What the program writes to is not a source of an engine: its parts take it as an input.
        self.weights = {
            name: (target, kind) for name, target, kind in weight_specs(program) if target not in self.mutated
        }

    def is_node_supported(self, submodules: Any, node: torch.fx.Node) -> bool:
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
        if not isinstance(node.target, torch._ops.OpOverload) or not _makes_tensors(node):
            return Unsupported(node.name, op, _SIZES)
        if op in self.left_to_torch:
            return Unsupported(node.name, op, "torch_executed_ops names it")
        if not _regraft.is_known(f"torch.ops.{op}"):
            return Unsupported(node.name, op, "the operator has no translation")
        for dtype in _dtypes(node):
            if dtype not in _DTYPES:
                return Unsupported(node.name, op, f"{str(dtype).removeprefix('torch.')} is not supported")
        return None

    def cut(self) -> Partitioned:
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
        partitioner = CapabilityBasedPartitioner(
            self.program.graph_module, self, allows_single_node_partition=True
        )
        order = {node: index for index, node in enumerate(self.program.graph.nodes)}
        parts = [sorted(part.nodes, key=order.__getitem__) for part in partitioner.propose_partitions()]
        return sorted(parts, key=lambda nodes: order[nodes[0]])

    def extract(self, nodes: Sequence[torch.fx.Node]) -> _Extracted | None:
        """The region of ``nodes``; ``None`` when some turned out to be unsupported."""
        copier = _Copier(self.program, nodes, self.weights)
        try:
            part = copier.copy()
            imported = import_program(part)
        except CompileError as error:
            self.refuse(nodes, error)
            return None
        except SpecViolationError as error:
            # Sizes that only running tells, which a program of its own cannot take.
            self.refuse(nodes, CompileError(f"{_NO_PROGRAM}: {error}"))
            return None
        return _Extracted(tuple(nodes), tuple(copier.inputs), tuple(copier.outputs), _region(imported, nodes))

    def refuse(self, nodes: Sequence[torch.fx.Node], error: CompileError) -> None:
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

    def assemble(self, regions: Sequence[_Extracted], small: dict[str, Unsupported]) -> Partitioned:
        glue = _glue(self.program, regions, self.mutated)
        taken = {name for region in regions for name in region.region.nodes}
        in_pytorch = []
        for node in self.program.graph.nodes:
            if (
                node.op == "call_function"
                and node.name not in taken
                and isinstance(node.target, torch._ops.OpOverload)
            ):
                reason = small.get(node.name) or self.reason(node)
                in_pytorch.append(reason or Unsupported(node.name, str(node.target), _BETWEEN))
        report = PartitionReport(tuple(r.region.operators for r in regions), tuple(in_pytorch))
        return Partitioned(tuple(r.region for r in regions), glue, report)


@dataclass(frozen=True)
class _Extracted:
    nodes: tuple[torch.fx.Node, ...]
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]
    region: Region


def _dtypes(node: torch.fx.Node) -> set[torch.dtype]:
    """Of the tensors that a node reads and makes."""
    values = pytree.tree_leaves([other.meta.get("val") for other in (node, *node.all_input_nodes)])
    return {value.dtype for value in values if isinstance(value, torch.Tensor)}


def _makes_tensors(node: torch.fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return bool(values) and all(value is None or isinstance(value, torch.Tensor) for value in values)


class _Copier:
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
        self.inputs = [arg for arg in used if arg.name not in weights and _makes_tensors(arg)]
        self.outputs = [
            node for node in nodes if any(user not in inside for user in node.users) and _is_tensor(node)
        ]
        self.graph = torch.fx.Graph()
        self.copies: dict[torch.fx.Node, torch.fx.Node] = {}

    def copy(self) -> ExportedProgram:
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
            if node.op != "call_function" or _makes_tensors(node):
                reason = f"{_NUMBERS} {node.name}, which no tensor of its part has as a size"
                users = [user.name for user in node.users if user in set(self.nodes)]
                raise CompileError(reason, tuple((name, "", reason) for name in users))
            found = self.graph.node_copy(node, self._copied)
        found.meta = dict(node.meta)
        self.copies[node] = found
        return found


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _glue(program: ExportedProgram, regions: Sequence[_Extracted], mutated: Sequence[str]) -> Glue:
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
    tensors = [node for node in placeholders if node.name not in weights and _is_tensor(node)]
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
    is_tensor = [isinstance(spec.arg, TensorArgument) for spec in specs]
    graph.output(
        [
            copies[r]
            for r, tensor in zip(results, is_tensor, strict=True)
            if tensor and isinstance(r, torch.fx.Node)
        ]
    )
    graph.eliminate_dead_code(lambda node: node.is_impure() or has_effect(node))
    graph.lint()
    return Glue(graph, [weights[node.name] for node in outside], mutated)


def _in_order(
    program: ExportedProgram, regions: Sequence[_Extracted], inside: dict[torch.fx.Node, int]
) -> list[torch.fx.Node | tuple[int, _Extracted]]:
    """Nodes outside and whole regions, each after what it reads."""
    order: list[torch.fx.Node | tuple[int, _Extracted]] = []
    done: set[torch.fx.Node] = {node for node in program.graph.nodes if node.op == "placeholder"}
    waiting: list[torch.fx.Node | tuple[int, _Extracted]] = []
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
