"""Where engines run, as far as that shows on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import regraft
import regraft.dynamo
from regraft.devices import device_name, device_of_program, place_of_results

X = torch.randn(2, 8)


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval()


def test_devices_are_named_as_pytorch_does() -> None:
    assert device_name(None) is None
    assert device_name("cpu") == device_name(torch.device("cpu")) == "cpu"
    assert device_name("cuda:1") == device_name(torch.device("cuda", 1)) == device_name(1) == "cuda:1"
    assert device_name("cuda") == "cuda:0"
    for other, what in (("gpu", "gpu"), ("meta", "meta"), ("cuda:x", "cuda:x"), (1.5, "float")):
        with pytest.raises(regraft.CompileError, match="device: ") as error:
            device_name(other)  # type: ignore[arg-type]
        assert what in str(error.value) and "'cuda:N'" in str(error.value)


def test_a_program_is_compiled_for_where_its_weights_are() -> None:
    program = torch.export.export(net(), (X,))
    with FakeTensorMode():
        first, second = torch.empty(2, device="cuda:0"), torch.empty(2, device="cuda:1")
        host = torch.empty(2)
    assert device_of_program(program, [host]) == "cpu"
    assert device_of_program(program, [host, second]) == "cuda:1"
    with pytest.raises(regraft.CompileError, match="on cuda:0 and cuda:1, and an engine runs on one device"):
        device_of_program(program, [first, second])
    compiled = regraft.compile(net(), (X,))
    assert compiled.device == compiled.models[0].device == "cpu"


def test_results_are_wanted_where_the_tensors_of_a_call_are() -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, device="cuda:1")
    assert place_of_results([X, on_gpu], "cuda:1") == torch.device("cuda:1")
    assert place_of_results([X.numpy(), 1.0], "cuda:0") == torch.device("cpu")
    assert place_of_results([], "cuda:0") == torch.device("cuda:0")


def test_a_gpu_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    compiled = regraft.compile(net(), (X,))
    regraft.save(compiled, tmp_path / "saved")
    for attempt in (
        lambda: regraft.compile(net(), (X,), device="cuda:99"),
        lambda: regraft.load(tmp_path / "saved", device="cuda:99"),
        lambda: regraft.load(tmp_path / "saved" / "0.rgf", device="cuda:99"),
    ):
        with pytest.raises(regraft.RegraftError, match="cuda:99: ") as error:
            attempt()
        text = str(error.value)
        assert "was not found" in text or "there is no CUDA device 99" in text or "or later is needed" in text
    with pytest.raises(regraft.RegraftError, match="there is no device `tpu`"):
        regraft.load(tmp_path / "saved" / "0.rgf", device="tpu")
    # The place that a module was saved for is looked up when nothing else is said.
    description = tmp_path / "saved" / "module.json"
    facts = json.loads(description.read_text())
    assert (facts["device"], facts["home"]) == ("cpu", "cpu")
    assert torch.equal(regraft.load(tmp_path / "saved", device="cpu")(X), compiled(X))


def test_mutable_modules_and_torch_compile_take_the_setting() -> None:
    mutable = regraft.MutableModule(net(), device="cpu")
    other, elsewhere = net(), regraft.MutableModule(net(), device="tpu")
    with torch.inference_mode():
        expected = mutable(X)
        fast = torch.compile(other, backend="regraft", options={"device": "cpu"})
        assert torch.equal(fast(X), expected)
        with pytest.raises(regraft.CompileError, match="device: "):
            elsewhere(X)


def test_the_doctor_says_what_is_there() -> None:
    found = regraft.doctor()
    assert found["cpu"]["threads"] >= 1 and len(found["libraries"]) == 4
    text = str(found)
    assert found["cpu"]["name"] in text
    for library in found["libraries"]:
        assert (library["problem"] is None) == (library["without_it"] not in text)
