"""Nothing in silence: warnings with their remedies, explanations, and messages of small mistakes."""

from __future__ import annotations

import pydoc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from mutable_checks import assert_agrees, compiled_result
from python_checks import succeeds
from regraft import MutableModule
from small import numbers, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)
        self.scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.drop(torch.relu(self.fc(x))))) * self.scale


X = numbers(3, 8)


def net() -> nn.Module:
    return seeded(Net)


def compiled_net(**settings: Any) -> regraft.Module:
    return regraft.compile(net(), (X,), **settings)


def test_every_warning_is_one_of_regrafts() -> None:
    kinds = [value for value in vars(regraft.errors).values() if isinstance(value, type)]
    found = [kind for kind in kinds if issubclass(kind, Warning)]
    assert len(found) >= 11 and all(issubclass(kind, regraft.RegraftWarning) for kind in found)
    assert all(getattr(regraft, kind.__name__) is kind for kind in found)


def test_nothing_is_said_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", regraft.RegraftWarning)
        compiled_net()
        assert_agrees(MutableModule(net()), X)


def test_a_module_in_training_mode() -> None:
    with pytest.warns(
        regraft.TrainingWarning, match=r"compiled in training mode, where drop, norm .*call \.eval\(\)"
    ) as caught:
        regraft.compile(Net(), (X,))
    assert caught[0].filename == __file__, "it points to the caller"
    mutable = MutableModule(Net())
    with (
        torch.inference_mode(),
        pytest.warns(regraft.TrainingWarning, match=r"call eval\(\) to run it compiled"),
    ):
        mutable(X)


def test_nothing_left_to_compile() -> None:
    with pytest.warns(
        regraft.NothingCompiledWarning, match=r"all of it stays in PyTorch .*give min_block_size=1"
    ):
        compiled = compiled_net(min_block_size=100, torch_executed_ops=["aten.relu.default"])
    assert not compiled.models


