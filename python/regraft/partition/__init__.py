"""Which parts of a program become engines, and which stay in PyTorch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.export import ExportedProgram

from regraft._program import import_program
from regraft.errors import CompileError
from regraft.partition.cutter import Cutter
from regraft.partition.functional import buffers_written, functionalized
from regraft.partition.operators import meant_by, unused_operators
from regraft.partition.parts import FOLLOWS, Partitioned, PartitionReport, Region, region_of

__all__ = [
    "PartitionReport",
    "Partitioned",
    "Region",
    "buffers_written",
    "partition",
    "unused_operators",
]


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
    left_to_torch = {name for op in torch_executed_ops for name in meant_by(op, used)}
    named = sorted(left_to_torch & used)
    if named:
        if not allow_torch:
            raise CompileError(
                "require_full_compilation and torch_executed_ops contradict each other: "
                f"the program uses {', '.join(named)}"
            )
        return Cutter(functionalized(program), min_block_size, left_to_torch).cut()
    whole = _whole(program)
    if isinstance(whole, Partitioned):
        return _with_state_outside(program, whole) if state_outside else whole
    if any(node.op not in ("placeholder", "call_function", "output") for node in program.graph.nodes):
        # Programs inside of the program, such as the branches of torch.cond.
        raise whole
    functional = functionalized(program)
    again = _whole(functional)
    if isinstance(again, Partitioned):
        return _with_state_outside(functional, again) if state_outside else again
    if not allow_torch:
        raise _not_whole(functional, again, Cutter(functional, 1, left_to_torch).cut().report)
    return Cutter(functional, min_block_size, left_to_torch).cut()


def _with_state_outside(program: ExportedProgram, whole: Partitioned) -> Partitioned:
    """``program`` as one engine that takes the buffers that it writes to as inputs; ``whole``, which keeps
    them itself, where it writes to none or would be cut.
    """
    if not whole.regions[0].program.has_state:
        return whole
    cut = Cutter(functionalized(program), 1, set()).cut()
    return cut if cut.report.is_whole else whole


def _not_whole(program: ExportedProgram, refusal: CompileError, report: PartitionReport) -> CompileError:
    """What stands in the way of one engine: what the import of the whole program refuses, and what was found
    when it was cut, less what stays in PyTorch only because other nodes do.
    """
    first = [part for part in refusal.unsupported if part.node]
    known = {part.node for part in first}
    others = [part for part in report.in_pytorch if part.node not in known]
    own = [part for part in others if not part.reason.startswith(FOLLOWS)]
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
    region = region_of(imported, nodes)
    return Partitioned((region,), None, PartitionReport((region.operators,)))
