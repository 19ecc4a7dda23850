"""`regraft serve` with the clients that people use: tritonclient over HTTP and gRPC.

Run by scripts/serve-test.sh.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

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


@pytest.fixture(params=["http", "grpc"])
def client(served: Served, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    module = http_client if request.param == "http" else grpc_client
    opened = module.InferenceServerClient(served.address)
    yield module, opened
    opened.close()


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return actual.shape == expected.shape and bool(
        np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    )


def test_health_and_metadata(client: tuple[Any, Any]) -> None:
    module, opened = client
    assert opened.is_server_live() and opened.is_server_ready() and opened.is_model_ready("linear")
    assert opened.is_model_ready("linear", "1")
    server = (
        opened.get_server_metadata() if module is http_client else opened.get_server_metadata(as_json=True)
    )
    assert server["name"] == "regraft" and "binary_tensor_data" in server["extensions"]
    about = (
        opened.get_model_metadata("linear")
        if module is http_client
        else opened.get_model_metadata("linear", as_json=True)
    )
    assert about["inputs"][0]["datatype"] == "FP32" and int(about["inputs"][0]["shape"][0]) == -1


@pytest.mark.parametrize("binary", [True, False])
def test_infer(served: Served, client: tuple[Any, Any], binary: bool) -> None:
    module, opened = client
    about = opened.get_model_metadata("linear")
    names = [about["inputs"][0]["name"], about["outputs"][0]["name"]] if module is http_client else [
        about.inputs[0].name, about.outputs[0].name]  # fmt: skip
    array = served.inputs()
    tensor = module.InferInput(names[0], array.shape, "FP32")
    if module is http_client:
        tensor.set_data_from_numpy(array, binary_data=binary)
        outputs = [module.InferRequestedOutput(names[1], binary_data=binary)]
    else:
        tensor.set_data_from_numpy(array)
        outputs = [module.InferRequestedOutput(names[1])] if binary else None
    answer = opened.infer("linear", [tensor], outputs=outputs, request_id="7")
    assert close(answer.as_numpy(names[1]), served.expected())
    response = answer.get_response()
    assert (response["id"] if module is http_client else response.id) == "7"


def test_errors(served: Served, client: tuple[Any, Any]) -> None:
    module, opened = client
    from tritonclient.utils import InferenceServerException

    tensor = module.InferInput("other", [1, 10], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 10), np.float32))
    with pytest.raises(InferenceServerException, match="no input `other`"):
        opened.infer("linear", [tensor])
    with pytest.raises(InferenceServerException, match="no model `none`"):
        opened.infer("none", [tensor])


def test_many_at_once(served: Served, client: tuple[Any, Any]) -> None:
    """Requests under way at a time run together, and each gets its own rows."""
    module, opened = client
    about = opened.get_model_metadata("linear")
    name = about["inputs"][0]["name"] if module is http_client else about.inputs[0].name
    output = about["outputs"][0]["name"] if module is http_client else about.outputs[0].name
    rows = np.random.default_rng(3).standard_normal((40, 10)).astype(np.float32)

    def request(array: np.ndarray) -> Any:
        tensor = module.InferInput(name, array.shape, "FP32")
        tensor.set_data_from_numpy(array)
        return tensor

    whole = np.concatenate(
        [opened.infer("linear", [request(rows[i : i + 8])]).as_numpy(output) for i in range(0, 40, 8)]
    )
    if module is http_client:
        with http_client.InferenceServerClient(served.address, concurrency=8) as several:
            waiting = [several.async_infer("linear", [request(rows[i : i + 1])]) for i in range(40)]
            answers = [one.get_result().as_numpy(output) for one in waiting]
    else:
        import queue

        done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        for i in range(40):
            opened.async_infer(
                "linear",
                [request(rows[i : i + 1])],
                callback=lambda result, error, i=i: done.put((i, result, error)),
            )
        found = sorted((done.get(timeout=30) for _ in range(40)), key=lambda one: one[0])
        assert all(error is None for _, _, error in found)
        answers = [result.as_numpy(output) for _, result, _ in found]
    assert np.array_equal(np.concatenate(answers), whole)


def test_weights_change_for_both(served: Served) -> None:
    """What is published over HTTP, both protocols serve."""
    import urllib.request

    def post(path: str, body: bytes) -> dict[str, Any]:
        with urllib.request.urlopen(
            f"http://{served.address}/v2/models/linear/weights/{path}", data=body
        ) as answer:
            return json.loads(answer.read())

    new = {
        name[2:]: array
        for name, array in tensors(FIXTURES / "linear.safetensors").items()
        if name.startswith("b/")
    }
    header, data, at = {}, b"", 0
    for name, array in new.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        data += array.tobytes()
        at += array.nbytes
    text = json.dumps(header).encode()
    post("stage", len(text).to_bytes(8, "little") + text + data)
    digest = post("publish", b"")["serving"]["digest"]
    for module in (http_client, grpc_client):
        with module.InferenceServerClient(served.address) as opened:
            about = opened.get_model_metadata("linear")
            is_http = module is http_client
            names = [about["inputs"][0]["name"], about["outputs"][0]["name"]] if is_http else [
                about.inputs[0].name, about.outputs[0].name]  # fmt: skip
            tensor = module.InferInput(names[0], [3, 10], "FP32")
            tensor.set_data_from_numpy(served.inputs())
            answer = opened.infer("linear", [tensor])
            assert close(answer.as_numpy(names[1]), served.expected("expected_b.0"))
            response = answer.get_response()
            told = (
                response["parameters"]["weights"] if is_http else response.parameters["weights"].string_param
            )
            assert told == digest
    post("rollback", b"")
