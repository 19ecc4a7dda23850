"""State of compiled modules: buffers and arguments that a program writes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_close
from python_checks import Function, agrees, pytorch
from small import numbers, seeded, uncompiled
from test_python_calls import X


class Counting(nn.Module):
    """Keeps a sum and a count of what it has seen."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.cut = cut
        self.register_buffer("total", torch.zeros(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.fc(x))
        y = uncompiled(y) if self.cut else y
        before = self.total.clone()
        self.total.add_(y.sum(0))
        self.calls += 1
        return self.fc(y) + self.total / self.calls, before


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_buffers_that_the_module_writes_to(cut: bool, tmp_path: Path) -> None:
    module = seeded(lambda: Counting(cut))
    compiled = regraft.compile(module, (X,), min_block_size=1)
    assert compiled.report().is_whole != cut
    fresh = {name: value.clone() for name, value in module.state_dict().items()}

    def again() -> nn.Module:
        other = Counting(cut).eval()
        other.load_state_dict(fresh)
        return other

    for seed in range(3):
        agrees(compiled, module, numbers(4, 6, seed=seed))
    kept = compiled(X)
    pytorch(module, X)

    # A fork and what is loaded start from the beginning; the module itself goes on.
    fork = compiled.fork()
    agrees(fork, again(), X)
    regraft.save(compiled, tmp_path / "saved")
    agrees(regraft.load(tmp_path / "saved"), again(), X)
    agrees(compiled, module, X)

    # Other weights leave the state alone, a state dict replaces it, as in PyTorch.
    weights = {"fc.weight": numbers(6, 6, seed=7)}
    compiled.refit(weights, partial=True)
    module.load_state_dict(weights, strict=False)
    agrees(compiled, module, X)
    state = dict(module.state_dict()) | {"total": torch.ones(6), "calls": torch.tensor(5)}
    compiled.refit(state)
    module.load_state_dict(state)
    agrees(compiled, module, X)
    agrees(compiled, module, X)
    compiled.reset_state()
    module.load_state_dict(state)
    agrees(compiled, module, X)

    # What failed changed nothing, and outputs are nobody's state.
    with pytest.raises(regraft.InputError):
        compiled(numbers(3, 6))
    with pytest.raises(regraft.WeightsError):
        compiled.refit({"total": torch.ones(7), "calls": torch.tensor(0)}, partial=True)
    for output in kept:
        output.fill_(1e9)
    agrees(compiled, module, X)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_state_that_is_given_in_part(cut: bool) -> None:
    """It is right or refused, and never taken without effect."""
    module = seeded(lambda: Counting(cut))
    compiled = regraft.compile(module, (X,), min_block_size=1)
    agrees(compiled, module, X)
    given = {"total": torch.full((6,), 3.0)}
    if cut:
        compiled.refit(given, partial=True)
        module.total.fill_(3.0)
    else:
        with pytest.raises(regraft.WeightsError, match=r"as a whole(.|\n)*give calls"):
            compiled.refit(given, partial=True)
    agrees(compiled, module, X)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: x.view(-1).mul_(2),
        lambda x: x.t().copy_(x.t() + 1),
    ],
    ids=["whole", "row", "view", "copy"],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_writes_to_inputs_arrive(write: Callable[[Tensor], Any], cut: bool, tmp_path: Path) -> None:
    def compute(layer: Function, x: Tensor) -> Tensor:
        write(x)
        return uncompiled(layer.fc(x)) if cut else layer.fc(x)

    module = seeded(lambda: Function(compute))
    compiled = regraft.compile(module, (X.clone(),), min_block_size=1)
    regraft.save(compiled, tmp_path / "saved")
    program = torch.export.export(module, (X.clone(),))
    with torch.no_grad():
        for one in (compiled, compiled.fork(), regraft.load(tmp_path / "saved")):
            ours, theirs = X.clone(), X.clone()
            assert_close([one(ours).numpy(), ours.numpy()], [module(theirs).numpy(), theirs.numpy()])
            assert not torch.equal(ours, X)
        assert torch.equal(X, regraft.refit_module_weights(compiled, program, (X,), verify_output=True) and X)


class Step(nn.Module):
    """A step that keeps what it made in a cache of its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor, scale: float, *, at: Tensor) -> dict[str, Tensor]:
        cache.index_copy_(0, at, self.fc(x) * scale)
        return {"sum": cache.sum(0), "x": x * 2}


def test_caches_among_inputs_are_written_to() -> None:
    module, x, at = seeded(Step), numbers(1, 4), torch.tensor([1])
    compiled = regraft.compile(module, (x, torch.zeros(3, 4), 0.5), kwarg_inputs={"at": at}, min_block_size=1)
    with torch.no_grad():
        ours, theirs = torch.ones(3, 4), torch.ones(3, 4)
        for row in (0, 2):
            found, wanted = (
                m(x, c, 0.5, at=torch.tensor([row])) for m, c in ((compiled, ours), (module, theirs))
            )
            assert_close([found["sum"].numpy(), ours.numpy()], [wanted["sum"].numpy(), theirs.numpy()])
            assert torch.equal(found["x"], wanted["x"])
        memory = torch.zeros(12)
        with pytest.raises(regraft.InputError, match=r"input cache: .* shares its memory: give a copy"):
            compiled(memory[:4].view(1, 4), memory.view(3, 4), 0.5, at=at)
        with pytest.raises(regraft.InputError, match=r"input cache: .* give a tensor of PyTorch"):
            compiled(x, ours.numpy(), 0.5, at=at)
        mutable = regraft.MutableModule(module, min_block_size=1)
        mutable(x, ours, 0.5, at=at)
        module(x, theirs, 0.5, at=at)
        assert_close([ours.numpy()], [theirs.numpy()])


def test_many_threads_with_state() -> None:
    """Each call of an engine is one step of its state."""
    module = seeded(lambda: Counting(False))
    compiled = regraft.compile(module, (X,))
    threads = [threading.Thread(target=lambda: [compiled(X) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(100):
        pytorch(module, X)
    agrees(compiled, module, X)
