"""The package as it is installed: its types, its names, and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest
import torch

import regraft
from exporting import ROOT

PACKAGE = Path(regraft.__file__).resolve().parent


def python(*arguments: str | Path, folder: Path = ROOT) -> str:
    """Runs a Python of its own, which has the package, in a folder; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MYPYPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_header_of_the_c_api_is_in_the_package() -> None:
    header = resources.files(regraft).joinpath("include/regraft.h").read_text()
    assert "regraft_model_refit_tensors(" in header and 'extern "C"' in header


def test_types_of_the_native_module_are_those_that_it_has() -> None:
    python("-m", "mypy.stubtest", "regraft._regraft", "--mypy-config-file", "pyproject.toml")
    assert resources.files(regraft).joinpath("py.typed").is_file()


def test_every_public_name_is_there_and_documented() -> None:
    for name in regraft.__all__:
        value = getattr(regraft, name)
        assert isinstance(value, str) or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'kompile'"):
        _ = regraft.kompile


def test_torch_compile_finds_the_backend_of_an_installed_package() -> None:
    try:
        entries = metadata.distribution("regraft").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("the package is on the path, and not installed")
    (entry,) = entries.select(group="torch_dynamo_backends")
    assert (entry.name, entry.value) == ("regraft", "regraft.dynamo:regraft")
    said = python("-c", "import torch; print(torch.compile(torch.relu, backend='regraft')(torch.ones(1)))")
    assert said.strip() == "tensor([1.])"


# As if PyTorch were not installed.
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tqdm", "matplotlib"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
import numpy as np
import regraft

engine, weights = sys.argv[1:]
model = regraft.load(engine)
x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
np.save("before.npy", np.from_dlpack(model.run([x])[0]))
model.refit(regraft.StateDict.open(weights))
np.save("after.npy", np.from_dlpack(model.run([x])[0]))
# Every other column: with strides.
model.refit({"0.weight": np.ones((4, 16), np.float32)[:, ::2]}, partial=True)
try:
    model.run([x[:, :7]])
except regraft.InputError as error:
    print(error)
try:
    regraft.compile(None)
except ImportError as error:
    print(error)
"""


def test_engine_files_need_numpy_only(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()
    tuned = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()
    regraft.save(regraft.compile(net, (torch.zeros(3, 8),), min_block_size=1), tmp_path / "net")
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    said = python("-c", WITHOUT_TORCH, "net/0.rgf", "tuned.safetensors", folder=tmp_path)

    assert "expected f32[3, 8], found f32[3, 7]" in said
    assert "torch is not installed" in said
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    for file, module in (("before.npy", net), ("after.npy", tuned)):
        with torch.no_grad():
            np.testing.assert_allclose(np.load(tmp_path / file), module(x).numpy(), rtol=1e-4, atol=1e-6)
