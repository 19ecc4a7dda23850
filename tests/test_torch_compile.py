"""`torch.compile(model, backend="regraft")`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
import regraft.dynamo
from comparing import assert_close, assert_same


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # A graph that runs in PyTorch without a reason would pass every other test.
        warnings.filterwarnings("error", message="regraft")
        yield


def answer(module: Callable[..., Tensor], *inputs: object) -> list[np.ndarray]:
    with torch.no_grad():
        return [module(*inputs).numpy()]


def test_s_5_three_ways_to_compile_agree(net: Net) -> None:
    x = torch.randn(3, 8)
    program = torch.export.export(net, (x,))
    by_program, by_module = regraft.compile(program), regraft.compile(net, (x,))
    by_dynamo = torch.compile(net, backend="regraft")
    assert_same(answer(by_program, x), answer(by_module, x))
    assert_same(answer(by_dynamo, x), answer(by_module, x))
    assert_close(answer(by_module, x), answer(net, x))
    tuned = Net().eval()
    with torch.no_grad():
        for compiled in (by_program, by_module):
            compiled.refit(tuned.state_dict())
        net.load_state_dict(tuned.state_dict())
    assert_same(answer(by_program, x), answer(by_module, x))
    assert_same(answer(by_dynamo, x), answer(by_module, x))
    assert_close(answer(by_dynamo, x), answer(tuned, x))


def assign(net: Net) -> None:
    net.first.weight = nn.Parameter(torch.randn(32, 8))


def step(net: Net) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(net.parameters(), lr=1e-8).step()


CHANGES: dict[str, Callable[[Net], object]] = {
    "in place": lambda net: net.first.weight.detach().mul_(1.5),
    "data": lambda net: net.first.weight.data.copy_(torch.randn(32, 8)),
    "numpy": lambda net: net.last.bias.detach().numpy().fill(0.25),
    "state dict": lambda net: net.load_state_dict(Net().state_dict()),
    "buffer": lambda net: net.norm.running_mean.add_(1.0),
    "parameter": assign,
    "tiny step": step,
}


@pytest.mark.parametrize("change", CHANGES)
def test_s_5_weights_are_live(net: Net, change: str) -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    before = answer(compiled, x)
    CHANGES[change](net)
    found = answer(compiled, x)
    assert not np.array_equal(found[0], before[0])
    assert_same(found, answer(regraft.compile(net, (x,)), x))


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_s_5_sizes_change(net: Net, dynamic: bool | None) -> None:
    compiled = torch.compile(net, backend="regraft", dynamic=dynamic)
    for size in (3, 5, 7, 2, 3):
        x = torch.randn(size, 8)
        assert_close(answer(compiled, x), answer(net, x))


def test_s_5_numbers_of_a_call_are_compiled_in(net: Net) -> None:
    def scaled(x: Tensor, factor: float, count: int) -> Tensor:
        return net(x) * factor + count

    compiled = torch.compile(scaled, backend="regraft")
    x = torch.randn(3, 8)
    for factor, count in ((2.0, 1), (3.0, 2), (2.5, 3), (2.0, 1)):
        assert_close(answer(compiled, x, factor, count), answer(scaled, x, factor, count))


def test_s_5_graph_breaks(net: Net) -> None:
    def broken(x: Tensor) -> Tensor:
        hidden = torch.relu(net.first(x))
        torch._dynamo.graph_break()
        return net.last(hidden)

    compiled = torch.compile(broken, backend="regraft")
    x = torch.randn(3, 8)
    for change in ("in place", "numpy"):
        assert_close(answer(compiled, x), answer(broken, x))
        CHANGES[change](net)
    assert_close(answer(compiled, x), answer(broken, x))


def test_s_5_operators_that_stay_in_pytorch(net: Net) -> None:
    def mixed(x: Tensor) -> Tensor:
        return net.last(torch.special.bessel_j0(torch.relu(net.norm(net.first(x)))))

    compiled = torch.compile(mixed, backend="regraft", options={"min_block_size": 1})
    x = torch.randn(3, 8)
    for change in CHANGES.values():
        assert_close(answer(compiled, x), answer(mixed, x))
        change(net)
    assert_close(answer(compiled, x), answer(mixed, x))


def test_s_5_gradients_are_pytorchs(net: Net) -> None:
    reference = copy.deepcopy(net)
    x = torch.randn(3, 8)
    torch.compile(net, backend="regraft")(x).sum().backward()
    reference(x).sum().backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_s_5_writes_are_pytorchs(net: Net) -> None:
    net.train()
    reference = copy.deepcopy(net)
    x = torch.randn(4, 8)
    assert_close(answer(torch.compile(net, backend="regraft"), x), answer(reference, x))
    assert torch.equal(net.norm.running_mean, reference.norm.running_mean)

    def doubles(x: Tensor) -> Tensor:
        return x.mul_(2)

    y, z = torch.ones(8), torch.ones(8)
    torch.compile(doubles, backend="regraft")(y)
    doubles(z)
    assert torch.equal(y, z)


def test_s_5_results_share_memory_as_in_pytorch() -> None:
    compiled = torch.compile(lambda x: x.view(-1), backend="regraft")
    x = torch.zeros(2, 3)
    compiled(x).add_(1)
    assert torch.equal(x, torch.ones(2, 3))


def test_unknown_options_are_refused(net: Net) -> None:
    compiled = torch.compile(net, backend="regraft", options={"thread": 1})
    with pytest.raises(Exception, match=r"unknown settings: thread[\s\S]*threads"), torch.no_grad():
        compiled(torch.randn(3, 8))


def test_what_cannot_be_compiled_runs_in_pytorch() -> None:
    def nonzero(x: Tensor) -> Tensor:
        return x.sort().values.cumsum(0)

    compiled = torch.compile(nonzero, backend="regraft", options={"require_full_compilation": True})
    x = torch.randn(5)
    with pytest.warns(UserWarning, match="runs in PyTorch"):
        found = answer(compiled, x)
    assert_same(found, answer(nonzero, x))
