"""``torch_tensorrt.dynamo.utils``: what code compares results with."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree

__all__ = [
    "COSINE_THRESHOLD",
    "check_module_output",
    "check_output_equal",
    "cosine_similarity",
    "get_model_device",
]

COSINE_THRESHOLD = 0.99


def cosine_similarity(gt_tensor: torch.Tensor, pred_tensor: torch.Tensor) -> float:
    """The cosine of the angle between two tensors seen as vectors; 1.0 for two without a length."""
    one, other = gt_tensor.flatten().double(), pred_tensor.flatten().double()
    if torch.equal(one, other):
        return 1.0
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0, eps=1e-12))


def check_output_equal(output1: Any, output2: Any, rtol: float = 1e-2, atol: float = 1e-2) -> bool:
    """Whether two results have the same structure, and tensors that are close."""
    one, structure = pytree.tree_flatten(output1)
    other, other_structure = pytree.tree_flatten(output2)
    if structure != other_structure:
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol, atol)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and a == b
        for a, b in zip(one, other, strict=True)
    )


def check_module_output(
    new_module: Any, refitted_module: Any, arg_inputs: Any, kwarg_inputs: Any = None
) -> bool:
    """Whether two modules give the same for a call."""
    kwargs = dict(kwarg_inputs or {})
    with torch.no_grad():
        return check_output_equal(new_module(*arg_inputs, **kwargs), refitted_module(*arg_inputs, **kwargs))


def get_model_device(module: torch.nn.Module) -> torch.device:
    """Where its first parameter or buffer is; the CPU where it has none."""
    first = next((tensor for of in (module.parameters(), module.buffers()) for tensor in of), None)
    return torch.device("cpu") if first is None else first.device
