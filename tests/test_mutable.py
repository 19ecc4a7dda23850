"""A module that changes and stays compiled: what it is, and what its program is (scenarios M-1 and M-2)."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

import regraft
from mutable_checks import (
    Counted,
    Net,
    assert_agrees,
    compiled_once,
    compiled_result,
    never_compiles,
    pytorch_result,
    trained,
)
from regraft import MutableModule
from small import Shelf, numbers, uncompiled

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Net:
    return trained()


@pytest.fixture
def x() -> torch.Tensor:
    return numbers(2, 3, 4, 4, seed=1)


@pytest.fixture
def mutable(net: Net, x: torch.Tensor) -> MutableModule:
    return compiled_once(net, x)


def test_m_1_is_the_module_in_every_other_way(net: Net, x: torch.Tensor) -> None:
    mutable = MutableModule(net)
    assert isinstance(mutable, Net) and isinstance(mutable, MutableModule) and type(mutable).__name__ == "Net"
    assert_agrees(mutable, x)
    assert list(mutable.state_dict()) == list(net.state_dict())
    assert [name for name, _ in mutable.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert all(a is b for a, b in zip(mutable.parameters(), net.parameters(), strict=True))
    assert mutable.fc is net.fc and mutable.scale == 0.5 and mutable.eval() is mutable
    mutable.note = "seen through both"
    mutable.train()
    assert net.note == "seen through both" and net.training
    assert mutable.module is net
    assert inspect.signature(mutable.forward) == inspect.signature(net.forward)
    assert "MutableModule(Net, 1 program, 0 refits" in repr(mutable)


def test_m_1_names_of_the_module_stay_its_own(x: torch.Tensor) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Flatten()
            self.refits = "mine"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x) + 1

    wrapper = Wrapper().eval()
    mutable = MutableModule(wrapper)
    assert mutable.module is wrapper.module and mutable.refits == "mine"
    assert MutableModule.module.fget(mutable) is wrapper
    assert torch.equal(compiled_result(mutable, x)[0], wrapper(x))


def test_m_1_runs_in_pytorch_when_traced(mutable: MutableModule, x: torch.Tensor) -> None:
    program = torch.export.export(mutable, (x,))
    assert len(program.state_dict) == 9
    assert torch.allclose(program.module()(x), mutable.module(x))


def test_m_2_load_state_dict_refits(mutable: MutableModule, x: torch.Tensor) -> None:
    other = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in mutable.state_dict().items()
    }
    never_compiles(mutable, lambda: mutable.load_state_dict(other), x)
    never_compiles(
        mutable, lambda: mutable.load_state_dict({n: v * 2 for n, v in other.items()}, assign=True), x
    )


def test_m_2_other_keys_and_shapes_ask_the_cache(net: Net, x: torch.Tensor) -> None:
    cache = Shelf()
    mutable = MutableModule(net, engine_cache=cache)
    assert_agrees(mutable, x)
    assert len(cache.asked) == 1 and len(cache.entries) == 1
    first = net.fc
    counted = Counted(mutable)
    mutable.fc, mutable.offset = nn.Linear(128, 48).eval(), torch.zeros(48)
    assert_agrees(mutable, x)
    assert counted() == (0, 1) and len(cache.asked) == 2 and len(cache.entries) == 2
    mutable.fc = nn.Sequential(nn.Linear(128, 48), nn.Tanh()).eval()
    assert_agrees(mutable, x)
    assert counted() == (0, 1) and len(cache.asked) == 3
    mutable.fc, mutable.offset = first, torch.ones(32)
    assert_agrees(mutable, x)
    assert counted() == (1, 0) and len(cache.asked) == 3, "the program of an earlier structure is still there"
    copied = MutableModule(copy.deepcopy(net), engine_cache=cache)
    assert_agrees(copied, x)
    assert len(cache.asked) == 4 and len(cache.entries) == 3
    assert copied.compiled is not None and copied.compiled._compiled.cache == ("hit",)


def test_m_2_attributes_and_hooks_are_part_of_the_program(mutable: MutableModule, x: torch.Tensor) -> None:
    counted = Counted(mutable)
    mutable.scale = 0.25
    assert_agrees(mutable, x)
    assert counted() == (0, 1)
    mutable.scale = 0.25 + 0.0
    mutable.label = "says nothing"
    assert_agrees(mutable, x)
    assert counted() == (0, 0), "another export of the same program is the same program"
    handle = mutable.fc.register_forward_hook(lambda module, args, output: output + 1)
    assert_agrees(mutable, x)
    assert counted() == (0, 1)
    handle.remove()
    assert_agrees(mutable, x)
    assert counted() == (0, 0), "the program of an earlier structure is still there"


def test_m_2_a_layer_like_the_one_before_refits(mutable: MutableModule, x: torch.Tensor) -> None:
    never_compiles(mutable, lambda: setattr(mutable, "fc", nn.Linear(128, 32).eval()), x)


def test_m_2_ties_are_part_of_the_program() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    net[1].weight = net[0].weight
    mutable, x = MutableModule(net), torch.randn(2, 8)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: net[0].weight.data.mul_(2), x)
    net[1].weight = nn.Parameter(torch.randn(8, 8))
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: net[1].weight.data.mul_(2), x)


def test_m_1_modes_of_pytorch_are_respected(mutable: MutableModule, x: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="autocast"):
        assert torch.equal(compiled_result(mutable, x)[0], pytorch_result(mutable.module, x)[0])
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert isinstance(mutable(torch.empty(2, 3, 4, 4)), torch._subclasses.FakeTensor)
    with torch.no_grad():
        assert torch.allclose(torch.compile(mutable, backend="eager")(x), mutable(x), atol=1e-5)


def test_m_2_a_failed_compilation_changes_nothing(mutable: MutableModule, x: torch.Tensor) -> None:
    before = mutable.fc

    class Data(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    mutable.fc = Data().eval()
    with (
        pytest.raises(regraft.CompileError, match=r"cannot export[\s\S]*\.module runs in PyTorch"),
        torch.inference_mode(),
    ):
        mutable(x)
    mutable.fc = before
    counted = Counted(mutable)
    assert_agrees(mutable, x)
    assert counted() == (0, 0)


def test_copies_are_mutable_and_pickles_are_refused(mutable: MutableModule, x: torch.Tensor) -> None:
    copied = copy.deepcopy(mutable)
    assert isinstance(copied, MutableModule) and copied.fc is not mutable.fc
    never = compiled_result(mutable, x)
    copied.fc.weight.data.zero_()
    assert_agrees(copied, x)
    assert torch.equal(never[0], compiled_result(mutable, x)[0])
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(mutable)


def test_threads_see_one_state_or_the_other(mutable: MutableModule, x: torch.Tensor) -> None:
    states = [copy.deepcopy(mutable.state_dict()), {n: v * 2 for n, v in mutable.state_dict().items()}]
    expected = []
    for state in states:
        mutable.load_state_dict(state, assign=True)
        expected.append(compiled_result(mutable, x)[0])
    stop, wrong = threading.Event(), []

    def run() -> None:
        while not stop.is_set():
            found = compiled_result(mutable, x)[0]
            # The states are far apart; a mix of them would be near to neither.
            if not any(torch.allclose(found, one, rtol=1e-4, atol=1e-5) for one in expected):
                wrong.append(found)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        # In one step, as far as other threads are concerned.
        with mutable._regraft_state.lock:
            mutable.load_state_dict(states[turn % 2], assign=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_left_when_it_is_gone(x: torch.Tensor) -> None:
    net = Net().eval()
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    # A cycle through what is watched.
    net.myself = [mutable]
    gone = weakref.ref(net), weakref.ref(mutable)
    del net, mutable
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_settings_are_checked(net: Net) -> None:
    for settings, words in (
        ({"autograd": "no"}, "autograd"),
        ({"watch": "some"}, "watch"),
        ({"tunes": "fast"}, "unknown settings: tunes"),
        ({"identical": True}, "follows"),
        ({"mode": "stripped"}, "follows"),
        ({"inputs": ()}, "unknown settings: inputs"),
    ):
        with pytest.raises(regraft.CompileError, match=words):
            MutableModule(net, **settings)
    with pytest.raises(regraft.CompileError, match=r"torch\.nn\.Module"):
        MutableModule("net")
    assert MutableModule(MutableModule(net)).module is net


def test_parts_in_pytorch_are_refitted_too(x: torch.Tensor) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x)).tanh()
            return torch.relu(self.last(uncompiled(y * self.weight))).tanh()

    net, x = Cut().eval(), torch.randn(2, 8)
    mutable = MutableModule(net, min_block_size=1, torch_executed_ops=["aten.mul.Tensor"])
    assert_agrees(mutable, x)
    assert mutable.compiled is not None and mutable.compiled.report().in_pytorch
    never_compiles(mutable, lambda: net.weight.data.mul_(2), x)
    never_compiles(mutable, lambda: net.last.weight.data.mul_(2), x)
    counted = Counted(mutable)
    net.weight = nn.Parameter(net.weight.detach().clone())
    assert_agrees(mutable, x)
    assert counted() == (0, 0)
    assert pytorch_result(net, x)[0].shape == (2, 8)
