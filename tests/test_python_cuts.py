"""Modules cut into engines and parts in PyTorch: R-5, C-7, and what the report says."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from python_checks import (
    Function,
    agrees,
    assert_refits,
    bits,
    changed,
    numbers,
    pytorch,
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


@pytest.mark.parametrize("name", sorted(NAMES))
def test_r_5_each_weight_alone(name: str) -> None:
    module, compiled = seeded(Cut), fresh()
    other = {name: changed(module.state_dict())[name]}
    before = bits(compiled(X))
    report = compiled.refit(other, partial=True)
    module.load_state_dict(other, strict=False)
    agrees(compiled, module, X)
    is_read = name != "norm.num_batches_tracked"
    assert (bits(compiled(X)) != before) == is_read
    assert (name in report.applied) == is_read and set(report.applied) <= {name}


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


def test_r_5_given_tensors_are_read_during_the_call_only() -> None:
    compiled = fresh()
    given = {name: value.clone() for name, value in seeded(Cut, 1).state_dict().items()}
    compiled.refit(given)
    wanted = bits(compiled(X))
    for value in given.values():
        value.zero_()
    assert bits(compiled(X)) == wanted and bits(compiled.fork()(X)) == wanted
    compiled.refit({"third.bias": torch.ones(6)}, partial=True)
    second = seeded(Cut, 1)
    second.third.bias.data.fill_(1)
    assert bits(compiled(X)) == bits(regraft.compile(second, (X,), **CUT)(X))


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


def test_r_5_forks_are_independent() -> None:
    first, second = seeded(Cut), seeded(Cut, 1)
    compiled = fresh()
    fork = compiled.fork()
    a = bits(compiled(X))
    assert bits(fork(X)) == a
    fork.refit(second.state_dict())
    b = bits(fork(X))
    assert bits(compiled(X)) == a != b
    compiled.refit({"gain": torch.ones(6)}, partial=True)
    assert bits(fork(X)) == b
    refitted = regraft.refit_module_weights(compiled, first)
    assert bits(refitted(X)) == a and bits(fork(X)) == b


def test_r_5_saved_and_loaded(tmp_path: Path) -> None:
    compiled = fresh()
    compiled.refit(seeded(Cut, 1).state_dict())
    wanted = bits(compiled(X))
    regraft.save(compiled, tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved")
    assert bits(loaded(X)) == wanted
    assert str(loaded.report()) == str(compiled.report()) and loaded.sources == compiled.sources
    with pytest.raises(regraft.InputError):
        loaded(X[:2])
    loaded.refit(seeded(Cut, 0).state_dict())
    agrees(loaded, seeded(Cut, 0), X)
    assert bits(compiled(X)) == wanted
    regraft.save(loaded, tmp_path / "saved")
    assert bits(regraft.load(tmp_path / "saved")(X)) == bits(loaded(X))


def test_r_5_runs_see_one_set_of_weights() -> None:
    """While another thread refits, each output is exactly A's or exactly B's."""
    states = [seeded(Cut, seed).state_dict() for seed in (0, 1)]
    compiled = fresh()
    allowed = []
    for state in states:
        compiled.refit(state)
        allowed.append(bits(compiled(X)))
    assert allowed[0] != allowed[1]
    seen: list[Any] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            seen.append(bits(compiled(X)))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(150):
        compiled.refit(states[number % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert len(seen) > 10 and all(found in allowed for found in seen)
    assert bits(compiled(X)) == allowed[1]


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


def test_r_5_dynamic_sizes_across_cuts() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            b, s, _ = x.shape
            y = uncompiled(self.fc(x).reshape(b * s, 6))
            z = self.out(y).view(b, s, 6) + torch.arange(s)[:, None] / (b + s)
            return torch.cat((z, x), 1), uncompiled(z.transpose(0, 1).reshape(s, -1))

    module = seeded(Sized)
    axes = {0: Dim("b", min=1, max=5), 1: Dim("s", min=2, max=9)}
    compiled = regraft.compile(module, (numbers(3, 4, 6),), dynamic_shapes={"x": axes}, **CUT)
    for seed in (0, 1):
        module = seeded(Sized, seed)
        compiled.refit(module.state_dict())
        for b, s in ((3, 4), (1, 2), (5, 9), (1, 9)):
            agrees(compiled, module, numbers(b, s, 6, seed=b) * 0.2)
    for b, s in ((0, 3), (6, 3), (2, 1), (2, 10)):
        with pytest.raises(regraft.InputError):
            compiled(numbers(b, s, 6))


def test_r_5_state_between_cuts() -> None:
    """A buffer that is written to in PyTorch's part and read by the engines around it."""

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.register_buffer("last", torch.zeros(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = uncompiled(self.fc(x) + self.last)
            self.last.copy_(y)
            return self.fc(y + self.last) + uncompiled(self.last.mean(0))

    module = seeded(Remembering)
    compiled = regraft.compile(module, (X * 0.1,), **CUT)
    for seed in range(4):
        agrees(compiled, module, numbers(4, 6, seed=seed) * 0.1)
    other = {name: value for name, value in seeded(Remembering, 1).state_dict().items() if name != "last"}
    compiled.refit(other, partial=True)
    module.load_state_dict(other, strict=False)
    agrees(compiled, module, X * 0.1)


def test_r_5_nothing_is_supported() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            return uncompiled(uncompiled(x) + uncompiled(self.w))

    for settings in ({"min_block_size": 2}, {}):
        compiled = assert_refits(Strange, (X,), **settings)
        assert not compiled.models and len(compiled.report().in_pytorch) == 4
        assert "0 engines" in repr(compiled) and compiled.memory()["kept"] == 24


def test_r_5_adapters_and_verification_say_why_not() -> None:
    compiled = fresh()
    with pytest.raises(regraft.WeightsError, match="one engine"):
        compiled.adapter("a", {"first.lora_A.weight": torch.zeros(2, 6)})
    with pytest.raises(regraft.WeightsError, match="one engine"):
        compiled.refit(seeded(Cut, 1).state_dict(), verify=[X])
    agrees(compiled, seeded(Cut), X)


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


@pytest.mark.parametrize("op", ["aten.tanh.default", "aten.tanh", "torch.ops.aten.tanh.default"])
def test_operators_left_to_pytorch(op: str) -> None:
    module = seeded(lambda: Function(lambda layer, x: layer.fc(torch.tanh(layer.fc(x)))))
    compiled = regraft.compile(module, (X,), torch_executed_ops=[op], min_block_size=1)
    [part] = compiled.report().in_pytorch
    assert part.op == "aten.tanh.default" and "torch_executed_ops" in part.reason
    assert len(compiled.models) == 2
    agrees(compiled, module, X)


def test_smallest_part() -> None:
    """Small parts are left to PyTorch; the report has every node once."""
    module = seeded(Cut)
    nodes = None
    for size, engines in ((1, 3), (2, 3), (4, 1), (50, 0)):
        report = regraft.dry_run(module, (X,), min_block_size=size)
        found = sum(sum(engine.values()) for engine in report.engines) + len(report.in_pytorch)
        nodes = nodes or found
        assert (len(report.engines), found) == (engines, nodes), size
        compiled = regraft.compile(module, (X,), min_block_size=size)
        assert str(compiled.report()) == str(report)
        agrees(compiled, module, X)
    text = str(report)
    assert "in PyTorch" in text and "special_erfcx" in text and "fewer than 50 nodes" in text
    assert not report.is_whole and regraft.dry_run(nn.Linear(6, 6), (X,)).is_whole


# ------------------------------------------------------------------------------------------ C-7: the cache


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


def test_c_7_each_engine_is_cached() -> None:
    cache = Cache()
    first = regraft.compile(seeded(Cut), (X,), engine_cache=cache, **CUT)
    assert first._compiled.cache == ("built",) * 3 and len(cache.entries) == 3
    assert len(cache.asked) == len(set(cache.asked)) == 3
    second = regraft.compile(seeded(Cut, 1), (X,), engine_cache=cache, **CUT)
    assert second._compiled.cache == ("hit",) * 3
    agrees(first, seeded(Cut), X)
    agrees(second, seeded(Cut, 1), X)
    assert bits(second(X)) == bits(fresh(1)(X))
    second.refit(seeded(Cut).state_dict())
    assert bits(second(X)) == bits(first(X))


def test_c_7_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default folder is not touched when another is given."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "default"))
    cache = regraft.DiskCache(tmp_path / "mine", limit=2**24)
    for wanted in ("built", "hit"):
        compiled = regraft.compile(seeded(Cut), (X,), engine_cache=cache, **CUT)
        assert compiled._compiled.cache == (wanted,) * 3
        agrees(compiled, seeded(Cut), X)
    assert not (tmp_path / "default").exists()


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


def test_pytorch_is_what_is_compared_with() -> None:
    """The module of these tests computes something that depends on all its parts."""
    module = seeded(Cut)
    wanted = pytorch(module, X)
    assert wanted.std() > 0.01 and torch.isfinite(wanted).all()
