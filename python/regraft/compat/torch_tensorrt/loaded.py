"""What was loaded, in the form that code for Torch-TensorRT expects."""

from __future__ import annotations

from dataclasses import dataclass

import regraft

__all__ = ["LoadedProgram"]


@dataclass(frozen=True)
class LoadedProgram:
    """What ``load`` read: call what :meth:`module` gives, as with an exported program."""

    compiled: regraft.Module

    def module(self) -> regraft.Module:
        """The compiled module."""
        return self.compiled
