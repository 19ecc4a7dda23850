"""Weights of parts that stay in PyTorch are weights as others: their types, modes, ties and checks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from python_checks import agrees, assert_refits, bits
from small import Shelf, numbers, seeded, uncompiled

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


@functools.cache
def original(seed: int) -> regraft.Module:
    return regraft.compile(seeded(Cut, seed), (X,), **CUT)


def fresh(seed: int = 0) -> regraft.Module:
    """Compiled with the weights of that number; exporting it takes most of the time of these tests."""
    return original(seed).fork()


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
    assert {(problem.name, problem.what) for problem in caught.value.problems} == {
        ("third.bias", "expected f32[6], found f32[7]"),
        ("gain", "expected f32[6], found f32[2]"),
        ("shift", "expected f32[6], found i64[6]"),
        ("nonsense", "unknown: the engine has no such source"),
        ("second.weight", "missing"),
    }
    assert all(problem.name in str(caught.value) for problem in caught.value.problems)
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

    stripped = regraft.compile(module, (X,), mode="stripped", **CUT)
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
            module, (X,), identical=True, mode="stripped" if strip else "refittable", **CUT
        )
        for name in ("gain", "shift", "first.weight", "third.bias"):
            with pytest.raises(regraft.WeightsError, match=f"{name}  differs"):
                identical.refit(state | {name: other[name]})
        identical.refit(state)
        agrees(identical, module, X)

    frozen = regraft.compile(module, (X,), mode="frozen", **CUT)
    agrees(frozen, module, X)
    with pytest.raises(regraft.FrozenError):
        frozen.refit(state)


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


class Failing(Shelf):
    def get(self, key: str) -> bytes | None:
        raise OSError("no connection")

    def put(self, key: str, entry: bytes) -> None:
        raise OSError("no connection")


class Lying(Shelf):
    """Gives damaged entries, and entries of others."""

    def __init__(self, damage: Callable[[bytes], Any]) -> None:
        super().__init__()
        self.damage = damage

    def get(self, key: str) -> Any:
        entry = self.entries.get(key)
        return None if entry is None else self.damage(entry)


def test_c_6_caches_that_fail_or_lie() -> None:
    """An engine is rebuilt; nothing wrong is ever computed."""
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


class Net(nn.Module):
    """Tensors of several kinds and ranks, one of them used twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(18, 6)
        self.gain = nn.Parameter(torch.randn(6))
        self.register_buffer("order", torch.randperm(6))
        self.idle = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x[:, None])))
        return (self.fc(y.flatten(1)) * self.gain)[:, self.order] + self.gain


def float64(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * layer.t.float(), x.double() * layer.t


def narrow(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * layer.t.float(), layer.t * 2


def large(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer.t + 1, x[:, layer.t % 6]


def plain(layer: Any, x: Tensor) -> Tensor:
    return layer.fc(x) * layer.t


def joined(layer: Any, x: Tensor) -> Tensor:
    return torch.cat((layer.t, layer.fc(x)))


# For each sort: what is computed of it, and how it is made; buffers where it is not a parameter.
SORTS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "float64_parameter": (float64, lambda: nn.Parameter(torch.randn(6, dtype=torch.float64))),
    "float16_parameter": (narrow, lambda: nn.Parameter(torch.randn(6).half())),
    "bfloat16_parameter": (narrow, lambda: nn.Parameter(torch.randn(6).bfloat16())),
    "int64_buffer": (large, lambda: torch.randint(2**60, 2**62, (3,))),
    "bool_buffer": (lambda layer, x: torch.where(layer.t, x, 0.0), lambda: torch.rand(6) > 0.5),
    "scalar_parameter": (plain, lambda: nn.Parameter(torch.randn(()))),
    "empty_tensor": (joined, lambda: nn.Parameter(torch.randn(0, 6))),
    "transposed": (plain, lambda: nn.Parameter(torch.randn(6, 4).t())),
    "every_other": (plain, lambda: nn.Parameter(torch.randn(12)[::2])),
    "expanded": (plain, lambda: torch.randn(1).expand(6)),
}


class Sort(nn.Module):
    def __init__(self, name: str, cut: bool) -> None:
        super().__init__()
        self.compute, make = SORTS[name]
        self.fc = nn.Linear(6, 6)
        value = make()
        if isinstance(value, nn.Parameter):
            self.t = value
        else:
            self.register_buffer("t", value)
        self.cut = cut

    def forward(self, x: Tensor) -> Any:
        y = self.compute(self, self.fc(x))
        # PyTorch's parts read it, too.
        return (y, uncompiled(self.t.float() * 0.0) + self.t) if self.cut else y


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", SORTS)
def test_r_8_sorts_of_tensors(name: str, cut: bool) -> None:
    assert_refits(lambda: Sort(name, cut), (X,), min_block_size=1)


def test_r_8_views_of_one_storage() -> None:
    """Weights that see one memory are replaced each for itself."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            storage = torch.randn(48)
            self.first = nn.Parameter(storage[:36].view(6, 6))
            self.second = nn.Parameter(storage[12:].view(6, 6))
            self.register_buffer("row", storage[3:9])
            self.register_buffer("flat", self.first.detach().t())

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.row) @ self.first + torch.tanh(x @ self.second) @ self.flat

    compiled = assert_refits(Viewing, (X,))
    module = seeded(Viewing)
    value = {"first": numbers(6, 6, seed=4)}
    compiled.refit(value, partial=True)
    own = copy.deepcopy(module)
    for name in ("second", "row", "flat"):
        setattr(own, name, type(getattr(own, name))(getattr(module, name).detach().clone()))
    own.load_state_dict(value, strict=False)
    agrees(compiled, own, X)


class CutNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        return uncompiled(super().forward(x) * 0.1) * self.gain + uncompiled(self.gain)


@pytest.fixture(scope="module")
def nets() -> dict[type[Net], tuple[regraft.Module, list[Any]]]:
    """The compiled nets, and what is computed with weights number 0 and 1."""
    found = {}
    for build in (Net, CutNet):
        compiled = regraft.compile(seeded(build), (X,), min_block_size=1)
        other = regraft.compile(seeded(build, 1), (X,), min_block_size=1)
        found[build] = (compiled, [bits(compiled(X)), bits(other(X))])
    return found


def test_r_16_results_that_pytorch_has_in_another_structure(nets: Any) -> None:
    """They are a difference, too, not an accident of comparing."""
    compiled, wanted = nets[Net]

    class Fewer(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:1]

    class More(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    for build in (Fewer, More):
        with pytest.raises(regraft.VerificationError):
            regraft.refit_module_weights(compiled, seeded(build, 1), (X,), verify_output=True)
    assert bits(compiled(X)) == wanted[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_r_11_non_finite_values(nets: Any, value: float) -> None:
    for build, (compiled, wanted) in nets.items():
        for name in ("gain", "fc.weight", "norm.running_var"):
            fork, state = compiled.fork(), dict(seeded(build, 1).state_dict())
            state[name] = state[name].clone()
            state[name].view(-1)[-1] = value
            with pytest.raises(regraft.WeightsError, match=name):
                fork.refit(state, reject_non_finite=True)
            assert bits(fork(X)) == wanted[0]
            fork.refit(state)
            assert bits(fork(X)) != wanted[0]
