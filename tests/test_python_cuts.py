"""What lies at the cuts between engines (R-5): values, weights, state, sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_close, assert_same, same
from module_checks import arrays_of, assert_agrees, assert_refits, called
from small import numbers, seeded, uncompiled, uncompiled_gradient, uncompiled_pair
from test_python_partition import SMALL, X

pytestmark = pytest.mark.usefixtures("one_thread")


class Inplace(nn.Module):
    """Writes in place before, at and after a cut, through views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.relu_()
        x[:, 0] += 1
        left = x[:, 1:3]
        x = x + uncompiled(x)
        left.mul_(2)
        x.view(-1)[3:5].fill_(0.5)
        y = uncompiled_gradient(x)
        y.add_(left.sum())
        return self.last(y.tanh_())


class SplitAtCut(nn.Module):
    """Operators of several results whose parts go to different sides."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 12)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = self.fc(x).split((4, 4, 4), 1)
        b = uncompiled(b)
        values, indices = torch.max(b, 1)
        top, places = torch.topk(c, 2, 1)
        u, v = uncompiled_pair(top).unbind(1)
        return self.last(a * b) + values[:, None], indices, places + 1, u * v, torch.relu(b).chunk(2, 1)[1]


class FromPyTorch(nn.Module):
    """An operator of several results that stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.fc(x))
        values, indices = torch.cummax(x, 1)
        # Vectors have signs that are left open, so that they come from PyTorch.
        found, vectors = torch.linalg.eigh(values.T @ values + torch.eye(6))
        return self.last(values @ vectors), indices, found + 1


class TiedAcross(nn.Module):
    """One weight in two engines and in the part between, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = uncompiled(x) + uncompiled_pair(self.last.weight)[0]
        return torch.tanh(self.last(x))


class Branches(nn.Module):
    """A value that goes round a cut, and one that goes through two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        around = torch.sigmoid(x) * 3
        through = uncompiled(x)
        twice = uncompiled_pair(torch.tanh(through) + around)
        return self.last(twice + around) - through


