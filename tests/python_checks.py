"""Small modules compiled through the Python package, and compared with PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import regraft
from comparing import assert_close
from small import seeded

ROOT = Path(__file__).resolve().parent.parent


class Function(nn.Module):
    """What `compute` makes of a linear layer, a vector and the arguments."""

    def __init__(self, compute: Callable[..., Any], width: int = 6) -> None:
        super().__init__()
        self.compute = compute
        self.fc = nn.Linear(width, width)
        self.w = nn.Parameter(torch.randn(width))

    def forward(self, x: Any, *more: Any) -> Any:
        return self.compute(self, x, *more)


def tensors(result: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def pytorch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return module(*args, **kwargs)


def assert_matches(found: Any, wanted: Any) -> None:
    """The same structure, types and whole numbers; floats close as in all tests, narrow ones to their
    rounding.
    """
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        if not isinstance(other, Tensor):
            assert type(one) is type(other) and one == other
            continue
        assert type(one) is Tensor and not one.requires_grad
        assert one.dtype == other.dtype and one.shape == other.shape
        if not other.is_floating_point() or not other.any():
            assert torch.equal(one, other)
        elif other.dtype in (torch.float16, torch.bfloat16):
            rounding = 4 * torch.finfo(other.dtype).eps
            torch.testing.assert_close(one, other.detach(), rtol=rounding, atol=rounding)
        else:
            assert_close([one.numpy()], [other.detach().numpy()])


def agrees(compiled: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Compiled, it gives what PyTorch gives."""
    assert_matches(compiled(*args, **kwargs), pytorch(module, *args, **kwargs))


def bits(result: Any) -> list[tuple[torch.dtype, torch.Size, bytes]]:
    """What two results must have in common to be the same."""
    return [
        (t.dtype, t.shape, t.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        for t in tensors(result)
    ]


def assert_refits(
    build: Callable[[], nn.Module], args: Sequence[Any], *, weights: Any = None, **settings: Any
) -> regraft.Module:
    """Law 1: compiled with A and refitted to B it is PyTorch's B, and bit for bit what is compiled from B.

    And back again.
    """
    first, second = seeded(build, 0), seeded(build, 1)
    compiled = regraft.compile(first, args, **settings)
    before = bits(compiled(*args))
    agrees(compiled, first, *args)

    compiled.refit(second.state_dict() if weights is None else weights(second))
    after = bits(compiled(*args))
    agrees(compiled, second, *args)
    assert before != after, "the weights of this test make no difference"
    assert after == bits(regraft.compile(second, args, **settings)(*args))

    compiled.refit(first.state_dict())
    assert bits(compiled(*args)) == before
    return compiled


def python(code: str, *arguments: str | Path, torch: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a program in another interpreter; without `torch` that one cannot import PyTorch."""
    head = "" if torch else "import sys; sys.modules['torch'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )


def succeeds(code: str, *arguments: str | Path, torch: bool = True) -> str:
    """What such a program prints, when it ends well and says nothing else."""
    done = python(code, *arguments, torch=torch)
    # PyTorch's own note at import.
    said = [line for line in done.stderr.splitlines() if "triton not found" not in line]
    assert done.returncode == 0 and not said, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def arrays(result: Any) -> list[np.ndarray]:
    return [t.numpy() for t in tensors(result)]
