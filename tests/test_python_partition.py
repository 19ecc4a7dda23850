"""Models cut into engines by what stays in PyTorch (R-5)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_same, same
from module_checks import assert_agrees, assert_refits, called
from small import numbers, seeded, uncompiled, uncompiled_gradient, uncompiled_pair

pytestmark = pytest.mark.usefixtures("one_thread")

X = (numbers(5, 8),)
SMALL = {"min_block_size": 1}


class Three(nn.Module):
    """Three engines with two cuts; what lies in the second cut has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.register_buffer("shift", torch.randn(6))
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        x = uncompiled(torch.relu(self.first(x)))
        x = torch.tanh(self.middle(x)) * 2
        x = uncompiled_gradient(x + self.shift) + uncompiled_pair(self.scale)
        return self.last(torch.sigmoid(x))


def three(seed: int) -> nn.Module:
    return seeded(Three, seed)


@pytest.fixture(scope="module")
def engines() -> regraft.Module:
    return regraft.compile(three(0), X, **SMALL)


@pytest.fixture
def compiled(engines: regraft.Module) -> regraft.Module:
    return engines.fork()


@pytest.fixture(scope="module")
def wanted() -> list[np.ndarray]:
    return called(regraft.compile(three(1), X, **SMALL), X)


# ---------------------------------------------------------------------------------------------- weights


def test_r_5_weights_on_both_sides_of_the_cuts(compiled: regraft.Module) -> None:
    assert len(compiled.models) == 3
    ops = {part.op for part in compiled.report().in_pytorch}
    assert {"aten._add_relu.Scalar", "aten._standard_gamma_grad.default"} <= ops
    assert_refits(three, X, **SMALL)


@pytest.mark.parametrize("name", ["first.weight", "middle.weight", "last.bias", "scale", "shift"])
def test_r_5_each_weight_alone(name: str, compiled: regraft.Module) -> None:
    """In an engine before, between or after the cuts, and in the parts of PyTorch."""
    before = called(compiled, X)
    model = three(0)
    value = three(1).state_dict()[name]
    model.load_state_dict({**model.state_dict(), name: value})
    report = compiled.refit({name: value}, partial=True)
    assert_agrees(compiled, model, X)
    assert_same(called(compiled, X), called(regraft.compile(model, X, **SMALL), X))
    assert not same(called(compiled, X), before)
    assert report.applied == (name,)


def test_r_5_all_or_nothing(compiled: regraft.Module) -> None:
    """One weight that does not fit, in any of the parts, and nothing changes in any."""
    before = called(compiled, X)
    good = three(1).state_dict()
    for name, value in good.items():
        if name == "steps":
            continue
        for wrong in (
            {**good, name: torch.zeros(*value.shape, 2)},
            {**good, name: value.to(torch.int32)},
            {**good, name: torch.zeros_like(value, device="meta")},
            {n: v for n, v in good.items() if n != name},
        ):
            with pytest.raises(regraft.WeightsError, match=name.replace(".", r"\.")):
                compiled.refit(wrong)
            assert_same(called(compiled, X), before)
        not_finite = {**good, name: value * float("nan")}
        with pytest.raises(regraft.WeightsError, match=name.replace(".", r"\.")):
            compiled.refit(not_finite, reject_non_finite=True)
        assert_same(called(compiled, X), before)
    with pytest.raises(regraft.WeightsError, match="haed"):
        compiled.refit({**good, "haed": torch.zeros(2)})
    assert_same(called(compiled, X), before)


def test_r_5_every_problem_of_every_part_at_once(compiled: regraft.Module) -> None:
    state = dict(three(1).state_dict())
    state["first.weight"] = torch.zeros(2, 2)
    state["shift"] = torch.zeros(7)
    state["stranger"] = torch.zeros(1)
    del state["last.bias"], state["scale"]
    with pytest.raises(regraft.WeightsError) as caught:
        compiled.refit(state)
    for name in ("first.weight", "shift", "stranger", "last.bias", "scale"):
        assert name in str(caught.value)


