"""Fixtures of the model-sized tests, which drive the `regraft` command as a user would.

    cargo build --release
    $(scripts/python-env.sh | tail -n 1) -m pytest tests

The command is REGRAFT_BIN, or target/release/regraft; without one the tests fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporting import ROOT

# Nothing that a test runs may outlive it by much: a hanging command fails the test.
TIMEOUT_SECONDS = 180

# Made absolute here, since tests change their directory.
BINARY = Path(os.environ.get("REGRAFT_BIN", ROOT / "target/release/regraft")).absolute()


class CommandFailed(Exception):
    """The command ended with an error; the text is what it said."""


class Cli:
    """The `regraft` command, with arrays in and out and all its files in one folder."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        self._numbers = count()

    def path(self, stem: str, ending: str = "") -> Path:
        """A new name in the folder: nothing is overwritten, so every earlier file can still be compared."""
        return self.folder / f"{stem}-{next(self._numbers)}{ending}"

    def call(self, *arguments: str | Path) -> str:
        """Runs the command; gives its stdout."""
        done = subprocess.run(
            [str(self.binary), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            env=os.environ | {"REGRAFT_CACHE_DIR": str(self.folder / "cache")},
        )
        if done.returncode != 0:
            words = " ".join(map(str, arguments))
            raise CommandFailed(f"regraft {words}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def compile(self, program: Path, mode: str = "refittable", *options: str) -> Path:
        engine = self.path(f"{program.stem}-{mode}", ".rgf")
        self.call("compile", program, "-o", engine, "--mode", mode, *options)
        return engine

    def run(self, engine: Path, inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs once. Inputs are given by name, or by position as a list."""
        folder = self.path("run")
        folder.mkdir()
        named = inputs.items() if isinstance(inputs, Mapping) else [(None, array) for array in inputs]
        arguments: list[str] = []
        for number, (name, array) in enumerate(named):
            file = folder / f"input_{number}.npy"
            np.save(file, array)
            arguments += ["--input", str(file) if name is None else f"{name}={file}"]
        self.call("run", engine, *arguments, "--output-dir", folder)
        outputs = sorted(folder.glob("output_*.npy"), key=lambda path: int(path.stem.removeprefix("output_")))
        return [np.load(path) for path in outputs]

    def run_all(self, engine: Path, input_sets: Sequence[Mapping[str, np.ndarray]]) -> list[list[np.ndarray]]:
        return [self.run(engine, inputs) for inputs in input_sets]

    def refit(self, engine: Path, weights: Path, *, partial: bool = False) -> tuple[Path, dict[str, Any]]:
        """Gives the refitted engine and the report."""
        refitted, report = self.path("refitted", ".rgf"), self.path("report", ".json")
        options = ["--partial"] if partial else []
        self.call("refit", engine, "--weights", weights, "-o", refitted, "--report", report, *options)
        return refitted, json.loads(report.read_text())

    def bind(self, stripped: Path, weights: Path) -> Path:
        bound = self.path("bound", ".rgf")
        self.call("bind", stripped, "--weights", weights, "-o", bound)
        return bound

    def inspect(self, engine: Path, *options: str) -> dict[str, Any]:
        return json.loads(self.call("inspect", engine, "--json", *options))


def find_binary() -> Path:
    if not BINARY.is_file():
        pytest.fail(f"no command at {BINARY}: run `cargo build --release`, or set REGRAFT_BIN")
    return BINARY.resolve()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    yield Cli(find_binary(), tmp_path)
    # Engines are hundreds of MB: pytest would keep those of the last three runs.
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch's threads wait for each other longer than small models run, where other processes want the
    cores, too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
