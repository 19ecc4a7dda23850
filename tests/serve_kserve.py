"""`regraft serve` with KServe's own Python client, over REST and gRPC, and what is in deploy/.

The objects there are read by the models of KServe's package, which are made of its schemas.

Run by scripts/serve-test.sh.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kserve
import kubernetes.client
import numpy as np
import pytest
import yaml
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig

from serve_support import FIXTURES, REGRAFT, Served, close, served, tensors

__all__ = ["served"]

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


class Client:
    """Both clients of KServe in one form."""

    def __init__(self, kind: str, served: Served) -> None:
        self.kind, self.served = kind, served
        self.base = f"http://{served.address}"
        self.opened: Any = (
            InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) if kind == "rest"
            else InferenceGRPCClient(served.address, retries=2)
        )  # fmt: skip

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.opened, name)
        return (lambda *rest: method(self.base, *rest)) if self.kind == "rest" else method

    async def infer(self, request: InferRequest) -> Any:
        if self.kind == "rest":
            return await self.opened.infer(self.base, request, request.model_name)
        return await self.opened.infer(request)

    async def close(self) -> None:
        await self.opened.close()


@pytest.fixture(params=["rest", "grpc"])
def run(
    served: Served, request: pytest.FixtureRequest
) -> Callable[[Callable[[Client], Awaitable[Any]]], Any]:
    """Runs a test on a loop of its own, with a client."""

    def on_a_loop(test: Callable[[Client], Awaitable[Any]]) -> Any:
        async def whole() -> Any:
            client = Client(request.param, served)
            try:
                return await test(client)
            finally:
                await client.close()

        return asyncio.run(whole())

    return on_a_loop


def request_of(
    array: np.ndarray, *, binary: bool = True, name: str = "input", **options: Any
) -> InferRequest:
    tensor = InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest("linear", [tensor], **options)


def output_of(answer: Any) -> np.ndarray:
    (output,) = answer.outputs
    assert isinstance(output, InferOutput) and output.name == "output"
    return output.as_numpy()


def test_health(run: Any) -> None:
    async def test(client: Client) -> None:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("linear") is True

    run(test)


@pytest.mark.parametrize("binary", [True, False])
def test_infer(run: Any, served: Served, binary: bool) -> None:
    async def test(client: Client) -> None:
        answer = await client.infer(request_of(served.inputs(), binary=binary, request_id="7"))
        assert (answer.id, answer.model_name) == ("7", "linear")
        assert close(output_of(answer), served.expected())
        assert set(answer.parameters) == {"generation", "weights"}

    run(test)


def test_errors(run: Any) -> None:
    zeros = np.zeros((1, 10), np.float32)

    async def test(client: Client) -> None:
        with pytest.raises(Exception, match="no input `other`"):
            await client.infer(request_of(zeros, name="other"))
        request = request_of(zeros)
        request.model_name = "none"
        with pytest.raises(Exception, match="no model `none`"):
            await client.infer(request)

    run(test)


def test_many_at_once(run: Any, served: Served) -> None:
    rows = np.random.default_rng(3).standard_normal((40, 10)).astype(np.float32)

    async def test(client: Client) -> None:
        whole = [output_of(await client.infer(request_of(rows[i : i + 8]))) for i in range(0, 40, 8)]
        answers = await asyncio.gather(*(client.infer(request_of(rows[i : i + 1])) for i in range(40)))
        assert np.array_equal(np.concatenate(list(map(output_of, answers))), np.concatenate(whole))

    run(test)


def test_weights_change(run: Any, served: Served) -> None:
    new = {
        name[2:]: a for name, a in tensors(FIXTURES / "linear.safetensors").items() if name.startswith("b/")
    }

    async def test(client: Client) -> None:
        digest = served.publish(new)
        try:
            answer = await client.infer(request_of(served.inputs()))
            assert close(output_of(answer), served.expected("expected_b.0"))
            told = answer.parameters["weights"]
            assert (told if isinstance(told, str) else told.string_param) == digest
        finally:
            served.rollback()

    run(test)


def checked(value: Any, kind: str, where: str) -> None:
    """Fails where a value is not what the models say: an unknown name, a wrong type, something missing."""
    if value is None:
        raise AssertionError(f"{where}: nothing is there")
    if match := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        assert isinstance(value, list), f"{where}: expected a list"
        for index, one in enumerate(value):
            checked(one, match[1], f"{where}[{index}]")
    elif match := re.fullmatch(r"[dD]ict[(\[](\w+), (.+)[)\]]", kind):
        assert isinstance(value, dict), f"{where}: expected names and values"
        for name, one in value.items():
            checked(one, match[2], f"{where}.{name}")
    elif kind in ("str", "bool", "int", "float"):
        expected = {"str": str, "bool": bool, "int": int, "float": (int, float)}[kind]
        assert isinstance(value, expected), f"{where}: expected {kind}, found {value!r}"
    elif kind not in ("object", "datetime", "ResourceQuantity", "IntstrIntOrString"):
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
        names = {there: here for here, there in model.attribute_map.items()}
        assert isinstance(value, dict), f"{where}: expected an object"
        assert set(value) <= set(names), f"{where}: {set(value) - set(names)} is not known"
        for name, one in value.items():
            checked(one, model.openapi_types[names[name]], f"{where}.{name}")
        # Refuses to be made without what must be there.
        model(**{names[name]: one for name, one in value.items()})


@pytest.mark.parametrize(
    ("file", "kind"),
    [("servingruntime", "V1alpha1ServingRuntime"), ("inferenceservice", "V1beta1InferenceService")],
)
def test_objects_are_what_kserve_takes(file: str, kind: str) -> None:
    value = yaml.safe_load((DEPLOY / f"kserve/{file}.yaml").read_text())
    checked(value, kind, file)
    version = value["apiVersion"].removeprefix("serving.kserve.io/")
    assert kind.lower() == f"{version}{value['kind']}".lower()
    # That the check finds something.
    for broken in (
        value | {"speck": {}},
        value | {"spec": []},
        value | {"spec": value["spec"] | {"replicas": "two"}},
    ):
        with pytest.raises(AssertionError):
            checked(broken, kind, file)


def test_the_runtime_starts_the_command_as_it_is() -> None:
    """The arguments of the container are options of `regraft serve`, and what they name is mounted."""
    spec = yaml.safe_load((DEPLOY / "kserve/servingruntime.yaml").read_text())["spec"]
    (container,) = spec["containers"]
    help_text = subprocess.run(
        [REGRAFT, "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]} | {"/mnt/models"}
    for argument in container["args"]:
        option, _, path = argument.partition("=")
        assert option in help_text or not option.startswith("--"), option
        if path.startswith("/"):
            assert any(path == mount or path.startswith(mount + "/") for mount in mounts), path
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }
    service = yaml.safe_load((DEPLOY / "kserve/inferenceservice.yaml").read_text())["spec"]["predictor"][
        "model"
    ]
    assert service["modelFormat"]["name"] == spec["supportedModelFormats"][0]["name"]
    assert service["protocolVersion"] in spec["protocolVersions"]


def test_the_dashboard_shows_what_the_server_tells(served: Served) -> None:
    """Every metric that the Grafana dashboard names is one of /metrics, and each of these is shown."""
    dashboard = json.loads((DEPLOY / "grafana/regraft.json").read_text())
    with urllib.request.urlopen(f"http://{served.address}/metrics") as answer:
        text = answer.read().decode()
    told = set(re.findall(r"^(regraft_\w+?)(?:\{| )", text, re.MULTILINE))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    shown = set(re.findall(r"regraft_\w+", " ".join(expressions)))
    assert shown and shown <= told, shown - told
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    labels = set(re.findall(r"by \(([^)]*)\)", " ".join(expressions)))
    assert {label.strip() for text in labels for label in text.split(",")} <= {
        "le",
        "model",
        "outcome",
        "phase",
    }
    for phase in re.findall(r'(?:outcome|phase)="(\w+)"', " ".join(expressions)):
        assert f'"{phase}"' in text
    # One beside the other, without gaps in the file's form.
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