def test_r_5_given_tensors_are_the_callers_again(
    compiled: regraft.Module, wanted: list[np.ndarray], tmp_path: Path
) -> None:
    given = three(1).state_dict()
    compiled.refit(given)
    for value in given.values():
        value.fill_(77)
    assert_same(called(compiled, X), wanted)
    source = three(0)
    module = regraft.compile(source, X, **SMALL)
    before = called(module, X)
    with torch.no_grad():
        for value in source.state_dict().values():
            value.fill_(77)
    assert_same(called(module, X), before)
    given = {name: value.numpy().copy() for name, value in three(1).state_dict().items()}
    module.refit(given)
    for array in given.values():
        array.fill(77)
    assert_same(called(module, X), wanted)
    regraft.save(module, tmp_path / "net")
    assert_same(called(regraft.load(tmp_path / "net"), X), wanted)


def test_r_5_from_every_source(compiled: regraft.Module, wanted: list[np.ndarray], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(three(1).state_dict(), tmp_path / "net.safetensors")
    torch.save(three(1).state_dict(), tmp_path / "net.pt")
    before = called(compiled, X)
    for source in (
        three(1),
        torch.export.export(three(1), X),
        tmp_path / "net.safetensors",
        tmp_path / "net.pt",
        {name: value.numpy() for name, value in three(1).state_dict().items()},
        {
            name: np.frombuffer(value.numpy().tobytes(), value.numpy().dtype).reshape(value.shape)
            for name, value in three(1).state_dict().items()
        },
        {n: v.double() if v.is_floating_point() else v for n, v in three(1).state_dict().items()},
    ):
        refitted = regraft.refit_module_weights(compiled, source)
        assert_same(called(refitted, X), wanted)
        assert_same(called(compiled, X), before)


def test_r_5_verified(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    found = regraft.refit_module_weights(compiled, three(1), arg_inputs=X, verify_output=True)
    assert_same(called(found, X), wanted)

    class Other(Three):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    before = called(compiled, X)
    with pytest.raises(regraft.VerificationError):
        regraft.refit_module_weights(
            compiled, seeded(Other, 1), arg_inputs=X, verify_output=True, in_place=True
        )
    assert_same(called(compiled, X), before)


def test_r_5_forks(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    before = called(compiled, X)
    fork = compiled.fork()
    fork.refit(three(1).state_dict())
    assert_same(called(compiled, X), before)
    assert_same(called(fork, X), wanted)
    compiled.refit({"scale": torch.ones(6)}, partial=True)
    assert_same(called(fork, X), wanted)


def test_r_5_a_stripped_module(wanted: list[np.ndarray]) -> None:
    module = regraft.compile(three(0), X, mode="stripped", **SMALL)
    with pytest.raises(regraft.NotBoundError):
        module(*X)
    with pytest.raises(regraft.WeightsError):
        module.refit({"scale": torch.ones(6)}, partial=True)
    with pytest.raises(regraft.NotBoundError):
        module(*X)
    module.refit(three(1).state_dict())
    assert_same(called(module, X), wanted)


def test_r_5_an_identical_module() -> None:
    module = regraft.compile(three(0), X, identical=True, **SMALL)
    before = called(module, X)
    module.refit(three(0).state_dict())
    for name in ("first.weight", "scale", "shift"):
        with pytest.raises(regraft.WeightsError, match=name.replace(".", r"\.")):
            module.refit({**three(0).state_dict(), name: three(1).state_dict()[name]})
        assert_same(called(module, X), before)


def test_r_5_a_frozen_module() -> None:
    module = regraft.compile(three(0), X, mode="frozen", **SMALL)
    assert_agrees(module, three(0), X)
    for state in (three(1).state_dict(), {"scale": torch.ones(6)}):
        with pytest.raises(regraft.FrozenError):
            module.refit(state, partial=True)
    assert_agrees(module, three(0), X)


def test_r_17_a_step_far_below_any_tolerance_across_cuts(compiled: regraft.Module) -> None:
    model = three(0)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-7 * torch.randn_like(parameter)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    assert changed
    assert set(compiled.refit(model.state_dict()).applied) == changed
    assert_same(called(compiled, X), called(regraft.compile(model, X, **SMALL), X))


# ------------------------------------------------------------------------------------------- threads


def test_r_18_calls_during_refits_see_one_set_of_weights(
    compiled: regraft.Module, wanted: list[np.ndarray]
) -> None:
    """Engines and parts in PyTorch change together: no call mixes them."""
    states = [three(0).state_dict(), three(1).state_dict()]
    expected = {array.tobytes() for array in (*called(compiled, X), *wanted)}
    assert len(expected) == 2
    found: set[bytes] = set()
    failures: list[BaseException] = []
    done = threading.Event()

    def call() -> None:
        try:
            while not done.is_set():
                found.update(array.tobytes() for array in called(compiled, X))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(200):
        compiled.refit(states[(turn + 1) % 2])
    done.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures
    assert found <= expected


# -------------------------------------------------------------------------------------------- reports


def test_r_5_all_that_must_stay_in_pytorch_is_listed() -> None:
    with pytest.raises(regraft.CompileError) as caught:
        regraft.compile(three(0), X, require_full_compilation=True)
    ops = {part.op.removeprefix("torch.ops.") for part in caught.value.unsupported}
    assert {"aten._add_relu.Scalar", "aten._add_relu.Tensor"} <= ops
    assert "aten._standard_gamma_grad.default" in ops
    for name in ("_add_relu.Scalar", "_add_relu.Tensor", "_standard_gamma_grad"):
        assert name in str(caught.value)


class Noisy(nn.Module):
    """Random numbers have no translation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_r_5_what_must_stay_in_pytorch_is_named_with_its_module() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU(), Noisy())), 0)
    with pytest.raises(regraft.CompileError, match=r"aten\.rand_like\.default in 1\.1: "):
        regraft.compile(model, X, require_full_compilation=True)


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0].sum(0)


def test_r_5_only_what_stands_in_the_way_is_named() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), Chosen(), nn.Linear(4, 3)), 0)
    with pytest.raises(regraft.CompileError, match="1 node cannot be compiled") as caught:
        regraft.compile(model, X, require_full_compilation=True)
    [part] = caught.value.unsupported
    assert part.op == "aten.index.Tensor"
    assert "aten.index.Tensor in 2: " in str(caught.value) and "help: use where()" in str(caught.value)


def test_r_5_what_can_be_compiled_whole_is() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU()), 0)
    module = regraft.compile(model, X, require_full_compilation=True)
    assert module.report().is_whole and len(module.models) == 1
    assert regraft.dry_run(model, X).is_whole


def test_r_5_a_dry_run_says_what_is_compiled(compiled: regraft.Module) -> None:
    report = regraft.dry_run(three(0), X, **SMALL)
    assert report.engines == compiled.report().engines
    assert report.in_pytorch == compiled.report().in_pytorch
    assert "3 engines" in str(report) and "_add_relu" in str(report)


@pytest.mark.parametrize("name", ["aten.relu.default", "torch.ops.aten.relu.default", "aten.relu"])
def test_r_5_operators_left_to_pytorch(name: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), 0)
    module = regraft.compile(model, X, torch_executed_ops=(name,), **SMALL)
    [part] = [part for part in module.report().in_pytorch if "relu" in part.op]
    assert "torch_executed_ops" in part.reason
    assert len(module.models) == 2
    assert_agrees(module, model, X)
    with pytest.raises(regraft.CompileError, match="contradict"):
        regraft.compile(model, X, torch_executed_ops=(name,), require_full_compilation=True)


def test_r_5_small_parts_stay_in_pytorch() -> None:
    counts = {}
    for least in (1, 4, 100):
        module = regraft.compile(three(0), X, min_block_size=least)
        counts[least] = len(module.models)
        assert_agrees(module, three(0), X)
        module.refit(three(1).state_dict())
        assert_agrees(module, three(1), X)
    assert counts[1] == 3 and counts[100] == 0
    assert counts[1] >= counts[4] >= counts[100]


class Nothing(nn.Module):
    """Not one operator that has a translation."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return uncompiled(uncompiled_gradient(x))


def test_r_5_nothing_is_supported(tmp_path: Path) -> None:
    model = seeded(Nothing, 0)
    module = regraft.compile(model, X)
    assert len(module.models) == 0 and len(module.report().in_pytorch) == 2
    assert_agrees(module, model, X)
    assert "no engine" in repr(module)
    assert module.memory()["slots"] == 0
    module.refit(seeded(Nothing, 1).state_dict())
    regraft.save(module, tmp_path / "net")
    assert_agrees(regraft.load(tmp_path / "net"), model, X)
    with pytest.raises(regraft.CompileError):
        regraft.compile(model, X, require_full_compilation=True)