class ConstantsAtCuts(nn.Module):
    """Weights that are results, constants, and parameters that only PyTorch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)
        self.table = nn.Parameter(torch.rand(6, 6))
        self.register_buffer("dropped", torch.arange(6).float() / 5, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        steps = uncompiled(torch.arange(6) * 0.5)
        x = torch.relu(self.fc(x)) * steps + self.dropped
        return uncompiled_pair(x) @ uncompiled(self.table), steps


MODELS: dict[str, Callable[[], nn.Module]] = {
    "in_place": Inplace,
    "split_at_a_cut": SplitAtCut,
    "results_of_pytorch": FromPyTorch,
    "tied": TiedAcross,
    "branches": Branches,
    "constants": ConstantsAtCuts,
}


@pytest.mark.parametrize("name", MODELS)
def test_r_5_across_cuts(name: str, tmp_path: Path) -> None:
    module, fresh = assert_refits(lambda seed: seeded(MODELS[name], seed), X, **SMALL)
    assert module.report().in_pytorch and module.models
    before = called(module, X)
    regraft.save(module, tmp_path / "net")
    loaded = regraft.load(tmp_path / "net")
    assert_same(called(loaded, X), before)
    loaded.refit(seeded(MODELS[name], 1).state_dict())
    assert_same(called(loaded, X), called(fresh, X))
    assert str(loaded.report()) == str(module.report())


@pytest.mark.parametrize("name", MODELS)
def test_r_5_every_part_left_to_pytorch(name: str) -> None:
    """Nothing but PyTorch between inputs and results: refits, and no memory that is shared with either."""
    module, _ = assert_refits(lambda seed: seeded(MODELS[name], seed), X, min_block_size=1000)
    assert not module.models
    before = called(module, X)
    x = X[0].clone()
    for _ in range(2):
        for leaf in torch.utils._pytree.tree_leaves(module(x)):
            leaf.fill_(7)
    assert torch.equal(x, X[0])
    assert_same(called(module, X), before)


def test_r_7_either_name_of_a_weight_across_cuts() -> None:
    """A partial refit by one of the names changes every use, and two values for one weight are refused."""
    value = seeded(TiedAcross, 1).first.weight.detach()
    for name in ("first.weight", "last.weight"):
        model = seeded(TiedAcross, 0)
        module = regraft.compile(model, X, **SMALL)
        before = called(module, X)
        model.load_state_dict({**model.state_dict(), "first.weight": value, "last.weight": value})
        module.refit({name: value}, partial=True)
        assert_agrees(module, model, X)
        module.refit({n: v for n, v in seeded(TiedAcross, 0).state_dict().items() if n != name})
        assert_same(called(module, X), before)
        with pytest.raises(regraft.WeightsError, match=r"(first|last)\.weight"):
            module.refit({**seeded(TiedAcross, 0).state_dict(), name: value})
        assert_same(called(module, X), before)


class ReturnsWhatItHas(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = uncompiled(self.fc(x))
        return y, self.scale, self.shift.view(2, 3), x, x[1:], y, y.t(), self.fc.bias


@pytest.mark.parametrize("least", [1, 1000])
def test_r_5_results_are_the_callers(least: int) -> None:
    """Weights, inputs and one another are not changed by who writes to a result."""
    module = regraft.compile(seeded(ReturnsWhatItHas, 0), X, min_block_size=least)
    before = called(module, X)
    x = X[0].clone()
    with torch.no_grad():
        results = module(x)
        kept = arrays_of(results)
        for index, result in enumerate(results):
            result.fill_(index + 7)
            for other in range(index + 1, len(results)):
                np.testing.assert_array_equal(results[other].numpy(), kept[other])
    assert torch.equal(x, X[0])
    assert_same(called(module, X), before)
    assert not any(result.requires_grad for result in module(x))


# --------------------------------------------------------------------------------------------- state


class Counting(nn.Module):
    """A buffer that is written to between two engines, and one that an engine's result goes to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.fc(x))
        self.count.add_(1)
        self.mean.mul_(0.5).add_(x.mean(0))
        x = uncompiled(x + self.mean) / self.count
        return self.last(x), self.mean


def in_step(module: nn.Module, model: nn.Module, calls: int) -> None:
    for turn in range(calls):
        x = (numbers(5, 8, seed=turn),)
        assert_close(called(module, x), called(model, x))


def test_r_5_state_between_cuts() -> None:
    model = seeded(Counting, 0)
    module = regraft.compile(model, X, **SMALL)
    in_step(module, model, 3)
    module.reset_state()
    in_step(module, seeded(Counting, 0), 3)
    # A partial refit of other weights keeps the state, one of the buffer sets it.
    model = seeded(Counting, 0)
    module.reset_state()
    in_step(module, model, 2)
    with torch.no_grad():
        model.fc.weight.mul_(0.5)
    module.refit({"fc.weight": model.fc.weight}, partial=True)
    in_step(module, model, 2)
    model.load_state_dict({**model.state_dict(), "count": torch.tensor(5.0)})
    module.refit({"count": torch.tensor(5.0)}, partial=True)
    in_step(module, model, 2)
    model = seeded(Counting, 1)
    module.refit(model.state_dict())
    in_step(module, model, 2)


def test_r_5_results_of_one_call_are_not_changed_by_the_next() -> None:
    """The state is a result, too: a tensor of its own."""
    module = regraft.compile(seeded(Counting, 0), X, **SMALL)
    with torch.no_grad():
        first = module(*X)
        kept = arrays_of(first)
        module(*X)
        assert_same(arrays_of(first), kept)
        first[1].fill_(100)
    again = regraft.compile(seeded(Counting, 0), X, **SMALL)
    called(again, X), called(again, X)
    assert_same(called(module, X), called(again, X))


def test_r_5_forks_and_files_have_a_state_of_their_own(tmp_path: Path) -> None:
    module = regraft.compile(seeded(Counting, 0), X, **SMALL)
    first = called(module, X)
    fork = module.fork()
    second = called(module, X)
    assert not same(first, second)
    found = called(fork, X)
    assert same(found, first) or same(found, second)
    third = called(module, X)
    called(fork, X), called(fork, X)
    regraft.save(module, tmp_path / "net")
    fourth = called(module, X)
    loaded = called(regraft.load(tmp_path / "net"), X)
    assert same(loaded, first) or same(loaded, fourth)
    assert not same(third, fourth)


