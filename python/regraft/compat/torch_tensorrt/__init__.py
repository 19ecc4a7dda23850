"""Torch-TensorRT's names over Regraft: code for it runs on the CPU once its import is changed.

.. code-block:: python

    import regraft.compat.torch_tensorrt as torch_tensorrt

    trt_gm = torch_tensorrt.dynamo.compile(torch.export.export(model, inputs), inputs=inputs)

What differs: engines can be refitted unless ``immutable_weights=True``; settings about GPUs and TensorRT have
no effect, and one warning names those that were given; settings that neither library knows are errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import regraft
from regraft.checks import warn
from regraft.compat.torch_tensorrt import (
    distributed,
    dynamo,
    executorch,
    fx,
    kernels,
    logging,
    runtime,
    ts,
)
from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo import MutableTorchTensorRTModule, backend
from regraft.compat.torch_tensorrt.dynamo._convert import convert_module_to_trt_engine
from regraft.compat.torch_tensorrt.enums import Device, DeviceType, EngineCapability, dtype, memory_format
from regraft.compat.torch_tensorrt.features import ENABLED_FEATURES
from regraft.compat.torch_tensorrt.files import (
    extra_files_of,
    has_engines,
    load_file,
    program_of,
    save_file,
)
from regraft.compat.torch_tensorrt.input import Input
from regraft.compat.torch_tensorrt.loaded import LoadedProgram
from regraft.compat.torch_tensorrt.runtime import (
    RuntimeSettings,
    TorchTensorRTModule,
    enable_cudagraphs,
    enable_output_allocator,
    enable_pre_allocated_outputs,
    get_cudagraphs_mode,
    get_whole_cudagraphs_mode,
    optimization_profile,
    runtime_cache,
    runtime_config,
    set_cudagraphs_mode,
    set_dynamic_shapes_kernel_strategy,
    set_multi_device_safe_mode,
    weight_streaming,
)
from regraft.compat.torch_tensorrt.settings import CompilationSettings
from regraft.errors import SettingsWarning

__all__ = [
    "ENABLED_FEATURES",
    "Device",
    "DeviceType",
    "EngineCapability",
    "Input",
    "InputType",
    "LoadedProgram",
    "MutableTorchTensorRTModule",
    "RuntimeSettings",
    "TorchTensorRTModule",
    "backend",
    "compile",
    "convert_method_to_trt_engine",
    "distributed",
    "dtype",
    "dynamo",
    "enable_cudagraphs",
    "enable_output_allocator",
    "enable_pre_allocated_outputs",
    "executorch",
    "fx",
    "get_cudagraphs_mode",
    "get_whole_cudagraphs_mode",
    "kernels",
    "load",
    "logging",
    "memory_format",
    "optimization_profile",
    "runtime",
    "runtime_cache",
    "runtime_config",
    "save",
    "set_cudagraphs_mode",
    "set_dynamic_shapes_kernel_strategy",
    "set_multi_device_safe_mode",
    "tensorrt_package_name",
    "torch_compile",
    "ts",
    "weight_streaming",
]

InputType = Input | torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""What stands for an argument."""
convert_method_to_trt_engine = convert_module_to_trt_engine
torch_compile = dynamo.torch_compile
tensorrt_package_name = ""
"""Which package TensorRT comes from: none."""
backend.backends.register()

_OF_WINDOWS = "engine files are for the machine that builds them: compile on the other one"
__getattr__ = absent(
    __name__,
    {
        "cross_compile_for_windows": _OF_WINDOWS,
        "load_cross_compiled_exported_program": _OF_WINDOWS,
        "Platform": _OF_WINDOWS,
        "function_overload_with_kwargs": "it registers operators of TorchScript, which has no frontend here",
        "RuntimeCache": "kernels that were compiled for a GPU are kept by themselves: leave it out",
        "TRTModuleNext": "compiled modules are CompiledModule, with Engine for each engine",
    },
)


