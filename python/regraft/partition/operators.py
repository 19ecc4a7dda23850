"""The names of operators that users leave to PyTorch, and what they mean in a program."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch.export import ExportedProgram

from regraft.errors import CompileError
from regraft.partition.parts import PartitionReport

__all__ = ["meant_by", "unused_operators"]

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


def meant_by(op: str, used: Collection[str]) -> set[str]:
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


def _is_operator(name: str) -> bool:
    namespace, packet, overload = name.split(".", 2) if name.count(".") >= 2 else ("", "", "")
    found = getattr(getattr(torch.ops, namespace, None), packet, None) if namespace else None
    return found is not None and (overload in found.overloads() or overload == "default")


def _full_name(op: str) -> str:
    """``aten.relu.default`` of ``torch.ops.aten.relu.default`` and of ``aten.relu``."""
    name = str(op).removeprefix("torch.ops.")
    return f"{name}.default" if name.count(".") == 1 else name
