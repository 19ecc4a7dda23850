"""A module that changes and stays compiled: scenarios M-1 to M-7, M-10 and R-17."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from mutable_checks import (
    Counted,
    assert_agrees,
    compiled_result,
    never_compiles,
    pytorch_result,
)
from regraft import MutableModule, _regraft
from small import Shelf, uncompiled

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Convolution with a folded batch norm, and a linear layer of some size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 32)
        self.scale = 0.5
        self.register_buffer("offset", torch.linspace(0, 1, 32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.fc(y.flatten(1)) * self.scale + self.offset


class Structured(nn.Module):
    """Arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, data: Any, mask: torch.Tensor | None = None, double: bool = False) -> dict[str, Any]:
        y = self.fc(data["x"]) + data["more"][0]
        if data["nothing"] is not None:
            y = y - data["nothing"]
        if mask is not None:
            y = y * mask
        return {"out": y * 2 if double else y, "first": (y[:, :1], None)}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean):
            tensor.uniform_(-1, 1)
        net.norm.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mutable(net: Net, x: torch.Tensor) -> MutableModule:
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    assert (mutable.refits, mutable.recompiles) == (0, 0)
    return mutable


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


def test_m_3_every_way_to_change_a_weight_arrives(mutable: MutableModule, x: torch.Tensor) -> None:
    weight, norm = mutable.fc.weight, mutable.norm

    @torch.no_grad()
    def in_place() -> None:
        weight.mul_(1.5)

    never_compiles(mutable, in_place, x)
    never_compiles(mutable, lambda: setattr(mutable.fc, "weight", nn.Parameter(torch.randn(32, 128))), x)
    never_compiles(mutable, lambda: mutable.fc.weight.data.mul_(0.5), x)
    never_compiles(mutable, lambda: mutable.fc.bias.data[7:8].fill_(3), x)
    never_compiles(mutable, lambda: mutable.fc.weight.detach().numpy().fill(0.25), x)
    never_compiles(mutable, lambda: setattr(mutable.conv.weight, "data", torch.randn(8, 3, 3, 3)), x)
    never_compiles(mutable, lambda: norm.running_mean.add_(1), x)
    never_compiles(mutable, lambda: mutable.offset.add_(1), x)
    never_compiles(mutable, lambda: setattr(mutable, "offset", torch.randn(32)), x)
    optimizer = torch.optim.SGD(mutable.parameters(), lr=0.1)
    for parameter in mutable.parameters():
        parameter.grad = torch.randn_like(parameter)
    never_compiles(mutable, optimizer.step, x)


def test_m_3_tensors_that_are_no_parameters_arrive(x: torch.Tensor) -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.randn(4)
            self.several = [torch.randn(4), torch.randn(4)]
            self.named = {"last": torch.randn(4)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.table + self.several[0] * self.several[1] - self.named["last"]

    net = Tables().eval()
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: net.table.mul_(2), x)
    never_compiles(mutable, lambda: setattr(net, "table", torch.randn(4)), x)
    never_compiles(mutable, lambda: net.several[1].mul_(2), x)
    never_compiles(mutable, lambda: net.named["last"].data.add_(1), x)
    never_compiles(mutable, lambda: net.several.__setitem__(0, torch.randn(4)), x)
    never_compiles(mutable, lambda: net.several[0].numpy().fill(2), x)
    copied = copy.deepcopy(mutable)
    copied.several[0].mul_(3)
    net.several[0].mul_(5)
    for one in (copied, mutable):
        assert_agrees(one, x)
        assert one.recompiles == 0


@pytest.mark.parametrize("offset", [0, 1, 8, 60, 63])
def test_m_3_small_memory_is_read_whole_and_large_at_its_ends(offset: int) -> None:
    memory = torch.zeros(offset + 100_000, dtype=torch.uint8)
    for size in (1, 7, 64, 65, 127, 128, 500, 512, 100_000):
        part = memory[offset : offset + size]
        watch = _regraft.Watch()
        watch.watch_memory([part.data_ptr()], [size])
        assert watch.changed_memory([part.data_ptr()]) == []
        for at in range(size) if size <= 512 else (0, 1, 63, size - 64, size - 1):
            part[at] ^= 1
            assert watch.changed_memory([part.data_ptr()]) == [0], f"byte {at} of {size}"
            part[at] ^= 1
        memory[offset + size :] ^= 1
        memory[:offset] ^= 1
        assert watch.changed_memory([part.data_ptr()]) == [], "nothing outside is read"
        assert watch.changed_memory([part.data_ptr() + 64]) == [0]


