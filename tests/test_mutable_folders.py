"""Modules that stay compiled, saved and loaded: scenario M-7."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import regraft
from mutable_checks import Net, assert_agrees, compiled_result, trained
from regraft import MutableModule
from small import numbers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net() -> Net:
    return trained()


@pytest.fixture
def x() -> torch.Tensor:
    return numbers(2, 3, 4, 4, seed=1)


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