# ------------------------------------------------------------------------------------- changing sizes


class Sizes(nn.Module):
    """Sizes that are computed on both sides of the cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.relu(self.fc(x)).reshape(-1, 3)
        x = uncompiled(x).reshape(batch, 2, 3) / batch
        x = uncompiled_gradient(x.flatten(1)) + torch.arange(batch)[:, None]
        return self.last(x).expand(2, batch, 3) * y.sum() / y.shape[0]


@pytest.mark.parametrize("least", [1, 1000])
def test_r_14_dynamic_batch_across_cuts(least: int, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=32)
    other = torch.export.Dim("other", min=1, max=8)
    model = seeded(Sizes, 0)
    shapes: Any = ({0: batch}, {0: other})
    example = (numbers(5, 8), numbers(3, 2))
    module = regraft.compile(model, example, dynamic_shapes=shapes, min_block_size=least)
    regraft.save(module, tmp_path / "net")
    loaded = regraft.load(tmp_path / "net")
    for turn in range(2):
        for size, rows in ((5, 3), (2, 1), (32, 8), (7, 2)):
            inputs = (numbers(size, 8, seed=size), numbers(rows, 2, seed=rows))
            for one in (module, loaded):
                assert_agrees(one, seeded(Sizes, turn), inputs)
        for one in (module, loaded):
            one.refit(seeded(Sizes, 1).state_dict())
    for one in (module, loaded):
        for wrong in (
            (numbers(33, 8), numbers(3, 2)),
            (numbers(1, 8), numbers(3, 2)),
            (numbers(5, 8), numbers(9, 2)),
            (numbers(5, 8), numbers(3, 3)),
            (numbers(5, 8)[0], numbers(3, 2)),
            (numbers(5, 8).double(), numbers(3, 2)),
            (numbers(5, 8), numbers(3, 2).int()),
        ):
            with pytest.raises(regraft.InputError):
                one(*wrong)


class MeanByHand(nn.Module):
    """The batch of the example is a number in the program."""

    def forward(self, x: Tensor) -> Tensor:
        return uncompiled(x).sum(0) / x.shape[0]


@pytest.mark.parametrize("least", [1, 1000])
def test_r_5_inputs_of_pytorchs_parts_are_checked(least: int) -> None:
    """PyTorch would take them, and divide by the wrong number."""
    module = regraft.compile(seeded(MeanByHand, 0), X, min_block_size=least)
    assert_agrees(module, MeanByHand(), X)
    for wrong in (
        numbers(4, 8),
        numbers(5, 9),
        numbers(1, 5, 8),
        numbers(5, 8).double(),
        numbers(5, 8).to_sparse(),
        numbers(5, 8).to("meta"),
        None,
        "text",
    ):
        with pytest.raises(regraft.InputError):
            module(wrong)
    with pytest.raises(regraft.GradientError):
        module(numbers(5, 8).requires_grad_())


def test_r_5_two_sizes_that_must_be_the_same() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return uncompiled(x), uncompiled_pair(y) * x.shape[0]

    size = torch.export.Dim("size", min=2, max=9)
    module = regraft.compile(
        Both().eval(), (numbers(5, 8), numbers(5, 8)), dynamic_shapes=({0: size}, {0: size}), **SMALL
    )
    assert_agrees(module, Both(), (numbers(7, 8), numbers(7, 8)))
    with pytest.raises(regraft.InputError):
        module(numbers(7, 8), numbers(6, 8))


# ------------------------------------------------------------------------------- real models and formats


def test_r_5_a_language_model_with_one_foreign_operator(tmp_path: Path) -> None:
    """Keyword arguments in, a data class out, engines on both sides of the foreign operator."""
    from transformers import BertConfig, BertModel

    from models import randomize_

    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return uncompiled(x)

    def build(seed: int) -> nn.Module:
        config = BertConfig(
            num_hidden_layers=1,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=48,
            vocab_size=50,
            attn_implementation="sdpa",
        )
        model = BertModel(config)
        model.encoder.layer[0].intermediate.intermediate_act_fn = Foreign()
        return randomize_(model, seed)

    kwargs = {
        "input_ids": torch.tensor([[5, 17, 49, 3, 0, 0], [8, 2, 44, 9, 10, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
    }
    module, _ = assert_refits(build, (), kwargs=kwargs)
    assert len(module.models) == 2
    assert type(module(**kwargs)).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    regraft.save(module, tmp_path / "net")
    assert_same(called(regraft.load(tmp_path / "net"), (), kwargs), called(module, (), kwargs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_r_8_other_types_across_cuts(dtype: torch.dtype, tmp_path: Path) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
            self.scale = nn.Parameter(torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.fc(x))
            x = uncompiled(x.float()).to(x.dtype) * uncompiled_gradient(self.scale.float()).to(x.dtype)
            return self.last(x)

    def build(seed: int) -> nn.Module:
        return seeded(Cast, seed).to(dtype)

    x = (X[0].to(dtype),)
    module = regraft.compile(build(0), x, **SMALL)
    before = called(module, x)
    # Wider values are rounded once, as load_state_dict does.
    module.refit({name: value.double() for name, value in build(1).state_dict().items()})
    assert_same(called(module, x), called(regraft.compile(build(1), x, **SMALL), x))
    rounding = max(16 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(module(*x), build(1)(*x).detach(), rtol=rounding, atol=rounding)
    regraft.save(module, tmp_path / "net")
    assert_same(called(regraft.load(tmp_path / "net"), x), called(module, x))
    module.refit(build(0).state_dict())
    assert_same(called(module, x), before)


class Rotated(nn.Module):
    """Rotary tables as complex numbers, multiplied up by what engines have not where that is asked for."""

    def __init__(self, multiplied: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("table", torch.polar(torch.rand(4) + 0.5, torch.rand(4)))
        self.multiplied = multiplied

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.cumprod(0) if self.multiplied else self.table
        pairs = torch.view_as_complex(torch.relu(self.first(x)).view(-1, 4, 2)) * table
        return self.last(torch.tanh(torch.view_as_real(pairs).reshape(-1, 8)))


def test_r_6_complex_tables() -> None:
    """They are pairs: a state dict gives them as complex numbers, or as pairs."""
    x = (numbers(3, 8),)
    compiled, _ = assert_refits(lambda seed: seeded(Rotated, seed), x, require_full_compilation=True)
    before, other = called(compiled, x), seeded(Rotated, 1)
    wanted = called(regraft.compile(other, x), x)
    state = other.state_dict()
    for table in (
        state["table"].to(torch.complex128),
        state["table"].conj_physical().conj(),
        state["table"][:, None].expand(4, 3)[:, 1],
        torch.view_as_real(state["table"]),
    ):
        compiled.refit(seeded(Rotated, 0).state_dict())
        assert_same(called(compiled, x), before)
        compiled.refit({**state, "table": table})
        assert_same(called(compiled, x), wanted)
    for table in (state["table"].real, state["table"][:3], torch.view_as_real(state["table"])[:, :1]):
        with pytest.raises(regraft.WeightsError, match=r"table +expected f32\[4, 2\]"):
            compiled.refit({**state, "table": table})
    assert_same(called(compiled, x), wanted)


def test_r_6_other_complex_tables_stay_in_pytorch() -> None:
    x = torch.randn(3, 8)
    net, other = Rotated(multiplied=True).eval(), Rotated(multiplied=True).eval()
    compiled = regraft.compile(net, (x,), min_block_size=1)
    reasons = {part.reason for part in compiled.report().in_pytorch}
    assert len(compiled.models) == 2 and "complex64 is not supported" in reasons
    for weights in (net, other, net):
        compiled.refit(weights.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), weights(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(regraft.CompileError, match="this operator on complex numbers is not supported"):
        regraft.compile(net, (x,), require_full_compilation=True)
