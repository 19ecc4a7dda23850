"""Small models of single tests: exported, compiled, given other weights, and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from comparing import assert_close, assert_same, same
from conftest import Cli

# Builds the model with weights number 0 or 1.
Build = Callable[[int], nn.Module]
Inputs = tuple[Tensor, ...]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build().eval()


def linear_relu(size: int = 4) -> nn.Module:
    """The smallest network that is worth an engine."""
    return nn.Sequential(nn.Linear(size, size), nn.ReLU()).eval()


class Shelf:
    """A user's cache of engines."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.asked: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return self.entries.get(key)

    def put(self, key: str, entry: bytes) -> None:
        self.entries[key] = bytes(entry)

    def remove(self, key: str) -> None:
        self.entries.pop(key, None)


# Operators that have no translation: what is around them is cut there. PyTorch does not export them for sizes
# that change unless it is told what they give.
_SHAPES = torch.library.Library("aten", "IMPL", "Meta")
for _name in ("_add_relu.Scalar", "_add_relu.Tensor", "_standard_gamma_grad"):
    _SHAPES.impl(_name, lambda x, *_, **__: torch.empty_like(x))


def uncompiled(x: Tensor) -> Tensor:
    return torch.ops.aten._add_relu.Scalar(x, 0)


def uncompiled_pair(x: Tensor) -> Tensor:
    return torch.ops.aten._add_relu.Tensor(x, x)


def uncompiled_gradient(x: Tensor) -> Tensor:
    return torch._standard_gamma_grad(x, x)


def save_program(cli: Cli, model: nn.Module, inputs: Inputs, *, decompose: bool = False) -> Path:
    program = torch.export.export(model, inputs, strict=False)
    program = program.run_decompositions() if decompose else program
    path = cli.path("program", ".pt2")
    torch.export.save(program, path)
    return path


def compile_model(
    cli: Cli, model: nn.Module, inputs: Inputs, mode: str = "refittable", *, decompose: bool = False
) -> Path:
    return cli.compile(save_program(cli, model, inputs, decompose=decompose), mode)


def answers(model: nn.Module, inputs: Inputs) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output.detach().numpy() for output in outputs]


def arrays(inputs: Inputs) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in inputs]


def save_state(cli: Cli, state: Mapping[str, object], ending: str = ".pt") -> Path:
    path = cli.path("state", ending)
    torch.save(dict(state), path)
    return path


def assert_refits(cli: Cli, build: Build, inputs: Inputs, *, decompose: bool = False) -> Path:
    """Law 1 of one model: built with A and refitted to B, it is what is built with B.

    Gives the refitted engine.

    The weights come as `torch.save` writes the state dict, with all its strides and shared storages.
    """
    first, second = build(0).eval(), build(1).eval()
    engine = compile_model(cli, first, inputs, decompose=decompose)
    before = cli.run(engine, arrays(inputs))
    assert_close(before, answers(first, inputs))

    refitted, report = cli.refit(engine, save_state(cli, second.state_dict()))
    assert report["applied"]
    after = cli.run(refitted, arrays(inputs))
    assert_close(after, answers(second, inputs))
    assert not same(before, after), "the weights of this test make no difference"
    built = compile_model(cli, second, inputs, decompose=decompose)
    assert_same(after, cli.run(built, arrays(inputs)))

    back, _ = cli.refit(refitted, save_state(cli, first.state_dict()))
    assert_same(cli.run(back, arrays(inputs)), before)
    return refitted


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