def test_operators_that_a_program_does_not_have() -> None:
    with pytest.warns(
        regraft.SettingsWarning, match=r"torch_executed_ops: the program has no aten\.cos: .*dry_run"
    ):
        compiled_net(min_block_size=1, torch_executed_ops=["aten.cos.default", "aten.relu.out"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", regraft.RegraftWarning)
        # As it is called once the program is decomposed.
        compiled_net(min_block_size=1, torch_executed_ops=["aten.addmm.default"])


def test_operators_without_a_kernel() -> None:
    class Factor(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.cholesky(x @ x.mT + torch.eye(3))

    said = (
        r"no kernel runs 1 x factor of f64 .*far slower\. .*leave the operator to PyTorch with torch_executed"
    )
    with pytest.warns(regraft.SlowWarning, match=said):
        regraft.compile(Factor().eval(), numbers(3, 3))


def test_a_dtype_that_runs_slowly() -> None:
    with pytest.warns(regraft.SlowWarning, match=r"layer_norm of f64.*evaluator.*\.float\(\)"):
        regraft.compile(nn.LayerNorm(8).eval().double(), (X.double(),))


def test_gradients_that_go_to_pytorch() -> None:
    mutable = MutableModule(net())
    with pytest.warns(regraft.GradientWarning, match=r"parameters require a gradient.*inference_mode"):
        mutable(X)
    assert issubclass(regraft.GradientWarning, regraft.FallbackWarning)


def test_compiled_modules_stay_where_they_are() -> None:
    compiled = compiled_net()
    assert compiled.to("cpu") is compiled and compiled.float() is compiled and compiled.eval() is compiled
    assert compiled.to(torch.float32) is compiled and compiled.to(X) is compiled
    for move in (compiled.half, compiled.double, compiled.bfloat16, lambda: compiled.to(torch.float16)):
        with pytest.raises(
            regraft.CompileError, match=r"(?s)cannot move to torch\.\w+: .*built for .*move the original"
        ):
            move()
    with pytest.raises(regraft.CompileError, match="cannot move"):
        compiled.cuda()
    with pytest.raises(regraft.CompileError, match="cannot move to meta"):
        compiled.to("meta")


def test_explain_says_why_and_what_it_cost() -> None:
    mutable = MutableModule(net())
    assert str(mutable.explain()) == "0 calls"
    assert_agrees(mutable, X)
    mutable.fc.weight.data.mul_(2)
    assert_agrees(mutable, X)
    assert_agrees(mutable, numbers(5, 8))
    mutable.scale = 2.0
    assert_agrees(mutable, X)
    mutable.head = nn.Sequential(nn.Linear(16, 4)).eval()
    assert_agrees(mutable, X)
    with pytest.warns(regraft.GradientWarning):
        mutable(X)
    explanation = mutable.explain()
    assert [event.what for event in explanation.events] == ["compile", "refit", *["compile"] * 3, "pytorch"]
    why = [event.why for event in explanation.events]
    assert why[0] == "the first call" and why[1] == "fc.weight changed"
    assert why[2] == "x is f32[5, 8], was f32[3, 8]"
    assert why[3] == "attribute scale of the module changed"
    assert "head is a Sequential, was a Linear" in why[4] and "gradient" in why[5]
    assert explanation.calls == 6 and explanation.totals["compile"][0] == 4
    assert all(event.seconds > 0 for event in explanation.events if event.what != "pytorch")
    text = str(explanation)
    assert (
        text.startswith("6 calls, 4 compilations in ")
        and "call 2: refit" in text
        and " ms  fc.weight changed" in text
    )


def calls_of_sizes(mutable: MutableModule, sizes: range) -> None:
    for size in sizes:
        assert_agrees(mutable, numbers(size, 8))


def test_sizes_alone_are_widened() -> None:
    mutable = MutableModule(net())
    said = (
        r"sizes alone: axis 0 of x\. .*takes any: set_expected_dynamic_shape_range\(\(\{0: Dim\.AUTO\},\)\)"
    )
    with pytest.warns(regraft.RangesWarning, match=said) as caught:
        calls_of_sizes(mutable, range(2, 20))
    assert mutable.recompiles == 3 and len([w for w in caught if w.category is regraft.RangesWarning]) == 1
    mutable.scale = 3.0
    for size in range(2, 20):
        assert_agrees(mutable, numbers(size, 8))
    assert mutable.recompiles == 4, "what was found out holds for other structures"
    mutable.scale = 1.0
    assert_agrees(mutable, numbers(21, 8))
    assert mutable.recompiles == 4


def test_sizes_alone_are_only_told() -> None:
    mutable = MutableModule(net(), auto_ranges=False)
    with pytest.warns(
        regraft.RangesWarning, match=r"set_expected_dynamic_shape_range\(\(\{0: Dim\.AUTO\},\)\) makes"
    ):
        calls_of_sizes(mutable, range(2, 8))
    assert mutable.recompiles == 5


def test_sizes_that_decide_what_is_computed() -> None:
    class Unrolled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(x.shape[0]):
                x = torch.relu(x * 2)
            return x

    mutable = MutableModule(Unrolled().eval(), min_block_size=1)
    for size in range(2, 8):
        assert_agrees(mutable, numbers(size, 4))


def test_one_tensor_alone_and_wrong_settings() -> None:
    compiled = regraft.compile(net(), X)
    assert torch.equal(compiled(X), compiled_net()(X))
    for settings, words in (
        ({"tune": True}, r"tune: expected one of 'off', 'fast', 'full', found True\n  help: 'fast' measures"),
        ({"tune": "best"}, "found 'best'"),
        ({"keep_sources": "all"}, "keep_sources: expected one of 'embedded'"),
        ({"mode": "strip"}, "mode: expected one of 'refittable', 'stripped', 'frozen', found 'strip'"),
        ({"threads": 0}, "threads: expected a whole number from 1, found 0"),
        ({"min_block_size": 2.5}, "min_block_size: expected a whole number"),
    ):
        with pytest.raises(regraft.CompileError, match=words):
            regraft.compile(net(), X, **settings)
        if "mode" not in settings:
            with pytest.raises(regraft.CompileError, match=words):
                MutableModule(net(), **settings)
            torch._dynamo.reset()
            with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=words):
                torch.compile(net(), backend="regraft", options=settings)(X)
    torch._dynamo.reset()


def test_what_is_compiled_already() -> None:
    compiled = compiled_net()
    with pytest.raises(regraft.CompileError, match=r"compiled already\n  help: module\.fork\(\)"):
        regraft.compile(compiled, X)
    again = regraft.compile(MutableModule(net()), X)
    assert torch.equal(again(X), compiled(X)) and not isinstance(again, MutableModule)


def test_arguments_by_name_in_the_place_of_positions() -> None:
    with pytest.raises(
        regraft.CompileError, match=r"found a dict\n  help: .* kwarg_inputs=.*inputs=\(that,\)"
    ):
        regraft.compile(net(), {"x": X})
    assert torch.equal(regraft.compile(net(), kwarg_inputs={"x": X})(X), compiled_net()(X))


def test_refits_with_what_holds_weights() -> None:
    compiled, other = compiled_net(), seeded(Net, 1)
    with pytest.raises(regraft.WeightsError, match=r"found Net\n  help: give its state_dict\(\)"):
        compiled.refit(other)
    program = torch.export.export(other, (X,))
    with pytest.raises(regraft.WeightsError, match=r"found ExportedProgram\n  help: .*refit_module_weights"):
        compiled.refit(program)
    compiled.refit(program.state_dict)
    assert torch.equal(compiled(X), regraft.compile(other, X)(X))


def test_paths_given_to_compile(tmp_path: Path) -> None:
    for path in ("model.pt2", tmp_path / "folder"):
        with pytest.raises(
            regraft.CompileError, match=r"found a path\n  help: regraft\.compile\(torch\.export\.load\("
        ):
            regraft.compile(path)
    with pytest.raises(regraft.CompileError, match=r"m\.onnx: No such file"):
        regraft.compile("m.onnx")


def test_another_size_says_what_to_declare() -> None:
    compiled = compiled_net()
    with pytest.raises(
        regraft.InputError, match=r"dynamic_shapes=\{'x': \{0: torch\.export\.Dim\('batch'\)\}\}"
    ):
        compiled(numbers(4, 8))
    free = regraft.compile(net(), X, dynamic_shapes={"x": {0: Dim("batch")}})
    assert free(numbers(4, 8)).shape == (4, 4)


def test_quantized_modules() -> None:
    quantized = nn.Sequential(torch.ao.nn.quantized.Linear(8, 4)).eval()
    with pytest.raises(
        regraft.CompileError, match=r"quantized: 0 \(Linear\).*\n  help: compile the module as it was"
    ):
        regraft.compile(quantized, X)


def test_data_dependent_branches_name_torch_compile() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(regraft.CompileError, match=r'torch\.compile\(module, backend="regraft"\)'):
        regraft.compile(Branch().eval(), X)


def test_stripped_engines_name_refit(tmp_path: Path) -> None:
    regraft.save(compiled_net(), tmp_path / "net", strip=True)
    model = regraft.load(tmp_path / "net" / "0.rgf")
    for run in (lambda: model.run([X]), lambda: regraft.load(tmp_path / "net")(X)):
        with pytest.raises(regraft.NotBoundError, match=r"refit\(\)"):
            run()


def test_mutable_modules_are_saved_by_save(tmp_path: Path) -> None:
    mutable = MutableModule(net())
    assert_agrees(mutable, X)
    regraft.save(mutable, tmp_path / "saved")
    again = MutableModule.load(tmp_path / "saved", net())
    assert torch.equal(compiled_result(again, X)[0], compiled_result(mutable, X)[0])
    assert (again.recompiles, len(again._regraft_state.entries)) == (0, 1)
    with pytest.raises(
        regraft.EngineFileError, match=r'MutableModule\.load\(".*", module\), or regraft\.load\(".*/0"\)'
    ):
        regraft.load(tmp_path / "saved")
    regraft.save(mutable, tmp_path / "stripped", strip=True)
    other = MutableModule.load(tmp_path / "stripped", net())
    assert torch.equal(compiled_result(other, X)[0], compiled_result(mutable, X)[0])
    assert other.recompiles == 0


def test_adapters_by_their_file_alone(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    compiled = compiled_net()
    lora = get_peft_model(net(), LoraConfig(r=2, target_modules=["fc"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "style")
    adapter = compiled.adapter(tmp_path / "style")
    assert adapter.name == "style" and adapter.layers == 1
    report = compiled.refit(adapters=[(adapter, 0.5)])
    assert "style x 0.5)" in repr(report) and ("kB in" in repr(report) or "bytes in" in repr(report))
    engine = compiled.models[0]
    assert engine.adapter(tmp_path / "style").name == engine.adapter(str(tmp_path / "style")).name == "style"
    assert engine.adapter("bold", tmp_path / "style").name == "bold"


def test_numpy_and_paths(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    regraft.save(compiled_net(), tmp_path / "net")
    np.save(tmp_path / "x.npy", X.numpy())
    save_file(seeded(Net, 1).state_dict(), tmp_path / "other.safetensors")
    found = succeeds(
        """
        import sys
        import numpy as np
        import regraft

        folder = sys.argv[1]
        model = regraft.load(f"{folder}/net/0.rgf")
        (y,) = model.run(f"{folder}/x.npy")
        (again,) = model.run([np.load(f"{folder}/x.npy")])
        assert isinstance(np.asarray(y), np.ndarray) and np.array_equal(y, again)
        assert np.asarray(y, dtype=np.float64).dtype == np.float64 and np.array(y).sum() == np.sum(again)
        model.refit(f"{folder}/other.safetensors", partial=True)
        assert not np.array_equal(y, model.run([np.load(f"{folder}/x.npy")])[0])
        for wrong in (lambda: model.run(f"{folder}/none.npy"), lambda: model.refit(3)):
            try:
                wrong()
            except regraft.RegraftError as error:
                print(error)
        try:
            regraft.load(f"{folder}/net")
        except regraft.EngineFileError as error:
            print(error)
        """,
        tmp_path,
        torch=False,
    ).splitlines()
    assert "expected a .npy or .npz file" in found[0]
    assert "expected a state dict or the path of a weight file, found int" in found[1]
    assert "with PyTorch, which cannot be imported" in found[2] and "0.rgf" in found[3]


def test_references_to_no_file_are_embedded_once(tmp_path: Path) -> None:
    sizes = {}
    for keep in ("embedded", "reference"):
        compiled = compiled_net(keep_sources=keep)
        regraft.save(compiled, tmp_path / keep)
        sizes[keep] = (tmp_path / keep / "0.rgf").stat().st_size
        assert torch.equal(regraft.load(tmp_path / keep)(X), compiled(X))
    assert sizes["reference"] <= sizes["embedded"] + 4096


def test_help_shows_our_text() -> None:
    mutable = MutableModule(net())
    for shown in (regraft.MutableModule, mutable):
        text = pydoc.render_doc(shown, renderer=pydoc.plaintext)
        assert "A drop-in replacement for a module" in text
    assert type(mutable).__name__ == "Net"


def test_pictures_for_notebooks() -> None:
    compiled, mutable = compiled_net(), MutableModule(net())
    assert_agrees(mutable, X)
    report = compiled.refit(seeded(Net, 1).state_dict())
    for shown, words in (
        (compiled, "1 engine"),
        (mutable, "the first call"),
        (mutable.explain(), "<th>cost</th>"),
        (report, "stage"),
        (compiled.memory(), "slots"),
        (mutable.memory(), "shared"),
        (compiled.report(), "1 engine, 0 nodes in PyTorch"),
        (regraft.dry_run(net(), (X,)), "1 engine"),
    ):
        html = shown._repr_html_()
        assert words in html and html.count("<table>") == html.count("</table>")
    assert compiled.memory()["slots"] > 0 and "kB" in repr(compiled)
