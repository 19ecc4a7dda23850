"""Gradients and training of a module that stays compiled: scenario M-10."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import regraft
from mutable_checks import Counted, Net, assert_agrees, compiled_result, trained
from regraft import MutableModule
from small import numbers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Net:
    return trained()


@pytest.fixture
def x() -> torch.Tensor:
    return numbers(2, 3, 4, 4, seed=1)


def test_m_10_a_frozen_backbone_compiled_and_a_head_trained(net: Net, x: torch.Tensor) -> None:
    backbone = MutableModule(net.requires_grad_(False))
    head = nn.Linear(32, 4)
    reference = copy.deepcopy(head)
    for module, body in ((head, backbone), (reference, net)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(body(x)).square().sum().backward()
            optimizer.step()
    assert backbone.recompiles == 0 and backbone.compiled is not None
    assert torch.allclose(head.weight, reference.weight, rtol=1e-4)


def test_m_10_training_goes_through_pytorch_and_each_step_arrives(net: Net, x: torch.Tensor) -> None:
    mutable, reference = MutableModule(net), copy.deepcopy(net)
    both = [(module, torch.optim.SGD(module.parameters(), lr=0.01)) for module in (mutable, reference)]
    assert_agrees(mutable, x)
    counted = Counted(mutable)
    for _ in range(3):
        for module, optimizer in both:
            module.train()
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
            module.eval()
        for a, b in zip(mutable.parameters(), reference.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        assert_agrees(mutable, x)
        assert counted() == (1, 0)
    assert torch.equal(mutable.norm.running_mean, reference.norm.running_mean)


def test_m_10_gradients_in_eval_mode_are_asked_for_or_not(net: Net, x: torch.Tensor) -> None:
    mutable = MutableModule(net)
    with pytest.warns(UserWarning, match="PyTorch runs this call"):
        mutable(x).sum().backward()
    assert net.fc.weight.grad is not None and mutable.compiled is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mutable(x).requires_grad, "one warning"
    wants = x.clone().requires_grad_()
    strict = MutableModule(net, autograd="raise")
    with pytest.raises(regraft.GradientError, match="parameters require"):
        strict(x)
    net.requires_grad_(False)
    with pytest.raises(regraft.GradientError, match="an input requires"):
        strict(wants)
    assert not strict(x).requires_grad and strict.compiled is not None
    net.requires_grad_(True)
    ignoring = MutableModule(net, autograd="ignore")
    assert not ignoring(wants).requires_grad and ignoring.compiled is not None


def test_m_10_parts_in_training_mode_run_in_pytorch(net: Net, x: torch.Tensor) -> None:
    mutable = MutableModule(net)
    net.norm.train()
    before = net.norm.running_mean.clone()
    with pytest.warns(UserWarning, match="norm is in training mode"):
        compiled_result(mutable, x)
    assert mutable.compiled is None and not torch.equal(net.norm.running_mean, before)
    net.norm.eval()
    # A layer that computes the same in either mode.
    net.fc = nn.Linear(128, 32)
    assert_agrees(mutable, x)
    assert mutable.compiled is not None
