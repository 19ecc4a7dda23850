"""`regraft serve` with the clients that people use: tritonclient over HTTP and gRPC.

Run by scripts/serve-test.sh.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from serve_support import FIXTURES, Served, close, served, tensors

__all__ = ["served"]


@pytest.fixture(params=["http", "grpc"])
def client(served: Served, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    module = http_client if request.param == "http" else grpc_client
    opened = module.InferenceServerClient(served.address)
    yield module, opened
    opened.close()


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
    new = {
        name[2:]: array
        for name, array in tensors(FIXTURES / "linear.safetensors").items()
        if name.startswith("b/")
    }
    digest = served.publish(new)
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
    served.rollback()
