"""Every public name of Torch-TensorRT is there under `regraft.compat.torch_tensorrt`, with its meaning or an
explanation; compiled modules pass for graph modules; helpers do what they say.

`torch_tensorrt_names.txt` is of version 2.14.0, by scripts/torch-tensorrt-names.py.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft
import regraft.compat.torch_tensorrt as torch_tensorrt
from regraft.compat.torch_tensorrt.absent import Absent
from regraft.compat.torch_tensorrt.dynamo import CompilationSettings, utils
from small import linear_relu, numbers, seeded, uncompiled

NAMES = Path(__file__).with_name("torch_tensorrt_names.txt").read_text().splitlines()
SETTINGS = {about.name for about in fields(CompilationSettings)}
# The file holds these by name and type alone: what they are is an object's.
OBJECTS = {"Input": torch_tensorrt.Input((1,))}
# Not there, each for a reason.
LEFT_OUT = {
    "MutableTorchTensorRTModule.__init__": "`__new__` makes it, with these arguments",
    "MutableTorchTensorRTModule.device": "the attributes are those of the original, and many have one",
    "MutableTorchTensorRTModule.serialize_dynamic_shapes": "save() stores ranges",
    "MutableTorchTensorRTModule.deserialize_dynamic_shapes": "load() reads them",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def found(path: str) -> Any:
    value: Any = torch_tensorrt
    parts = path.split(".")
    for index, part in enumerate(parts):
        if index == 1 and parts[0] in OBJECTS and part != "__init__" and not hasattr(value, part):
            value = OBJECTS[parts[0]]
        if isinstance(value, Absent):
            return value
        if inspect.isclass(value) and part in getattr(value, "__dataclass_fields__", {}):
            return None
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(".".join([torch_tensorrt.__name__, *parts[: index + 1]]))
    return value


def test_every_public_name_is_there() -> None:
    assert len(NAMES) > 400
    missing = []
    for line in NAMES:
        path, _, arguments = line.partition(":")
        # Members of the module around one engine are about TensorRT's; it takes their settings.
        if path in LEFT_OUT or path.startswith("TorchTensorRTModule."):
            continue
        try:
            value = found(path)
        except (AttributeError, ImportError):
            missing.append(path)
            continue
        if isinstance(value, Absent) or not arguments.strip():
            continue
        kinds = inspect.signature(value).parameters
        takes = {parameter.kind for parameter in kinds.values()}
        if inspect.Parameter.VAR_POSITIONAL in takes or path.endswith((".try_from", ".try_to")):
            continue
        settings = SETTINGS if inspect.Parameter.VAR_KEYWORD in takes else set()
        missing += [f"{path}({name})" for name in arguments.split() if name not in {*kinds, *settings}]
    assert missing == []


def test_every_setting_has_a_role() -> None:
    named = {line.partition(":")[0].rpartition(".")[2] for line in NAMES if "CompilationSettings." in line}
    assert len(named) > 45 and named <= SETTINGS


def test_private_modules_that_code_imports_from() -> None:
    for module, names in (
        ("_Device", "Device"),
        ("_Input", "Input"),
        ("_compile", "compile load save"),
        ("_enums", "dtype memory_format EngineCapability DeviceType"),
        ("_features", "ENABLED_FEATURES"),
        ("dynamo._compiler", "CompilationSettings compile"),
        ("dynamo._exporter", "export"),
        ("dynamo._tracer", "trace"),
        ("dynamo._refit", "refit_module_weights construct_refit_mapping"),
    ):
        value = importlib.import_module(f"{torch_tensorrt.__name__}.{module}")
        for name in names.split():
            public = torch_tensorrt.dynamo if module.startswith("dynamo.") else torch_tensorrt
            assert getattr(value, name) is getattr(public, name)
    machine = importlib.import_module(f"{torch_tensorrt.__name__}._utils")
    assert not machine.is_tensorrt_rtx() and not machine.is_tegra_platform()
    assert not machine.is_tensorrt_version_supported("10.0")
    assert torch.__version__.startswith(machine.sanitized_torch_version())


def test_modules_about_tensorrt_say_what_to_do_instead() -> None:
    for module, name, words in (
        ("dynamo.conversion", "dynamo_tensorrt_converter", "docs/operators.md"),
        ("dynamo.partitioning", "fast_partition", "dryrun"),
        ("dynamo.lowering.passes", "constant_fold", "--dump-dir"),
        ("dynamo.debug", "Debugger", "module.report()"),
        ("dynamo.types", "TRTTensor", "type of TensorRT"),
        ("dynamo.runtime._TRTEngine", "TRTEngine", "module.models"),
        ("dynamo.tools", "opset_coverage", "operators"),
        ("ts", "TensorRTCompileSpec", "torch.export"),
        ("fx", "compile", "torch.export"),
        ("kernels", "ptx_op", "torch_executed_ops"),
        ("distributed", "set_distributed_mode", "one machine"),
        ("executorch", "export", "save"),
    ):
        value = getattr(importlib.import_module(f"{torch_tensorrt.__name__}.{module}"), name)
        with pytest.raises(NotImplementedError, match=rf"torch_tensorrt\.{module}\.{name}: .*") as caught:
            value()
        assert words in str(caught.value)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)
        self.out = nn.Linear(16, 4)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 16))

    def forward(self, x: torch.Tensor, *, gain: torch.Tensor) -> dict[str, torch.Tensor]:
        h = uncompiled(torch.relu(self.fc(x))) * self.scale
        return {"scores": self.out(h) * gain, "sums": h.sum(-1)}


CALL = {"arg_inputs": (numbers(3, 8),), "kwarg_inputs": {"gain": numbers(1, 4)}}


@pytest.mark.parametrize(
    "settings",
    [
        {"min_block_size": 1},
        {"min_block_size": 1, "torch_executed_ops": {"torch.ops.aten.linear.default"}},
        {"min_block_size": 100},
    ],
    ids=["one", "other", "none"],
)
@pytest.mark.filterwarnings("ignore::regraft.NothingCompiledWarning")
def test_results_are_graph_modules(settings: dict[str, Any]) -> None:
    net = seeded(Net)
    gm = torch_tensorrt.compile(net, ir="dynamo", **CALL, **settings)
    assert isinstance(gm, torch.fx.GraphModule) and isinstance(gm, regraft.Module)
    children = dict(gm.named_children())
    calls = [node.target for node in gm.graph.nodes if node.op == "call_module"]
    assert calls == list(children) and calls
    for name, child in children.items():
        if "_run_on_acc" in name:
            assert child.settings.min_block_size == 1 and child.engine.is_bound
        else:
            assert child.operators and isinstance(child.graph, torch.fx.Graph)
    assert any("_run_on_gpu" in name for name in calls), "_add_relu stays in PyTorch"
    assert "def forward(self, x, gain)" in gm.code and "_run_on_gpu" in gm.print_readable(print_output=False)
    for weights in (seeded(Net), seeded(Net, 1)):
        gm.refit(weights.state_dict())
        with torch.no_grad():
            whole = gm(*CALL["arg_inputs"], **CALL["kwarg_inputs"])
            parts = torch.fx.Interpreter(gm).run(*CALL["arg_inputs"], CALL["kwarg_inputs"]["gain"])
        assert all(torch.equal(one, other) for one, other in zip(parts, whole.values(), strict=True))
    assert type(copy.copy(gm)) is type(copy.deepcopy(gm)) is type(gm)
    gm.recompile()
    next(node for node in gm.graph.nodes if node.op == "output").args = ((),)
    with pytest.raises(regraft.CompileError, match=r"calls do not go through it: .*Interpreter"):
        gm.recompile()
    with pytest.raises(regraft.CompileError, match="cannot be replaced: change the original"):
        gm.graph = torch.fx.Graph()


def test_results_are_exported_in_each_way(tmp_path: Path) -> None:
    net, other = seeded(Net), seeded(Net, 1)
    gm = torch_tensorrt.compile(net, ir="dynamo", **CALL, min_block_size=1)
    gm.refit(other.state_dict())
    args, kwargs = CALL["arg_inputs"], CALL["kwarg_inputs"]
    with torch.no_grad():
        wanted = other(*args, **kwargs)
    for program in (
        torch_tensorrt.dynamo.export(gm),
        torch_tensorrt.dynamo.export(gm, **CALL),
        torch.export.export(gm, args, kwargs),
    ):
        assert torch.equal(program.module()(*args, **kwargs)["sums"], wanted["sums"])
    with pytest.raises(ValueError, match="for the machine that builds them"):
        torch_tensorrt.dynamo.export(gm, cross_compile_module=True)
    assert list(inspect.signature(gm.forward).parameters) == ["x", "gain"]
    torch_tensorrt.save(gm, tmp_path / "net.ep", extra_files={"notes.txt": "of a test"})
    texts = {"notes.txt": ""}
    loaded = torch_tensorrt.load(tmp_path / "net.ep", extra_files=texts).module()
    assert texts == {"notes.txt": "of a test"} and isinstance(loaded, torch.fx.GraphModule)
    assert loaded._run_on_acc_0.settings == CompilationSettings(min_block_size=1)
    assert torch.equal(loaded(*args, **kwargs)["sums"], gm(*args, **kwargs)["sums"])
    with pytest.raises(ValueError, match=r"no extra file other, there is notes\.txt"):
        torch_tensorrt.load(tmp_path / "net.ep", extra_files={"other": ""})
    with pytest.warns(regraft.SettingsWarning, match="save has no kwargs_inputs: leave it out"):
        torch_tensorrt.save(gm, tmp_path / "again.ep", kwargs_inputs=kwargs)
    with pytest.raises(ValueError, match="format='torchscript'"):
        torch_tensorrt.load(tmp_path / "net.ep", format="torchscript")


@pytest.mark.parametrize("by_name", [False, True])
def test_results_are_exported_with_ranges(by_name: bool) -> None:
    net, batch = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(),
        torch.export.Dim("b", max=8),
    )
    program = torch.export.export(net, (numbers(2, 8),), dynamic_shapes=({0: batch},))
    gm = torch_tensorrt.dynamo.compile(program, min_block_size=1)
    ranges = {"input": {0: batch}} if by_name else ({0: batch},)
    again = torch.export.export(gm, (numbers(2, 8),), dynamic_shapes=ranges, strict=False).module()
    for size in (2, 5):
        assert torch.equal(again(numbers(size, 8)), net(numbers(size, 8)))


def test_the_program_of_a_mutable_module() -> None:
    net, args, kwargs = seeded(Net), CALL["arg_inputs"], CALL["kwarg_inputs"]
    mutable = torch_tensorrt.MutableTorchTensorRTModule(net, min_block_size=1)
    with pytest.raises(regraft.CompileError, match="call the module once"):
        mutable.get_exported_program()
    mutable(*args, **kwargs)
    with torch.no_grad():
        net.out.bias.add_(1)
        wanted = net(*args, **kwargs)["scores"]
    program = mutable.get_exported_program()
    assert torch.equal(program.module()(*args, **kwargs)["scores"], wanted)
    assert mutable.trt_device == torch.device("cpu")
    with pytest.warns(regraft.SettingsWarning, match="set_weight_streaming_ctx.*leave it out"):
        mutable.set_weight_streaming_ctx()


def test_what_is_about_how_tensorrt_runs_is_accepted_with_a_warning(monkeypatch: Any) -> None:
    from regraft.compat.torch_tensorrt import runtime

    monkeypatch.setattr(runtime, "_warned", set())
    gm = torch_tensorrt.compile(seeded(Net), ir="dynamo", **CALL, min_block_size=1)
    args, kwargs = CALL["arg_inputs"], CALL["kwarg_inputs"]
    for name, context in (
        ("enable_cudagraphs", lambda: torch_tensorrt.enable_cudagraphs(gm)),
        ("runtime_config", lambda: torch_tensorrt.runtime_config(gm, cuda_graph_strategy="disabled")),
        ("runtime_cache", lambda: torch_tensorrt.runtime_cache(gm, "cache.bin")),
        ("optimization_profile", lambda: torch_tensorrt.optimization_profile(gm, 0)),
        ("set_dynamic_shapes_kernel_strategy", lambda: torch_tensorrt.set_dynamic_shapes_kernel_strategy(gm)),
        ("enable_output_allocator", lambda: torch_tensorrt.enable_output_allocator(gm)),
        ("enable_pre_allocated_outputs", lambda: torch_tensorrt.enable_pre_allocated_outputs(gm)),
    ):
        with pytest.warns(regraft.SettingsWarning, match=rf"runtime\.{name} .*leave it out"), context():
            gm(*args, **kwargs)
        with context():
            pass
    torch_tensorrt.enable_pre_allocated_outputs(gm).set_pre_allocated_output(True)
    torch_tensorrt.enable_output_allocator(gm).set_output_allocator_output(True)
    with pytest.raises(TypeError, match="unexpected"):
        torch_tensorrt.RuntimeSettings().merge(nothing=1)


def test_caches_are_written_in_place() -> None:
    class Step(nn.Module):
        def forward(self, keys: torch.Tensor, values: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            keys[:, :, 3:4] = new
            values[:, :, 5:6] = new * 2
            return keys.sum() + values.sum()

    def call(count: float) -> tuple[torch.Tensor, ...]:
        return torch.zeros(2, 4, 8, 4), torch.zeros(2, 4, 8, 4), torch.full((2, 4, 1, 4), count)

    program = torch.export.export(Step(), call(1.0))
    gm = torch_tensorrt.compile(program, ir="dynamo", inputs=list(call(1.0)), min_block_size=1)
    aliased = gm._run_on_acc_0.aliased_io
    assert sorted(aliased.values()) == [("keys", "kv_cache_update"), ("values", "kv_cache_update")]
    mine, theirs = call(3.0), call(3.0)
    for count in (3.0, 7.0):
        mine[2].fill_(count)
        theirs[2].fill_(count)
        torch.testing.assert_close(gm(*mine), Step()(*theirs))
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_devices_that_are_not_there() -> None:
    net, x = linear_relu(), numbers(2, 4)
    device = torch_tensorrt.Device("dla:0", allow_gpu_fallback=True)
    with pytest.raises(regraft.CompileError, match="device: there is no dla:0"):
        torch_tensorrt.compile(net, ir="dynamo", inputs=[x], device=device)
    compiled = torch_tensorrt.compile(net, "torch_compile", [x], device=device)
    with pytest.raises(RuntimeError, match="device: there is no dla:0"):
        compiled(x)
    torch._dynamo.reset()


def test_budgets_of_weights_are_kept() -> None:
    gm = torch_tensorrt.compile(seeded(Net), ir="dynamo", **CALL, min_block_size=1)
    with torch_tensorrt.runtime.weight_streaming(gm) as context:
        total = context.device_budget
        assert total == context.get_automatic_weight_streaming_budget() == gm.memory()["slots"] > 0
        for budget in (0, total // 2, total, total + 1):
            context.device_budget = budget
            assert context.device_budget == min(budget, total)
        with pytest.raises(RuntimeError, match="found -1"):
            context.device_budget = -1
        context.device_budget = 0
    assert context.device_budget == total
    assert torch_tensorrt.runtime.weight_streaming(seeded(Net)).device_budget == 0


def test_engines_from_their_bytes() -> None:
    class Both(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a * b

    a, b = numbers(2, 4), numbers(2, 4, seed=1)
    program = torch.export.export(Both(), (a, b))
    engine = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(program, (a, b))
    module = torch_tensorrt.dynamo.runtime.TorchTensorRTModule(engine, ["a", "b"], ["sum", "product"])
    assert torch_tensorrt.TorchTensorRTModule is type(module)
    assert all(torch.equal(x, y) for x, y in zip(module(a, b), Both()(a, b), strict=True))
    assert module.input_binding_names == ["a", "b"] and module.engine.is_bound
    with pytest.raises(regraft.EngineFileError, match="has 2 inputs: expected as many names, found 1"):
        torch_tensorrt.TorchTensorRTModule(engine, ["a"])
    with pytest.raises(regraft.EngineFileError):
        torch_tensorrt.TorchTensorRTModule(b"nothing")


def test_helpers_around_inputs(caplog: Any) -> None:
    x = numbers(2, 3)
    made = utils.prepare_inputs({"a": x, "b": (1.5, torch_tensorrt.Input((4,)))})
    assert made["a"].shape == (2, 3) and made["b"][1].shape == (4,)
    assert torch.equal(utils.get_torch_inputs([made["a"]], "cpu")[0], x)
    ranged = torch_tensorrt.Input(min_shape=(1, 3), opt_shape=(2, 3), max_shape=(4, 3))
    assert utils.get_torch_inputs({"x": ranged}, "cpu", "max_shape")["x"].shape == (4, 3)
    assert utils.input_is_dynamic([made["a"], ranged]) and not utils.input_is_dynamic([x])
    assert ranged.shape_mode.name == "DYNAMIC" and made["a"].shape_mode.name == "STATIC"
    assert torch_tensorrt.Input.equivalent_spec(*torch_tensorrt.Input.from_tensors([x, x + 1]))
    assert not torch_tensorrt.Input.equivalent_spec(ranged, made["a"])
    assert utils.unwrap_tensor_shape([x]) == [(2, 3)] and utils.unwrap_tensor_dtype(x) is torch.float32
    with pytest.raises(ValueError, match="found set"):
        utils.prepare_inputs([{1}])
    with pytest.raises(ValueError, match="that only TensorRT has"):
        torch_tensorrt.Input((1, 2), format=torch_tensorrt.memory_format.chw2)


def test_helpers_around_types_and_devices() -> None:
    frameworks = utils.Frameworks
    assert utils.unified_dtype_converter(np.float16, frameworks.TORCH) is torch.float16
    assert utils.unified_dtype_converter(torch.int32, frameworks.NUMPY) is np.int32
    with pytest.raises(TypeError, match="TensorRT"):
        utils.unified_dtype_converter(torch.int32, frameworks.TRT)
    assert utils.to_torch_device(torch_tensorrt.Device("cuda:1")) == torch.device("cuda:1")
    assert utils.to_torch_tensorrt_device("cuda:1").gpu_id == 1
    assert utils.to_torch_device(utils.to_torch_tensorrt_device("cpu")) == torch.device("cpu")
    assert torch_tensorrt.Device("cpu").device_type is torch_tensorrt.DeviceType.UNKNOWN
    with pytest.raises(ValueError, match="meta is neither a GPU nor the CPU"):
        utils.to_torch_tensorrt_device("meta")
    dtype = torch_tensorrt.dtype
    assert dtype.try_from(torch.float16) is dtype.half and dtype.try_from("f99") is None
    assert dtype.half.try_to(torch.dtype) is torch.float16 and dtype.unknown.try_to(torch.dtype) is None
    assert torch_tensorrt.memory_format.hwc.to() is torch.channels_last
    assert torch_tensorrt.DeviceType.try_from(1) is torch_tensorrt.DeviceType.GPU
    same = torch_tensorrt.dynamo._settings.settings_are_compatible
    one, other = CompilationSettings(), CompilationSettings(min_block_size=1, workspace_size=3)
    assert same(one, one) == (True, set()) and same(one, other) == (False, {"min_block_size"})
