"""Code for Torch-TensorRT on Regraft: only the import differs."""

from __future__ import annotations

import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft
import regraft.compat.torch_tensorrt as torch_tensorrt
from small import seeded


class Net(nn.Module):
    """A small convolutional network, with enough nodes to be one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.down(x)).mean((2, 3))
        return self.head(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = torch.relu(self.first(self.embed(ids))) * mask.unsqueeze(-1)
        return self.last(x).softmax(-1) * scale


def net(seed: int, build: type[nn.Module] = Net) -> nn.Module:
    return seeded(build, seed)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


INPUTS = [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))]


@pytest.fixture
def compiled() -> Any:
    return torch_tensorrt.dynamo.compile(torch.export.export(net(0), tuple(INPUTS)), inputs=INPUTS)


def test_the_lines_of_the_guide_run_unchanged() -> None:
    model, new_model, inputs, settings = net(0), net(1), tuple(INPUTS), {"min_block_size": 1}

    exp_program = torch.export.export(model, inputs)
    trt_gm = torch_tensorrt.dynamo.compile(exp_program, inputs=inputs)
    new_exp_program = torch.export.export(new_model, inputs)
    refitted = torch_tensorrt.dynamo.refit_module_weights(
        compiled_module=trt_gm, new_weight_module=new_exp_program, inputs=inputs
    )
    mutable = torch_tensorrt.dynamo.MutableTorchTensorRTModule(model, **settings)

    close(trt_gm(*inputs), model(*inputs))
    close(refitted(*inputs), new_model(*inputs))
    close(mutable(*inputs), model(*inputs))
    mutable.load_state_dict(new_model.state_dict())
    close(mutable(*inputs), new_model(*inputs))
    assert torch.equal(mutable(*inputs), refitted(*inputs))


def test_arguments_and_settings_come_in_each_form() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    config = torch_tensorrt.dynamo.CompilationSettings(min_block_size=1, require_full_compilation=True)
    for arguments in (
        {"inputs": INPUTS},
        {"arg_inputs": INPUTS},
        {"arg_inputs": tuple(INPUTS), "kwarg_inputs": {}},
        {"inputs": INPUTS[0]},
    ):
        for settings in ({"config": config}, {"config": vars(config)}, {"min_block_size": 1}):
            module = torch_tensorrt.dynamo.compile(program, **arguments, **settings)
            close(module(*INPUTS), net(0)(*INPUTS))
    with pytest.raises(ValueError, match="two names of the same"):
        torch_tensorrt.dynamo.compile(program, inputs=INPUTS, arg_inputs=INPUTS)


def test_keywords_win_over_config() -> None:
    config = torch_tensorrt.dynamo.CompilationSettings(immutable_weights=True)
    program = torch.export.export(net(0), tuple(INPUTS))
    assert torch_tensorrt.dynamo.compile(program, config=config).mode == "frozen"
    for keyword in ({"immutable_weights": False}, {"make_refittable": True}, {"refit": True}):
        assert torch_tensorrt.dynamo.compile(program, config=config, **keyword).mode == "refittable"


def test_what_a_compiled_module_does_not_have(compiled: Any) -> None:
    with pytest.raises(AttributeError, match=r"no 'fc': its weights are in state_dict\(\)"):
        _ = compiled.fc
    assert not hasattr(compiled, "fc") and getattr(compiled, "_buffer", None) is None


def test_weights_that_cannot_change_or_are_left_out() -> None:
    program, tuned = torch.export.export(net(0), tuple(INPUTS)), torch.export.export(net(1), tuple(INPUTS))
    frozen = torch_tensorrt.dynamo.compile(program, immutable_weights=True, strip_engine_weights=True)
    with pytest.raises(regraft.FrozenError):
        torch_tensorrt.dynamo.refit_module_weights(frozen, tuned)
    stripped = torch_tensorrt.dynamo.compile(program, strip_engine_weights=True)
    for run in (stripped, stripped._run_on_acc_0):
        with pytest.raises(
            regraft.NotBoundError, match=r"zeros(.|\n)*refit_module_weights\(module, program\)"
        ):
            run(*INPUTS)
    bound = torch_tensorrt.dynamo.refit_module_weights(stripped, tuned, in_place=True)
    assert bound is stripped
    close(stripped(*INPUTS), net(1)(*INPUTS))
    identical = torch_tensorrt.dynamo.compile(program, refit_identical_engine_weights=True)
    with pytest.raises(regraft.WeightsError):
        torch_tensorrt.dynamo.refit_module_weights(identical, tuned)
    with pytest.raises(ValueError, match="immutable_weights=False"):
        torch_tensorrt.dynamo.compile(program, refit_identical_engine_weights=True, immutable_weights=True)
    with pytest.raises(ValueError, match="contradicts"):
        torch_tensorrt.dynamo.compile(program, make_refittable=True, immutable_weights=True)


def test_one_warning_names_all_settings_without_effect() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    with pytest.warns(UserWarning, match="without effect") as caught:
        torch_tensorrt.dynamo.compile(
            program,
            device=torch_tensorrt.Device("cuda:0"),
            workspace_size=1 << 30,
            enabled_precisions={torch.float16},
            sparse_weights=True,
            use_python_runtime=True,
        )
    (warning,) = [each for each in caught if "regraft" in str(each.message)]
    assert warning.filename == __file__
    text = str(warning.message)
    before, after = text.split("keep the precision of the model")
    assert all(
        name in before for name in ("device", "workspace_size", "sparse_weights", "use_python_runtime")
    )
    assert "enabled_precisions" in after


def test_no_warning_for_what_asks_for_nothing() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="regraft")
        torch_tensorrt.dynamo.compile(
            program,
            enabled_precisions={torch.float32, torch_tensorrt.dtype.f32},
            workspace_size=0,
            device=torch.device("cpu"),
            engine_capability=torch_tensorrt.EngineCapability.STANDARD,
            torch_executed_modules=[],
        )


def test_unknown_settings_are_errors_with_a_suggestion() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    with pytest.raises(TypeError, match=r"imutable_weights; did you mean immutable_weights\?\n.*nonsense$"):
        torch_tensorrt.dynamo.compile(program, imutable_weights=True, nonsense=3)
    with pytest.raises(TypeError, match="did you mean min_block_size"):
        torch_tensorrt.MutableTorchTensorRTModule(net(0), min_blok_size=1)


@pytest.mark.parametrize("ir", ["default", "dynamo"])
def test_compile_takes_modules_and_specifications(ir: str) -> None:
    spec = torch_tensorrt.Input(min_shape=(1, 3, 16, 16), opt_shape=(2, 3, 16, 16), max_shape=(8, 3, 16, 16))
    module = torch_tensorrt.compile(net(0), ir=ir, inputs=[spec], min_block_size=1)
    for batch in (1, 2, 5, 8):
        x = torch.randn(batch, 3, 16, 16)
        close(module(x), net(0)(x))
    with pytest.raises(regraft.InputError):
        module(torch.randn(9, 3, 16, 16))


def test_torch_compile_keeps_weights_live() -> None:
    model = net(0)
    fast = torch_tensorrt.compile(model, ir="torch_compile", min_block_size=1)
    with torch.no_grad():
        close(fast(*INPUTS), model(*INPUTS))
        model.load_state_dict(net(1).state_dict())
        close(fast(*INPUTS), net(1)(*INPUTS))
    with pytest.raises(ValueError, match="immutable_weights"):
        torch_tensorrt.compile(model, ir="torch_compile", immutable_weights=True)


def test_compile_of_other_forms_is_refused() -> None:
    with pytest.raises(ValueError, match='use ir="dynamo"'):
        torch_tensorrt.compile(net(0), ir="ts", inputs=INPUTS)
    with pytest.raises(ValueError, match="inputs= or kwarg_inputs="):
        torch_tensorrt.compile(net(0), ir="dynamo")


def test_inputs_that_share_a_size() -> None:
    Shape = namedtuple("Shape", ["batch", "length"])
    shapes = {"min_shape": Shape(1, 4), "opt_shape": Shape(2, 4), "max_shape": Shape(6, 4)}
    ids = torch_tensorrt.Input(**shapes, dtype=torch.int64, name="ids")
    named = torch_tensorrt.Input(
        min_shape=(1, 4), opt_shape=(1, 4), max_shape=(6, 4), shared_dims={0: "batch"}, name="mask"
    )
    model = net(0, TwoInputs)
    module = torch_tensorrt.compile(model, inputs=[ids], kwarg_inputs={"mask": named}, min_block_size=1)
    for batch in (1, 3, 6):
        a, b = torch.randint(0, 11, (batch, 4)), torch.rand(batch, 4)
        close(module(a, mask=b), model(a, mask=b))


def test_sizes_of_one_name_have_one_range() -> None:
    from regraft.compat.torch_tensorrt.dynamo._tracer import build_dim_registry

    def named(most: int, name: str) -> Any:
        return torch_tensorrt.Input(
            min_shape=(1, 4), opt_shape=(1, 4), max_shape=(most, 4), shared_dims={0: "rows"}, name=name
        )

    (dim,) = build_dim_registry((named(6, "ids"),), {"mask": named(6, "mask")}).values()
    assert (dim.__name__, dim.min, dim.max) == ("rows", 1, 6)
    said = r"rows has several ranges: 1 to 6 \(axis 0 of input ids\), 1 to 8 \(axis 0 of input mask\)"
    for call in (
        lambda: build_dim_registry((named(6, "ids"), named(8, "mask"))),
        lambda: torch_tensorrt.compile(net(0, TwoInputs), inputs=[named(6, "ids"), named(8, "mask")]),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_specifications_say_what_is_wrong_with_them() -> None:
    Input = torch_tensorrt.Input
    assert Input((1, 2), dtype=torch_tensorrt.dtype.half).example_tensor().dtype is torch.float16
    assert Input(shape=(4, 2)).shape == (4, 2)
    ranged = Input(min_shape=(1, 2), opt_shape=(3, 2), max_shape=(5, 2))
    assert ranged.shape == {"min_shape": (1, 2), "opt_shape": (3, 2), "max_shape": (5, 2)}
    assert ranged.example_tensor("max_shape").shape == (5, 2)
    assert Input.from_tensor(INPUTS[0]).shape == (2, 3, 16, 16)
    profiles = [
        {"min_shape": (1, 2), "opt_shape": (1, 2), "max_shape": (2, 2)},
        {"min_shape": (4, 2), "opt_shape": (6, 2), "max_shape": (8, 2)},
    ]
    assert repr(Input(profiles=profiles)) == (
        "Input(min_shape=(1, 2), opt_shape=(1, 2), max_shape=(8, 2), dtype=float32)"
    )
    for wrong, error in (
        ({}, "give a shape"),
        ({"shape": (1,), "min_shape": (1,)}, "give a shape"),
        ({"min_shape": (1,), "opt_shape": (2,)}, "given together"),
        ({"min_shape": (3,), "opt_shape": (2,), "max_shape": (4,)}, "min_shape <= opt_shape"),
        ({"min_shape": (1,), "opt_shape": (2, 2), "max_shape": (4,)}, "different rank"),
        ({"shape": (1, 2), "shared_dims": {0: "b"}}, "do not change"),
        (
            {
                "min_shape": namedtuple("One", "a")(1),
                "opt_shape": namedtuple("Other", "b")(2),
                "max_shape": namedtuple("One", "a")(4),
            },
            r"name their axes differently: \('a',\) and \('b',\)",
        ),
    ):
        with pytest.raises(ValueError, match=error):
            Input(**wrong)
    with pytest.raises(TypeError, match="sequence of sizes"):
        Input(3)
    with pytest.raises(TypeError, match=r"torch\.dtype"):
        Input((1,), dtype="float")


def test_operators_that_run_in_pytorch() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    for op in (torch.ops.aten.relu.default, torch.ops.aten.relu, "torch.ops.aten.relu.default"):
        module = torch_tensorrt.dynamo.compile(program, torch_executed_ops={op}, min_block_size=1)
        assert len(module.report().in_pytorch) == 2
        close(module(*INPUTS), net(0)(*INPUTS))


def test_a_dry_run_prints_and_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    module = torch_tensorrt.dynamo.compile(program, dryrun=True)
    assert "engine" in capsys.readouterr().out
    assert not isinstance(module, regraft.Module)
    close(module(*INPUTS), net(0)(*INPUTS))
    torch_tensorrt.dynamo.compile(program, dryrun=str(tmp_path / "report.txt"))
    assert "engine" in (tmp_path / "report.txt").read_text()


def test_slots_as_arrays(compiled: Any) -> None:
    mapping = torch_tensorrt.dynamo.construct_refit_mapping(compiled)
    sizes = {name: size for name, size, _ in compiled.models[0].slots}
    assert {name: array.nbytes for name, array in mapping.items()} == sizes
    fresh = torch_tensorrt.dynamo.construct_refit_mapping(net(0), INPUTS)
    assert all(np.array_equal(fresh[name], array) for name, array in mapping.items())
    refitted = torch_tensorrt.dynamo.refit_module_weights(
        compiled, torch.export.export(net(1), tuple(INPUTS)), arg_inputs=INPUTS, verify_output=True
    )
    changed = torch_tensorrt.dynamo.construct_refit_mapping(refitted)
    assert not any(np.array_equal(changed[name], array) for name, array in mapping.items())


def test_a_mutable_module_follows_its_original(tmp_path: Path) -> None:
    model = net(0)
    mutable = torch_tensorrt.MutableTorchTensorRTModule(model, immutable_weights=False, strict=False)
    batch = torch.export.Dim("batch", min=1, max=8)
    mutable.set_expected_dynamic_shape_range(({0: batch},), {})
    x = torch.randn(3, 3, 16, 16)
    found = mutable(x)
    assert not found.requires_grad
    close(found, model(x))
    with torch.no_grad():
        model.head.bias += 1
    close(mutable(*INPUTS), model(*INPUTS))
    mutable.refit_gm()
    assert isinstance(mutable, Net)
    assert isinstance(mutable, torch_tensorrt.MutableTorchTensorRTModule)
    torch_tensorrt.MutableTorchTensorRTModule.save(mutable, tmp_path / "mutable")
    again = torch_tensorrt.MutableTorchTensorRTModule.load(tmp_path / "mutable", model)
    assert torch.equal(again(*INPUTS), mutable(*INPUTS))
    regraft.MutableModule.save(mutable, tmp_path / "other")
    with pytest.raises(TypeError, match="the module must be given"):
        torch_tensorrt.MutableTorchTensorRTModule.load(tmp_path / "other")
    with pytest.raises(ValueError, match="immutable_weights"):
        torch_tensorrt.MutableTorchTensorRTModule(model, immutable_weights=True)


def test_states_of_a_mutable_module() -> None:
    from regraft.compat.torch_tensorrt.dynamo.runtime._MutableTorchTensorRTModule import RefitFlag

    model = net(0)
    mutable = torch_tensorrt.MutableTorchTensorRTModule(model, immutable_weights=False)
    state = mutable.refit_state
    assert mutable.original_model is model and state.get_state() == RefitFlag.NEEDS_RECOMPILE
    mutable(*INPUTS)
    assert state.get_state() == RefitFlag.LIVE
    mutable.load_state_dict(net(1).state_dict())
    assert state.get_state() == RefitFlag.NEEDS_REFIT
    close(mutable(*INPUTS), net(1)(*INPUTS))
    mutable.head.weight = nn.Parameter(model.head.weight)
    assert state.get_state() == RefitFlag.UNKNOWN
    mutable.update_refit_condition()
    assert state.get_state() == RefitFlag.LIVE
    model.head.weight.data.mul_(2)
    mutable.update_refit_condition()
    assert state.get_state() == RefitFlag.NEEDS_REFIT
    refits = mutable.refits
    mutable.refit_gm()
    assert mutable.refits == refits + 1
    close(mutable(*INPUTS), model(*INPUTS))
    assert mutable.refits == refits + 1
    model.head = nn.Linear(16, 7).eval()
    mutable.update_refit_condition()
    assert state.get_state() == RefitFlag.NEEDS_RECOMPILE
    close(mutable(*INPUTS), model(*INPUTS))
    state.set_state(RefitFlag.NEEDS_RECOMPILE)
    recompiles = mutable.recompiles
    close(mutable(*INPUTS), model(*INPUTS))
    assert mutable.recompiles == recompiles + 1


@pytest.mark.parametrize("name", ["tensorrt", "torch_tensorrt"])
def test_backends_by_name(name: str) -> None:
    torch._dynamo.reset()
    options = {"min_block_size": 1, "immutable_weights": False}
    fast = torch.compile(net(0), backend=name, options=options)
    with torch.inference_mode():
        close(fast(*INPUTS), net(0)(*INPUTS))
    torch._dynamo.reset()


def test_engines_as_bytes() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    data = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(program, INPUTS)
    model = regraft.Model.from_bytes(data)
    close(torch.from_numpy(np.asarray(model.run(INPUTS)[0])), net(0)(*INPUTS))
    assert torch_tensorrt.convert_method_to_trt_engine(net(0), "forward", inputs=INPUTS)
    with pytest.raises(ValueError, match="exported by their forward"):
        torch_tensorrt.convert_method_to_trt_engine(net(0), "other", inputs=INPUTS)


def test_names_around_compiling() -> None:
    from regraft.compat.torch_tensorrt.dynamo.utils import (
        COSINE_THRESHOLD,
        check_output_equal,
        cosine_similarity,
    )

    assert torch_tensorrt.ENABLED_FEATURES.refit and not torch_tensorrt.ENABLED_FEATURES.tensorrt_rtx
    assert torch_tensorrt.dtype.f32 == torch.float32 and torch_tensorrt.dtype.half != torch.float32
    assert (
        torch.float32 in {torch_tensorrt.dtype.f32} and torch_tensorrt.dtype.f16 == torch_tensorrt.dtype.half
    )
    assert torch_tensorrt.Input((2, 3), is_shape_tensor=True).is_shape_tensor
    x = torch.arange(4.0)
    assert cosine_similarity(x, x * 2) > COSINE_THRESHOLD > cosine_similarity(x, -x)
    assert check_output_equal({"a": [x]}, {"a": [x + 1e-6]}) and not check_output_equal([x], [x + 1])
    program = torch_tensorrt.dynamo.trace(net(0), INPUTS, device="cpu", min_block_size=1, ir="dynamo")
    close(program.module()(*INPUTS), net(0)(*INPUTS))
    with pytest.raises(ValueError, match="ir='torchscript'"):
        torch_tensorrt.dynamo.compile(program, ir="torchscript")
    with pytest.warns(
        regraft.SettingsWarning,
        match=r"runtime\.set_cudagraphs_mode is about how TensorRT runs.*leave it out",
    ):
        torch_tensorrt.runtime.set_cudagraphs_mode(True)
    assert torch_tensorrt.runtime.get_cudagraphs_mode()
    with torch_tensorrt.logging.debug():
        pass


def test_operators_to_leave_are_translated_or_an_error() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    ops = {"torch.ops.aten.convolution.default"}
    module = torch_tensorrt.dynamo.compile(program, INPUTS, min_block_size=1, torch_executed_ops=ops)
    assert [part.op for part in module.report().in_pytorch].count("aten.conv2d.default") == 2
    close(module(*INPUTS), net(0)(*INPUTS))
    with pytest.raises(regraft.CompileError, match=r"PyTorch has no operator aten\.convolotion"):
        torch_tensorrt.dynamo.compile(program, INPUTS, torch_executed_ops={"aten.convolotion"})


def test_children_are_named_as_by_torch_tensorrt() -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    module = torch_tensorrt.dynamo.compile(program, INPUTS, min_block_size=1)
    assert [name for name, _ in module.named_children()] == ["_run_on_acc_0"]
    part = module._run_on_acc_0
    assert part.settings.min_block_size == 1 and "2 slots" not in repr(part)
    assert set(part.weight_name_map["head.weight"]) == {"head.weight"} and part.input_binding_names == ["x"]
    assert regraft.Model.from_bytes(part.engine.to_bytes("refittable", "embedded")).inputs[0][0] == "x"
    assert torch.equal(part(*INPUTS)[0], module(*INPUTS))
    # Which weights go where is part of the engine.
    part.weight_name_map = None
    other = torch.export.export(net(1), tuple(INPUTS))
    refitted = torch_tensorrt.dynamo.refit_module_weights(module, other, INPUTS)
    close(refitted(*INPUTS), net(1)(*INPUTS))
    close(refitted._run_on_acc_0(*INPUTS)[0], net(1)(*INPUTS))
    close(part(*INPUTS)[0], net(0)(*INPUTS))

    cut = torch_tensorrt.dynamo.compile(
        program, INPUTS, min_block_size=1, torch_executed_ops={"torch.ops.aten.mean.dim"}
    )
    assert [name for name, _ in cut.named_children()] == ["_run_on_acc_0", "_run_on_gpu_1", "_run_on_acc_2"]
    assert "aten.mean.dim" in repr(cut._run_on_gpu_1)
    part = torch_tensorrt.dynamo.compile(program, INPUTS)._run_on_acc_0
    with pytest.raises(regraft.CompileError, match="the module that it is a part of is gone"):
        part(*INPUTS)


def test_gradients_are_not_asked_of_compiled_graphs() -> None:
    torch._dynamo.reset()
    fast = torch_tensorrt.compile(net(0), ir="torch_compile", min_block_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", regraft.RegraftWarning)
        found = fast(*INPUTS)
    assert not found.requires_grad
    close(found, net(0)(*INPUTS))
    torch._dynamo.reset()


def test_names_of_tensorrt_say_what_to_do_instead() -> None:
    from regraft.compat.torch_tensorrt.dynamo import _refit, lowering
    from regraft.compat.torch_tensorrt.dynamo._defaults import MIN_BLOCK_SIZE, TIMING_CACHE_PATH

    assert MIN_BLOCK_SIZE == 5 and TIMING_CACHE_PATH.endswith("timing_cache.bin")
    for found, message in (
        (lowering.get_decompositions, "dynamo.lowering.get_decompositions: Regraft lowers programs itself"),
        (_refit.get_engine_from_encoded_engine, "regraft.Model.from_bytes"),
        (torch_tensorrt.runtime.RuntimeCache, "kept by themselves: leave it out"),
        (torch_tensorrt.cross_compile_for_windows, "for the machine that builds them"),
    ):
        assert "which Regraft has not" in repr(found)
        with pytest.raises(NotImplementedError, match=message):
            found(1)
    with pytest.raises(NotImplementedError, match="messages here are of Python's logger"):
        torch_tensorrt.logging.TRT_LOGGER.log("text")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        torch_tensorrt.nothing  # noqa: B018
