"""Weights of a module that stays compiled arrive however they are changed: scenarios M-3, M-4 and R-17."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mutable_checks import Counted, assert_agrees, compiled_once, compiled_result, never_compiles, trained
from regraft import MutableModule
from small import numbers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def x() -> torch.Tensor:
    return numbers(2, 3, 4, 4, seed=1)


@pytest.fixture
def mutable(x: torch.Tensor) -> MutableModule:
    return compiled_once(trained(), x)


def test_m_3_every_way_to_change_a_weight_arrives(mutable: MutableModule, x: torch.Tensor) -> None:
    weight, norm = mutable.fc.weight, mutable.norm

    @torch.no_grad()
    def in_place() -> None:
        weight.mul_(1.5)

    never_compiles(mutable, in_place, x)
    never_compiles(mutable, lambda: setattr(mutable.fc, "weight", nn.Parameter(torch.randn(32, 128))), x)
    never_compiles(mutable, lambda: mutable.fc.weight.data.mul_(0.5), x)
    never_compiles(mutable, lambda: mutable.fc.bias.data[7:8].fill_(3), x)
    never_compiles(mutable, lambda: mutable.fc.weight.detach().numpy().fill(0.25), x)
    never_compiles(mutable, lambda: setattr(mutable.conv.weight, "data", torch.randn(8, 3, 3, 3)), x)
    never_compiles(mutable, lambda: norm.running_mean.add_(1), x)
    never_compiles(mutable, lambda: mutable.offset.add_(1), x)
    never_compiles(mutable, lambda: setattr(mutable, "offset", torch.randn(32)), x)
    optimizer = torch.optim.SGD(mutable.parameters(), lr=0.1)
    for parameter in mutable.parameters():
        parameter.grad = torch.randn_like(parameter)
    never_compiles(mutable, optimizer.step, x)


def test_m_3_tensors_that_are_no_parameters_arrive(x: torch.Tensor) -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.randn(4)
            self.several = [torch.randn(4), torch.randn(4)]
            self.named = {"last": torch.randn(4)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.table + self.several[0] * self.several[1] - self.named["last"]

    net = Tables().eval()
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: net.table.mul_(2), x)
    never_compiles(mutable, lambda: setattr(net, "table", torch.randn(4)), x)
    never_compiles(mutable, lambda: net.several[1].mul_(2), x)
    never_compiles(mutable, lambda: net.named["last"].data.add_(1), x)
    never_compiles(mutable, lambda: net.several.__setitem__(0, torch.randn(4)), x)
    never_compiles(mutable, lambda: net.several[0].numpy().fill(2), x)
    copied = copy.deepcopy(mutable)
    copied.several[0].mul_(3)
    net.several[0].mul_(5)
    for one in (copied, mutable):
        assert_agrees(one, x)
        assert one.recompiles == 0


def test_m_3_tensors_of_many_axes_and_of_inference_mode_arrive() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 1, 1, 1, 3, 3))
            with torch.inference_mode():
                self.register_buffer("made", torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight[0, 0, 0, 0] + self.made

    net, x = Many().eval(), torch.randn(2, 3)
    mutable = MutableModule(net, min_block_size=1)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: setattr(net.weight, "data", net.weight.data.transpose(4, 5)), x)
    net.weight.requires_grad_(False)
    refits = mutable.refits
    assert_agrees(mutable, x)
    assert mutable.refits == refits


def test_m_3_a_transposed_view_of_the_same_memory_arrives() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: setattr(net[0].weight, "data", net[0].weight.data.t()), x)


def test_m_3_one_tensor_moves_and_another_is_written_to() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    mutable = MutableModule(net)
    assert_agrees(mutable, x)

    def change() -> None:
        net[0].weight.data = net[0].weight.data.t()
        net[1].weight.data.mul_(2)

    never_compiles(mutable, change, x)


def test_m_3_only_what_changed_is_rebuilt(mutable: MutableModule, x: torch.Tensor) -> None:
    never_compiles(mutable, lambda: mutable.fc.bias.data.add_(1), x)
    report = mutable.last_report
    assert report is not None and report.applied == ("fc.bias",) and len(report.recomputed_slots) == 1


@pytest.mark.parametrize("watch", ["sampled", "full"])
def test_m_3_single_elements_arrive_when_all_is_compared(watch: Any) -> None:
    net, x = nn.Sequential(nn.Linear(512, 512)).eval(), torch.ones(1, 512)
    mutable = MutableModule(net, watch=watch)
    assert_agrees(mutable, x)
    counted = Counted(mutable)
    # Somewhere between the sampled places.
    net[0].weight.data.view(-1)[100_001] += 1
    if watch == "sampled":
        mutable.refresh()
    assert_agrees(mutable, x)
    assert counted() == (1, 0)
    assert_agrees(mutable, x)
    assert counted() == (0, 0)


def test_m_4_equal_values_do_not_refit(mutable: MutableModule, x: torch.Tensor) -> None:
    counted = Counted(mutable)
    mutable.fc.weight = nn.Parameter(mutable.fc.weight.detach().clone())
    assert_agrees(mutable, x)
    mutable.load_state_dict(copy.deepcopy(mutable.state_dict()))
    assert_agrees(mutable, x)
    with torch.no_grad():
        mutable.fc.bias.add_(0)
    mutable.requires_grad_(False)
    assert_agrees(mutable, x)
    mutable.refresh()
    assert_agrees(mutable, x)
    assert counted() == (0, 0)


def test_r_17_updates_below_any_tolerance_arrive(mutable: MutableModule, x: torch.Tensor) -> None:
    before = compiled_result(mutable, x)
    mutable.train()
    optimizer = torch.optim.SGD([mutable.fc.bias], lr=1e-8)
    mutable(x).sum().backward()
    expected = mutable.fc.bias.detach() - 1e-8 * mutable.fc.bias.grad
    assert torch.allclose(expected, mutable.fc.bias) and not torch.equal(expected, mutable.fc.bias)
    optimizer.step()
    mutable.eval()
    compiled_result(mutable, x)
    assert mutable.refits == 1
    source = mutable.compiled.models[0].source("fc.bias")
    assert torch.equal(torch.from_dlpack(source), mutable.fc.bias.detach())
    assert before[0].shape == (2, 32)
