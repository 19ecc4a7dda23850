"""Programs whose parts in PyTorch do something besides computing, which PyTorch exports with tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

import regraft
from python_checks import assert_refits
from regraft.partition.functional import functionalized
from small import numbers, seeded

X = (numbers(5, 8),)


class Factored(nn.Module):
    """A factorization that PyTorch checks for success, between two engines."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.tanh(self.fc(x))
        square = y.T @ y
        factor, pivots = torch.linalg.ldl_factor(square)
        again, _ = torch.linalg.ldl_factor(square + torch.eye(4))
        return self.last(factor + again), pivots


def model(seed: int) -> nn.Module:
    return seeded(Factored, seed)


def test_tokens_are_no_inputs(tmp_path: Path) -> None:
    program = torch.export.export(model(0), X)
    specs = program.run_decompositions(torch.export.default_decompositions()).graph_signature.input_specs
    if all(spec.kind != InputKind.TOKEN for spec in specs):
        pytest.skip("this version of PyTorch has no token for the check")
    functional = functionalized(program)
    assert [str(spec.kind.name) for spec in functional.graph_signature.input_specs].count("TOKEN") == 0
    module = assert_refits(Factored, X, min_block_size=1)
    assert len(module.models) == 2
    reasons = {part.op.removeprefix("torch.ops."): part.reason for part in module.report().in_pytorch}
    assert reasons["aten._linalg_check_errors.default"] == "it does something besides computing"
    regraft.save(module, tmp_path / "net")
    loaded = regraft.load(tmp_path / "net")
    wanted = model(1)(*X)
    loaded.refit(model(1).state_dict())
    torch.testing.assert_close(loaded(*X), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("saved", [False, True], ids=["compiled", "loaded"])
def test_what_is_checked_is_checked(saved: bool, tmp_path: Path) -> None:
    """Nothing reads the result of the check, and yet it is done."""
    module = regraft.compile(model(0), X, min_block_size=1)
    if saved:
        regraft.save(module, tmp_path / "net")
        module = regraft.load(tmp_path / "net")
    zeros = {name: torch.zeros_like(value) for name, value in model(0).state_dict().items()}
    module.refit(zeros)
    broken = model(0)
    broken.load_state_dict(zeros)
    with pytest.raises(RuntimeError) as expected:
        broken(*X)
    with pytest.raises(RuntimeError) as found:
        module(*X)
    assert str(found.value).splitlines()[0] == str(expected.value).splitlines()[0]
