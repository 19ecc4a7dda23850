"""What is looked at before and after compiling, so that nothing goes on in silence."""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from regraft.errors import (
    CacheWarning,
    CompileError,
    NothingCompiledWarning,
    RegraftWarning,
    SlowWarning,
    TrainingWarning,
)

if TYPE_CHECKING:
    from regraft.partition import PartitionReport

__all__ = [
    "CHECKED",
    "check_module",
    "check_names",
    "check_settings",
    "depends_on_mode",
    "dtype_name",
    "listed",
    "refuse_quantized",
    "warn",
    "warn_of",
]

_CHOICES = {
    "mode": ("refittable", "stripped", "frozen"),
    "tune": ("off", "fast", "full"),
    "keep_sources": ("embedded", "prepacked", "reference", "none"),
    "weights": (None, "int8", "int4"),
}
# Packages whose layers hold weights in forms of their own.
_QUANTIZING = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "bitsandbytes",
    "auto_gptq",
    "awq",
    "gptqmodel",
)
_Dropout = nn.modules.dropout._DropoutNd
# Arguments of ``compile`` that are no settings.
_OF_CALLS = frozenset(("program_or_module", "inputs", "kwarg_inputs", "dynamic_shapes"))


def warn(kind: type[RegraftWarning], message: str) -> None:
    """Warns where Regraft was called from."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in (
        "regraft",
        "torch",
    ):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(f"regraft: {message}", kind, stacklevel=depth)


def check_settings(**settings: Any) -> None:
    """Checks values of settings.

    Raises:
        CompileError: with what they may be.

    """
    for name, value in settings.items():
        if name in _CHOICES:
            if value not in _CHOICES[name] or isinstance(value, bool):
                choices = ", ".join(map(repr, _CHOICES[name]))
                help = (
                    "\n  help: 'fast' measures about 0.1 s for each problem, 'full' about 3 s"
                    if name == "tune"
                    else ""
                )
                raise CompileError(f"{name}: expected one of {choices}, found {value!r}{help}")
        elif value is not None and (type(value) is not int or value < 1):
            raise CompileError(f"{name}: expected a whole number from 1, found {value!r}")


CHECKED = ("mode", "tune", "keep_sources", "weights", "threads", "min_block_size")
"""Settings whose values :func:`check_settings` looks at."""


def depends_on_mode(module: nn.Module) -> bool:
    """Whether training mode may change what it computes. New layers are in training mode, and mostly none is
    meant.
    """
    if isinstance(module, _Dropout):
        return module.p > 0
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    if not type(module).__module__.startswith("torch.nn.modules.") or module._modules:
        return True
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.RReLU))


def check_module(module: nn.Module) -> None:
    """Looks at a module that is to be compiled.

    Raises:
        CompileError: when it is quantized.

    """
    refuse_quantized(module)
    modes = [name for name, part in module.named_modules() if part.training and _changes_in_training(part)]
    if modes:
        warn(
            TrainingWarning,
            f"{type(module).__name__} is compiled in training mode, where {listed(modes)} computes "
            f"something else: "
            "call .eval() first",
        )


def _changes_in_training(module: nn.Module) -> bool:
    return (
        depends_on_mode(module)
        and type(module).__module__.startswith("torch.nn.modules.")
        and not module._modules
    )


def refuse_quantized(module: nn.Module) -> None:
    """Checks that weights are tensors whose values count.

    Raises:
        CompileError: when they are quantized in a form of another library.

    """
    found = [f"{name or 'the module'} ({type(part).__name__})" for name, part in _quantized(module)]
    if found:
        raise CompileError(
            f"the module is quantized: {listed(found)} holds weights in a form of its own\n"
            "  help: compile the module as it was before it was quantized"
        )


def _quantized(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, part in module.named_modules():
        if type(part).__module__.startswith(_QUANTIZING):
            yield name, part
    for name, tensor in module.named_parameters():
        if tensor.is_quantized or _dispatches(tensor.data):
            yield name, tensor.data


def _dispatches(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor of a class that computes in its own way, such as those of torchao."""
    kind = type(tensor)
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and kind.__module__.startswith(
        "torchao"
    )


Evaluated = tuple[str, str, int, list[str], int]
"""What the reference evaluator runs: operator, dtype, how many nodes, in which modules, bytes of a run."""


def warn_of(
    report: PartitionReport, evaluated: Sequence[Evaluated], failures: Iterable[str], *, is_part: bool = False
) -> None:
    """Warnings about a compiled program."""
    for text in failures:
        warn(CacheWarning, text)
    if not report.engines and not is_part:
        reasons = [f"{part.op.removeprefix('torch.ops.aten.')}: {part.reason}" for part in report.in_pytorch]
        warn(
            NothingCompiledWarning,
            f"all of it stays in PyTorch ({listed(list(dict.fromkeys(reasons)))}): give min_block_size=1 "
            f"to compile "
            "small parts, too, or leave it uncompiled",
        )
    parts = [
        f"{count} x {op} of {dtype} ({size / 1e6:.2g} MB a run"
        + (f", in {listed(modules)})" if any(modules) else ")")
        for op, dtype, count, modules, size in sorted(evaluated, key=lambda found: -found[4])
    ]
    if parts:
        warn(
            SlowWarning,
            f"no kernel runs {listed(parts)}: the reference evaluator does, far slower. {_remedy(evaluated)}",
        )


def _remedy(evaluated: Sequence[Evaluated]) -> str:
    leave = "eave the operator to PyTorch with torch_executed_ops"
    if all(dtype == "f32" for _, dtype, *_ in evaluated):
        return f"L{leave}"
    return f"Convert the module (such as .float()), or l{leave}"


def dtype_name(dtype: Any) -> str | None:
    """What the engine calls the float that programs of f32 are computed in."""
    name = {"bfloat16": "bf16", "float16": "f16"}.get(str(dtype).removeprefix("torch."), dtype)
    if name not in (None, "bf16", "f16"):
        raise CompileError(f"dtype: expected torch.bfloat16, torch.float16 or None, found {dtype!r}")
    return cast("str | None", name)


def listed(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 others``."""
    shown = ", ".join(names[:most])
    rest = len(names) - most
    return shown if rest <= 0 else f"{shown} and {rest} other{'' if rest == 1 else 's'}"


def check_names(settings: Mapping[str, Any], compile: Callable[..., Any]) -> None:
    """Checks that ``settings`` are named as those of ``compile``, but for what it takes about one call.

    Raises:
        CompileError: with all others, and what was probably meant.

    """
    known = sorted(inspect.signature(compile).parameters.keys() - _OF_CALLS)
    unknown = []
    for name in sorted(settings.keys() - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        unknown.append(f"{name} (did you mean {close[0]}?)" if close else name)
    if unknown:
        raise CompileError(f"unknown settings: {', '.join(unknown)}\n  help: there are {', '.join(known)}")
