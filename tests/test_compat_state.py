"""Code for Torch-TensorRT that looks at buffers, ranges, dry runs and devices: only the import differs."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
import regraft.compat.torch_tensorrt as torch_tensorrt
from regraft.compat.torch_tensorrt.dynamo._DryRunTracker import DryRunTracker, dryrun_stats_display
from regraft.compat.torch_tensorrt.dynamo.observer import ObserveContext, observable
from regraft.compat.torch_tensorrt.dynamo.runtime._MutableTorchTensorRTModule import RefitFlag
from small import linear_relu, numbers, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Memory(nn.Module):
    """Keeps what it was given last, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("last", torch.zeros(3, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last[1:2] = self.fc(x)
        self.count += 1
        return self.last.sum(0) * self.count


def compiled(net: nn.Module, **settings: Any) -> Any:
    program = torch.export.export(net, (numbers(1, 4),))
    return torch_tensorrt.dynamo.compile(program, min_block_size=1, **settings)


CUT = {"torch_executed_ops": {"torch.ops.aten.linear.default"}}


@pytest.mark.parametrize("settings", [{}, CUT], ids=["one", "cut"])
@torch.no_grad()
def test_buffers_that_a_program_writes_to(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = seeded(Memory)
    ours = compiled(copy.deepcopy(theirs), **settings)
    assert ours.report().is_whole is (settings == {})
    for step in range(3):
        x = numbers(1, 4, seed=step)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.last, theirs.last)
        assert dict(ours.named_buffers()).keys() == {"last", "count"} and int(ours.count) == step + 1
    assert [id(one) for one in ours.buffers()] == [id(ours.last), id(ours.count)]
    aliased = [
        pair for name, child in ours.named_children() if "acc" in name for pair in child.aliased_io.values()
    ]
    assert aliased and {kind for _, kind in aliased} == {"kv_cache_update"}
    # What is written to them is seen.
    ours.last.fill_(2.0)
    theirs.last.fill_(2.0)
    torch.testing.assert_close(ours(x), theirs(x))
    # What is saved has the values of now; another copy begins as the first did.
    torch_tensorrt.save(ours, tmp_path / "memory.ep")
    loaded = torch_tensorrt.load(tmp_path / "memory.ep").module()
    assert int(loaded.count) == int(ours.count) and int(ours.fork().count) == 0
    torch.testing.assert_close(loaded(x), theirs(x))
    loaded.reset_state()
    assert int(loaded.count) == int(ours.count)
    other = seeded(Memory, 1)
    refitted = torch_tensorrt.dynamo.refit_module_weights(ours, torch.export.export(other, (numbers(1, 4),)))
    torch.testing.assert_close(refitted(x), other(x))
    assert int(refitted.count) == 1


def test_a_module_without_state_has_no_buffers() -> None:
    gm = compiled(nn.Sequential(nn.BatchNorm1d(4)).eval())
    assert list(gm.named_buffers()) == [] and not hasattr(gm, "last")
    frozen = compiled(seeded(Memory), immutable_weights=True)
    frozen(numbers(1, 4))
    assert int(frozen.count) == 1


def test_settings_of_torch_compile_that_live_weights_make_idle() -> None:
    net, x = linear_relu(), numbers(2, 4)
    torch._dynamo.reset()
    options = {
        "min_block_size": 1,
        "strip_engine_weights": True,
        "refit_identical_engine_weights": True,
    }
    fast = torch.compile(net, backend="tensorrt", options=options)
    said = r"strip_engine_weights \(weights of torch.compile stay live\), refit_identical_engine_weights"
    with torch.no_grad(), pytest.warns(regraft.SettingsWarning, match=said):
        torch.testing.assert_close(fast(x), net(x))
    torch._dynamo.reset()


def test_the_cpu_as_a_device() -> None:
    device = torch_tensorrt.Device("cpu")
    gm = compiled(nn.Sequential(nn.Linear(4, 4)).eval(), device=device)
    assert gm.device == "cpu" and device.to(torch.device) == torch.device("cpu")
    with pytest.raises(ValueError, match='expected "cuda:N", "gpu:N", "dla:N" or "cpu"'):
        torch_tensorrt.Device("tpu")


def test_dry_runs_are_observed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = torch.export.export(linear_relu(), (numbers(2, 4),))
    seen: list[DryRunTracker] = []

    def note(call: ObserveContext) -> None:
        seen.append(call.args[0])

    for ops in ((), ("torch.ops.aten.relu.default",)):
        with dryrun_stats_display.observers.pre.add(note):
            torch_tensorrt.dynamo.compile(program, dryrun=True, min_block_size=1, torch_executed_ops=ops)
    torch_tensorrt.dynamo.compile(program, dryrun=str(tmp_path / "run.txt"), min_block_size=1)
    whole, cut = seen
    assert whole.total_ops_in_graph == whole.supported_ops_in_graph == 2
    assert [one.subgraph_op_count for one in whole.per_subgraph_data] == [2]
    assert whole.input_shapes == [(2, 4)] and not whole.to_run_in_torch
    assert cut.unsupported_ops == {"torch.ops.aten.relu.default": 1} and cut.supported_ops_in_graph == 1
    assert re.search("relu.*torch_executed_ops names it", cut.to_run_in_torch[0])
    assert str(cut.report) in capsys.readouterr().out
    assert (tmp_path / "run.txt").read_text() == f"{whole.report}\n"
    dryrun_stats_display(DryRunTracker(), False)
    assert capsys.readouterr().out == ""


def test_observers_are_no_part_of_the_work(caplog: pytest.LogCaptureFixture) -> None:
    @observable()
    def half(x: int) -> float:
        return x / 2

    seen: list[Any] = []

    def fail(call: ObserveContext) -> None:
        raise ValueError("on purpose")

    with half.observers.post.add(lambda call: seen.append(call.return_value)), half.observers.pre.add(fail):
        assert half(3) == 1.5
        with pytest.raises(TypeError):
            half("three")
    assert half(5) == 2.5 and seen == [1.5, None]
    assert half.__name__ == "half" and half.orig_func(1) == 0.5
    assert [record.message for record in caplog.records] == ["an observer failed"] * 2


class Product(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(a @ b)


def test_what_a_call_of_a_mutable_module_needs() -> None:
    size = Dim("size", min=2, max=40)
    mutable = torch_tensorrt.MutableTorchTensorRTModule(Product().eval(), min_block_size=1)
    assert mutable.arg_dynamic_shapes is mutable.kwarg_dynamic_shapes is None
    mutable.set_expected_dynamic_shape_range(({1: size},), {"b": {0: size}})
    assert mutable.arg_dynamic_shapes == ({1: size},) and mutable.kwarg_dynamic_shapes == {"b": {0: size}}
    for rows, inner, needs in ((5, 3, None), (5, 9, RefitFlag.LIVE), (7, 9, RefitFlag.NEEDS_RECOMPILE)):
        a, b = numbers(rows, inner), numbers(inner, 6)
        if needs is not None:
            mutable._validate_inputs(a, b=b)
            assert mutable.refit_state.get_state() == needs
        torch.testing.assert_close(mutable(a, b=b), Product()(a, b))
        assert mutable.refit_state.get_state() == RefitFlag.LIVE
    assert mutable.arg_dynamic_shapes is not None
    mutable._validate_inputs(numbers(7, 50), b=numbers(50, 6))
    assert mutable.refit_state.get_state() == RefitFlag.NEEDS_RECOMPILE
    assert mutable.arg_dynamic_shapes is None and mutable.kwarg_dynamic_shapes is None


def test_arguments_are_compared_with_ranges() -> None:
    from regraft.compat.torch_tensorrt.dynamo.runtime import _MutableTorchTensorRTModule as there

    same = torch_tensorrt.MutableTorchTensorRTModule._check_inputs_shape
    size = Dim("size", min=2, max=8)
    one, other = {"a": numbers(3, 4), "b": [numbers(2), 1]}, {"a": numbers(3, 6), "b": [numbers(2), 1]}
    ranges = {"a": {1: size}, "b": [{}, None]}
    assert same(one, one) and not same(one, other) and same(one, other, ranges)
    assert not same(one, {**one, "b": [numbers(2), 2]}, ranges) and not same(one, {"a": one["a"]})
    assert not same((numbers(2),), (numbers(2).double(),)) and not same((numbers(2),), (numbers(2, 1),))
    with pytest.raises(
        there.DynamicShapeOutOfRangeException, match=r"axis 1 of \[3, 9\] is out of its range"
    ):
        same(one, {**one, "a": numbers(3, 9)}, ranges)
