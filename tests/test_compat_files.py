"""What is saved and loaded under the names of Torch-TensorRT."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import regraft
import regraft.compat.torch_tensorrt as torch_tensorrt
from test_compat import INPUTS, close, net


@pytest.fixture
def compiled() -> Any:
    return torch_tensorrt.dynamo.compile(torch.export.export(net(0), tuple(INPUTS)), inputs=INPUTS)


def test_save_and_load(compiled: Any, tmp_path: Path) -> None:
    torch_tensorrt.save(compiled, tmp_path / "compiled.ep", inputs=INPUTS)
    loaded = torch_tensorrt.load(tmp_path / "compiled.ep")
    assert torch.equal(loaded.module()(*INPUTS), compiled(*INPUTS))
    refitted = torch_tensorrt.dynamo.refit_module_weights(loaded, torch.export.export(net(1), tuple(INPUTS)))
    close(refitted(*INPUTS), net(1)(*INPUTS))


def test_other_formats_say_how_to_get_there(compiled: Any, tmp_path: Path) -> None:
    for name, words in (
        ("torchscript", r"torch\.jit\.trace"),
        ("aot_inductor", "_inductor"),
        ("x", "no other"),
    ):
        said = rf"(?s)format='{name}': .*exported programs.*help: .*{words}"
        with pytest.raises(ValueError, match=said):
            torch_tensorrt.save(compiled, tmp_path / "x.ts", output_format=name)
        with pytest.raises(ValueError, match=said):
            torch_tensorrt.load(tmp_path / "x.ts", format=name)
    assert not (tmp_path / "x.ts").exists()
    # What is advised works.
    torch.jit.save(torch.jit.trace(compiled.exported_program().module(), tuple(INPUTS)), tmp_path / "x.ts")
    close(torch.jit.load(tmp_path / "x.ts")(*INPUTS), compiled(*INPUTS))


def test_what_is_saved_is_one_file_and_a_program(tmp_path: Path) -> None:
    for name, make in (("compiled.ep", None), ("empty", b"")):
        path = tmp_path / name
        if make is not None:
            path.write_bytes(make)
        module = torch_tensorrt.compile(net(0), ir="dynamo", inputs=INPUTS, min_block_size=1)
        torch_tensorrt.dynamo.refit_module_weights(
            module, torch.export.export(net(1), tuple(INPUTS)), in_place=True
        )
        torch_tensorrt.save(module, path, retrace=False, arg_inputs=INPUTS, dynamic_shapes=None)
        assert path.is_file()
        loaded = torch_tensorrt.load(path).module()
        assert torch.equal(loaded(*INPUTS), module(*INPUTS))
        close(loaded(*INPUTS), net(1)(*INPUTS))
        loaded.refit(net(0).state_dict())
        close(loaded(*INPUTS), net(0)(*INPUTS))
        close(torch.export.load(path).module()(*INPUTS), net(1)(*INPUTS))


def test_frozen_modules_and_damaged_files(tmp_path: Path) -> None:
    frozen = torch_tensorrt.compile(net(0), inputs=INPUTS, immutable_weights=True)
    torch_tensorrt.save(frozen, tmp_path / "frozen")
    assert torch.equal(torch_tensorrt.load(tmp_path / "frozen").module()(*INPUTS), frozen(*INPUTS))
    (tmp_path / "text").write_text("no module")
    with pytest.raises(regraft.EngineFileError, match="not a saved module, or a damaged one"):
        torch_tensorrt.load(tmp_path / "text")
    with pytest.raises(regraft.EngineFileError, match="choose the name of a file"):
        torch_tensorrt.save(frozen, tmp_path)
    for member in ("regraft/../../escaped", "regraft/a//b"):
        with zipfile.ZipFile(tmp_path / "hostile", "w") as archive:
            archive.writestr(member, "x")
        with pytest.raises(regraft.EngineFileError, match="is not a name of a file of a module"):
            torch_tensorrt.load(tmp_path / "hostile")
    with zipfile.ZipFile(tmp_path / "empty", "w") as archive:
        archive.writestr("text", "x")
    with pytest.raises(regraft.EngineFileError, match=r"no engines in it\n  help: torch\.export\.load"):
        torch_tensorrt.load(tmp_path / "empty")


def test_mutable_modules_are_one_file(tmp_path: Path) -> None:
    mutable = torch_tensorrt.MutableTorchTensorRTModule(net(0), ir="dynamo", device="cpu", min_block_size=1)
    mutable(*INPUTS)
    torch_tensorrt.MutableTorchTensorRTModule.save(mutable, tmp_path / "mutable.pkl")
    assert (tmp_path / "mutable.pkl").is_file()
    loaded = torch_tensorrt.MutableTorchTensorRTModule.load(tmp_path / "mutable.pkl", net(1))
    close(loaded(*INPUTS), net(1)(*INPUTS))
    assert loaded.recompiles == 0


@pytest.mark.parametrize("ops", [(), ("aten.mean.dim",)], ids=["whole", "cut"])
def test_compiled_modules_are_exported_again(tmp_path: Path, ops: tuple[str, ...]) -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    module = torch_tensorrt.dynamo.compile(program, INPUTS, min_block_size=1, torch_executed_ops=ops)
    again = torch.export.export(module, tuple(INPUTS), strict=False)
    close(again.module()(*INPUTS), net(0)(*INPUTS))
    torch.export.save(again, tmp_path / "again.ep")
    loaded = torch_tensorrt.load(tmp_path / "again.ep").module()
    assert isinstance(loaded, regraft.Module) and loaded.models
    close(loaded(*INPUTS), net(0)(*INPUTS))
    # What torch.export.load gives is refitted, too.
    read = torch.export.load(tmp_path / "again.ep")
    with torch.inference_mode():
        refitted = torch_tensorrt.dynamo.refit_module_weights(module, net(1).state_dict())
        close(refitted(*INPUTS), net(1)(*INPUTS))
        assert torch_tensorrt.dynamo.refit_module_weights(read, read)(*INPUTS).shape == (2, 5)
    frozen = torch_tensorrt.dynamo.compile(program, INPUTS, immutable_weights=True)
    with pytest.raises(Exception, match="cannot be exported: export the original"):
        torch.export.export(frozen, tuple(INPUTS), strict=False)


def test_programs_with_objects_are_not_read(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net(0), tuple(INPUTS)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "program.pt2") as archive:
        front = archive.namelist()[0].split("/")[0]
    with zipfile.ZipFile(tmp_path / "program.pt2", "a") as archive:
        archive.writestr(f"{front}/data/constants/custom_obj_0", b"\x80\x04.")
    with pytest.raises(regraft.EngineFileError, match="custom_obj_0 is an object that reading would execute"):
        torch_tensorrt.load(tmp_path / "program.pt2")
    (tmp_path / "nothing.ep").write_bytes(b"nothing")
    with pytest.raises(regraft.EngineFileError, match="not a saved module, or a damaged one"):
        torch_tensorrt.load(tmp_path / "nothing.ep")


def test_mutable_modules_are_loaded_without_their_code(tmp_path: Path) -> None:
    mutable = torch_tensorrt.MutableTorchTensorRTModule(net(0), min_block_size=1)
    mutable(*INPUTS)
    mutable.load_state_dict(net(1).state_dict())
    torch_tensorrt.MutableTorchTensorRTModule.save(mutable, tmp_path / "mutable.pkl")
    loaded = torch_tensorrt.MutableTorchTensorRTModule.load(tmp_path / "mutable.pkl")
    close(loaded(*INPUTS), net(1)(*INPUTS))
    loaded.load_state_dict(net(2).state_dict())
    close(loaded(*INPUTS), net(2)(*INPUTS))
    assert loaded.recompiles == 0
