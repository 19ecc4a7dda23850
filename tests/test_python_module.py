"""What a compiled module has of a `torch.nn.Module`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regraft
from small import uncompiled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)) * self.factor.float())
        return self.last(uncompiled(hidden))


X = torch.randn(3, 8)


@pytest.mark.parametrize("min_block_size", [1, 100])
def test_state_dicts_go_out_and_in(min_block_size: int) -> None:
    net, tuned = Net().eval(), Net().eval()
    compiled = regraft.compile(net, (X,), min_block_size=min_block_size)
    state = compiled.state_dict()
    assert set(net.state_dict()) - set(state) == {"norm.num_batches_tracked"}, "the program never reads it"
    for name, value in state.items():
        assert torch.equal(value, net.state_dict()[name]) and value.dtype == net.state_dict()[name].dtype
    before = compiled(X)
    state["last.bias"].fill_(7)
    assert torch.equal(compiled(X), before), "values are copies"
    compiled.load_state_dict(tuned.state_dict())
    expected = regraft.compile(tuned, (X,), min_block_size=min_block_size)
    assert torch.equal(compiled(X), expected(X))
    with pytest.raises(regraft.WeightsError, match="missing"):
        compiled.load_state_dict({"last.bias": torch.zeros(4)})
    compiled.load_state_dict({"last.bias": torch.zeros(4)}, strict=False)
    assert torch.equal(compiled.state_dict()["last.bias"], torch.zeros(4))


def test_it_is_for_inference() -> None:
    compiled = regraft.compile(Net().eval(), (X,))
    assert not compiled.training and compiled.eval() is compiled
    with pytest.raises(regraft.FrozenError, match="train the original"):
        compiled.train()
    frozen = regraft.compile(Net().eval(), (X,), mode="frozen")
    with pytest.raises(regraft.FrozenError):
        frozen.state_dict()
