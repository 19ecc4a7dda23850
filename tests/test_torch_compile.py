"""`torch.compile(model, backend="regraft")`."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
import regraft.dynamo
from comparing import assert_close, assert_same
from small import uncompiled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # A graph that runs in PyTorch without a reason would pass every other test.
        warnings.filterwarnings("error", message="regraft")
        yield


class Done:
    """How often modules were compiled and refitted."""

    compiled = 0
    refits = 0


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    counted = Done()
    compile, refit = regraft.dynamo.compile, regraft.Module.refit

    def counting_compile(*args: object, **kwargs: object) -> regraft.Module:
        counted.compiled += 1
        return compile(*args, **kwargs)

    def counting_refit(*args: object, **kwargs: object) -> regraft.RefitReport:
        counted.refits += 1
        return refit(*args, **kwargs)

    monkeypatch.setattr("regraft.dynamo.compile", counting_compile)
    monkeypatch.setattr(regraft.Module, "refit", counting_refit)
    return counted


def answer(module: Callable[..., Tensor], *inputs: object) -> list[np.ndarray]:
    with torch.no_grad():
        return [module(*inputs).numpy()]


def test_s_5_three_ways_to_compile_agree(net: Net) -> None:
    x = torch.randn(3, 8)
    program = torch.export.export(net, (x,))
    by_program, by_module = regraft.compile(program), regraft.compile(net, (x,))
    by_dynamo = torch.compile(net, backend="regraft")
    assert_same(answer(by_program, x), answer(by_module, x))
    assert_same(answer(by_dynamo, x), answer(by_module, x))
    assert_close(answer(by_module, x), answer(net, x))
    tuned = Net().eval()
    with torch.no_grad():
        for compiled in (by_program, by_module):
            compiled.refit(tuned.state_dict())
        net.load_state_dict(tuned.state_dict())
    assert_same(answer(by_program, x), answer(by_module, x))
    assert_same(answer(by_dynamo, x), answer(by_module, x))
    assert_close(answer(by_dynamo, x), answer(tuned, x))


def assign(net: Net) -> None:
    net.first.weight = nn.Parameter(torch.randn(32, 8))


def step(net: Net) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(net.parameters(), lr=1e-8).step()


CHANGES: dict[str, Callable[[Net], object]] = {
    "in place": lambda net: net.first.weight.detach().mul_(1.5),
    "data": lambda net: net.first.weight.data.copy_(torch.randn(32, 8)),
    "numpy": lambda net: net.last.bias.detach().numpy().fill(0.25),
    "state dict": lambda net: net.load_state_dict(Net().state_dict()),
    "buffer": lambda net: net.norm.running_mean.add_(1.0),
    "parameter": assign,
    "tiny step": step,
}


@pytest.mark.parametrize("change", CHANGES)
def test_s_5_weights_are_live(net: Net, change: str) -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    before = answer(compiled, x)
    CHANGES[change](net)
    found = answer(compiled, x)
    assert not np.array_equal(found[0], before[0])
    assert_same(found, answer(regraft.compile(net, (x,)), x))


def test_s_5_only_changes_are_refitted(net: Net, done: Done) -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    for _ in range(3):
        answer(compiled, x)
    assert (done.compiled, done.refits) == (1, 0)
    CHANGES["data"](net)
    for _ in range(3):
        answer(compiled, x)
    CHANGES["parameter"](net)
    for _ in range(3):
        answer(compiled, x)
    assert (done.compiled, done.refits) == (1, 2)


@pytest.mark.parametrize(("dynamic", "most"), [(None, 2), (True, 1), (False, 4)])
def test_s_5_sizes_change(net: Net, done: Done, dynamic: bool | None, most: int) -> None:
    compiled = torch.compile(net, backend="regraft", dynamic=dynamic)
    for size in (3, 5, 7, 2, 3):
        x = torch.randn(size, 8)
        assert_close(answer(compiled, x), answer(net, x))
    assert done.compiled == most
    assert_close(answer(compiled, torch.ones(1, 8)), answer(net, torch.ones(1, 8)))


def test_s_5_sizes_are_results(net: Net) -> None:
    def broken(x: Tensor) -> Tensor:
        hidden, count = net.norm(net.first(x)), x.shape[0] * 2
        torch._dynamo.graph_break()
        return net.last(hidden) * count

    compiled = torch.compile(broken, backend="regraft", dynamic=True)
    for size in (3, 5, 7):
        x = torch.randn(size, 8)
        assert_close(answer(compiled, x), answer(broken, x))


def test_s_5_numbers_of_a_call_are_compiled_in(net: Net) -> None:
    def scaled(x: Tensor, factor: float, count: int) -> Tensor:
        return net(x) * factor + count

    compiled = torch.compile(scaled, backend="regraft")
    x = torch.randn(3, 8)
    for factor, count in ((2.0, 1), (3.0, 2), (2.5, 3), (2.0, 1)):
        assert_close(answer(compiled, x, factor, count), answer(scaled, x, factor, count))


def test_s_5_graph_breaks(net: Net) -> None:
    def broken(x: Tensor) -> Tensor:
        hidden = torch.relu(net.first(x))
        torch._dynamo.graph_break()
        return net.last(hidden)

    compiled = torch.compile(broken, backend="regraft")
    x = torch.randn(3, 8)
    for change in ("in place", "numpy"):
        assert_close(answer(compiled, x), answer(broken, x))
        CHANGES[change](net)
    assert_close(answer(compiled, x), answer(broken, x))


def test_s_5_layers_that_share_a_graph(done: Done) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    layers = [Layer() for _ in range(5)]

    def broken(x: Tensor) -> Tensor:
        # Dynamo captures layer by layer: a loop that it cannot capture as a whole is Python's.
        for layer in layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return x

    compiled = torch.compile(broken, backend="regraft")
    x = torch.randn(3, 8)
    assert_close(answer(compiled, x), answer(broken, x))
    before = done.compiled, done.refits
    assert before == (1, 4)
    for _ in range(3):
        answer(compiled, x)
    assert (done.compiled, done.refits) == before
    with torch.no_grad():
        layers[3].second.bias += 1
    assert_close(answer(compiled, x), answer(broken, x))
    assert (done.compiled, done.refits) == (before[0], before[1] + 1)


def test_s_5_modules_of_one_class_in_threads(done: Done) -> None:
    nets = [Net().eval() for _ in range(2)]
    x = torch.randn(3, 8)
    compiled = [torch.compile(net, backend="regraft") for net in nets]
    expected = [answer(one, x) for one in compiled]
    assert done.compiled == 1
    wrong = []

    def work(index: int) -> None:
        for _ in range(200):
            try:
                assert_same(answer(compiled[index], x), expected[index])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for net, found in zip(nets, expected, strict=True):
        assert_close(found, answer(net, x))


def test_s_5_a_refit_that_fails_is_made_up_for(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    answer(compiled, x)
    CHANGES["data"](net)
    with monkeypatch.context() as broken:
        broken.setattr(regraft.Module, "refit", lambda *args, **kwargs: 1 // 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                answer(compiled, x)
    for _ in range(2):
        assert_close(answer(compiled, x), answer(net, x))


def test_s_5_weights_are_not_kept_alive() -> None:
    net, x = Net().eval(), torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    answer(compiled, x)
    weight = weakref.ref(net.first.weight)
    del net, compiled
    gc.collect()
    assert weight() is None


def test_s_5_weights_tied_and_untied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(8, 8))
            self.b = nn.Parameter(self.a.data)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.a) @ self.b

    tied, x = Tied(), torch.randn(3, 8)
    compiled = torch.compile(tied, backend="regraft")
    for change in (
        lambda: None,
        lambda: tied.a.data.mul_(2),
        lambda: setattr(tied.b, "data", torch.randn(8, 8)),
        lambda: tied.a.data.mul_(2),
        lambda: setattr(tied.a, "data", tied.b.data),
    ):
        change()
        assert_close(answer(compiled, x), answer(tied, x))


def test_s_5_operators_that_stay_in_pytorch(net: Net) -> None:
    def mixed(x: Tensor) -> Tensor:
        return net.last(uncompiled(torch.relu(net.norm(net.first(x)))))

    compiled = torch.compile(mixed, backend="regraft", options={"min_block_size": 1})
    x = torch.randn(3, 8)
    for change in CHANGES.values():
        assert_close(answer(compiled, x), answer(mixed, x))
        change(net)
    assert_close(answer(compiled, x), answer(mixed, x))


def test_s_5_gradients_are_pytorchs(net: Net, done: Done) -> None:
    reference = copy.deepcopy(net)
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    with pytest.warns(regraft.GradientWarning, match=r"gradients are asked for.*inference_mode.*autograd"):
        compiled(x).sum().backward()
    reference(x).sum().backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert done.compiled == 0
    assert_close(answer(compiled, x), answer(net, x))
    assert done.compiled == 1
    given = x.clone().requires_grad_()
    with pytest.warns(regraft.GradientWarning):
        compiled(given).sum().backward()
    assert given.grad is not None


def test_s_5_gradients_may_be_ignored_or_an_error(net: Net, done: Done) -> None:
    x = torch.randn(3, 8)
    found = torch.compile(net, backend="regraft", options={"autograd": "ignore"})(x)
    assert not found.requires_grad
    assert done.compiled == 1
    assert_close([found.numpy()], answer(net, x))
    torch.compiler.reset()
    with pytest.raises(Exception, match="gradients are asked for, and engines compute none"):
        torch.compile(net, backend="regraft", options={"autograd": "raise"})(x)
    torch.compiler.reset()
    with pytest.raises(Exception, match="autograd: expected one of pytorch, raise, ignore"):
        torch.compile(net, backend="regraft", options={"autograd": "no"})(x)


class Step(nn.Module):
    """Writes to a cache that it is given, as generation with static caches does."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        cache.index_copy_(1, at, self.project(x))
        return (cache * 2).sum(1), cache