def compile(
    module: torch.nn.Module | ExportedProgram,
    ir: str = "default",
    inputs: Sequence[Any] | None = None,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    config: CompilationSettings | Mapping[str, Any] | None = None,
    strict: bool = False,
    **settings: Any,
) -> Callable[..., Any]:
    """Compiles a module, or an exported program.

    Args:
        module: what to compile.
        ir: ``"dynamo"`` (the default) compiles now; ``"torch_compile"`` gives ``torch.compile(module,
            backend="regraft")``.
        inputs: an example or an :class:`Input` for each positional argument.
        arg_inputs: another name of ``inputs``.
        kwarg_inputs: the same for keyword arguments.
        config: settings, as an object or a mapping.
        strict: how ``torch.export.export`` traces the module.
        **settings: settings by keyword, which win over ``config``.

    Returns:
        A :class:`regraft.Module`; a module back in PyTorch for ``dryrun``; PyTorch's wrapper for
        ``torch_compile``.

    Raises:
        TypeError: for a setting that does not exist, with the name that was probably meant.
        ValueError: for an ``ir`` that Regraft has not, or contradicting settings.
        regraft.CompileError: when the module cannot be compiled.
    """
    if ir == "torch_compile":
        if isinstance(module, ExportedProgram):
            raise ValueError('ir="torch_compile" takes a module, not an exported program')
        return dynamo.torch_compile(module, config=config, **settings)
    if ir not in ("default", "dynamo"):
        raise ValueError(
            f'ir={ir!r}: Regraft compiles exported programs: use ir="dynamo" or ir="torch_compile"'
        )
    if not isinstance(module, ExportedProgram):
        module = dynamo.trace(module, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs, strict=strict)
        inputs = arg_inputs = kwarg_inputs = None
    return dynamo.compile(
        module, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs, config=config, **settings
    )


# Formats of Torch-TensorRT that cannot hold engines, and how the program in PyTorch comes to be one.
_OTHER_FORMATS = {
    "torchscript": "torch.jit.trace(module.exported_program().module(), inputs) is the program in PyTorch as "
    "TorchScript, for the sizes of inputs",
    "aot_inductor": "torch._inductor.aoti_compile_and_package(module.exported_program()) is a package of the "
    "program in PyTorch",
}


def save(
    module: regraft.Module | LoadedProgram | ExportedProgram | MutableTorchTensorRTModule,
    file_path: str | os.PathLike[str],
    *,
    output_format: str = "exported_program",
    inputs: Sequence[Any] | None = None,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    retrace: bool = True,
    pickle_protocol: int = 2,
    extra_files: Mapping[str, Any] | None = None,
    use_legacy_exporter: bool | None = None,
    **others: Any,
) -> None:
    """Saves a compiled module to one file. It is an exported program, too, with the weights of now:
    ``torch.export.load`` reads it, and what that gives runs in PyTorch. A frozen module is saved as its
    engines alone.

    Nothing is traced again, so example inputs, ``dynamic_shapes``, ``retrace``, ``pickle_protocol`` and
    ``use_legacy_exporter`` change nothing. ``extra_files`` are texts that are stored with the program. Other
    keywords are taken, as by Torch-TensorRT, with a warning.

    Raises:
        ValueError: for another ``output_format``, and for ``extra_files`` where there is no program.
        regraft.EngineFileError: when it cannot be written.
    """
    if others:
        warn(SettingsWarning, f"compat.torch_tensorrt: save has no {', '.join(others)}: leave it out")
    if output_format != "exported_program":
        raise ValueError(
            f"output_format={output_format!r}: compiled modules are saved as exported programs only\n"
            f"  help: {_OTHER_FORMATS.get(output_format, 'there is no other format')}"
        )
    if isinstance(module, regraft.MutableModule):
        if extra_files:
            raise ValueError("extra_files: a mutable module is saved without: save them beside it")
        MutableTorchTensorRTModule.save(module, file_path)
    elif isinstance(module, ExportedProgram):
        with open(file_path, "wb") as out:
            torch.export.save(module, out, extra_files=dict(extra_files or {}))
    else:
        saved = module.compiled if isinstance(module, LoadedProgram) else module
        save_file(saved, file_path, dict(extra_files or {}))


def load(
    file_path: str | os.PathLike[str],
    extra_files: dict[str, Any] | None = None,
    format: str | None = None,
    **kwargs: Any,
) -> LoadedProgram:
    """Loads what :func:`save` wrote, or a folder of :func:`regraft.save`. Nothing in the files is executed.
    A program without engines, such as an export of a compiled module, is compiled. The values of
    ``extra_files`` are filled in.

    Example:
        >>> model = load("compiled.ep").module()  # doctest: +SKIP

    Raises:
        ValueError: for another ``format``, and for an extra file that is not there.
        regraft.EngineFileError: when it is damaged, of another version, or built for another machine.
    """
    if format not in (None, "exported_program"):
        raise ValueError(
            f"format={format!r}: there are exported programs only: leave it out\n"
            f"  help: {_OTHER_FORMATS.get(format, 'there is no other format')}"
        )
    if extra_files:
        extra_files.update(extra_files_of(file_path, list(extra_files)))
    if Path(file_path).is_file() and not has_engines(file_path):
        program = program_of(file_path)
        if program is not None:
            return LoadedProgram(regraft.compile(program, min_block_size=1))
    return LoadedProgram(load_file(file_path))
