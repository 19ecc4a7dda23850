"""Requests, weights and adapters for a model, made of what it tells of itself. Nothing but Python is
needed.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = {
    "FP64": 8,
    "FP32": 4,
    "FP16": 2,
    "BF16": 2,
    "INT64": 8,
    "INT32": 4,
    "INT16": 2,
    "INT8": 1,
    "UINT8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Inputs:
    """The inputs of a request, as the binary form of the protocol has them."""

    listed: list[dict[str, Any]]
    data: bytes

    def http(self, parameters: dict[str, Any] | None = None) -> bytes:
        """A whole request."""
        whole = {"binary_data_output": True, **(parameters or {})}
        head = json.dumps({"parameters": whole, "inputs": self.listed}).encode()
        lines = [
            "POST /v2/models/m/infer HTTP/1.1",
            "host: localhost",
            f"content-length: {len(head) + len(self.data)}",
            f"inference-header-content-length: {len(head)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + head + self.data

    def json(self) -> bytes:
        """A whole request with numbers in JSON."""
        codes = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i"}
        listed, at = [], 0
        for one in self.listed:
            size = one["parameters"]["binary_data_size"]
            code = codes[one["datatype"]]
            data = struct.unpack(f"<{size // struct.calcsize(code)}{code}", self.data[at : at + size])
            listed.append(
                {"name": one["name"], "shape": one["shape"], "datatype": one["datatype"], "data": data}
            )
            at += size
        body = json.dumps({"inputs": listed}).encode()
        lines = [
            "POST /v2/models/m/infer HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def grpc(self) -> bytes:
        """The message `ModelInferRequest` of the protocol, spelled out."""
        message, at = field(1, b"m"), 0
        for one in self.listed:
            sizes = b"".join(varint(size) for size in one["shape"])
            parts = (one["name"].encode(), one["datatype"].encode(), sizes)
            message += field(5, b"".join(field(number, part) for number, part in enumerate(parts, 1)))
        for one in self.listed:
            size = one["parameters"]["binary_data_size"]
            message += field(7, self.data[at : at + size])
            at += size
        return message


def field(number: int, content: bytes) -> bytes:
    """A field of a message whose content has a length."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def request(about: dict[str, Any], sizes: dict[str, str], size: int, ids: int) -> Inputs:
    """Random inputs."""
    chance = random.Random(5)
    inputs, data = [], []
    for port in about["inputs"]:
        given = sizes.get(port["name"])
        shape = [int(n) for n in given.split("x")] if given else [size if n < 0 else n for n in port["shape"]]
        count = 1
        for n in shape:
            count *= n
        kind = port["datatype"]
        if kind == "FP32":
            values = struct.pack(f"<{count}f", *(chance.uniform(-1, 1) for _ in range(count)))
        elif kind == "INT64":
            ones = "mask" in port["name"]
            values = struct.pack(f"<{count}q", *(1 if ones else chance.randrange(ids) for _ in range(count)))
        else:
            values = bytes(count * WIDTH[kind])
        parameters = {"binary_data_size": len(values)}
        inputs.append({"name": port["name"], "shape": shape, "datatype": kind, "parameters": parameters})
        data.append(values)
    return Inputs(inputs, b"".join(data))


def manifest(regraft: str, engine: Path) -> list[dict[str, Any]]:
    """The sources of an engine."""
    listed = subprocess.run(
        [regraft, "inspect", str(engine), "--manifest", "--json"], capture_output=True, text=True, check=True
    )
    return json.loads(listed.stdout)["manifest"]


def weights(sources: list[dict[str, Any]]) -> tuple[bytes, bytes]:
    """Two files of weights for an engine that differ in every float."""
    return safetensors(sources, 0.01), safetensors(sources, 0.011)


def adapter(sources: list[dict[str, Any]], folder: Path) -> None:
    """A LoRA of rank 4 on the first matrix of a module, as PEFT writes it."""
    name, shape = next(
        (s["name"].removesuffix(".weight"), s["shape"])
        for s in sources
        if s["name"].endswith(".weight") and len(s["shape"]) == 2 and "embed" not in s["name"]
    )
    factors = [
        {"name": f"base_model.model.{name}.lora_A.weight", "dtype": "f32", "shape": [4, shape[1]]},
        {"name": f"base_model.model.{name}.lora_B.weight", "dtype": "f32", "shape": [shape[0], 4]},
    ]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [name]}
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(factors, 0.02))
    (folder / "adapter_config.json").write_text(json.dumps(config))


def safetensors(sources: list[dict[str, Any]], value: float) -> bytes:
    """Every tensor of these sources, its floats around `value`."""
    names = {
        "f32": "F32",
        "f64": "F64",
        "f16": "F16",
        "bf16": "BF16",
        "i64": "I64",
        "i32": "I32",
        "u8": "U8",
        "bool": "BOOL",
    }
    codes = {"f32": "<f", "f64": "<d", "f16": "<e"}
    header: dict[str, Any] = {}
    parts, at = [], 0
    for source in sources:
        kind, count = source["dtype"], 1
        for n in source["shape"]:
            count *= n
        width = {"64": 8, "32": 4, "16": 2}.get(kind.lstrip("fibu"), 1)
        if kind in codes:
            data = struct.pack(codes[kind], value) * count
        elif kind == "bf16":
            data = struct.pack("<f", value)[2:] * count
        else:
            data = bytes(width * count)
        header[source["name"]] = {
            "dtype": names[kind],
            "shape": source["shape"],
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)
