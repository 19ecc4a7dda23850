"""From an exported program of PyTorch to one of Regraft."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from regraft import _regraft
from regraft.errors import CompileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "call_entry",
    "digest_of",
    "import_program",
    "tensors_of",
    "ties_of",
    "without_weights",
    "writes_as_results",
]

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def import_program(program: ExportedProgram) -> _regraft.Program:
    """Translates ``program``. The values of its weights are not looked at.

    Raises:
        CompileError: with everything that has no translation.

    """
    archive = io.BytesIO()
    with warnings.catch_warnings():
        # About weights that do not fill their memory.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        bare = without_weights(program)
        # How it is called is not the importer's matter, and PyTorch cannot save every structure.
        tensors = [
            spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT
        ]
        bare._module_call_graph = [call_entry(len(program.graph_signature.user_inputs), len(tensors))]
        torch.export.save(bare, archive)
    imported = _regraft.Program.from_bytes(archive.getvalue())
    if len(imported.outputs) != len(tensors):
        # Callers would take new values of inputs for results.
        written = ", ".join(name.removesuffix(".new") for name in imported.outputs[len(tensors) :])
        raise CompileError(f"it writes to its inputs in place ({written}), which was not expected of it")
    return imported


def tensors_of(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and lifted constants of ``program`` by their fully qualified names."""
    named: dict[str, Any] = {**program.state_dict, **program.constants}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def ties_of(weights: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Names that are one tensor, where one has several."""
    groups: dict[Any, list[str]] = {}
    for name, value in weights.items():
        groups.setdefault(_identity(name, value), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def digest_of(program: ExportedProgram) -> str:
    """A digest of what ``program`` computes: operators, operands and literals, but no names, sizes or
    weights. Two exports of one model have the same; a model with another literal (``x * 0.5``, ``x * 0.7``)
    has another.
    """
    numbers = {node: index for index, node in enumerate(program.graph.nodes)}
    names = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind in _WEIGHTS
    }
    hasher = hashlib.sha256()
    for node in program.graph.nodes:
        args = torch.fx.map_arg((node.args, node.kwargs), lambda arg: f"%{numbers[arg]}")
        source = names.get(node.name, "") if node.op == "placeholder" else ""
        operation = node.op if node.op in ("placeholder", "output") else _operation(node.target)
        hasher.update(f"{operation} {source} {_literals(args)}\n".encode())
    return hasher.hexdigest()


def _operation(target: Any) -> str:
    if isinstance(target, (str, torch._ops.OpOverload)):
        return str(target)
    # The text of other functions has their address.
    return str(getattr(target, "__name__", type(target).__name__))


def _literals(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literals(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(map(_literals, value)) + "]"
    return repr(value)


def without_weights(program: ExportedProgram) -> ExportedProgram:
    """``program`` with weights of the same types that take no memory; tied ones stay tied."""
    bare = copy.copy(program)
    stand_ins = _StandIns()
    bare._state_dict = stand_ins.for_all(program.state_dict)
    bare._constants = stand_ins.for_all(program.constants)
    bare._example_inputs = None
    return bare


def writes_as_results(program: ExportedProgram) -> tuple[ExportedProgram, tuple[int, ...]]:
    """``program`` with the new values of inputs that it writes to in front of its results, taking and giving
    flat tensors; and which of the tensors of a call these are. Writes to weights are left, and show among its
    results.

    Raises:
        CompileError: when PyTorch does not express it without writes in place.

    """
    functional = program
    if _writes_to_what_it_takes(program):
        try:
            functional = program.run_decompositions({})
        except Exception as error:
            raise CompileError(
                f"it writes in place, which PyTorch does not express otherwise: {error}"
            ) from error
    signature = functional.graph_signature
    outputs = signature.output_specs
    written = [spec for spec in outputs if spec.kind == OutputKind.USER_INPUT_MUTATION]
    if not written:
        return functional, ()
    made = copy.copy(functional)
    made._graph_signature = ExportGraphSignature(
        list(signature.input_specs),
        [OutputSpec(OutputKind.USER_OUTPUT, spec.arg, None) if spec in written else spec for spec in outputs],
    )
    results = [spec for spec in outputs if spec in written or spec.kind == OutputKind.USER_OUTPUT]
    made._module_call_graph = [call_entry(len(signature.user_inputs), len(results))]
    inputs = [spec.arg for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    tensors = [arg.name for arg in inputs if isinstance(arg, TensorArgument)]
    return made, tuple(tensors.index(spec.target or "") for spec in written)


def _writes_to_what_it_takes(program: ExportedProgram) -> bool:
    """Whether it may write to its inputs in place."""
    inputs = set(program.graph_signature.user_inputs)
    taken = {
        _storage(node) for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
    }
    taken -= {None}
    return any(
        storage is None or storage in taken
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        for storage in _written_by(node)
    )


def _written_by(node: torch.fx.Node) -> Iterable[int | None]:
    """The memory that a call of an operator writes to; ``None`` where that is not known."""
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            for leaf in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(leaf, torch.fx.Node):
                    yield _storage(leaf)


def _storage(node: torch.fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def call_entry(inputs: int, outputs: int) -> ModuleCallEntry:
    """How a program is called that takes and gives flat tensors."""
    in_spec = pytree.tree_flatten((tuple(range(inputs)), {}))[1]
    out_spec = pytree.tree_flatten(tuple(range(outputs)))[1]
    return ModuleCallEntry("", ModuleCallSignature(inputs=[], outputs=[], in_spec=in_spec, out_spec=out_spec))


class _StandIns:
    """One element of memory for each weight, seen with the weight's shape."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], torch.Tensor] = {}

    def for_all(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._of(name, value) for name, value in weights.items()}

    def _of(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        key = _identity(name, value)
        if key not in self._made:
            # Without elements it must own its memory: PyTorch cannot save a view of nothing.
            self._made[key] = (
                torch.zeros(1, dtype=value.dtype).as_strided(value.shape, (0,) * value.dim())
                if value.numel()
                else torch.empty(value.shape, dtype=value.dtype)
            )
        stand_in = self._made[key]
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.Parameter(stand_in, requires_grad=False)
        return stand_in


def _identity(name: str, value: torch.Tensor) -> tuple[Any, ...]:
    """Equal for weights that are the same memory seen the same way."""
    if value.numel() == 0 or value.device.type == "meta" or _is_fake(value):
        return (name,)
    return (value.data_ptr(), value.dtype, value.shape, value.stride())


def _is_fake(value: torch.Tensor) -> bool:
    return isinstance(value, torch._subclasses.FakeTensor)


def weight_specs(program: ExportedProgram) -> Iterable[tuple[str, str, InputKind]]:
    """``(name in the graph, fully qualified name, kind)`` of each weight that the graph takes."""
    for spec in program.graph_signature.input_specs:
        if spec.kind in _WEIGHTS and spec.target is not None:
            yield spec.arg.name, spec.target, spec.kind
