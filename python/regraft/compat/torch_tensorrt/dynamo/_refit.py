"""Refits, and what engines hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

import regraft
from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo._tracing import one_of, trace
from regraft.compat.torch_tensorrt.input import example_of
from regraft.compat.torch_tensorrt.loaded import LoadedProgram
from regraft.compat.torch_tensorrt.settings import CompilationSettings, to_regraft

__all__ = ["construct_refit_mapping", "refit_module_weights"]

__getattr__ = absent(
    __name__,
    {
        "get_engine_from_encoded_engine": "module.models has the engines, and regraft.Model.from_bytes "
        "reads the bytes of one",
    },
)


def refit_module_weights(
    compiled_module: regraft.Module | LoadedProgram | ExportedProgram,
    new_weight_module: Any,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    verify_output: bool = False,
    in_place: bool = False,
    use_weight_map_cache: bool = True,
    *,
    inputs: Sequence[Any] | None = None,
) -> regraft.Module:
    """:func:`regraft.refit_module_weights`, for what this package compiled or loaded.

    Args:
        compiled_module: a compiled module, or what ``load`` gave. What ``torch.export.load`` gave is a
            program, which is compiled for this.
        new_weight_module: an exported program with the new weights, or anything else that Regraft reads
            weights from.
        arg_inputs: positional arguments of one call, for ``verify_output``; also as ``inputs``.
        kwarg_inputs: keyword arguments of that call.
        verify_output: compare results with PyTorch's before anything is changed.
        use_weight_map_cache: changes nothing: which weights go where is part of an engine.
        in_place: change ``compiled_module`` itself.
        inputs: another name of ``arg_inputs``.

    Raises:
        regraft.WeightsError: with everything that does not fit; nothing is changed then.
        regraft.VerificationError: when the results differ; nothing is changed then.
    """
    if isinstance(compiled_module, ExportedProgram):
        module = regraft.compile(compiled_module, min_block_size=1)
    else:
        module = compiled_module.module() if isinstance(compiled_module, LoadedProgram) else compiled_module
    args = one_of(inputs, arg_inputs)
    return regraft.refit_module_weights(
        module,
        new_weight_module,
        arg_inputs=None if args is None else example_of(tuple(args)),
        kwarg_inputs=None if kwarg_inputs is None else example_of(dict(kwarg_inputs)),
        verify_output=verify_output,
        in_place=in_place,
    )


def construct_refit_mapping(
    module: regraft.Module | ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | None = None,
    settings: CompilationSettings | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """The slots of the engines of a module, as they are packed: the bytes (uint8) of each, by its name.

    Args:
        module: a compiled module; or a program or module, which is compiled for this.
        inputs: an example or an :class:`Input` for each argument of a module.
        settings: settings to compile it with.

    Returns:
        Slot name to bytes. With several engines, names begin with ``N/``, the number of the engine.
    """
    if not isinstance(module, regraft.Module):
        program = module if isinstance(module, ExportedProgram) else trace(module, inputs)
        module = regraft.compile(program, **to_regraft(settings or CompilationSettings()))
    several = len(module.models) > 1
    return {
        f"{number}/{name}" if several else name: np.from_dlpack(model.slot_bytes(name))
        for number, model in enumerate(module.models)
        for name, _, _ in model.slots
    }
