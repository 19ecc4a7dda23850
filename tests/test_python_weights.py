"""What the package takes weights from, and that it is the caller's again: scenarios R-8, R-9 and R-10."""

from __future__ import annotations

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
from comparing import assert_same
from module_checks import assert_refits, called, spoil
from refit_checks import fresh, net, results_of_second
from small import numbers, seeded
from test_source_kinds import SORTS, X
from test_sources import TOKENS, halves, write_index

pytestmark = pytest.mark.usefixtures("one_thread")

State = Mapping[str, Any]


@pytest.fixture
def compiled() -> regraft.Module:
    return fresh()


@pytest.fixture
def wanted() -> list[np.ndarray]:
    return results_of_second()


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


# -------------------------------------------------------------- the given tensors are the caller's again


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
