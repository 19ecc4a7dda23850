"""Structures of arguments and results, constants among them, and sizes that vary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from python_checks import Function, agrees, assert_matches, pytorch
from small import numbers, seeded, uncompiled
from test_python_calls import X


class Structured(nn.Module):
    """Arguments and results of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(
        self, data: Any, mask: Tensor | None = None, double: bool = False, *, scale: float = 1.0
    ) -> dict[str, Any]:
        y = self.fc(data["x"]) * scale + data["more"][0] - data["more"][1][0]
        if mask is not None:
            y = torch.where(mask, y, 0.0)
        return {
            "out": y * 2 if double else y,
            "parts": (y[:, :1], [y.argmax(1), None], True, 3, "text", 1.5),
            "nothing": None,
        }


DATA = {"x": X, "more": [numbers(4, 6, seed=1), (numbers(6, seed=2),)]}
MASK = numbers(4, 6, seed=3) > 0


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((DATA,), {}),
        ((DATA, MASK, True), {"scale": 0.5}),
        ((DATA,), {"mask": MASK, "double": True}),
        ((), {"double": False, "data": DATA, "mask": None}),
        ((DATA, None), {}),
    ],
)
def test_arguments_and_results_of_all_structures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module = seeded(Structured)
    compiled = regraft.compile(module, args, kwarg_inputs=kwargs)
    assert compiled.report().is_whole
    agrees(compiled, module, *args, **kwargs)


def test_arguments_by_position_and_by_name() -> None:
    """As the module binds them, whichever way they were given when it was compiled."""

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, first: Tensor, second: Tensor, *, third: Tensor) -> Tensor:
            return self.fc(first) - 2 * second + 3 * third

    module = seeded(Difference)
    a, b, c = numbers(4, 6, seed=1), numbers(4, 6, seed=2), numbers(4, 6, seed=3)
    examples = [
        ((a, b), {"third": c}),
        ((a,), {"third": c, "second": b}),
        ((), {"third": c, "second": b, "first": a}),
    ]
    wanted = pytorch(module, a, b, third=c)
    for args, kwargs in examples:
        compiled = regraft.compile(module, args, kwarg_inputs=kwargs)
        for other_args, other_kwargs in examples:
            assert_matches(compiled(*other_args, **other_kwargs), wanted)
        program = torch.export.export(module, args, kwargs)
        from_program = regraft.compile(program)
        for other_args, other_kwargs in examples:
            if len(other_args) <= len(args):
                assert_matches(from_program(*other_args, **other_kwargs), wanted)
                continue
            # The order of a program's keywords is its example's: positions are not guessed from it.
            with pytest.raises(regraft.InputError, match="structure"):
                from_program(*other_args, **other_kwargs)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, b, c)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, b, third=c, fourth=c)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, first=a, second=b, third=c)


def test_dicts_in_another_order() -> None:
    module = seeded(Structured)
    compiled = regraft.compile(module, (DATA,))
    agrees(compiled, module, dict(reversed(DATA.items())))
    for other in ({"x": X}, DATA | {"z": X}, DATA | {"more": tuple(DATA["more"])}, [X], X, None):
        with pytest.raises(regraft.InputError, match="structure"):
            compiled(other)


def test_constants_are_checked() -> None:
    """What was compiled in must be the same at each call: another value gives an error, never its result."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, flag: bool, name: str | None) -> Tensor:
            return (x * scale if flag else x).tanh()

    module = seeded(Scaled)
    compiled = regraft.compile(module, (X, 2.0, True, "a"))
    agrees(compiled, module, X, 2.0, True, "a")
    for wrong in ((3.0, True, "a"), (2, True, "a"), (2.0, 1, "a"), (2.0, False, "a"), (2.0, True, None)):
        with pytest.raises(regraft.InputError, match="the program was compiled for"):
            compiled(X, *wrong)
    with pytest.raises(regraft.InputError, match="a tensor"):
        compiled(X, torch.tensor(2.0), True, "a")
    nan = regraft.compile(module, (X, float("nan"), False, None))
    agrees(nan, module, X, float("nan"), False, None)


def test_zeros_of_either_sign_are_two_constants() -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor, zero: float) -> Tensor:
            return torch.copysign(x, torch.tensor(zero)) + 1

    module = regraft.compile(Sign().eval(), (X, 0.0), min_block_size=1)
    agrees(module, Sign(), X, 0.0)
    with pytest.raises(regraft.InputError, match=r"compiled for 0\.0, found -0\.0"):
        module(X, -0.0)


def test_results_of_transformers() -> None:
    """Data classes, attention masks, sizes that change: encoders and decoders as their library calls them."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
    bert = seeded(lambda: BertModel(BertConfig(num_hidden_layers=2, **small)))
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=2, max=20)
    axes = {0: batch, 1: length}
    compiled = regraft.compile(
        bert,
        kwarg_inputs={"input_ids": ids, "attention_mask": mask},
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    for rows, columns in ((2, 7), (1, 3), (5, 20)):
        ids = torch.randint(0, 50, (rows, columns), generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(columns) < torch.arange(rows)[:, None] + 2).long()
        found = compiled(input_ids=ids, attention_mask=mask)
        wanted = pytorch(bert, input_ids=ids, attention_mask=mask)
        assert type(found) is type(wanted)
        assert_matches(found, wanted)
        assert torch.equal(found.last_hidden_state, found[0]) and set(found) == set(wanted)
        assert_matches(compiled(ids, mask), wanted)
    with pytest.raises(regraft.InputError):
        compiled(input_ids=ids, attention_mask=mask[:, 1:])

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32, use_cache=False)
    gpt2 = seeded(lambda: GPT2LMHeadModel(config))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    agrees(regraft.compile(gpt2, kwarg_inputs=inputs), gpt2, **inputs)


@pytest.mark.parametrize("settings", [{}, {"min_block_size": 1}, {"min_block_size": 100}])
def test_dynamic_shapes(settings: dict[str, Any]) -> None:
    def compute(layer: Function, x: Tensor, y: Tensor) -> Tensor:
        z = layer.fc(x)
        z = uncompiled(z) if settings else torch.tanh(z)
        return z.view(-1)[: x.shape[0]] + z.sum() / x.shape[0] + y[: x.shape[0]]

    module = seeded(lambda: Function(compute))
    b = Dim("b", min=2, max=9)
    axes = {"x": {0: b}, "more": ({0: 2 * b},)}
    compiled = regraft.compile(module, (X, numbers(8)), dynamic_shapes=axes, **settings)
    for size in (2, 5, 9):
        agrees(compiled, module, numbers(size, 6), numbers(2 * size))
    wrong = [(1, 6, 2), (10, 6, 20), (4, 5, 8), (4, 6, 10), (4, 6, 7)]
    for rows, columns, length in wrong:
        with pytest.raises(regraft.InputError):
            compiled(numbers(rows, columns), numbers(length))


class Sums(nn.Module):
    """A number that is read from a tensor, and a size that depends on values."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * x.sum().item(), (x > 0).nonzero().float() * 2, x.relu() + 1


@pytest.mark.parametrize("size", [1, 5])
def test_values_that_sizes_depend_on(size: int) -> None:
    module = Sums().eval()
    compiled = regraft.compile(module, (X,), min_block_size=size)
    for x in (X, -X, X.abs(), -X.abs(), X * 3):
        agrees(compiled, module, x)