@pytest.mark.parametrize("is_static", [False, True])
def test_s_5_arguments_are_written_to(done: Done, is_static: bool) -> None:
    step = Step().eval()
    compiled = torch.compile(step, backend="regraft")
    ours, theirs = torch.zeros(2, 6, 4), torch.zeros(2, 6, 4)
    if is_static:
        torch._dynamo.mark_static_address(ours)
    # How fast it is, is not looked at here.
    warnings.filterwarnings("ignore", category=regraft.SlowWarning)
    with torch.inference_mode():
        for at in (0, 3, 5):
            x, where = torch.randn(2, 1, 4), torch.tensor([at])
            found, same = compiled(x, ours, where)
            assert same is ours
            assert_close([found.numpy(), ours.numpy()], [t.numpy() for t in step(x, theirs, where)])
    assert done.compiled == 1
    assert not torch.equal(ours, torch.zeros_like(ours))


def test_s_5_arguments_that_overlap_are_pytorchs() -> None:
    def shifted(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return (y * 3).relu() + 1

    compiled = torch.compile(shifted, backend="regraft", options={"min_block_size": 1})
    with torch.inference_mode():
        assert_close(answer(compiled, torch.zeros(4), torch.ones(4)), [np.full(4, 4.0, np.float32)])
        memory = torch.zeros(5)
        assert_close([compiled(memory[:4], memory[1:]).numpy()], [np.array([4, 4, 4, 1], np.float32)])


def test_s_5_writes_are_pytorchs(net: Net) -> None:
    net.train()
    reference = copy.deepcopy(net)
    x = torch.randn(4, 8)
    with pytest.warns(regraft.TrainingWarning, match=r"writes to weights or buffers.*eval\(\)"):
        assert_close(answer(torch.compile(net, backend="regraft"), x), answer(reference, x))
    assert torch.equal(net.norm.running_mean, reference.norm.running_mean)

    def doubles(x: Tensor) -> Tensor:
        return x.mul_(2)

    y, z = torch.ones(8), torch.ones(8)
    torch.compile(doubles, backend="regraft")(y)
    doubles(z)
    assert torch.equal(y, z)


def views_of_input(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    return x.view(-1), net(x)


def views_of_result(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    y = net(x)
    return y[0], y, y.t()


def view_of_weight(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    return net(x), net.first.bias.detach()


def twice(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    y = net(x)
    return y, y


@pytest.mark.parametrize("results", [views_of_input, views_of_result, view_of_weight, twice])
def test_s_5_results_share_memory_as_in_pytorch(
    net: Net, done: Done, results: Callable[[Net, Tensor], tuple[Tensor, ...]]
) -> None:
    reference = copy.deepcopy(net)
    x = torch.randn(3, 8)
    y = x.clone()
    compiled = torch.compile(results, backend="regraft")
    with torch.no_grad():
        found, expected = compiled(net, x), results(reference, y)
        # What is written to one arrives wherever it does in PyTorch.
        for index in range(len(found)):
            found[index].add_(1)
            expected[index].add_(1)
    assert done.compiled == 1
    assert_close([t.numpy() for t in found], [t.numpy() for t in expected])
    assert torch.equal(x, y)
    assert torch.equal(net.first.bias, reference.first.bias)


def test_s_5_what_only_makes_views_is_pytorchs(done: Done) -> None:
    compiled = torch.compile(lambda x: x.view(-1), backend="regraft")
    x = torch.zeros(2, 3)
    compiled(x).add_(1)
    assert torch.equal(x, torch.ones(2, 3))
    assert done.compiled == 0


def test_s_5_axes_of_results_lie_in_memory_as_in_pytorch() -> None:
    def moved(x: Tensor) -> Tensor:
        return torch.relu(x.permute(0, 2, 1) * 2) + 1

    x = torch.randn(3, 4, 5)
    with torch.no_grad():
        found = torch.compile(moved, backend="regraft")(x)
    assert found.stride() == moved(x).stride()
    assert_close([found.numpy()], [moved(x).numpy()])


def test_s_5_modes_are_pytorchs(net: Net, done: Done) -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(net, backend="regraft")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
    assert done.compiled == 0
    mapped = torch.compile(torch.vmap(net.last), backend="regraft")
    hidden = torch.randn(3, 32)
    with pytest.warns(UserWarning, match="within a transformation of functions"):
        assert_close(answer(mapped, hidden), answer(net.last, hidden))


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_s_5_tensors_made_in_inference_mode(net: Net, inference: Callable[[], torch.no_grad]) -> None:
    with inference():
        net.last.bias = nn.Parameter(torch.randn(4), requires_grad=False)
        compiled, x = torch.compile(net, backend="regraft"), torch.randn(3, 8)
        assert_close([compiled(x).numpy()], [net(x).numpy()])
        net.last.bias.add_(1)
        assert_close([compiled(x).numpy()], [net(x).numpy()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"thread": 1}}, r"unknown settings: thread \(did you mean threads\?\)"),
        ({"options": {"mode": "frozen"}}, "follows the weights"),
        ({"mode": "max-autotune"}, '"tune": "fast"'),
    ],
)
def test_options_that_do_not_fit_are_refused(net: Net, given: dict[str, object], message: str) -> None:
    compiled = torch.compile(net, backend="regraft", **given)
    with pytest.raises(Exception, match=message), torch.no_grad():
        compiled(torch.randn(3, 8))


def test_options_are_settings(net: Net, tmp_path: Path) -> None:
    cache = regraft.DiskCache(tmp_path)
    compiled = torch.compile(net, backend="regraft", options={"engine_cache": cache, "threads": 1})
    x = torch.randn(3, 8)
    assert_close(answer(compiled, x), answer(net, x))
    assert list(tmp_path.rglob("*"))


def test_what_cannot_be_compiled_runs_in_pytorch(net: Net) -> None:
    def scaled(x: Tensor, count: int) -> Tensor:
        return net(x) * count

    compiled = torch.compile(scaled, backend="regraft")
    x = torch.randn(3, 8)
    with pytest.warns(UserWarning, match="more than 8 values of l_count_: give a tensor") as warned:
        found = [answer(compiled, x, count) for count in range(2, 14)]
    assert len(warned) == 1
    for count, results in enumerate(found, 2):
        assert_close(results, answer(scaled, x, count))


def test_full_compilation_is_required(net: Net) -> None:
    def mixed(x: Tensor) -> Tensor:
        return uncompiled(net(x))

    compiled = torch.compile(mixed, backend="regraft", options={"require_full_compilation": True})
    with pytest.raises(regraft.CompileError, match="_add_relu") as refused:
        answer(compiled, torch.randn(3, 8))
    assert refused.value.unsupported


@pytest.mark.parametrize("imports", ["import regraft.dynamo, torch", "import torch._dynamo, regraft.dynamo"])
def test_the_backend_has_a_name(imports: str) -> None:
    script = f"""
{imports}
assert "regraft" in torch._dynamo.list_backends()
net = torch.nn.Linear(2, 2)
with torch.no_grad():
    x = torch.ones(1, 2)
    assert torch.allclose(torch.compile(net, backend="regraft")(x), net(x))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=180, env=os.environ
    )
    assert done.returncode == 0, done.stderr
