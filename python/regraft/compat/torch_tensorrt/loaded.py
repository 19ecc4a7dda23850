"""What was loaded, in the form that code for Torch-TensorRT expects."""

from __future__ import annotations

from dataclasses import dataclass

import regraft
from regraft.compat.torch_tensorrt.compiled import CompiledModule
from regraft.compat.torch_tensorrt.settings import from_regraft

__all__ = ["LoadedProgram"]


@dataclass(frozen=True)
class LoadedProgram:
    """What ``load`` read: call what :meth:`module` gives, as with an exported program."""

    compiled: regraft.Module

    def __post_init__(self) -> None:
        if not isinstance(self.compiled, CompiledModule):
            settings = from_regraft(self.compiled.settings)
            object.__setattr__(self, "compiled", CompiledModule.of(self.compiled, settings))

    def module(self) -> regraft.Module:
        """The compiled module."""
        return self.compiled
