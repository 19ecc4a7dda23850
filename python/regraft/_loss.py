"""What weights of small integers cost: a compiled module next to its program, on the inputs that it was
exported with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram

__all__ = ["loss_on_examples"]


def loss_on_examples(module: Callable[..., Any], program: ExportedProgram) -> float | None:
    """The norm of the difference of all outputs, next to that of the outputs; ``None`` without inputs."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    with torch.no_grad():
        wanted = _tensors(program.module()(*_copied(args), **_copied(kwargs)))
        found = _tensors(module(*_copied(args), **_copied(kwargs)))
    difference = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted, strict=True)
    )
    size = sum(float(b.double().square().sum()) for b in wanted)
    return (difference / size) ** 0.5 if difference else 0.0


def _copied(values: Any) -> Any:
    """Programs may write to what they are given."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, values)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
