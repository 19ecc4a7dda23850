"""A mutable module against the module that it wraps, and a network to wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

import regraft
from comparing import assert_close
from small import seeded


class Net(nn.Module):
    """Convolution with a folded batch norm, and a linear layer of some size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 32)
        self.scale = 0.5
        self.register_buffer("offset", torch.linspace(0, 1, 32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.fc(y.flatten(1)) * self.scale + self.offset


def trained() -> Net:
    """As training leaves it: the statistics of a norm change something."""
    net = seeded(Net)
    with torch.no_grad():
        for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean):
            tensor.uniform_(-1, 1)
        net.norm.running_var.uniform_(0.5, 2)
    return net


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


def compiled_once(module: nn.Module, *args: Any) -> regraft.MutableModule:
    """A mutable module that was called, and neither refitted nor compiled again."""
    mutable = regraft.MutableModule(module)
    assert_agrees(mutable, *args)
    assert (mutable.refits, mutable.recompiles) == (0, 0)
    return mutable


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
