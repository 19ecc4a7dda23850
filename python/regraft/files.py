"""From a model in a file of another format to an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from regraft import _regraft
from regraft.checks import warn_of
from regraft.errors import CompileError
from regraft.partition import PartitionReport
from regraft.progress import Progress

__all__ = ["compile_file", "engine_options", "is_onnx"]


def is_onnx(path: Any) -> bool:
    """Whether it is the path of an ONNX model."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(".onnx")


def engine_options(settings: Mapping[str, Any], engine_cache: Any) -> dict[str, Any]:
    """What the settings of a compilation are to each of its engines."""
    return {
        "mode": settings["mode"],
        "identical": settings["identical"],
        "dtype": settings["dtype"],
        "weight_format": settings["weights"],
        "threads": settings["threads"],
        "tune": settings["tune"],
        "cache": engine_cache,
    }


def compile_file(
    path: str | os.PathLike[str], settings: Mapping[str, Any], engine_cache: Any, progress: Progress
) -> _regraft.Model:
    """The engine of an ONNX model, with the weights that it holds. Nothing of it can stay in PyTorch.

    Raises:
        CompileError: when the file is damaged, or has an operator that is not supported.

    """
    if settings["torch_executed_ops"]:
        raise CompileError(
            f"{os.fspath(path)}: torch_executed_ops: an ONNX model is compiled whole: leave it out"
        )
    progress.step("import")
    program = _regraft.Program.from_onnx(path)
    step = "engine 1 of 1"
    progress.step(step)
    model, facts = _regraft.compile(
        program,
        None,
        **engine_options(settings, engine_cache),
        observer=progress.tuning(step),
        device=settings["device"] or "cpu",
    )
    warn_of(PartitionReport(engines=({"onnx": facts["nodes"]},)), facts["evaluated"], facts["warnings"])
    return model
