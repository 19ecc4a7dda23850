"""The weights of parts that stay in PyTorch are weights as others: R-5, R-7, and caches that fail (C-6)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from python_checks import (
    Function,
    agrees,
    assert_refits,
    bits,
    numbers,
    seeded,
    uncompiled,
)

pytestmark = pytest.mark.filterwarnings("ignore:No complete tensor found")

X = numbers(4, 6)
CUT: dict[str, Any] = {"min_block_size": 1}


class Cut(nn.Module):
    """Three engines; PyTorch's parts read a parameter and buffers, one of which no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.gain = nn.Parameter(torch.randn(6))
        self.register_buffer("shift", torch.rand(6))
        self.register_buffer("step", torch.full((6,), 0.25), persistent=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = uncompiled(self.gain) + uncompiled(y) + uncompiled(self.shift) * uncompiled(self.step)
        y = self.norm(self.second(y)) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        y = uncompiled(y * 0.1)
        return torch.softmax(self.third(y) * self.gain, -1)


NAMES = set(Cut().state_dict())


@functools.cache
def original(seed: int) -> regraft.Module:
    return regraft.compile(seeded(Cut, seed), (X,), **CUT)


def fresh(seed: int = 0) -> regraft.Module:
    """Compiled with the weights of that number; exporting it takes most of the time of these tests."""
    return original(seed).fork()


def test_r_5_weights_on_both_sides_of_the_cuts() -> None:
    compiled = assert_refits(Cut, (X,), **CUT)
    assert len(compiled.models) == 3 and set(compiled.sources) == NAMES
    second = seeded(Cut, 1)
    report = compiled.refit(second.state_dict())
    given = NAMES - {"norm.num_batches_tracked"}
    assert given - {"norm.running_mean", "norm.running_var", "norm.weight", "norm.bias"} <= set(
        report.applied
    )
    again = compiled.refit(second.state_dict())
    assert not again.applied and given <= set(again.unchanged)


def test_r_5_all_or_nothing() -> None:
    """Whatever is wrong, wherever it is read: everything is listed and nothing changes."""
    compiled = fresh()
    before, other = bits(compiled(X)), dict(seeded(Cut, 1).state_dict())
    wrong = other | {
        "third.bias": torch.zeros(7),
        "gain": torch.zeros(2),
        "shift": torch.zeros(6, dtype=torch.int64),
        "nonsense": torch.zeros(1),
    }
    del wrong["second.weight"]
    with pytest.raises(regraft.WeightsError, match="nothing was changed") as caught:
        compiled.refit(wrong)
    text = str(caught.value)
    for part in (
        r"third.bias  expected f32[6], found f32[7]",
        "gain  expected f32[6], found f32[2]",
        "shift  expected f32[6], found i64[6]",
        "nonsense  unknown",
        "second.weight  missing",
    ):
        assert part in text, f"{part}\n{text}"
    assert text.startswith("5 weights") and len(text.splitlines()) == 6
    not_finite = torch.full((6,), float("nan"))
    refusals: list[dict[str, Any]] = [
        {"third.bias": torch.zeros(6).to_sparse()},
        {"gain": torch.zeros(6).to_sparse()},
        {"gain": torch.zeros(6, device="meta")},
        {"gain": torch.zeros(6) + 1j},
        {"gain": torch.ones(6, dtype=torch.bool)},
        {"gain": [1.0] * 6},
        {"gain": None},
        {"third.bias": not_finite},
        {"gain": not_finite},
    ]
    for refused in refusals:
        for rest in (other, {"first.weight": other["first.weight"]}):
            with pytest.raises(regraft.WeightsError):
                compiled.refit(rest | refused, partial=True, reject_non_finite=True)
            assert bits(compiled(X)) == before
    with pytest.raises(regraft.WeightsError):
        compiled.refit(7)  # type: ignore[arg-type]
    assert bits(compiled(X)) == before


def test_r_5_names_that_changed_are_believed() -> None:
    compiled = fresh()
    module, other = seeded(Cut), seeded(Cut, 1).state_dict()
    names = ["gain", "second.bias"]
    compiled.refit(other, changed=names)
    module.load_state_dict({name: other[name] for name in names}, strict=False)
    assert bits(compiled(X)) == bits(regraft.compile(module, (X,), **CUT)(X))
    compiled.refit(other, changed="all")
    assert bits(compiled(X)) == bits(fresh(1)(X))


def test_r_5_weights_by_other_float_types() -> None:
    other = {
        name: t.double() if t.is_floating_point() else t for name, t in seeded(Cut, 1).state_dict().items()
    }
    compiled = fresh()
    compiled.refit(other)
    agrees(compiled, seeded(Cut, 1), X)
    compiled.refit({name: value.numpy() for name, value in seeded(Cut).state_dict().items()})
    agrees(compiled, seeded(Cut), X)


def test_r_5_identical_stripped_and_frozen(tmp_path: Path) -> None:
    """The modes hold for the weights of PyTorch's parts as for those of engines."""
    module, other = seeded(Cut), seeded(Cut, 1).state_dict()
    state = dict(module.state_dict())

    stripped = regraft.compile(module, (X,), strip_engine_weights=True, **CUT)
    assert stripped.mode == "stripped"
    regraft.save(stripped, tmp_path / "stripped")
    for unbound in (stripped, regraft.load(tmp_path / "stripped"), stripped.fork()):
        with pytest.raises(regraft.NotBoundError):
            unbound(X)
        with pytest.raises(regraft.WeightsError):
            unbound.refit({"gain": torch.ones(6)}, partial=True)
        unbound.refit(other)
        agrees(unbound, seeded(Cut, 1), X)
        assert unbound.mode == "refittable"
    regraft.save(stripped, tmp_path / "without", strip=True)
    kept = torch.load(tmp_path / "without" / "kept.pt", weights_only=True)
    assert kept["gain"].is_meta and not kept["step"].is_meta
    bound = regraft.load(tmp_path / "without")
    bound.refit(other)
    agrees(bound, seeded(Cut, 1), X)

    for strip in (False, True):
        identical = regraft.compile(
            module, (X,), refit_identical_engine_weights=True, strip_engine_weights=strip, **CUT
        )
        for name in ("gain", "shift", "first.weight", "third.bias"):
            with pytest.raises(regraft.WeightsError, match=f"{name}  differs"):
                identical.refit(state | {name: other[name]})
        identical.refit(state)
        agrees(identical, module, X)

    frozen = regraft.compile(module, (X,), make_refittable=False, **CUT)
    agrees(frozen, module, X)
    with pytest.raises(regraft.FrozenError):
        frozen.refit(state)


# ------------------------------------------------------------------------------------------ R-7 across cuts


class Tied(nn.Module):
    """The output layer is the embedding, and PyTorch reads it in between."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y = uncompiled(torch.tanh(self.embedding(tokens)))
        return self.head(torch.tanh(y)) + uncompiled(self.head.weight).mean(1)


TOKENS = torch.tensor([[3, 0, 11], [1, 2, 3]])


def test_r_7_tied_weights_across_cuts(tmp_path: Path) -> None:
    assert_refits(Tied, (TOKENS,), **CUT)
    second = seeded(Tied, 1)
    wanted = bits(regraft.compile(second, (TOKENS,), **CUT)(TOKENS))
    compiled = regraft.compile(seeded(Tied), (TOKENS,), **CUT)
    regraft.save(compiled, tmp_path / "saved")
    value = second.head.weight.detach()
    for names in (["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]):
        for partial in (False, True):
            for given in (compiled.fork(), regraft.load(tmp_path / "saved")):
                given.refit({name: value.clone() for name in names}, partial=partial)
                assert bits(given(TOKENS)) == wanted, names
    compiled.refit({"head.weight": value}, partial=True, changed=["head.weight"])
    assert bits(compiled(TOKENS)) == wanted
    with pytest.raises(regraft.WeightsError, match=r"head\.weight"):
        compiled.refit({"embedding.weight": value, "head.weight": value + 1})
    assert bits(compiled(TOKENS)) == wanted


# ---------------------------------------------------------------------------------- what lies at a cut


def in_place(layer: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    y = layer.fc(x)
    z = uncompiled(y)
    z.add_(1)
    z[:, 0] = 0
    z = z.relu_()
    z[1] += layer.w
    return z * 2 + y, z


def several_outputs(layer: Function, x: Tensor) -> tuple[Tensor, ...]:
    a, b = layer.fc(x).split(3, 1)
    values, indices = torch.max(uncompiled(a), 1)
    order = uncompiled(b).topk(2)[1]
    top, at = layer.fc(x + values[:, None]).max(0)
    return values, indices, order, uncompiled(top), at


def views(layer: Function, x: Tensor) -> tuple[Tensor, ...]:
    y = uncompiled(layer.fc(x)).t()
    z = torch.tanh(y[1:4]).t()
    return z, uncompiled(z[:, ::2].unsqueeze(0)), y.reshape(-1)[3:9] * layer.w


def half(layer: Function, x: Tensor) -> Tensor:
    return uncompiled(layer.fc(x).half().float()).bfloat16() + layer.w.bfloat16()


def scalars(layer: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    total = uncompiled(layer.fc(x)).sum()
    return (total * layer.w).tanh(), uncompiled(total / x.shape[0])


def integers(layer: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    rank = uncompiled(layer.fc(x)).argsort(1)
    return torch.gather(layer.fc(x) * 2, 1, rank), rank > 2


def twice(layer: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    y = uncompiled(layer.fc(x))
    return y, y


BETWEEN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (in_place, several_outputs, views, half, scalars, integers, twice)
}


@pytest.mark.parametrize("name", BETWEEN)
def test_r_5_what_lies_at_a_cut(name: str) -> None:
    compute = BETWEEN[name]
    compiled = assert_refits(lambda: Function(compute), (X,), **CUT)
    assert compiled.models and compiled.report().in_pytorch
    x = numbers(4, 6, seed=3)
    before = x.clone()
    agrees(compiled, seeded(lambda: Function(compute)), x)
    assert torch.equal(x, before)


# ---------------------------------------------------------------------------------- settings and the report


def test_full_compilation_lists_what_stands_in_the_way() -> None:
    with pytest.raises(regraft.CompileError) as caught:
        regraft.compile(seeded(Cut), (X,), require_full_compilation=True)
    unsupported = caught.value.unsupported
    assert len(unsupported) == 5
    assert all("special_erfcx" in part.op and part.node and part.reason for part in unsupported)
    for part in unsupported:
        assert part.node in str(caught.value)
    with pytest.raises(regraft.CompileError, match=r"contradict.*aten.linear"):
        regraft.compile(
            seeded(Cut), (X,), require_full_compilation=True, torch_executed_ops=["aten.linear.default"]
        )
    whole = seeded(lambda: Function(lambda layer, x: layer.fc(x)))
    assert regraft.compile(whole, (X,), require_full_compilation=True).report().is_whole


# ------------------------------------------------------------------------------------------ C-6: the cache


class Cache:
    """A user's cache."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.asked: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return self.entries.get(key)

    def put(self, key: str, entry: bytes) -> None:
        self.entries[key] = entry

    def remove(self, key: str) -> None:
        self.entries.pop(key, None)


class Failing(Cache):
    def get(self, key: str) -> bytes | None:
        raise OSError("no connection")

    def put(self, key: str, entry: bytes) -> None:
        raise OSError("no connection")


class Lying(Cache):
    """Gives damaged entries, and entries of others."""

    def __init__(self, damage: Callable[[bytes], Any]) -> None:
        super().__init__()
        self.damage = damage

    def get(self, key: str) -> Any:
        entry = self.entries.get(key)
        return None if entry is None else self.damage(entry)


def test_c_6_caches_that_fail_or_lie() -> None:
    """An engine is built anew; nothing wrong is ever computed."""
    wanted = bits(fresh()(X))
    assert bits(regraft.compile(seeded(Cut), (X,), engine_cache=Failing(), **CUT)(X)) == wanted

    def flipped(entry: bytes) -> bytes:
        middle = len(entry) // 2
        return entry[:middle] + bytes([entry[middle] ^ 1]) + entry[middle + 1 :]

    damages: list[Callable[[bytes], Any]] = [
        flipped,
        lambda entry: entry[:-1],
        lambda entry: "text",
    ]
    for damage in damages:
        cache = Lying(damage)
        regraft.compile(seeded(Cut), (X,), engine_cache=cache, **CUT)
        assert bits(regraft.compile(seeded(Cut), (X,), engine_cache=cache, **CUT)(X)) == wanted
    swapped = Lying(lambda entry: entry)
    regraft.compile(seeded(Cut), (X,), engine_cache=swapped, **CUT)
    keys = list(swapped.entries)
    swapped.entries = dict(zip(keys, [swapped.entries[key] for key in keys[1:] + keys[:1]], strict=True))
    assert bits(regraft.compile(seeded(Cut), (X,), engine_cache=swapped, **CUT)(X)) == wanted
