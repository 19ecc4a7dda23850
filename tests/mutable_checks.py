"""A mutable module against the module that it wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree

import regraft
from comparing import assert_close


def compiled_result(mutable: torch.nn.Module, *args: Any, **kwargs: Any) -> list[Any]:
    with torch.inference_mode():
        return [
            leaf.clone()
            for leaf in pytree.tree_leaves(mutable(*args, **kwargs))
            if isinstance(leaf, torch.Tensor)
        ]


def pytorch_result(module: torch.nn.Module, *args: Any, **kwargs: Any) -> list[Any]:
    with torch.no_grad():
        return [
            leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, torch.Tensor)
        ]


def assert_agrees(mutable: regraft.MutableModule, *args: Any, **kwargs: Any) -> None:
    """Compiled, it gives what PyTorch gives with the module as it is now."""
    got = compiled_result(mutable, *args, **kwargs)
    wanted = pytorch_result(regraft.MutableModule.module.fget(mutable), *args, **kwargs)
    assert_close([t.numpy() for t in got], [t.numpy() for t in wanted])


class Counted:
    """How often a mutable module refitted and compiled while something was done."""

    def __init__(self, mutable: regraft.MutableModule) -> None:
        self.mutable = mutable
        self.refits, self.recompiles = mutable.refits, mutable.recompiles

    def __call__(self) -> tuple[int, int]:
        """Since the last time."""
        found = (self.mutable.refits - self.refits, self.mutable.recompiles - self.recompiles)
        self.refits, self.recompiles = self.mutable.refits, self.mutable.recompiles
        return found


def never_compiles(mutable: regraft.MutableModule, change: Callable[[], Any], *args: Any) -> None:
    """After ``change`` it agrees with PyTorch, by one refit."""
    counted = Counted(mutable)
    change()
    assert_agrees(mutable, *args)
    assert counted() == (1, 0)
