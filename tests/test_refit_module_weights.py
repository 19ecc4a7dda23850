"""`refit_module_weights`: copies, verification, and programs that compute something else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_same
from module_checks import assert_agrees, called
from refit_checks import fresh, net, results_of_second
from small import numbers, seeded
from test_source_kinds import X
from test_sources import TOKENS, Net

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def compiled() -> regraft.Module:
    return fresh()


@pytest.fixture
def wanted() -> list[np.ndarray]:
    return results_of_second()


def test_r_12_a_copy_and_in_place(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    before = called(compiled, TOKENS)
    copied = regraft.refit_module_weights(compiled, net(1))
    assert copied is not compiled
    assert_same(called(compiled, TOKENS), before)
    assert_same(called(copied, TOKENS), wanted)
    assert regraft.refit_module_weights(compiled, net(1), in_place=True) is compiled
    assert_same(called(compiled, TOKENS), wanted)


def test_r_12_a_copy_shares_what_is_the_same(compiled: regraft.Module) -> None:
    before = compiled.memory()
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.bias"] += 1
    copied = regraft.refit_module_weights(compiled, state)
    memory = copied.memory()
    assert memory["slots"] == before["slots"]
    assert before["in_use"] < memory["in_use"] < 1.1 * before["in_use"]


def test_r_12_private_memory_of_a_copy(compiled: regraft.Module) -> None:
    assert compiled.fork().memory()["private"] == 0
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.weight"] += 1
    copied = regraft.refit_module_weights(compiled, state)
    assert copied.memory()["private"] >= state["fc.weight"].nbytes


def test_r_12_copies_of_copies_and_deepcopy(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    before = called(compiled, TOKENS)
    first = copy.deepcopy(compiled)
    second = first.fork()
    second.refit(net(1).state_dict())
    del first
    assert_same(called(compiled, TOKENS), before)
    del compiled
    assert_same(called(second, TOKENS), wanted)


@pytest.mark.parametrize("in_place", [False, True])
def test_r_16_verified(in_place: bool, compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    for source in (net(1), torch.export.export(net(1), TOKENS), net(1).state_dict()):
        module = compiled.fork()
        found = regraft.refit_module_weights(
            module, source, arg_inputs=TOKENS, verify_output=True, in_place=in_place
        )
        assert (found is module) == in_place
        assert_same(called(found, TOKENS), wanted)


def test_r_16_another_computation_is_found_and_nothing_changes(compiled: regraft.Module) -> None:
    class Other(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * 1.01

    before = called(compiled, TOKENS)
    with pytest.raises(regraft.VerificationError, match="nothing was changed"):
        regraft.refit_module_weights(
            compiled, seeded(Other, 1), arg_inputs=TOKENS, verify_output=True, in_place=True
        )
    assert_same(called(compiled, TOKENS), before)


def test_r_16_a_training_mode_is_found(compiled: regraft.Module) -> None:
    """A batch norm that uses the batch's own statistics computes something else."""
    with pytest.raises(regraft.VerificationError):
        regraft.refit_module_weights(
            compiled, net(1).train(), arg_inputs=TOKENS, verify_output=True, in_place=True
        )


def test_r_16_verification_changes_nothing_of_the_given_module(compiled: regraft.Module) -> None:
    """A reference in training mode would move its running statistics: it is the caller's module."""
    model = net(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    regraft.refit_module_weights(compiled, model, arg_inputs=TOKENS, verify_output=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_r_16_verification_without_inputs_is_refused(compiled: regraft.Module) -> None:
    for source in (net(1), net(1).state_dict()):
        with pytest.raises(regraft.RegraftError):
            regraft.refit_module_weights(compiled, source, verify_output=True)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.factor)


def test_r_11_a_program_with_another_literal_is_refused() -> None:
    module = regraft.compile(seeded(lambda: Times(0.5), 0), X)
    before = called(module, X)
    other = seeded(lambda: Times(0.7), 1)
    with pytest.raises(regraft.WeightsError, match="operators or literals differ"):
        regraft.refit_module_weights(module, torch.export.export(other, X), in_place=True)
    assert_same(called(module, X), before)
    # A module is not traced, so only a verification can tell.
    with pytest.raises(regraft.VerificationError):
        regraft.refit_module_weights(module, other, arg_inputs=X, verify_output=True, in_place=True)
    assert_same(called(module, X), before)
    regraft.refit_module_weights(module, other.state_dict(), in_place=True)


def test_r_9_exports_with_other_sizes_are_the_same_program() -> None:
    """The batch of the sample is not a part of what a program with a dynamic batch computes."""
    batch = torch.export.Dim("batch", min=1, max=64)
    first = torch.export.export(seeded(lambda: Times(0.5), 0), X, dynamic_shapes=({0: batch},))
    second = torch.export.export(
        seeded(lambda: Times(0.5), 1), (numbers(9, 8),), dynamic_shapes=({0: batch},)
    )
    module = regraft.refit_module_weights(regraft.compile(first), second)
    assert_agrees(module, seeded(lambda: Times(0.5), 1), (numbers(3, 8),))


class Lifted(nn.Module):
    """A tensor in the code: a constant of each export of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([self.factor, 1.0, 2.0, 3.0])


def test_r_6_a_lifted_tensor_comes_with_its_program() -> None:
    module = regraft.compile(seeded(lambda: Lifted(0.5), 0), X)
    other = seeded(lambda: Lifted(0.7), 1)
    refitted = regraft.refit_module_weights(module, torch.export.export(other, X))
    assert_agrees(refitted, other, X)
