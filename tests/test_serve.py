"""`regraft serve` asked with the standard library: answers are those of the command, bit for bit."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from comparing import assert_same
from conftest import Cli
from exporting import ROOT, load_arrays, save_arrays

FIXTURES = ROOT / "crates/conformance/fixtures"
KINDS = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


@contextmanager
def serving(cli: Cli, engine: Path, *options: str) -> Iterator[http.client.HTTPConnection]:
    command = [str(cli.binary), "serve", f"m={engine}", "--address", "127.0.0.1:0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["listening"].removeprefix("http://")
            connection = http.client.HTTPConnection(address, timeout=60)
            yield connection
            connection.close()
        finally:
            server.terminate()
        assert server.wait(timeout=60) == 0


def ask(connection: http.client.HTTPConnection, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs for these inputs, sent and received as bytes."""
    connection.request("GET", "/v2/models/m")
    names = [port["name"] for port in json.loads(connection.getresponse().read())["inputs"]]
    arrays = [np.ascontiguousarray(array) for array in inputs]
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": name, "shape": array.shape, "datatype": KINDS[array.dtype.name],
             "parameters": {"binary_data_size": array.nbytes}}
            for name, array in zip(names, arrays, strict=True)
        ],
    }).encode()  # fmt: skip
    body = head + b"".join(array.tobytes() for array in arrays)
    connection.request(
        "POST", "/v2/models/m/infer", body, {"Inference-Header-Content-Length": str(len(head))}
    )
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status == 200, data
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs, at = [], length
    for output in json.loads(data[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        kind = {kind: name for name, kind in KINDS.items()}[output["datatype"]]
        outputs.append(np.frombuffer(data[at : at + size], kind).reshape(output["shape"]))
        at += size
    assert at == len(data)
    return outputs


def post(connection: http.client.HTTPConnection, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    connection.request("POST", f"/v2/models/m/weights/{path}", body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_answers_and_weights_are_those_of_the_command(cli: Cli) -> None:
    tensors = load_arrays(FIXTURES / "tiny_bert.safetensors")
    inputs = [tensors[f"input.{i}"] for i in range(2) if f"input.{i}" in tensors]
    new = save_arrays(
        cli.path("b", ".safetensors"), {n[2:]: a for n, a in tensors.items() if n.startswith("b/")}
    )
    engine = cli.compile(FIXTURES / "tiny_bert.pt2")
    refitted, _ = cli.refit(engine, new)
    with serving(cli, engine, "--batch", "4") as connection:
        for found, expected in zip(ask(connection, inputs), cli.run(engine, inputs), strict=True):
            assert_same(found, expected)
        status, staged = post(connection, "stage", new.read_bytes())
        assert status == 200 and staged["report"]["applied"]
        assert post(connection, "publish")[0] == 200
        for found, expected in zip(ask(connection, inputs), cli.run(refitted, inputs), strict=True):
            assert_same(found, expected)
        assert post(connection, "rollback")[0] == 200
        for found, expected in zip(ask(connection, inputs), cli.run(engine, inputs), strict=True):
            assert_same(found, expected)
        status, error = post(connection, "stage", b"no weights")
        assert status == 422 and "safetensors" in error["error"]


def test_a_delta_gives_the_other_weights(cli: Cli) -> None:
    tensors = load_arrays(FIXTURES / "tiny_bert.safetensors")
    new = save_arrays(
        cli.path("b", ".safetensors"), {n[2:]: a for n, a in tensors.items() if n.startswith("b/")}
    )
    engine = cli.compile(FIXTURES / "tiny_bert.pt2")
    refitted, _ = cli.refit(engine, new)
    delta = cli.path("d", ".rgd")
    cli.call("delta", engine, refitted, "-o", delta)
    with serving(cli, engine) as connection:
        status, staged = post(connection, "stage?kind=delta", delta.read_bytes())
        assert status == 200, staged
        digest = staged["staged"]["digest"]
        assert post(connection, "publish")[0] == 200
        # The same weights whole have the same digest.
        status, staged = post(connection, "stage", new.read_bytes())
        assert status == 200 and staged["staged"]["digest"] == digest
