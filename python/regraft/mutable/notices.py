"""What a mutable module warns about, each thing once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from regraft.checks import warn
from regraft.errors import FallbackWarning, RegraftWarning, TrainingWarning, UnusedWarning
from regraft.mutable.explain import History

__all__ = ["Notices"]


class Notices:
    """Warnings of one module. Calls that PyTorch runs are noted in ``history`` as well, each time."""

    def __init__(self, module: nn.Module, history: History) -> None:
        self._module = module
        self._history = history
        self._given: set[str] = set()
        """What was warned about."""

    def warn(self, kind: type[RegraftWarning], about: str, message: str) -> None:
        """Warns once about each thing."""
        if issubclass(kind, FallbackWarning):
            self._history.add(
                "pytorch", message.split(": ", 1)[-1] if message.startswith("PyTorch runs it: ") else message
            )
        if about not in self._given:
            self._given.add(about)
            warn(kind, f"{type(self._module).__name__}: {message}")

    def runs_pytorch(self) -> bool:
        """Whether calls are PyTorch's matter under what is set globally, or in training."""
        if self._module.training:
            if not torch.is_grad_enabled():
                self.warn(
                    TrainingWarning,
                    "training",
                    "PyTorch runs it in training mode: call eval() to run it compiled",
                )
            return True
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self.warn(
                FallbackWarning,
                "autocast",
                "PyTorch runs it under autocast: give the module the dtype that is wanted",
            )
            return True
        # Programs are traced through PyTorch's operators; and so it is under a mode that intercepts these.
        return torch.compiler.is_compiling() or bool(torch._C._len_torch_dispatch_stack())

    def other_method(
        self,
        name: str,
        compiled: Sequence[str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Warns when a method computes, and nothing that is compiled was ever called."""

        def computes(value: Any) -> bool:
            return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))

        if computes((args, dict(kwargs))) and computes(result):
            self.warn(
                UnusedWarning,
                "unused",
                f"{name} is called, which runs in PyTorch, and {', '.join(compiled)} never was: "
                f"MutableModule(module, methods=['{name}']) compiles it",
            )
