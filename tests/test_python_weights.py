"""Weights of every sort, compiled whole and read by parts in PyTorch, too: R-8, R-11, R-12, R-16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from python_checks import (
    agrees,
    assert_refits,
    bits,
    numbers,
    seeded,
    uncompiled,
)

pytestmark = pytest.mark.filterwarnings("ignore:No complete tensor found")

X = numbers(4, 6)


class Net(nn.Module):
    """Tensors of several kinds and ranks, one of them used twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(18, 6)
        self.gain = nn.Parameter(torch.randn(6))
        self.register_buffer("order", torch.randperm(6))
        self.idle = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x[:, None])))
        return (self.fc(y.flatten(1)) * self.gain)[:, self.order] + self.gain


# ------------------------------------------------------------------------------ tensors of every sort


def float64(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * layer.t.float(), x.double() * layer.t


def narrow(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * layer.t.float(), layer.t * 2


def large(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer.t + 1, x[:, layer.t % 6]


def plain(layer: Any, x: Tensor) -> Tensor:
    return layer.fc(x) * layer.t


def joined(layer: Any, x: Tensor) -> Tensor:
    return torch.cat((layer.t, layer.fc(x)))


# For each sort: what is computed of it, and how it is made; buffers where it is no parameter.
SORTS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "float64_parameter": (float64, lambda: nn.Parameter(torch.randn(6, dtype=torch.float64))),
    "float16_parameter": (narrow, lambda: nn.Parameter(torch.randn(6).half())),
    "bfloat16_parameter": (narrow, lambda: nn.Parameter(torch.randn(6).bfloat16())),
    "int64_buffer": (large, lambda: torch.randint(2**60, 2**62, (3,))),
    "bool_buffer": (lambda layer, x: torch.where(layer.t, x, 0.0), lambda: torch.rand(6) > 0.5),
    "scalar_parameter": (plain, lambda: nn.Parameter(torch.randn(()))),
    "empty_tensor": (joined, lambda: nn.Parameter(torch.randn(0, 6))),
    "transposed": (plain, lambda: nn.Parameter(torch.randn(6, 4).t())),
    "every_other": (plain, lambda: nn.Parameter(torch.randn(12)[::2])),
    "expanded": (plain, lambda: torch.randn(1).expand(6)),
}


class Sort(nn.Module):
    def __init__(self, name: str, cut: bool) -> None:
        super().__init__()
        self.compute, make = SORTS[name]
        self.fc = nn.Linear(6, 6)
        value = make()
        if isinstance(value, nn.Parameter):
            self.t = value
        else:
            self.register_buffer("t", value)
        self.cut = cut

    def forward(self, x: Tensor) -> Any:
        y = self.compute(self, self.fc(x))
        # PyTorch's parts read it, too.
        return (y, uncompiled(self.t.float() * 0.0) + self.t) if self.cut else y


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", SORTS)
def test_r_8_sorts_of_tensors(name: str, cut: bool) -> None:
    assert_refits(lambda: Sort(name, cut), (X,), min_block_size=1)


def test_r_8_views_of_one_storage() -> None:
    """Weights that see one memory are replaced each for itself."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            storage = torch.randn(48)
            self.first = nn.Parameter(storage[:36].view(6, 6))
            self.second = nn.Parameter(storage[12:].view(6, 6))
            self.register_buffer("row", storage[3:9])
            self.register_buffer("flat", self.first.detach().t())

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.row) @ self.first + torch.tanh(x @ self.second) @ self.flat

    compiled = assert_refits(Viewing, (X,))
    module = seeded(Viewing)
    value = {"first": numbers(6, 6, seed=4)}
    compiled.refit(value, partial=True)
    own = copy.deepcopy(module)
    for name in ("second", "row", "flat"):
        setattr(own, name, type(getattr(own, name))(getattr(module, name).detach().clone()))
    own.load_state_dict(value, strict=False)
    agrees(compiled, own, X)


# ---------------------------------------------------------------------------- whole and with parts in PyTorch


class CutNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        return uncompiled(super().forward(x) * 0.1) * self.gain + uncompiled(self.gain)


@pytest.fixture(scope="module")
def nets() -> dict[type[Net], tuple[regraft.Module, list[Any]]]:
    """The compiled nets, and what is computed with weights number 0 and 1."""
    found = {}
    for build in (Net, CutNet):
        compiled = regraft.compile(seeded(build), (X,), min_block_size=1)
        other = regraft.compile(seeded(build, 1), (X,), min_block_size=1)
        found[build] = (compiled, [bits(compiled(X)), bits(other(X))])
    return found


# ------------------------------------------------------------------------------ given tensors, verification


def test_r_12_given_tensors_are_nobody_elses(nets: Any, tmp_path: Path) -> None:
    """Editing them afterwards changes no output, no later refit, no fork and nothing that is saved."""
    for build, (compiled, wanted) in nets.items():
        module, fork = seeded(build, 1), compiled.fork()
        given = module.state_dict()
        arrays = {name: value.numpy() for name, value in seeded(build, 1).state_dict().items()}
        fork.refit(given)
        other = compiled.fork()
        other.refit(arrays)
        with torch.no_grad():
            for value in given.values():
                value.zero_()
        for array in arrays.values():
            array.fill(0)
        for refitted in (fork, other):
            assert bits(refitted(X)) == wanted[1]
            refitted.refit({"fc.bias": seeded(build, 1).fc.bias.detach()}, partial=True)
            assert bits(refitted(X)) == wanted[1]
            refitted.refit({"fc.bias": torch.ones(6)}, partial=True)
            again = seeded(build, 1)
            again.fc.bias.data.fill_(1)
            assert bits(refitted(X)) == bits(regraft.refit_module_weights(compiled, again)(X))
            folder = tmp_path / f"{build.__name__}-{refitted is fork}"
            regraft.save(refitted, folder)
            assert bits(regraft.load(folder)(X)) == bits(refitted(X))


def test_r_16_results_that_pytorch_has_in_another_structure(nets: Any) -> None:
    """They are a difference, too, not an accident of comparing."""
    compiled, wanted = nets[Net]

    class Fewer(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:1]

    class More(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    for build in (Fewer, More):
        with pytest.raises(regraft.VerificationError):
            regraft.refit_module_weights(compiled, seeded(build, 1), (X,), verify_output=True)
    assert bits(compiled(X)) == wanted[0]


# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_r_11_non_finite_values(nets: Any, value: float) -> None:
    for build, (compiled, wanted) in nets.items():
        for name in ("gain", "fc.weight", "norm.running_var"):
            fork, state = compiled.fork(), dict(seeded(build, 1).state_dict())
            state[name] = state[name].clone()
            state[name].view(-1)[-1] = value
            with pytest.raises(regraft.WeightsError, match=name):
                fork.refit(state, reject_non_finite=True)
            assert bits(fork(X)) == wanted[0]
            fork.refit(state)
            assert bits(fork(X)) != wanted[0]
