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
from regraft.compat.torch_tensorrt import backend, dynamo, logging, runtime
from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo import MutableTorchTensorRTModule
from regraft.compat.torch_tensorrt.dynamo._convert import convert_module_to_trt_engine
from regraft.compat.torch_tensorrt.enums import Device, DeviceType, EngineCapability, dtype, memory_format
from regraft.compat.torch_tensorrt.features import ENABLED_FEATURES
from regraft.compat.torch_tensorrt.files import has_engines, load_file, program_of, save_file
from regraft.compat.torch_tensorrt.input import Input
from regraft.compat.torch_tensorrt.loaded import LoadedProgram
from regraft.compat.torch_tensorrt.settings import CompilationSettings

__all__ = [
    "ENABLED_FEATURES",
    "Device",
    "DeviceType",
    "EngineCapability",
    "Input",
    "LoadedProgram",
    "MutableTorchTensorRTModule",
    "compile",
    "convert_method_to_trt_engine",
    "dtype",
    "dynamo",
    "load",
    "logging",
    "memory_format",
    "runtime",
    "save",
]

convert_method_to_trt_engine = convert_module_to_trt_engine
backend.register()

_OF_WINDOWS = "engine files are for the machine that builds them: compile on the other one"
_CUDA = "it is about TensorRT on a GPU"
__getattr__ = absent(
    __name__,
    {
        "cross_compile_for_windows": _OF_WINDOWS,
        "load_cross_compiled_exported_program": _OF_WINDOWS,
        "Platform": _OF_WINDOWS,
        "ts": "TorchScript has no frontend here: export the module with torch.export",
        "fx": "the FX frontend has none here: export the module with torch.export",
        "distributed": "a module runs on one machine",
        "executorch": "engines are run by regraft alone",
        "kernels": _CUDA,
        "optimization_profile": "one engine serves the whole range of its sizes: leave profiles out",
        "RuntimeCache": _CUDA,
        "runtime_cache": _CUDA,
        "RuntimeSettings": _CUDA,
        "runtime_config": _CUDA,
        "set_dynamic_shapes_kernel_strategy": _CUDA,
        "TorchTensorRTModule": "compiled modules are CompiledModule, with Engine for each engine",
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
    **settings: Any,
) -> None:
    """Saves a compiled module to one file. It is an exported program, too, with the weights of now:
    ``torch.export.load`` reads it, and what that gives runs in PyTorch. A frozen module is saved as its
    engines alone.

    Nothing is traced again, so example inputs, ``dynamic_shapes``, ``retrace`` and ``pickle_protocol``
    change nothing.

    Raises:
        ValueError: for another ``output_format``.
        regraft.EngineFileError: when it cannot be written.
    """
    if output_format != "exported_program":
        raise ValueError(
            f"output_format={output_format!r}: compiled modules are saved as exported programs: leave it out"
        )
    if isinstance(module, regraft.MutableModule):
        MutableTorchTensorRTModule.save(module, file_path)
    elif isinstance(module, ExportedProgram):
        with open(file_path, "wb") as out:
            torch.export.save(module, out)
    else:
        save_file(module.compiled if isinstance(module, LoadedProgram) else module, file_path)


def load(file_path: str | os.PathLike[str], extra_files: Any = None, **kwargs: Any) -> LoadedProgram:
    """Loads what :func:`save` wrote, or a folder of :func:`regraft.save`. Nothing in the files is executed.
    A program without engines, such as an export of a compiled module, is compiled.

    Example:
        >>> model = load("compiled.ep").module()  # doctest: +SKIP

    Raises:
        regraft.EngineFileError: when it is damaged, of another version, or built for another machine.
    """
    if Path(file_path).is_file() and not has_engines(file_path):
        program = program_of(file_path)
        if program is not None:
            return LoadedProgram(regraft.compile(program, min_block_size=1))
    return LoadedProgram(load_file(file_path))
