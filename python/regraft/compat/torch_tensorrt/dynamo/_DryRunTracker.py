"""What a dry run finds out, and how it is shown."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from regraft.compat.torch_tensorrt.dynamo.observer import observable
from regraft.compat.torch_tensorrt.settings import CompilationSettings
from regraft.inputs import InputTypes
from regraft.partition import PartitionReport

__all__ = ["DryRunTracker", "PerSubgraphData", "dryrun_stats_display", "tracked"]

_log = logging.getLogger(__name__)

# Why nodes stay in PyTorch that engines could compute.
_POSSIBLE = ("a part of fewer than", "it lies between")


@dataclass
class PerSubgraphData:
    """One engine."""

    subgraph_name: str = ""
    subgraph_op_count: int = 0


@dataclass
class DryRunTracker:
    """What would be compiled."""

    total_ops_in_graph: int = 0
    supported_ops_in_graph: int = 0
    input_shapes: list[Any] = field(default_factory=list)
    """With ``None`` for sizes that may change."""
    input_dtypes: list[str] = field(default_factory=list)
    per_subgraph_data: list[PerSubgraphData] = field(default_factory=list)
    tensorrt_graph_count: int = 0
    """How many engines there would be."""
    compilation_settings: CompilationSettings = field(default_factory=CompilationSettings)
    unsupported_ops: dict[str, int] = field(default_factory=dict)
    """Operators that stay in PyTorch, and how often."""
    to_run_in_torch: list[str] = field(default_factory=list)
    """All nodes that stay in PyTorch, with the reason."""
    report: PartitionReport = field(default_factory=PartitionReport)


def tracked(
    program: ExportedProgram, report: PartitionReport, settings: CompilationSettings
) -> DryRunTracker:
    """The report of a dry run in this form."""
    inputs = InputTypes.of(program).inputs
    left = [part for part in report.in_pytorch if not part.reason.startswith(_POSSIBLE)]
    total = sum(sum(operators.values()) for operators in report.engines) + len(report.in_pytorch)
    return DryRunTracker(
        total_ops_in_graph=total,
        supported_ops_in_graph=total - len(left),
        input_shapes=[tuple(size if isinstance(size, int) else None for size in one.shape) for one in inputs],
        input_dtypes=[one.dtype for one in inputs],
        per_subgraph_data=[
            PerSubgraphData(f"engine {index}", sum(operators.values()))
            for index, operators in enumerate(report.engines)
        ],
        tensorrt_graph_count=len(report.engines),
        compilation_settings=settings,
        unsupported_ops=dict(Counter(_full(part.op) for part in left)),
        to_run_in_torch=[f"{part.node}, {_full(part.op)}: {part.reason}" for part in report.in_pytorch],
        report=report,
    )


@observable()
def dryrun_stats_display(dryrun_tracker: DryRunTracker, dryrun_enabled: bool | str) -> None:
    """Prints the report, or writes it to the file that ``dryrun_enabled`` names; logs it for ``False``."""
    text = str(dryrun_tracker.report)
    if isinstance(dryrun_enabled, str):
        Path(dryrun_enabled).write_text(text + "\n")
    elif dryrun_enabled:
        print(text)
    else:
        _log.debug("%s", text)


def _full(op: str) -> str:
    return f"torch.ops.{op.removeprefix('torch.ops.')}"
