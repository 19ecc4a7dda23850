"""What the tests of `regraft serve` with clients share; scripts/serve-test.sh runs them.

Each client has a process of its own: their messages have the same names.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FIXTURES = Path(__file__).resolve().parent.parent / "crates/conformance/fixtures"
REGRAFT = os.environ["REGRAFT_BIN"]


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "BOOL": np.bool_}
    start = 8 + length
    return {
        name: np.frombuffer(
            data[start + about["data_offsets"][0] : start + about["data_offsets"][1]], kinds[about["dtype"]]
        ).reshape(about["shape"])
        for name, about in header.items()
    }


@dataclass
class Served:
    """A server with the model `linear` and what it should give."""

    address: str
    engine: Path
    folder: Path

    def inputs(self) -> np.ndarray:
        return tensors(FIXTURES / "linear.safetensors")["input.0"]

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        address = f"http://{self.address}/v2/models/linear/weights/{path}"
        with urllib.request.urlopen(address, data=body) as answer:
            return json.loads(answer.read())

    def publish(self, arrays: dict[str, np.ndarray]) -> str:
        """Has it serve these weights; their digest."""
        header, data, at = {}, b"", 0
        for name, array in arrays.items():
            header[name] = {
                "dtype": "F32",
                "shape": list(array.shape),
                "data_offsets": [at, at + array.nbytes],
            }
            data += array.tobytes()
            at += array.nbytes
        text = json.dumps(header).encode()
        self.post("stage", len(text).to_bytes(8, "little") + text + data)
        return str(self.post("publish", b"")["serving"]["digest"])

    def rollback(self) -> None:
        self.post("rollback", b"")

    def expected(self, which: str = "expected.0") -> np.ndarray:
        return tensors(FIXTURES / "linear.safetensors")[which]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    engine = folder / "linear.rgf"
    environment = os.environ | {"REGRAFT_CACHE_DIR": str(folder / "cache")}
    subprocess.run([REGRAFT, "compile", FIXTURES / "linear.pt2", "-o", engine], check=True, env=environment)
    command = [REGRAFT, "serve", engine, "--address", "127.0.0.1:0", "--batch", "8", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["listening"].removeprefix("http://")
        yield Served(address, engine, folder)
        server.terminate()
        assert server.wait(timeout=30) == 0


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return actual.shape == expected.shape and bool(
        np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    )