def test_m_3_tensors_are_compared_by_what_pytorch_holds() -> None:
    watch = _regraft.Watch()
    one = torch.zeros(2, 3)
    counted, other = one.detach(), one.data
    facts = (one._cdata, counted._cdata, other._cdata)
    assert watch.find_versions(*facts, one._version)
    assert not _regraft.Watch().find_versions(*facts, one._version + 1), "another place"
    assert not _regraft.Watch().find_versions(facts[0], facts[2], facts[2], 0), "nothing is shared"
    tensors = [one, torch.zeros(4), torch.zeros(2, 2)]
    known = [(tensor, tensor._cdata, tensor.untyped_storage()._cdata) for tensor in tensors]
    assert watch.watch_tensors([known[0], (*known[1][:2], known[0][2]), known[2]]) == [1], (
        "of another storage"
    )
    assert watch.changed_tensors() == ([], [])
    one.add_(1)
    assert watch.changed_tensors() == ([], [0])
    tensors[2].data = tensors[2].data.t()
    assert watch.changed_tensors() == ([2], [0])
    watch.rebase_tensors()
    assert watch.changed_tensors() == ([], [])
    one.untyped_storage().resize_(4096)
    assert watch.changed_tensors()[0] == [0], "its memory is elsewhere"


def test_m_3_tensors_of_many_axes_and_of_inference_mode_arrive() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 1, 1, 1, 3, 3))
            with torch.inference_mode():
                self.register_buffer("made", torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight[0, 0, 0, 0] + self.made

    net, x = Many().eval(), torch.randn(2, 3)
    mutable = MutableModule(net, min_block_size=1)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: setattr(net.weight, "data", net.weight.data.transpose(4, 5)), x)
    net.weight.requires_grad_(False)
    refits = mutable.refits
    assert_agrees(mutable, x)
    assert mutable.refits == refits


