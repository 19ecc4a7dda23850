"""Sizes that a program counts while it runs: positions of true elements, and rows that a mask chooses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regraft
from comparing import assert_same
from module_checks import assert_refits, called
from small import numbers, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 7
WHOLE = {"require_full_compilation": True}
MASKS = {
    "all": [1, 1, 1, 1, 1, 1, 1],
    "none": [0, 0, 0, 0, 0, 0, 0],
    "in front": [1, 1, 1, 0, 0, 0, 0],
    "at the end": [0, 0, 0, 0, 0, 1, 1],
    "the last": [0, 0, 0, 0, 0, 0, 1],
    "with holes": [0, 1, 0, 1, 1, 0, 1],
}


def assert_agrees(module: nn.Module, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """As PyTorch, also where that gives zeros alone."""
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)


def mask_of(*names: str) -> Tensor:
    return torch.tensor([MASKS[name] for name in names], dtype=torch.bool)


class Joint(nn.Module):
    """Attention over a picture and those tokens of a prompt that count, each of a batch for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.prompt = nn.Linear(16, 48), nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, picture: Tensor, prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        size, length = picture.shape[1], prompt.shape[1]
        of_picture, of_prompt = (
            [part.unflatten(2, (2, 8)).transpose(1, 2) for part in layer(x).chunk(3, 2)]
            for layer, x in ((self.picture, picture), (self.prompt, prompt))
        )
        seen = []
        for i in range(picture.shape[0]):
            places = torch.nonzero(mask[i][None].flatten(), as_tuple=False).flatten()
            q, k, v = (
                torch.cat([a[i : i + 1], b[i : i + 1, :, places, :]], 2)
                for a, b in zip(of_picture, of_prompt, strict=True)
            )
            y = F.scaled_dot_product_attention(q, k, v)
            seen.append(F.pad(y, (0, 0, 0, size + length - y.size(2))))
        joined = torch.cat(seen).transpose(1, 2).flatten(2)
        of_picture, of_prompt = joined.split_with_sizes((size, length), 1)
        return self.out(of_picture), of_prompt


class Adapted(nn.Module):
    """Rows of one kind go through layers of their own, as in X-MOD."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        chosen = x[mask]
        y = torch.zeros_like(x)
        y[mask] = self.up(F.gelu(self.down(F.layer_norm(chosen, (16,))))) + chosen
        return y


JOINT = (numbers(2, 5, 16), numbers(2, LENGTH, 16), mask_of("in front", "with holes"))


@pytest.fixture(scope="module")
def joint() -> regraft.Module:
    return regraft.compile(seeded(Joint, 0), JOINT, **WHOLE)


@pytest.mark.parametrize("first", MASKS)
def test_attention_sees_what_counts(joint: regraft.Module, first: str) -> None:
    for second in MASKS:
        assert_agrees(joint, seeded(Joint, 0), (*JOINT[:2], mask_of(first, second)))


def test_what_does_not_count_is_not_read(joint: regraft.Module) -> None:
    mask = mask_of("with holes", "none")
    prompt = JOINT[1].masked_fill(~mask[..., None], float("nan"))
    assert_same(called(joint, (JOINT[0], prompt, mask)), called(joint, (JOINT[0], JOINT[1], mask)))


def test_counted_sizes_refit() -> None:
    assert_refits(lambda seed: seeded(Joint, seed), JOINT, **WHOLE)


@pytest.mark.parametrize("mask", MASKS)
def test_rows_that_a_mask_chooses(mask: str) -> None:
    x, exported = numbers(LENGTH, 3, 16), mask_of("in front")[0]
    compiled = regraft.compile(seeded(Adapted, 0), (x, exported), **WHOLE)
    assert_agrees(compiled, seeded(Adapted, 0), (x, mask_of(mask)[0]))


def test_lengths_that_change() -> None:
    """The mask's length is one of the sizes of a call."""
    length = torch.export.Dim("length", min=2, max=20)
    net = seeded(Adapted, 0)
    program = torch.export.export(
        net, (numbers(LENGTH, 3, 16), mask_of("in front")[0]), dynamic_shapes=({0: length}, {0: length})
    )
    compiled = regraft.compile(program, **WHOLE)
    for size in (2, 5, 20):
        assert_agrees(compiled, net, (numbers(size, 3, 16), torch.arange(size) % 3 != 1))


class Put(nn.Module):
    """Rows that are given, in the places of a mask."""

    def forward(self, x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        y = x.clone()
        y[mask] = rows
        return y


def test_given_rows_in_the_places_of_a_mask() -> None:
    x, rows, mask = numbers(1, LENGTH, 4), numbers(4, 4, seed=1), mask_of("with holes")
    compiled = regraft.compile(Put().eval(), (x, mask, rows), **WHOLE)
    assert_agrees(compiled, Put(), (x, mask, rows))
    assert_agrees(compiled, Put(), (x, mask.flip(1), rows))
    # As in PyTorch, there must be as many as places.
    for other in ("in front", "all", "none"):
        with pytest.raises(Exception, match=r"shape mismatch|index"):
            Put()(x, mask_of(other), rows)
        with pytest.raises(regraft.RegraftError, match="index"):
            compiled(x, mask_of(other), rows)


class Inner(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows = x[mask]
        return {
            "given": lambda: rows,
            "summed": lambda: rows.sum(0),
            "largest": lambda: torch.cat([rows, x]).amax(0),
            "joined in front": lambda: F.pad(torch.cat([rows, x]), (0, 0, 0, LENGTH - rows.size(0))),
            "reversed": lambda: F.pad(rows.flip(0), (0, 0, 0, LENGTH - rows.size(0))),
            "numbered": lambda: x * rows.size(0),
            "over all rows": lambda: F.pad(rows.softmax(0), (0, 0, 0, LENGTH - rows.size(0))),
            "counted again": lambda: F.pad(rows[rows[:, 0] > 0], (0, 0, 0, LENGTH)),
        }[self.what]()


class Outer(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner = Inner(what)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.inner(self.fc(x), mask)


REFUSED = {
    "given": r"index  aten\.index\.Tensor in inner: .*as an output of the program",
    "summed": r"index  aten\.index\.Tensor in inner: .*read by aten\.sum\.dim_IntList in inner,",
    "largest": r"read by aten\.cat\.default",
    "joined in front": r"read by aten\.cat\.default",
    "reversed": r"read by aten\.flip\.default",
    "numbered": r"aten\.mul\.(Tensor|Scalar)",
    "over all rows": r"read by aten\.softmax\.int",
    "counted again": r"index(_1)?  aten\.index\.Tensor",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_looks_beyond_what_counts_is_refused(what: str) -> None:
    """With the node that counts, what reads it, where that is, and what to do; or it stays in PyTorch."""
    inputs = (numbers(LENGTH, 4), mask_of("with holes")[0])
    with pytest.raises(regraft.CompileError, match=REFUSED[what]) as caught:
        regraft.compile(Outer(what).eval(), inputs, **WHOLE)
    assert "depends on the values of a tensor" in str(caught.value)
    assert "help: use where()" in str(caught.value)
    net = Outer(what).eval()
    partly = regraft.compile(net, inputs, min_block_size=1)
    for name in ("all", "with holes", "in front"):
        assert_agrees(partly, net, (inputs[0], mask_of(name)[0]))
