"""Which device a program is compiled for, and where tensors of a call lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree

from regraft.errors import CompileError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["CPU", "device_name", "device_of_program", "moved", "place_of_results"]

CPU = torch.device("cpu")


def device_name(device: str | torch.device | int | None) -> str | None:
    """``cpu`` or ``cuda:N`` of a device as PyTorch names it; ``None`` stays that.

    Raises:
        CompileError: when engines run on no such device.

    """
    if device is None:
        return None
    try:
        named = torch.device("cuda", device) if type(device) is int else torch.device(device)
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise CompileError(f"device: there is no {device}: {first}\n  help: {_KNOWN}") from error
    if named.type not in ("cpu", "cuda"):
        raise CompileError(f"device: engines do not run on {named}\n  help: {_KNOWN}")
    return _full_name(named)


_KNOWN = "'cpu', 'cuda' and 'cuda:N' are known"


def device_of_program(program: ExportedProgram, weights: Iterable[torch.Tensor]) -> str:
    """Where a program's weights are, or the tensors that it was exported with where it has no weights.

    Raises:
        CompileError: when they are on several GPUs.

    """
    found = _gpus(weights)
    if not found:
        inputs = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
        found = _gpus(value for value in pytree.tree_leaves(list(inputs)) if isinstance(value, torch.Tensor))
    if len(found) > 1:
        raise CompileError(
            f"the program is on {' and '.join(sorted(found))}, and an engine runs on one device\n"
            "  help: move the module to one, or say device="
        )
    return found.pop() if found else "cpu"


def place_of_results(inputs: Sequence[Any], device: str) -> torch.device:
    """Where results of a call are wanted: with its tensors; on the device of the engine when it has none."""
    places = [value.device for value in inputs if isinstance(value, torch.Tensor)]
    on_gpu = next((place for place in places if place.type == "cuda"), None)
    if on_gpu is not None:
        return on_gpu
    return CPU if inputs else torch.device(device)


def moved(tensors: Sequence[torch.Tensor], place: torch.device) -> list[torch.Tensor]:
    """The tensors at ``place``: those that are there are not copied."""
    return [tensor.to(place) for tensor in tensors]


def _gpus(tensors: Iterable[torch.Tensor]) -> set[str]:
    return {_full_name(tensor.device) for tensor in tensors if tensor.device.type == "cuda"}


def _full_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    if device.index is not None:
        return f"cuda:{device.index}"
    current = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return f"cuda:{current}"
