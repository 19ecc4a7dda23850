"""``torch_tensorrt.dynamo``: compile, refit and mutable modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram

import regraft
from regraft._program import without_weights
from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.cache import BaseEngineCache, DiskEngineCache
from regraft.compat.torch_tensorrt.compiled import CompiledModule
from regraft.compat.torch_tensorrt.dynamo import backend, lowering, partitioning, runtime, utils
from regraft.compat.torch_tensorrt.dynamo._convert import (
    convert_exported_program_to_serialized_trt_engine,
)
from regraft.compat.torch_tensorrt.dynamo._DryRunTracker import dryrun_stats_display, tracked
from regraft.compat.torch_tensorrt.dynamo._mutable import MutableTorchTensorRTModule
from regraft.compat.torch_tensorrt.dynamo._refit import construct_refit_mapping, refit_module_weights
from regraft.compat.torch_tensorrt.dynamo._tracing import one_of, trace
from regraft.compat.torch_tensorrt.input import example_of
from regraft.compat.torch_tensorrt.settings import (
    CompilationSettings,
    for_torch_compile,
    gathered,
    report_without_effect,
    to_regraft,
)
from regraft.compiling import Traced

__all__ = [
    "BaseEngineCache",
    "CompilationSettings",
    "DiskEngineCache",
    "MutableTorchTensorRTModule",
    "backend",
    "compile",
    "construct_refit_mapping",
    "convert_exported_program_to_serialized_trt_engine",
    "export",
    "lowering",
    "partitioning",
    "refit_module_weights",
    "runtime",
    "torch_compile",
    "trace",
    "utils",
]


__getattr__ = absent(
    __name__,
    {
        "cross_compile_for_windows": "engine files are for the machine that builds them",
        "save_cross_compiled_exported_program": "engine files are for the machine that builds them",
        "load_cross_compiled_exported_program": "engine files are for the machine that builds them",
        "sanitized_torch_version": "torch.__version__ says it",
        "SourceIR": "modules are compiled as exported programs",
        "Debugger": "regraft compile --dump-dir shows every stage, and module.report() what stays in PyTorch",
    },
)


def compile(
    exported_program: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | None = None,
    *,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    config: CompilationSettings | Mapping[str, Any] | None = None,
    **settings: Any,
) -> regraft.Module | torch.nn.Module:
    """Compiles an exported program (or a module, which is exported first).

    Args:
        exported_program: what to compile. It knows its inputs: examples are needed for modules only.
        inputs: an example or an :class:`Input` for each positional argument.
        arg_inputs: another name of ``inputs``.
        kwarg_inputs: the same for keyword arguments.
        config: settings, as an object or a mapping.
        **settings: settings by keyword, which win over ``config``: those of :class:`CompilationSettings`.

    Returns:
        The compiled module, with a child ``_run_on_acc_N`` for each engine. For ``dryrun`` the program as a
        module of PyTorch: what would be compiled is printed, or written to the file that ``dryrun`` names.

    Raises:
        TypeError: for a setting that does not exist, with the name that was probably meant.
        ValueError: when settings, or ``inputs`` and ``arg_inputs``, contradict each other.
        regraft.CompileError: when the program cannot be compiled.
    """
    chosen = gathered(config, settings)
    given = one_of(inputs, arg_inputs)
    report_without_effect(chosen)
    if not isinstance(exported_program, ExportedProgram):
        exported_program = trace(exported_program, given, kwarg_inputs=kwarg_inputs)
    if chosen.dryrun:
        return _dry_run(exported_program, chosen)
    module = regraft.compile(Traced(exported_program, state_outside=True), **to_regraft(chosen))
    module._compiled = replace(module._compiled, program=without_weights(exported_program))
    return CompiledModule.of(module, chosen)


def torch_compile(
    module: torch.nn.Module, *, config: CompilationSettings | Mapping[str, Any] | None = None, **settings: Any
) -> Callable[..., Any]:
    """``torch.compile`` with Regraft as the backend, and the same settings as :func:`compile`. As with
    Torch-TensorRT, results require no gradient.

    Raises:
        ValueError: for ``immutable_weights=True`` and others that cannot be: weights stay live.
    """
    from regraft.dynamo import regraft as backend

    chosen = gathered(config, settings)
    wanted = for_torch_compile(chosen)
    report_without_effect(chosen, is_live=True)
    compiled: Callable[..., Any] = torch.compile(module, backend=backend, options=wanted)
    return compiled


def export(
    gm: CompiledModule,
    *,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    cross_compile_module: bool = False,
    use_legacy_exporter: bool = False,
) -> ExportedProgram:
    """The program of a compiled module, with the weights of now: what it gives runs in PyTorch.

    Args:
        gm: what :func:`compile` gave.
        arg_inputs: positional arguments of one call, to export it with others than it was compiled with.
        kwarg_inputs: keyword arguments of that call.
        dynamic_shapes: which sizes may change then, as ``torch.export.export`` takes it.
        cross_compile_module: must be False.
        use_legacy_exporter: changes nothing.

    Raises:
        ValueError: for ``cross_compile_module``.
        regraft.CompileError: for a frozen module, and one that was loaded without its program.
    """
    if cross_compile_module:
        raise ValueError("cross_compile_module: engine files are for the machine that builds them")
    if arg_inputs is None and kwarg_inputs is None:
        return gm.exported_program()
    args = example_of(tuple(one_of(None, arg_inputs) or ()))
    kwargs = example_of(dict(kwarg_inputs or {}))
    return torch.export.export(gm, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def _dry_run(program: ExportedProgram, settings: CompilationSettings) -> torch.nn.Module:
    wanted = to_regraft(settings)
    report = regraft.dry_run(
        program, min_block_size=wanted["min_block_size"], torch_executed_ops=wanted["torch_executed_ops"]
    )
    dryrun_stats_display(tracked(program, report, settings), settings.dryrun)
    return program.module()
