"""An engine alone, from the bytes of its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regraft import _regraft
from regraft.compat.torch_tensorrt.settings import CompilationSettings, device_of
from regraft.errors import EngineFileError

__all__ = ["TorchTensorRTModule"]

_tensor_from = torch._C._from_dlpack


class TorchTensorRTModule(torch.nn.Module):
    """Runs the engine whose file has these bytes, such as those of
    ``convert_exported_program_to_serialized_trt_engine``.

    Args:
        serialized_engine: the bytes of an engine file (``.rgf``).
        input_binding_names: what its inputs are called, in their order.
        output_binding_names: the same for what it gives.
        name: what it is called.
        settings: what it was compiled with.
        weight_name_map: changes nothing: which weights go where is part of an engine.
        facts: others that Torch-TensorRT stores beside an engine, without effect.

    Raises:
        regraft.EngineFileError: when the bytes are not an engine, or the numbers of inputs or
            outputs differ.

    Example:
        >>> module = TorchTensorRTModule(engine, ["x"], ["y"])  # doctest: +SKIP
    """

    def __init__(
        self,
        serialized_engine: bytes,
        input_binding_names: Sequence[str] | None = None,
        output_binding_names: Sequence[str] | None = None,
        *,
        name: str = "",
        settings: CompilationSettings | None = None,
        weight_name_map: dict[Any, Any] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__()
        self.settings = settings or CompilationSettings()
        self.engine = _regraft.Model.from_bytes(
            bytes(serialized_engine), device=device_of(self.settings) or "cpu"
        )
        self.name = name
        self.weight_name_map = weight_name_map
        self.input_binding_names = _names("inputs", input_binding_names, self.engine.inputs)
        self.output_binding_names = _names("outputs", output_binding_names, self.engine.outputs)
        self.training = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What the engine gives: a tensor, or a tuple of several."""
        made = self.engine.run(inputs, _tensor_from)
        return made[0] if len(made) == 1 else tuple(made)

    def extra_repr(self) -> str:
        """The text between the parentheses of ``repr``."""
        return f"{len(self.engine.slots)} slots, {self.engine.target}"


def _names(what: str, given: Sequence[str] | None, known: Sequence[tuple[str, str]]) -> list[str]:
    if given is not None and len(given) != len(known):
        raise EngineFileError(
            f"the engine has {len(known)} {what}: expected as many names, found {len(given)}"
        )
    return [name for name, *_ in known] if given is None else list(given)
