"""Refits through the package: every sort of weight, every source of weights, and what never changes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

import regraft
from comparing import assert_same, same
from models import randomize_
from module_checks import assert_agrees, assert_refits, called
from small import Shelf, numbers, seeded, uncompiled
from test_source_kinds import SORTS, X
from test_sources import TOKENS, Net, halves, write_index

pytestmark = pytest.mark.usefixtures("one_thread")

State = Mapping[str, Any]


def net(seed: int) -> nn.Module:
    return seeded(Net, seed)


@pytest.fixture(scope="module")
def engine() -> regraft.Module:
    return regraft.compile(net(0), TOKENS)


@pytest.fixture
def compiled(engine: regraft.Module) -> regraft.Module:
    return engine.fork()


@pytest.fixture(scope="module")
def wanted() -> list[np.ndarray]:
    """What a module compiled from the second weights gives."""
    return called(regraft.compile(net(1), TOKENS), TOKENS)


# ------------------------------------------------------------------------- parameters of every sort


@pytest.mark.parametrize("name", SORTS)
def test_r_8_parameters_from_python(name: str) -> None:
    assert_refits(lambda seed: seeded(SORTS[name], seed), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_r_8_whole_models_of_other_types(dtype: torch.dtype) -> None:
    """Half precision rounds in places of its own, so it is held to its own result, and near PyTorch's."""

    def build(seed: int) -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), seed).to(dtype)

    x = numbers(5, 8).to(dtype)
    module = regraft.compile(build(0), (x,))
    before = called(module, (x,))
    module.refit(build(1).state_dict())
    found = module(x)
    assert found.dtype == dtype
    assert_same(called(module, (x,)), called(regraft.compile(build(1), (x,)), (x,)))
    rounding = max(8 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(found, build(1)(x).detach(), rtol=rounding, atol=rounding)
    module.refit(build(0).state_dict())
    assert_same(called(module, (x,)), before)


class ByName(Mapping):  # type: ignore[type-arg]
    """The least that a mapping is, as lazy loaders of checkpoints are."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        return self.state[name]

    def __iter__(self) -> Any:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def strided(value: Tensor) -> Tensor:
    """The same values, with a gap after each element."""
    wide = torch.full((*value.shape, 2), 99).to(value.dtype)
    wide[..., 0] = value
    return wide[..., 0]


GIVEN: dict[str, Callable[[Tensor], Any]] = {
    "with_gaps": strided,
    "last_axis_first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1) if t.dim() else t,
    "numpy": lambda t: t.numpy(),
    "numpy_fortran": lambda t: np.asfortranarray(t.numpy()).reshape(t.shape),
    "numpy_reversed": lambda t: t.numpy()[::-1].copy()[::-1] if t.dim() else t.numpy(),
    "numpy_readonly": lambda t: np.frombuffer(t.numpy().tobytes(), t.numpy().dtype).reshape(t.shape),
    "numpy_big_endian": lambda t: t.numpy().astype(t.numpy().dtype.newbyteorder(">")),
    "parameters": lambda t: nn.Parameter(t) if t.is_floating_point() else t,
    "negated": lambda t: torch._neg_view(-t) if t.is_floating_point() else t,
    "inference": lambda t: torch.inference_mode()(t.clone)(),
    "part_of_a_buffer": lambda t: torch.cat([t.new_zeros(1), t.reshape(-1), t.new_zeros(1)])[1:-1].view(
        t.shape
    ),
    "float64": lambda t: t.double() if t.is_floating_point() else t,
}


@pytest.mark.parametrize("given", GIVEN)
def test_r_8_values_however_they_lie(given: str, compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    compiled.refit(ByName({name: GIVEN[given](value) for name, value in net(1).state_dict().items()}))
    assert_same(called(compiled, TOKENS), wanted)


# ------------------------------------------------------------------------------- where weights come from


def an_onnx_file(folder: Path, model: nn.Module) -> Path:
    """As exporters write one: a graph with a node, whose initializers have the names of the weights."""
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 5])
    node = onnx.helper.make_node("Identity", ["fc.weight"], ["y"])
    graph = onnx.helper.make_graph([node], "net", [], [output], initializer=tensors)
    onnx.save(onnx.helper.make_model(graph), folder / "net.onnx")
    return folder / "net.onnx"


def a_program_file(folder: Path, model: nn.Module) -> Path:
    torch.export.save(torch.export.export(model, TOKENS), folder / "net.pt2")
    return folder / "net.pt2"


def a_safetensors_file(folder: Path, model: nn.Module) -> Path:
    save_file(model.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def shards(folder: Path, model: nn.Module) -> Path:
    parts = {f"model-{n}-of-2.safetensors": half for n, half in enumerate(halves(model.state_dict()), 1)}
    for name, part in parts.items():
        save_file(part, folder / name)
    return write_index(folder, "model.safetensors.index.json", parts)


def a_state_dict_file(ending: str) -> Callable[[Path, nn.Module], Path]:
    def save(folder: Path, model: nn.Module) -> Path:
        torch.save(model.state_dict(), folder / f"net{ending}")
        return folder / f"net{ending}"

    return save


SOURCES: dict[str, Callable[[Path, nn.Module], Any]] = {
    "exported_program": lambda _, model: torch.export.export(model, TOKENS),
    "module": lambda _, model: model,
    "state_dict": lambda _, model: model.state_dict(),
    "numpy_state_dict": lambda _, model: {n: t.numpy() for n, t in model.state_dict().items()},
    "opened_file": lambda folder, model: regraft.StateDict.open(a_safetensors_file(folder, model)),
    "path_as_text": lambda folder, model: str(a_safetensors_file(folder, model)),
    "safetensors": a_safetensors_file,
    "sharded_safetensors": shards,
    "pt2": a_program_file,
    "pt": a_state_dict_file(".pt"),
    "bin": a_state_dict_file(".bin"),
    "onnx": an_onnx_file,
}


@pytest.mark.parametrize("source", SOURCES)
def test_r_9_every_source(
    source: str, tmp_path: Path, compiled: regraft.Module, wanted: list[np.ndarray]
) -> None:
    before = called(compiled, TOKENS)
    weights = SOURCES[source](tmp_path, net(1))
    refitted = regraft.refit_module_weights(compiled, weights)
    assert_same(called(refitted, TOKENS), wanted)
    assert_same(called(compiled, TOKENS), before)
    if not isinstance(weights, (nn.Module, torch.export.ExportedProgram)):
        compiled.refit(weights)
        assert_same(called(compiled, TOKENS), wanted)


def test_r_9_a_pickle_in_a_state_dict_is_not_executed(tmp_path: Path, compiled: regraft.Module) -> None:
    class Opens:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    torch.save({**net(1).state_dict(), "fc.bias": Opens()}, tmp_path / "net.pt")
    with pytest.raises(regraft.WeightsError):
        compiled.refit(tmp_path / "net.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("net.safetensors", b"\xff" * 64), ("net.pt", b"PK\x03\x04"), ("net.onnx", b""), ("net.pt2", b"x")],
)
def test_r_9_damaged_files(name: str, content: bytes, tmp_path: Path, compiled: regraft.Module) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(regraft.WeightsError, match=name):
        compiled.refit(tmp_path / name)
    with pytest.raises(regraft.WeightsError, match="nowhere"):
        compiled.refit(tmp_path / "nowhere.safetensors")


# -------------------------------------------------------------------------------------------- R-17 and law 1


def test_r_17_a_step_far_below_any_tolerance() -> None:
    """At a rate of 1e-8 most weights change in their last bits or not at all; each change arrives."""
    model = net(0)
    module = regraft.compile(model, TOKENS)
    before = called(module, TOKENS)
    model(*TOKENS).square().mean().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    assert changed
    report = module.refit(model.state_dict())
    assert set(report.applied) == changed
    assert_same(called(module, TOKENS), called(regraft.compile(model, TOKENS), TOKENS))
    assert not same(called(module, TOKENS), before)


def test_r_17_the_last_bit_of_one_weight(compiled: regraft.Module) -> None:
    model = net(0)
    with torch.no_grad():
        model.fc.bias[3] = torch.nextafter(model.fc.bias[3], torch.tensor(9.0))
    assert compiled.refit(model.state_dict()).applied == ("fc.bias",)
    assert_same(called(compiled, TOKENS), called(regraft.compile(model, TOKENS), TOKENS))


def test_r_17_zeros_of_either_sign_and_payloads_of_nan(compiled: regraft.Module) -> None:
    """Weights are compared by their bits, not as numbers."""
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.bias"][:] = 0.0
    compiled.refit(state)
    state["fc.bias"][:] = -0.0
    assert compiled.refit(state).applied == ("fc.bias",)
    state["fc.bias"][0] = float("nan")
    assert compiled.refit(state).applied == ("fc.bias",)
    assert compiled.refit(state).applied == ()


def resnet18(seed: int) -> nn.Module:
    import torchvision

    return randomize_(torchvision.models.resnet18(weights=None), seed)


def bert(seed: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=200,
        attn_implementation="sdpa",
    )
    return randomize_(BertModel(config), seed)


def unet(seed: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return randomize_(model, seed)


SENTENCE = torch.tensor([[5, 17, 199, 3, 0, 0], [8, 2, 44, 9, 100, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def test_r_1_resnet18_is_what_it_would_be_compiled() -> None:
    assert_refits(resnet18, (numbers(1, 3, 64, 64),))


def test_r_1_bert_is_what_it_would_be_compiled() -> None:
    """Keyword arguments in, a data class of transformers out."""
    assert_refits(bert, (), kwargs={"input_ids": SENTENCE, "attention_mask": MASK})


def test_r_1_unet_is_what_it_would_be_compiled() -> None:
    assert_refits(unet, (numbers(1, 4, 8, 8), torch.tensor([7]), numbers(1, 5, 32, seed=1)))


# ---------------------------------------------------------------------------------- refit_module_weights


def test_r_12_a_copy_and_in_place(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    before = called(compiled, TOKENS)
    copied = regraft.refit_module_weights(compiled, net(1))
    assert copied is not compiled
    assert_same(called(compiled, TOKENS), before)
    assert_same(called(copied, TOKENS), wanted)
    assert regraft.refit_module_weights(compiled, net(1), in_place=True) is compiled
    assert_same(called(compiled, TOKENS), wanted)


def test_r_12_a_copy_shares_what_is_the_same(compiled: regraft.Module) -> None:
    before = compiled.memory()
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.bias"] += 1
    copied = regraft.refit_module_weights(compiled, state)
    memory = copied.memory()
    assert memory["slots"] == before["slots"]
    assert before["in_use"] < memory["in_use"] < 1.1 * before["in_use"]


def test_r_12_private_memory_of_a_copy(compiled: regraft.Module) -> None:
    assert compiled.fork().memory()["private"] == 0
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.weight"] += 1
    copied = regraft.refit_module_weights(compiled, state)
    assert copied.memory()["private"] >= state["fc.weight"].nbytes


def test_r_12_copies_of_copies_and_deepcopy(compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    before = called(compiled, TOKENS)
    first = copy.deepcopy(compiled)
    second = first.fork()
    second.refit(net(1).state_dict())
    del first
    assert_same(called(compiled, TOKENS), before)
    del compiled
    assert_same(called(second, TOKENS), wanted)


@pytest.mark.parametrize("in_place", [False, True])
def test_r_16_verified(in_place: bool, compiled: regraft.Module, wanted: list[np.ndarray]) -> None:
    for source in (net(1), torch.export.export(net(1), TOKENS), net(1).state_dict()):
        module = compiled.fork()
        found = regraft.refit_module_weights(
            module, source, arg_inputs=TOKENS, verify_output=True, in_place=in_place
        )
        assert (found is module) == in_place
        assert_same(called(found, TOKENS), wanted)


def test_r_16_another_computation_is_found_and_nothing_changes(compiled: regraft.Module) -> None:
    class Other(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * 1.01

    before = called(compiled, TOKENS)
    with pytest.raises(regraft.VerificationError, match="nothing was changed"):
        regraft.refit_module_weights(
            compiled, seeded(Other, 1), arg_inputs=TOKENS, verify_output=True, in_place=True
        )
    assert_same(called(compiled, TOKENS), before)


def test_r_16_a_training_mode_is_found(compiled: regraft.Module) -> None:
    """A batch norm that uses the batch's own statistics computes something else."""
    with pytest.raises(regraft.VerificationError):
        regraft.refit_module_weights(
            compiled, net(1).train(), arg_inputs=TOKENS, verify_output=True, in_place=True
        )


def test_r_16_verification_changes_nothing_of_the_given_module(compiled: regraft.Module) -> None:
    """A reference in training mode would move its running statistics: it is the caller's module."""
    model = net(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    regraft.refit_module_weights(compiled, model, arg_inputs=TOKENS, verify_output=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_r_16_verification_without_inputs_is_refused(compiled: regraft.Module) -> None:
    for source in (net(1), net(1).state_dict()):
        with pytest.raises(regraft.RegraftError):
            regraft.refit_module_weights(compiled, source, verify_output=True)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.factor)


def test_r_11_a_program_with_another_literal_is_refused() -> None:
    module = regraft.compile(seeded(lambda: Times(0.5), 0), X)
    before = called(module, X)
    other = seeded(lambda: Times(0.7), 1)
    with pytest.raises(regraft.WeightsError, match="operators or literals differ"):
        regraft.refit_module_weights(module, torch.export.export(other, X), in_place=True)
    assert_same(called(module, X), before)
    # A module is not traced, so only a verification can tell.
    with pytest.raises(regraft.VerificationError):
        regraft.refit_module_weights(module, other, arg_inputs=X, verify_output=True, in_place=True)
    assert_same(called(module, X), before)
    regraft.refit_module_weights(module, other.state_dict(), in_place=True)


def test_r_9_exports_with_other_sizes_are_the_same_program() -> None:
    """The batch of the sample is not a part of what a program with a dynamic batch computes."""
    batch = torch.export.Dim("batch", min=1, max=64)
    first = torch.export.export(seeded(lambda: Times(0.5), 0), X, dynamic_shapes=({0: batch},))
    second = torch.export.export(
        seeded(lambda: Times(0.5), 1), (numbers(9, 8),), dynamic_shapes=({0: batch},)
    )
    module = regraft.refit_module_weights(regraft.compile(first), second)
    assert_agrees(module, seeded(lambda: Times(0.5), 1), (numbers(3, 8),))


class Lifted(nn.Module):
    """A tensor in the code: a constant of each export of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([self.factor, 1.0, 2.0, 3.0])


def test_r_6_a_lifted_tensor_comes_with_its_program() -> None:
    module = regraft.compile(seeded(lambda: Lifted(0.5), 0), X)
    other = seeded(lambda: Lifted(0.7), 1)
    refitted = regraft.refit_module_weights(module, torch.export.export(other, X))
    assert_agrees(refitted, other, X)


# -------------------------------------------------------------- the given tensors are the caller's again


def spoil(state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for value in state.values():
            value.fill_(77)


def test_r_10_given_tensors_are_read_during_the_refit_only(tmp_path: Path, wanted: list[np.ndarray]) -> None:
    source = net(0)
    module = regraft.compile(source, TOKENS)
    before = called(module, TOKENS)
    spoil(source.state_dict())
    assert_same(called(module, TOKENS), before)

    given = net(1).state_dict()
    module.refit(given)
    spoil(given)
    assert_same(called(module, TOKENS), wanted)

    # What a slot is made of besides what changes is taken from what was given, not from what it is now.
    half = {name: net(0).state_dict()[name] for name in ("norm.weight", "fc.bias")}
    module.refit(half, partial=True)
    spoil(half)
    mixed = net(1)
    mixed.load_state_dict({**net(1).state_dict(), **{n: net(0).state_dict()[n] for n in half}})
    expected = called(regraft.compile(mixed, TOKENS), TOKENS)
    assert_same(called(module, TOKENS), expected)

    regraft.save(module, tmp_path / "net")
    assert_same(called(regraft.load(tmp_path / "net"), TOKENS), expected)
    # Compared with what was given, not with what lies there now.
    assert module.refit(mixed.state_dict()).applied == ()


def test_r_10_given_arrays_are_read_during_the_refit_only(
    compiled: regraft.Module, wanted: list[np.ndarray]
) -> None:
    given = {name: value.numpy().copy() for name, value in net(1).state_dict().items()}
    compiled.refit(given)
    for array in given.values():
        array.fill(77)
    compiled.refit({"norm.bias": net(1).state_dict()["norm.bias"]}, partial=True)
    assert_same(called(compiled, TOKENS), wanted)


def test_r_10_a_weight_file_may_go_after_the_refit(
    tmp_path: Path, compiled: regraft.Module, wanted: list[np.ndarray]
) -> None:
    path = a_safetensors_file(tmp_path, net(1))
    compiled.refit(path)
    path.unlink()
    assert_same(called(compiled, TOKENS), wanted)
    compiled.refit({"norm.bias": net(1).state_dict()["norm.bias"] + 1}, partial=True)
    compiled.refit({"norm.bias": net(1).state_dict()["norm.bias"]}, partial=True)
    assert_same(called(compiled, TOKENS), wanted)


def test_r_10_a_weight_file_may_be_rewritten(
    tmp_path: Path, compiled: regraft.Module, wanted: list[np.ndarray]
) -> None:
    """Written in place, under the mapping that it was read by."""
    path = a_safetensors_file(tmp_path, net(1))
    compiled.refit(path)
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size - 600)
        file.write(b"\x3f" * 600)
    # What else a slot is made of is read where it lies: that it is something else now must not pass.
    with pytest.raises(regraft.WeightsError, match=r"has changed since"):
        compiled.refit({"norm.bias": net(1).state_dict()["norm.bias"] + 1}, partial=True)
    compiled.refit(net(0).state_dict())
    compiled.refit(net(1).state_dict())
    assert_same(called(compiled, TOKENS), wanted)


# ------------------------------------------------------------------------------------------- refused


def test_r_11_every_problem_at_once_and_nothing_changed(compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    state: dict[str, Any] = dict(net(1).state_dict())
    state["fc.weight"] = state["fc.weight"][:, :-1]
    state["norm.bias"] = torch.zeros(4, dtype=torch.int64)
    state["haed"] = torch.zeros(3)
    del state["conv.weight"]
    with pytest.raises(regraft.WeightsError) as caught:
        compiled.refit(state)
    text = str(caught.value)
    for name in ("fc.weight", "norm.bias", "haed", "conv.weight"):
        assert name in text
    assert "nothing was changed" in text
    assert_same(called(compiled, TOKENS), before)
    assert compiled.refit(net(0).state_dict()).applied == ()


UNFIT: dict[str, Any] = {
    "of_a_wrong_class": torch.zeros(5, dtype=torch.int32),
    "complex": torch.zeros(5, dtype=torch.complex64),
    "boolean": torch.zeros(5, dtype=torch.bool),
    "sparse": torch.zeros(5).to_sparse(),
    "meta": torch.zeros(5, device="meta"),
    "without_memory": torch._efficientzerotensor(5),
    "in_four_bits": torch.empty(5, dtype=torch.uint4),
    "without_axes": torch.tensor(1.0),
    "with_an_axis_more": torch.zeros(1, 5),
    "a_text": "five",
    "none": None,
    "a_list": [0.0] * 5,
    "strings": np.array(["a"] * 5),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_r_11_values_that_do_not_fit(unfit: str, compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
        compiled.refit({**net(1).state_dict(), "fc.bias": UNFIT[unfit]})
    assert_same(called(compiled, TOKENS), before)


def test_r_11_a_fake_tensor_has_no_values(compiled: regraft.Module) -> None:
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(5)
    with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
        compiled.refit({**net(1).state_dict(), "fc.bias": fake})


# ------------------------------------------------------------------------------------------ reports


def test_names_of_a_report_are_made_when_they_are_looked_at(compiled: regraft.Module) -> None:
    state = net(1).state_dict()
    report = compiled.refit(state)
    assert "applied" not in vars(report)
    copies = [pickle.loads(pickle.dumps(report)), copy.deepcopy(report), dataclasses.replace(report)]
    assert all(one == report and repr(one) == repr(report) for one in copies)
    assert report.applied is report.applied
    assert set(report.applied) <= set(state)
    assert report.recomputed_slots
    assert report.shared_slots == report.kept == report.fetched == ()
    assert report == regraft.RefitReport(
        **{one.name: getattr(report, one.name) for one in dataclasses.fields(report)}
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.applied = ()  # type: ignore[misc]
    assert set(compiled.refit(state).unchanged) == {*report.applied, *report.unchanged}


def test_r_11_not_finite(compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    for value in (float("nan"), float("inf")):
        state = {name: tensor.clone() for name, tensor in net(1).state_dict().items()}
        state["fc.bias"][2] = value
        with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
            compiled.refit(state, reject_non_finite=True)
        assert_same(called(compiled, TOKENS), before)
        compiled.fork().refit(state)


def test_r_11_frozen() -> None:
    module = regraft.compile(net(0), TOKENS, mode="frozen")
    assert_agrees(module, net(0), TOKENS)
    assert module.mode == "frozen"
    for refit in (
        lambda: module.refit(net(1).state_dict()),
        lambda: regraft.refit_module_weights(module, net(1)),
        lambda: module.fork().refit(net(1).state_dict(), partial=True),
    ):
        with pytest.raises(regraft.FrozenError):
            refit()
    assert_agrees(module, net(0), TOKENS)


def test_s_1_stripped_needs_all_weights_first(wanted: list[np.ndarray]) -> None:
    module = regraft.compile(net(0), TOKENS, mode="stripped")
    assert module.mode == "stripped"
    with pytest.raises(regraft.NotBoundError):
        module(*TOKENS)
    with pytest.raises(regraft.WeightsError):
        module.refit({"fc.bias": torch.zeros(5)}, partial=True)
    with pytest.raises(regraft.NotBoundError):
        module(*TOKENS)
    module.refit(net(1).state_dict())
    assert module.mode == "refittable"
    assert_same(called(module, TOKENS), wanted)


def test_s_3_identical_takes_no_other_weights() -> None:
    module = regraft.compile(net(0), TOKENS, identical=True)
    before = called(module, TOKENS)
    assert module.refit(net(0).state_dict()).applied == ()
    state = dict(net(0).state_dict())
    state["norm.bias"] = torch.nextafter(state["norm.bias"], torch.tensor(9.0))
    with pytest.raises(regraft.WeightsError, match=r"norm\.bias"):
        module.refit(state)
    assert_same(called(module, TOKENS), before)


# ----------------------------------------------------------------------------------- saved with their sources


@pytest.mark.parametrize("keep", ["embedded", "prepacked", "none"])
def test_r_15_sources_of_saved_modules(keep: str, tmp_path: Path) -> None:
    """Saved, loaded, refitted by parts and saved again."""
    module = regraft.compile(net(0), TOKENS, keep_sources=keep)
    before = called(module, TOKENS)
    for turn in range(2):
        regraft.save(module, tmp_path / f"net{turn}")
        module = regraft.load(tmp_path / f"net{turn}")
        assert_same(called(module, TOKENS), before)
    assert module.refit(net(0).state_dict()).recomputed_slots == ()
    module = regraft.load(tmp_path / "net1")
    assert_same(called(module.fork(), TOKENS), before)

    changed = net(0)
    changed.load_state_dict({**net(0).state_dict(), "norm.bias": net(1).norm.bias.detach()})
    if keep == "none":
        with pytest.raises(regraft.WeightsError, match="norm"):
            module.refit({"norm.bias": net(1).norm.bias}, partial=True)
        assert_same(called(module, TOKENS), before)
        module.refit(changed.state_dict(), changed="all")
    else:
        module.refit({"norm.bias": net(1).norm.bias}, partial=True)
    assert_same(called(module, TOKENS), called(regraft.compile(changed, TOKENS), TOKENS))


def test_r_15_all_weights_are_enough_without_sources(tmp_path: Path) -> None:
    regraft.save(regraft.compile(net(0), TOKENS, keep_sources="none"), tmp_path / "net")
    module = regraft.load(tmp_path / "net")
    changed = net(0)
    changed.load_state_dict({**net(0).state_dict(), "norm.bias": net(1).norm.bias.detach()})
    module.refit(changed.state_dict())
    assert_agrees(module, changed, TOKENS)


# ------------------------------------------------------------------------------------------ C: engine caches


def test_c_3_a_hit_is_a_fresh_build_with_its_own_weights(wanted: list[np.ndarray]) -> None:
    shelf = Shelf()
    first = regraft.compile(net(0), TOKENS, engine_cache=shelf)
    assert len(shelf.entries) == 1 and first._compiled.cache == ("built",)
    second = regraft.compile(net(1), TOKENS, engine_cache=shelf)
    assert second._compiled.cache == ("hit",)
    assert_same(called(second, TOKENS), wanted)
    second.refit(net(0).state_dict())
    assert_same(called(second, TOKENS), called(first, TOKENS))


class Cut(nn.Module):
    """Two engines with an operator between that stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(uncompiled(torch.relu(self.first(x))).tanh())


@pytest.mark.parametrize("kind", ["object", "disk"])
def test_c_7_each_engine_of_a_module_is_cached(kind: str, tmp_path: Path) -> None:
    cache: Any = Shelf() if kind == "object" else regraft.DiskCache(tmp_path / "engines", 1_000_000_000)
    first = regraft.compile(seeded(Cut, 0), X, min_block_size=1, engine_cache=cache)
    assert first._compiled.cache == ("built", "built")
    second = regraft.compile(seeded(Cut, 1), X, min_block_size=1, engine_cache=cache)
    assert second._compiled.cache == ("hit", "hit")
    assert_agrees(second, seeded(Cut, 1), X)
    assert_same(called(second, X), called(regraft.compile(seeded(Cut, 1), X, min_block_size=1), X))
    if isinstance(cache, Shelf):
        assert len(cache.entries) == 2
        assert len(cache.asked) == 4


def test_c_6_damaged_entries_of_a_cache_are_misses() -> None:
    shelf = Shelf()
    regraft.compile(net(0), TOKENS, engine_cache=shelf)
    [(key, entry)] = shelf.entries.items()
    expected = called(regraft.compile(net(1), TOKENS), TOKENS)
    places = np.random.default_rng(0).integers(0, len(entry), 12)
    for damaged in [b"", entry[: len(entry) // 2], *(flipped(entry, int(place)) for place in places)]:
        shelf.entries[key] = damaged
        with pytest.warns(RuntimeWarning, match="built again"):
            module = regraft.compile(net(1), TOKENS, engine_cache=shelf)
        assert_same(called(module, TOKENS), expected)


def flipped(entry: bytes, place: int) -> bytes:
    return entry[:place] + bytes([entry[place] ^ 4]) + entry[place + 1 :]


@pytest.mark.parametrize("failing", ["get", "put"])
def test_c_7_a_failing_cache_object_is_a_warning(failing: str) -> None:
    class Failing(Shelf):
        def get(self, key: str) -> Any:
            return 1 / 0 if failing == "get" else None

        def put(self, key: str, entry: bytes) -> None:
            if failing == "put":
                raise OSError("the shelf is full")

    with pytest.warns(RuntimeWarning, match="ZeroDivisionError" if failing == "get" else "full"):
        module = regraft.compile(net(0), TOKENS, engine_cache=Failing())
    assert_agrees(module, net(0), TOKENS)


def test_c_7_what_is_no_cache_is_refused() -> None:
    for cache in ("folder", object(), 7):
        with pytest.raises(regraft.CompileError, match="get, put and remove"):
            regraft.compile(net(0), TOKENS, engine_cache=cache)
