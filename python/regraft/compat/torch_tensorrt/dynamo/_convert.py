"""Programs and modules to the bytes of engine files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

import regraft
from regraft.compat.torch_tensorrt.dynamo._tracing import one_of, trace
from regraft.compat.torch_tensorrt.settings import (
    CompilationSettings,
    gathered,
    report_without_effect,
    to_regraft,
)

__all__ = ["convert_exported_program_to_serialized_trt_engine", "convert_module_to_trt_engine"]


def convert_exported_program_to_serialized_trt_engine(
    exported_program: ExportedProgram,
    inputs: Sequence[Any] | None = None,
    *,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    config: CompilationSettings | Mapping[str, Any] | None = None,
    lift_mutable_buffers: bool = False,
    arg_input_binding_names: Sequence[str] | None = None,
    kwarg_input_binding_names: Mapping[str, str] | None = None,
    output_binding_names: Sequence[str] | None = None,
    **settings: Any,
) -> bytes:
    """The bytes of an engine file (``.rgf``) of a whole program: ``regraft.Model.from_bytes`` reads them.

    Raises:
        ValueError: for other names of inputs and outputs than the program's, and for buffers as inputs.
        regraft.CompileError: when a part of the program would stay in PyTorch.
    """
    if arg_input_binding_names or kwarg_input_binding_names or output_binding_names:
        raise ValueError("inputs and outputs have the names of the program: export it with other names")
    if lift_mutable_buffers:
        raise ValueError("lift_mutable_buffers: engines keep the state of a program themselves: leave it out")
    chosen = gathered(config, settings)
    report_without_effect(chosen)
    one_of(inputs, arg_inputs)
    wanted = {**to_regraft(chosen), "require_full_compilation": True}
    compiled = regraft.compile(exported_program, **wanted)
    return compiled.models[0].to_bytes(compiled.mode, compiled._compiled.keep_sources)


def convert_module_to_trt_engine(
    module: torch.nn.Module,
    method_name: str = "forward",
    inputs: Sequence[Any] | None = None,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    ir: str = "default",
    **settings: Any,
) -> bytes:
    """The same for a module, which is exported with its inputs.

    Raises:
        ValueError: for another method than ``forward``.
        regraft.CompileError: when a part of the module would stay in PyTorch.
    """
    if method_name != "forward":
        raise ValueError(f"method_name={method_name!r}: modules are exported by their forward")
    program = trace(module, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs)
    return convert_exported_program_to_serialized_trt_engine(program, **settings)
