"""Weights of one module into the engines of another."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch.export import ExportedProgram

from regraft import _regraft
from regraft._program import digest_of
from regraft.errors import VerificationError, WeightsError
from regraft.kept import type_of
from regraft.module import Module
from regraft.progress import Progress

__all__ = ["refit_module_weights", "weights_of"]

# Largest difference of an output from PyTorch's, relative to its largest element.
_TOLERANCE = 1e-4
# Refits of less show no progress.
_QUICK_BYTES = 500_000_000


def refit_module_weights(
    compiled_module: Module,
    new_weight_module: ExportedProgram
    | torch.nn.Module
    | Mapping[str, Any]
    | _regraft.StateDict
    | str
    | PathLike[str],
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    verify_output: bool = False,
    in_place: bool = False,
    strict: bool = True,
    key: str | None = None,
    rename: Mapping[str, str] | None = None,
    constants: Collection[str] | str | None = None,
) -> Module:
    """Gives a compiled module the weights of another module, without tracing or compiling again.

    Args:
        compiled_module: what :func:`regraft.compile` made.
        new_weight_module: an exported program or module of the same architecture, a state dict, or a weight
            file (safetensors, ``.pt``, ``.bin``, ``.pt2``, ONNX, or the index of shards).
        arg_inputs: positional arguments of one call, for ``verify_output``.
        kwarg_inputs: keyword arguments of that call.
        verify_output: compare the results of that call with PyTorch's (of a program or module) or the
            reference evaluator's (of weights alone) before anything is changed.
        in_place: change ``compiled_module`` itself; otherwise it keeps its weights, and the module returned
            shares all memory that is the same.
        strict: ``False`` ignores names that the program does not have, and keeps weights that are not given.
        key: the key of a checkpoint that the weights are under, where it has several.
        rename: prefixes of names of the weights, with what they are called here.
        constants: names of non-persistent buffers and constants that a state dict or file may change
            (``"all"``: all that are given). Those of a program or module are always taken.

    Returns:
        The module with the new weights: ``compiled_module`` itself when ``in_place``.

    Raises:
        WeightsError: with everything that does not fit; nothing is changed then.
        VerificationError: when the results differ; nothing is changed then.

    """
    weights = weights_of(new_weight_module, key)
    is_module = isinstance(new_weight_module, (ExportedProgram, torch.nn.Module))
    naming: dict[str, Any] = {
        "strict": strict,
        "rename": rename,
        # What a program or module computes with is its own.
        "constants": "all" if is_module else constants,
    }
    if isinstance(new_weight_module, ExportedProgram):
        _check_same_program(compiled_module, new_weight_module)
    args, kwargs = tuple(arg_inputs or ()), dict(kwarg_inputs or {})
    target = compiled_module if in_place else compiled_module.fork()
    # Half a gigabyte takes far less than a second; an observer would be a good part of a small refit.
    quick = not verify_output and target.memory()["slots"] < _QUICK_BYTES
    with Progress("refit", quick=quick) as progress:
        samples = None
        if verify_output and is_module:
            trial = compiled_module.fork()
            trial.refit(weights, **naming)
            _verify(trial, new_weight_module, args, kwargs)
        elif verify_output:
            samples = compiled_module._compiled.convention.flatten(args, kwargs)
        target.refit(weights, verify=samples, observer=progress.observer, **naming)
    return target


def weights_of(source: Any, key: str | None = None) -> Mapping[str, Any] | _regraft.StateDict:
    """Tensors by name of anything that has weights.

    Raises:
        WeightsError: when it has none, or the file cannot be read.

    """
    if isinstance(source, ExportedProgram):
        constants = {
            name: value for name, value in source.constants.items() if isinstance(value, torch.Tensor)
        }
        return {**source.state_dict, **constants}
    if isinstance(source, torch.nn.Module):
        named: dict[str, torch.Tensor] = dict(source.named_parameters(remove_duplicate=False))
        named.update(source.named_buffers(remove_duplicate=False))
        return named
    if isinstance(source, (Mapping, _regraft.StateDict)):
        return source
    if isinstance(source, (str, PathLike)):
        return _regraft.StateDict.open(source, key)
    found = type(source).__name__
    raise WeightsError(
        f"expected an exported program, a module, a state dict or a weight file, found {found}"
    )


def _check_same_program(module: Module, program: ExportedProgram) -> None:
    if digest_of(program) != module._compiled.digest:
        raise WeightsError(
            "the new program computes something else than the compiled one: operators or literals differ\n"
            "  help: compile it; or, when only its weights are wanted, give its state_dict"
        )


def _verify(module: Module, reference: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    callable_reference = reference.module() if isinstance(reference, ExportedProgram) else reference
    if module._compiled.overwritten:
        # The second call must find what the first one found.
        args, kwargs = copy.deepcopy((args, kwargs))
        other_args, other_kwargs = copy.deepcopy((args, kwargs))
    else:
        other_args, other_kwargs = args, kwargs
    with torch.no_grad():
        # First the compiled module, which says what is wrong with a call.
        found = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
        expected = torch.utils._pytree.tree_leaves(callable_reference(*other_args, **other_kwargs))
    if len(expected) != len(found):
        raise VerificationError(
            f"PyTorch has {len(expected)} outputs, the compiled module {len(found)}; nothing was changed"
        )
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        problem = _difference(a, b)
        if problem is not None:
            raise VerificationError(f"output {index} differs from PyTorch's{problem}; nothing was changed")


def _difference(expected: Any, found: Any) -> str | None:
    """In which way two outputs differ."""
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        same = type(expected) is type(found) and expected == found
        return None if same else f": {expected!r}, found {found!r}"
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f" in type: {type_of(expected)}, found {type_of(found)}"
    if not expected.numel() or torch.equal(expected, found):
        return None
    largest = expected.abs().max().item() if expected.dtype != torch.bool else 1.0
    difference = (expected.double() - found.double()).abs().max().item()
    # Written so that a NaN on one side is a difference.
    if difference <= _TOLERANCE * largest:
        return None
    return f" by {difference:.1e}, its largest element is {largest:.1e}"
