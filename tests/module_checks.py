"""Compiled modules against PyTorch, and against modules compiled from other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import regraft
from comparing import assert_close, assert_same, same

# Builds the model with weights number 0 or 1.
Build = Callable[[int], nn.Module]


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of what a module returns."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def arrays_of(result: Any) -> list[np.ndarray]:
    """The same as NumPy arrays; 16-bit floats widened, which loses nothing."""
    return [
        (leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf).detach().numpy().copy()
        for leaf in tensors_of(result)
    ]


def called(module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list:
    """The results of one call without gradients, as arrays that nothing changes."""
    with torch.no_grad():
        return arrays_of(module(*inputs, **(kwargs or {})))


def assert_agrees(module: nn.Module, model: nn.Module, inputs: tuple[Any, ...], **kwargs: Any) -> None:
    """The compiled module computes what the model of PyTorch does."""
    found, wanted = called(module, inputs, kwargs), called(model, inputs, kwargs)
    filled = [index for index, array in enumerate(wanted) if array.size]
    assert [a.shape for a in found] == [a.shape for a in wanted]
    assert_close([found[index] for index in filled], [wanted[index] for index in filled])


def assert_refits(
    build: Build, inputs: tuple[Any, ...], *, kwargs: Mapping[str, Any] | None = None, **settings: Any
) -> tuple[regraft.Module, regraft.Module]:
    """Compiled with A and refitted to B a module is what is compiled from B, and back again what it was.

    Returns the module with A's weights, and what was compiled from B.
    """
    first, second = build(0).eval(), build(1).eval()
    kwargs = kwargs or {}

    def compiled(model: nn.Module) -> regraft.Module:
        return regraft.compile(model, inputs, kwarg_inputs=kwargs or None, **settings)

    module, fresh = compiled(first), compiled(second)
    before = called(module, inputs, kwargs)
    assert_agrees(module, first, inputs, **kwargs)
    module.refit(second.state_dict())
    after = called(module, inputs, kwargs)
    assert_agrees(module, second, inputs, **kwargs)
    assert_same(after, called(fresh, inputs, kwargs))
    assert not same(before, after), "the weights of this test make no difference"
    module.refit(first.state_dict())
    assert_same(called(module, inputs, kwargs), before)
    return module, fresh


def spoil(state: Mapping[str, Tensor]) -> None:
    """Writes over what was given, as its owner may."""
    with torch.no_grad():
        for value in state.values():
            value.fill_(77)