def test_m_3_every_way_to_change_a_container_arrives() -> None:
    """Where dicts count what is done to them, that they do is relied on."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.table, self.items = 0, {"a": 1, "b": 2}, [1, 2]

    part = Part()
    native = regraft._regraft.Watch()

    def assign() -> None:
        part.value += 1

    changes: list[Callable[[], object]] = [
        assign,
        lambda: setattr(part, "value", part.value + 1),
        lambda: vars(part).update(value=-1),
        lambda: part.register_buffer("b", None),
        lambda: part._buffers.pop("b"),
        lambda: part.__delattr__("value"),
        lambda: part.table.__setitem__("a", object()),
        lambda: part.table.setdefault("c", 3),
        lambda: part.table.popitem(),
        lambda: part.table.__ior__({"a": 5}),
        lambda: part.items.append(3),
        lambda: part.items.__setitem__(0, 9),
        part.table.clear,
    ]
    # What the interpreter does often, it does in other ways.
    for _ in range(1000):
        assign()
    for change in changes:
        containers = [vars(part), part._buffers, part._parameters, part.table, part.items]
        native.watch_containers(containers)
        assert native.is_unchanged() and native.changed_containers() == []
        change()
        assert not native.is_unchanged() and len(native.changed_containers()) == 1
    native.watch_containers([part.table])
    part.table["a"] = 1
    del part.table["a"]
    assert native.is_unchanged() and native.changed_containers() == [], "it holds what it did"


def test_m_3_containers_are_compared_by_what_they_hold() -> None:
    held: list[Any] = [{"a": 1, "b": [2]}, [], {}, ["x"]]
    watch = _regraft.Watch()
    watch.watch_containers(held)
    assert watch.changed_containers() == []
    held[0]["b"].append(3)
    assert watch.changed_containers() == [], "shallow"
    held[0]["c"] = held[0].pop("a")
    held[1].append(None)
    held[3][0] = "y"
    assert watch.changed_containers() == [0, 1, 3]
    with pytest.raises(TypeError, match="a dict or a list"):
        watch.watch_containers([(1, 2)])


def test_m_3_a_transposed_view_of_the_same_memory_arrives() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: setattr(net[0].weight, "data", net[0].weight.data.t()), x)


def test_m_3_one_tensor_moves_and_another_is_written_to() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    mutable = MutableModule(net)
    assert_agrees(mutable, x)

    def change() -> None:
        net[0].weight.data = net[0].weight.data.t()
        net[1].weight.data.mul_(2)

    never_compiles(mutable, change, x)


def test_m_3_only_what_changed_is_rebuilt(mutable: MutableModule, x: torch.Tensor) -> None:
    never_compiles(mutable, lambda: mutable.fc.bias.data.add_(1), x)
    report = mutable.last_report
    assert report is not None and report.applied == ("fc.bias",) and len(report.recomputed_slots) == 1


@pytest.mark.parametrize("watch", ["sampled", "full"])
def test_m_3_single_elements_arrive_when_all_is_compared(watch: Any) -> None:
    net, x = nn.Sequential(nn.Linear(512, 512)).eval(), torch.ones(1, 512)
    mutable = MutableModule(net, watch=watch)
    assert_agrees(mutable, x)
    counted = Counted(mutable)
    # Somewhere between the sampled places.
    net[0].weight.data.view(-1)[100_001] += 1
    if watch == "sampled":
        mutable.refresh()
    assert_agrees(mutable, x)
    assert counted() == (1, 0)
    assert_agrees(mutable, x)
    assert counted() == (0, 0)


def test_m_4_equal_values_do_not_refit(mutable: MutableModule, x: torch.Tensor) -> None:
    counted = Counted(mutable)
    mutable.fc.weight = nn.Parameter(mutable.fc.weight.detach().clone())
    assert_agrees(mutable, x)
    mutable.load_state_dict(copy.deepcopy(mutable.state_dict()))
    assert_agrees(mutable, x)
    with torch.no_grad():
        mutable.fc.bias.add_(0)
    mutable.requires_grad_(False)
    assert_agrees(mutable, x)
    mutable.refresh()
    assert_agrees(mutable, x)
    assert counted() == (0, 0)


def test_m_5_other_arguments_compile_and_ranges_stay() -> None:
    net = Structured().eval()
    mutable = MutableModule(net)
    batch = Dim("batch", min=1, max=8)
    axes = {"x": {0: batch}, "more": [{0: batch}], "nothing": None}
    mutable.set_expected_dynamic_shape_range((axes,), {"mask": {0: batch}})
    counted = Counted(mutable)

    def data(size: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        x, more = torch.randn(2, size, 8, dtype=dtype)
        return {"x": x, "more": [more], "nothing": None}

    for size in (1, 3, 8, 5):
        assert_agrees(mutable, data(size))
    assert counted() == (0, 0), "one program takes the whole range"
    assert_agrees(mutable, data(9))
    assert counted() == (0, 1), "outside of the range"
    assert_agrees(mutable, data(4), mask=torch.rand(4, 8))
    assert counted() == (0, 1), "a new keyword"
    assert_agrees(mutable, data(7), mask=torch.rand(7, 8))
    assert_agrees(mutable, data(2))
    assert counted() == (0, 0), "the ranges hold for the new program, and the old ones are kept"
    net.double()
    assert_agrees(mutable, data(3, torch.float64))
    assert_agrees(mutable, data(6, torch.float64))
    assert counted() == (0, 1), "a new dtype"
    net.float()
    assert_agrees(mutable, data(3))
    assert counted()[1] <= 1


def test_m_5_sizes_under_one_name_that_differ_are_fixed() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 2 + y[:1, :1]

    mutable = MutableModule(Product().eval())
    size = Dim("size", min=2, max=8)
    mutable.set_expected_dynamic_shape_range(({0: size}, {0: size}))
    assert_agrees(mutable, torch.randn(3, 4), torch.randn(3, 4))
    assert_agrees(mutable, torch.randn(5, 4), torch.randn(5, 4))
    assert mutable.recompiles == 0
    assert_agrees(mutable, torch.randn(5, 4), torch.randn(3, 4))
    assert mutable.recompiles == 1


def test_m_5_programs_for_other_arguments_take_new_weights_in_later(net: Net) -> None:
    mutable = MutableModule(net, auto_ranges=False)
    inputs = [torch.randn(size, 3, 4, 4) for size in (1, 2, 3)]
    for x in inputs:
        assert_agrees(mutable, x)
    counted = Counted(mutable)
    net.fc.weight.data.mul_(2)
    net.norm.running_var.mul_(2)
    for x in inputs:
        assert_agrees(mutable, x)
    assert counted() == (3, 0)
    others = [torch.randn(size, 3, 4, 4) for size in range(4, 12)]
    said = "more than 8 programs .* set_expected_dynamic_shape_range"
    with pytest.warns(regraft.ThrashingWarning, match=said):
        assert all(assert_agrees(mutable, x) is None for x in others)
    assert counted() == (0, 8)
    assert_agrees(mutable, inputs[0])
    assert counted() == (0, 1), "eight programs are kept"


def test_m_6_structured_arguments() -> None:
    mutable = MutableModule(Structured().eval())
    x, more, mask = torch.randn(2, 8), torch.randn(2, 8), torch.rand(2, 8)
    data = {"x": x, "more": [more], "nothing": None}
    for kwargs in ({}, {"mask": mask}, {"mask": None, "double": True}, {"double": True, "mask": mask}):
        assert_agrees(mutable, data, **kwargs)
    counted = Counted(mutable)
    assert_agrees(mutable, data, mask=mask, double=True)
    assert_agrees(mutable, {**data, "more": (more,)})
    assert_agrees(mutable, {**data, "nothing": more})
    assert_agrees(mutable, {**data, "nothing": 2})
    assert counted() == (0, 3)
    with torch.inference_mode():
        result = mutable(data)
    assert set(result) == {"out", "first"} and result["first"][1] is None


def test_m_6_ranges_of_another_structure_are_refused() -> None:
    mutable, size = MutableModule(Structured().eval()), Dim("size", min=1, max=8)
    data = {"x": torch.ones(2, 8), "more": [torch.ones(2, 8)], "nothing": None}
    for ranges, words in (
        (({"x": {0: size}, "other": {}},), "keys among"),
        (({"x": {0: "three"}},), "dimension of torch.export"),
        (({"x": {2: size}},), "axes of a tensor of 2"),
        (({"x": {"batch": size}},), "numbers of axes"),
        (({"x": {0: (2, 3)}},), "dimension of torch.export"),
        (({"more": {0: size}},), "a sequence of 1"),
        (({}, {}, {}), "3 positional arguments"),
    ):
        mutable.set_expected_dynamic_shape_range(ranges)
        with pytest.raises(regraft.InputError, match=words), torch.inference_mode():
            mutable(data)


def test_m_7_save_and_load_keep_ranges_and_settings(net: Net, x: torch.Tensor, tmp_path: Path) -> None:
    cache = regraft.DiskCache(str(tmp_path / "cache"))
    mutable = MutableModule(net, autograd="ignore", min_block_size=3, engine_cache=cache)
    mutable.set_expected_dynamic_shape_range(({0: Dim("batch", min=1, max=16)},))
    assert_agrees(mutable, x)
    folder = tmp_path / "saved"
    MutableModule.save(mutable, folder)
    MutableModule.save(mutable, folder)
    other = Net().eval()
    loaded = MutableModule.load(folder, other)
    assert loaded.module is other and len(loaded._regraft_state.entries) == 1
    assert_agrees(loaded, x)
    assert_agrees(loaded, torch.randn(11, 3, 4, 4))
    assert loaded.recompiles == 0 and loaded.refits == 1, "the weights are the module's"
    state = loaded._regraft_state
    assert state.autograd == "ignore" and state.settings == {"min_block_size": 3}
    assert_agrees(loaded, torch.randn(17, 3, 4, 4))
    assert loaded.recompiles == 1
    program = regraft.load(folder / "0")
    assert torch.equal(program(x), compiled_result(mutable, x)[0]), "on its own it has the weights of then"


def test_m_7_another_module_is_told_by_its_export(net: Net, x: torch.Tensor, tmp_path: Path) -> None:
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    MutableModule.save(mutable, tmp_path / "saved")
    other = Net().eval()
    other.scale = 0.125
    loaded = MutableModule.load(tmp_path / "saved", other)
    assert_agrees(loaded, x)
    assert loaded.recompiles == 1
    named = Net().eval()
    named.label = "the same program"
    loaded = MutableModule.load(tmp_path / "saved", named)
    assert_agrees(loaded, x)
    assert loaded.recompiles == 0


def test_m_7_loading_executes_nothing(net: Net, x: torch.Tensor, tmp_path: Path) -> None:
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    MutableModule.save(mutable, tmp_path / "saved")
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".rgf"}, "no pickles"
    description = json.loads((tmp_path / "saved/mutable.json").read_text())
    for name, value in (("format", 99), ("entries", [{}]), ("settings", {"threads": "x"}), ("ranges", 3)):
        (tmp_path / "saved/mutable.json").write_text(json.dumps({**description, name: value}))
        with pytest.raises(regraft.EngineFileError):
            MutableModule.load(tmp_path / "saved", net)
    with pytest.raises(regraft.EngineFileError, match="no saved mutable module"):
        MutableModule.load(tmp_path, net)
    with pytest.raises(regraft.EngineFileError, match="choose another place"):
        MutableModule.save(mutable, tmp_path)


def test_m_10_a_frozen_backbone_compiled_and_a_head_trained(net: Net, x: torch.Tensor) -> None:
    backbone = MutableModule(net.requires_grad_(False))
    head = nn.Linear(32, 4)
    reference = copy.deepcopy(head)
    for module, body in ((head, backbone), (reference, net)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(body(x)).square().sum().backward()
            optimizer.step()
    assert backbone.recompiles == 0 and backbone.compiled is not None
    assert torch.allclose(head.weight, reference.weight, rtol=1e-4)


def test_m_10_training_goes_through_pytorch_and_each_step_arrives(net: Net, x: torch.Tensor) -> None:
    mutable, reference = MutableModule(net), copy.deepcopy(net)
    both = [(module, torch.optim.SGD(module.parameters(), lr=0.01)) for module in (mutable, reference)]
    assert_agrees(mutable, x)
    counted = Counted(mutable)
    for _ in range(3):
        for module, optimizer in both:
            module.train()
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
            module.eval()
        for a, b in zip(mutable.parameters(), reference.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        assert_agrees(mutable, x)
        assert counted() == (1, 0)
    assert torch.equal(mutable.norm.running_mean, reference.norm.running_mean)


def test_m_10_gradients_in_eval_mode_are_asked_for_or_not(net: Net, x: torch.Tensor) -> None:
    mutable = MutableModule(net)
    with pytest.warns(UserWarning, match="PyTorch runs this call"):
        mutable(x).sum().backward()
    assert net.fc.weight.grad is not None and mutable.compiled is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mutable(x).requires_grad, "one warning"
    wants = x.clone().requires_grad_()
    strict = MutableModule(net, autograd="raise")
    with pytest.raises(regraft.GradientError, match="parameters require"):
        strict(x)
    net.requires_grad_(False)
    with pytest.raises(regraft.GradientError, match="an input requires"):
        strict(wants)
    assert not strict(x).requires_grad and strict.compiled is not None
    net.requires_grad_(True)
    ignoring = MutableModule(net, autograd="ignore")
    assert not ignoring(wants).requires_grad and ignoring.compiled is not None


def test_m_10_parts_in_training_mode_run_in_pytorch(net: Net, x: torch.Tensor) -> None:
    mutable = MutableModule(net)
    net.norm.train()
    before = net.norm.running_mean.clone()
    with pytest.warns(UserWarning, match="norm is in training mode"):
        compiled_result(mutable, x)
    assert mutable.compiled is None and not torch.equal(net.norm.running_mean, before)
    net.norm.eval()
    # A layer that computes the same in either mode.
    net.fc = nn.Linear(128, 32)
    assert_agrees(mutable, x)
    assert mutable.compiled is not None


def test_r_17_updates_below_any_tolerance_arrive(mutable: MutableModule, x: torch.Tensor) -> None:
    before = compiled_result(mutable, x)
    mutable.train()
    optimizer = torch.optim.SGD([mutable.fc.bias], lr=1e-8)
    mutable(x).sum().backward()
    expected = mutable.fc.bias.detach() - 1e-8 * mutable.fc.bias.grad
    assert torch.allclose(expected, mutable.fc.bias) and not torch.equal(expected, mutable.fc.bias)
    optimizer.step()
    mutable.eval()
    compiled_result(mutable, x)
    assert mutable.refits == 1
    source = mutable.compiled.models[0].source("fc.bias")
    assert torch.equal(torch.from_dlpack(source), mutable.fc.bias.detach())
    assert before[0].shape == (2, 32)


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
