"""Programs without writes in place."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from regraft import _regraft
from regraft._program import weight_specs
from regraft.effects import without_tokens
from regraft.errors import CompileError

__all__ = ["buffers_written", "functionalized", "written"]


def functionalized(program: ExportedProgram) -> ExportedProgram:
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
    return written(functional)


def written(functional: ExportedProgram) -> tuple[str, ...]:
    """Buffers and parameters that ``functional`` returns new values of."""
    mutations = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    specs = functional.graph_signature.output_specs
    return tuple(spec.target for spec in specs if spec.kind in mutations and spec.target)
