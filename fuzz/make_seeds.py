"""Makes the seeds of the fuzz targets out of the files of the tests, and a few by hand.

    REGRAFT=target/release/regraft python3 fuzz/make_seeds.py

Needs nothing but Python; engines are made with the command. Files in seeds/ that are not made here came
out of fuzzing.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
FILES = FUZZ.parent / "crates/checkpoint/tests/files"
ADAPTERS = FUZZ.parent / "crates/adapter/tests/adapters/peft"
FIXTURES = FUZZ.parent / "crates/conformance/fixtures"
PASSES = FUZZ.parent / "crates/compile/tests/passes"
REGRAFT = Path(os.environ.get("REGRAFT", FUZZ.parent / "target/release/regraft")).absolute()

# What compile is asked for, by name of the seed.
MODES = {
    "refittable": [],
    "prepacked": ["--keep-sources", "prepacked"],
    "reference": ["--keep-sources", "reference"],
    "none": ["--keep-sources", "none"],
    "frozen": ["--mode", "frozen"],
    "stripped": ["--mode", "stripped"],
    "identical": ["--mode", "stripped", "--identical"],
}
# Fixtures in all modes, and in one: they differ in kernels.
EVERY_MODE = ["linear", "embedding"]
REFITTABLE = [
    "attention_block",
    "conv1d",
    "conv_bn",
    "conv_depthwise_bn_hardswish",
    "conv_grouped",
    "conv_transpose",
    "dtypes",
    "elementwise",
    "group_norm",
    "layer_norm",
    "lstm_state",
    "mlp_gelu",
    "mutated_buffer",
    "pooling",
    "rms_norm",
    "slices",
    "tied",
    "two_layouts",
    "upsample",
]
FROZEN = ["conv_bn", "tied"]
ENTRIES = ["linear", "embedding", "conv_bn", "tied", "lstm_state", "mlp_gelu", "mutated_buffer"]
SECTIONS = {1: "about", 2: "plan", 3: "recipes", 4: "sources", 5: "slots", 6: "compat", 7: "key"}


def write(target: str, name: str, content: bytes) -> None:
    folder = FUZZ / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def varint(value: int) -> bytes:
    content = b""
    while value > 0x7F:
        content += bytes([value & 0x7F | 0x80])
        value >>= 7
    return content + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value & (1 << 64) - 1)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def initializer(dtype: int, dims: list[int], values: bytes) -> bytes:
    shape = b"".join(number(1, dim) for dim in dims)
    return shape + number(2, dtype) + values + message(8, b"w")


def external(**entries: str) -> bytes:
    pairs = (message(1, key.encode()) + message(2, value.encode()) for key, value in entries.items())
    return b"".join(message(13, pair) for pair in pairs) + number(14, 1)


def onnx() -> None:
    floats = struct.pack("<2f", 1.5, -2.0)
    initializers = {
        "raw": initializer(1, [2, 1], message(9, floats)),
        "floats": initializer(1, [2], message(4, floats)),
        "unpacked": initializer(1, [1], varint(4 << 3 | 5) + floats[:4]),
        "i8": initializer(3, [2], message(5, varint(127) + varint(-128 & (1 << 64) - 1))),
        "i64": initializer(7, [2], message(7, varint(1 << 40) + varint(7))),
        "f64": initializer(11, [1], message(10, struct.pack("<d", 0.1))),
        "bf16": initializer(16, [2], message(5, varint(0x3FC0) + varint(0xC000))),
        "bool": initializer(9, [2], message(9, b"\1\0")),
        "u64": initializer(13, [1], message(11, varint(1))),
        "empty": initializer(1, [0, 3], b""),
        "external": initializer(1, [4], external(location="x.bin", offset="16", length="16")),
        "negative": initializer(1, [-2], b""),
        "segment": initializer(1, [1], message(3, number(1, 0)) + message(9, floats[:4])),
    }
    for name, content in initializers.items():
        write("onnx", name, b"\2" + content)
    graph = message(1, message(4, b"Gemm")) + message(2, b"graph") + message(5, initializers["raw"])
    write("onnx", "graph", b"\1" + graph)
    model = message(2, b"by hand") + message(7, graph) + message(8, number(2, 17))
    write("onnx", "model", b"\0" + model)
    write("weights", "model.onnx", b"\x08\x08" + model)


def safetensors() -> None:
    metadata = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    dtypes = (
        b'{"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"b":{"dtype":"BOOL","shape":[1],"data_offsets":[8,9]}}'
    )
    files = {
        "metadata": struct.pack("<Q", len(metadata)) + metadata + bytes(8),
        "dtypes": struct.pack("<Q", len(dtypes)) + dtypes + bytes(9),
        "base": (ADAPTERS / "base.safetensors").read_bytes(),
        "lokr": (ADAPTERS / "lokr/adapter_model.safetensors").read_bytes(),
    }
    for name, content in files.items():
        (length,) = struct.unpack("<Q", content[:8])
        header, data = content[8 : 8 + length], content[8 + length :]
        write("safetensors", name, header[1:] + b"\0" + data)
        write("weights", f"{name}.safetensors", content)
    write("weights", "index.json", b'{"metadata":{"total_size":8},"weight_map":{"w":"x.safetensors"}}')


def torch() -> None:
    for path in sorted(FILES.glob("*.p*t*")):
        write("weights", path.name, path.read_bytes())
        if not zipfile.is_zipfile(path):
            continue
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            for name in pickles:
                write("pickle", path.stem, archive.read(name))
    legacy = (FILES / "legacy.bin").read_bytes()
    # Behind the magic number, the version and the sizes.
    start = legacy.index(b"\x80\x02", legacy.index(b"type_sizes"))
    write("torch_old", "legacy", b"\0" + legacy[start:])
    with tarfile.open(FILES / "tar.pt") as archive:
        parts = [archive.extractfile(name).read() for name in ("storages", "tensors", "pickle")]
    write("torch_old", "tar", b"\1" + b"\n=====\n".join(parts))
    names = {
        "front": "a.weight\nb.bias\n\nmodel.a.weight\nmodel.b.bias",
        "inside": "a.module.b.weight2\na.c.bias\n\na.b.weight2\na._orig_mod.c.bias",
        "norms": "n.weight\nn.bias\nc.parametrizations.weight.original0\n"
        "c.parametrizations.weight.original1\n\nn.gamma\nn.beta\nc.weight_g\nc.weight_v",
        "two": "a.w\n\ng.a.w\nd.a.w",
        "tied": "e.weight h.weight\nn.bias\n\nmodel.h.weight\nmodel.n.bias",
        "spectral": "c.parametrizations.weight.original\nc.parametrizations.weight.0._u1\n"
        "c.parametrizations.weight.0._v2\n\nc.weight_orig\nc.weight_u1\nc.weight_v2",
        "quantized": "a.fc.weight\na.fc.bias\n\na.fc.bias\na.fc.qweight\na.fc.scales\na.fc.qzeros",
    }
    for name, text in names.items():
        for settings in (0, 1, 2, 3, 12, 31, 68):
            write("names", f"{name}{settings}", bytes([settings]) + text.encode())
    write("weights", "embedding.pt2", (FIXTURES / "embedding.pt2").read_bytes())
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
    )
    write("pickle", "tensor", b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.")
    write(
        "pickle",
        "nested",
        b"\x80\x02}X\x05\x00\x00\x00modelq\x00}X\x01\x00\x00\x00w" + tensor + b"sh\x00K\x01us.",
    )


def edits() -> None:
    """Inputs of the targets that take theirs apart: bytes that say which file, and few edits."""
    for file in range(13):
        write("pt2", f"file{file:02}", bytes([file]) + bytes(range(1, 64)) * 2)
        write("pt2", f"plain{file:02}", bytes([file]))
    for prefix in range(12):
        kinds = b"".join(bytes([1, source, prefix + source, 3, 0, 0]) for source in range(10))
        write("adapter", f"prefix{prefix:02}", bytes([prefix]) + kinds + bytes(24))
    # Each kind of update where it may fit: PEFT's names or kohya's, one source, a configuration of the
    # target's list.
    for kind in range(18):
        prefix = 7 if kind in (1, 2, 8, 11) else 1
        known = {9: 1, 12: 3, 13: 3, 15: 5, 16: 4}.get(kind, 0)
        for source in {15: (7,), 16: (23,), 3: (7, 30)}.get(kind, (0, 3, 21)):
            layer = bytes([1, source, kind, 2, 0, 0])
            write(
                "adapter",
                f"kind{kind:02}_{source}",
                bytes([prefix]) + layer + bytes(6) + bytes([known]) + bytes(16),
            )
    # As long as inputs should become.
    write("adapter", "long", bytes([1, 1, 4, 2, 4, 0, 0, 0]) + bytes(range(256)) * 2)
    write("pt2", "long", bytes([2, 1, 40, 0]) + bytes(range(256)) * 2)


def engine(name: str, mode: str, folder: Path) -> bytes:
    shutil.copy(FIXTURES / f"{name}.pt2", folder)
    command = [REGRAFT, "compile", f"{name}.pt2", "-o", "model.rgf", "--no-cache", *MODES[mode]]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "model.rgf").read_bytes()


def parts(container: bytes, settings: int = 0) -> bytes:
    """The input of a target that seals it; see `Parts` in src/parts.rs."""
    (version,) = struct.unpack_from("<I", container, 8)
    (count,) = struct.unpack_from("<I", container, 24)
    content = bytes([settings | (version == 1)])
    for entry in range(count):
        kind, _, offset, length = struct.unpack_from("<IIQQ", container, 64 + 56 * entry)
        section = container[offset : offset + length]
        section = re.sub(rb'"product":"[^"]*"', b'"product":"any"', section, count=1)
        content += b"\n=====" + SECTIONS[kind].encode() + b"\n" + section
    return content


def engines() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = [(name, mode) for name in EVERY_MODE for mode in MODES]
        wanted += [(name, "refittable") for name in REFITTABLE] + [(name, "frozen") for name in FROZEN]
        for name, mode in wanted:
            content = engine(name, mode, folder)
            write("engine_sealed", f"{name}-{mode}", parts(content))
            if name == "embedding" and mode in ("refittable", "frozen", "reference", "identical"):
                write("engine", f"{name}-{mode}", content)
        for name in ENTRIES:
            write("cache_entry", name, parts(engine(name, "stripped", folder)))
        entry = engine("linear", "stripped", folder)
        for settings in (4, 5, 6, 7):
            write("cache_entry", f"linear-{settings}", parts(entry, settings << 4))
        write("cache_entry", "linear-whole", bytes([7 << 4]) + entry)
    for path in sorted((FIXTURES / "engines").glob("*.rgf")):
        content = path.read_bytes()
        write("engine_sealed", path.stem, parts(content))
        if "stripped" in path.stem:
            write("engine", path.stem, content)
            write("cache_entry", path.stem, parts(content))


def unpacked(program: str) -> bytes:
    """An engine of a program, which has no weights and evaluates every op."""
    sources = re.findall(r'^ +source %\d+ : (\w+)\[(.*?)\] = "(.*?)"', program, re.M)
    texts = [
        f'program "" {{\n  source %0 : {dtype}[{shape}] = "{name}" (parameter)\n  output %0 = "slot"\n}}\n'
        for dtype, shape, name in sources
    ]
    about = {
        "kernels": ["reference"] * len(re.findall(r"^ +%\d+.* = ", program, re.M)),
        "layouts": [],
        "sources": [],
        "recipes": [],
        "identical": False,
        "weights": [{}] * len(sources),
        "files": [],
        "slot_offsets": None,
    }
    for index, ((dtype, sizes, name), text) in enumerate(zip(sources, texts, strict=True)):
        shape = [int(size) for size in sizes.split(",") if size]
        about["layouts"].append({"shape": shape, "format": "Plain"})
        kind = {"name": name, "aliases": [], "kind": "Parameter"}
        about["sources"].append(
            {**kind, "dtype": dtype.upper() if dtype != "bool" else "Bool", "shape": shape}
        )
        recipe = {"slot": name, "sources": [index], "format": "Plain", "layout_ops": 0, "text_len": len(text)}
        about["recipes"].append(recipe)
    compat = {
        "product": "any",
        "target": {"backend": "cpu", "arch": "any", "level": "any"},
        "mode": "stripped" if sources else "refittable",
    }
    content = {"compat": dumps(compat), "about": dumps(about), "plan": program, "recipes": "".join(texts)}
    return b"\0" + "".join(f"\n====={name}\n{text}" for name, text in content.items()).encode()


def dumps(value: dict) -> str:
    return json.dumps(value, separators=(",", ":"))


# Sizes that inference cannot tell to be wrong.
SIZES = """program "sizes" {
  dims   s0 in 1..=8 (opt 3)
  input  %0 : f32[s0, 4] = "x"
  %1 = softmax %0 {axis = 1} : f32[s0 + 1, 4]
  output %1 = "y"
}
"""


def requests() -> None:
    """Requests for the program `PORTS` of src/lib.rs."""
    x, ids = [[0.5, 1.5]], [[1, 2, 3]]
    inputs = [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": x},
        {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": ids},
        {"name": "mask", "shape": [1], "datatype": "BOOL", "data": [True]},
        {"name": "half", "shape": [2], "datatype": "FP16", "data": [1, 2]},
    ]
    parameters = {"adapter": "style", "scale": 0.5, "timeout": 7, "binary_data_output": True}
    outputs = [{"name": "y", "parameters": {"binary_data": False}}]
    body = {"id": "1", "inputs": inputs, "parameters": parameters, "outputs": outputs}
    write("request", "json", b"\0" + json.dumps(body).encode())
    data = struct.pack("<2f3q?2e", *x[0], *ids[0], True, 1, 2)
    for one, size in zip(inputs, (8, 24, 1, 4), strict=True):
        del one["data"]
        one["parameters"] = {"binary_data_size": size}
    head = json.dumps(body).encode()
    write("request", "binary", b"\1" + struct.pack("<H", len(head)) + head + data)
    query = "kind=adapter&name=style&scale=0.7&alpha=8&partial=true&ignore_unknown=true&digest=00"
    write("request", "target", f"\2/v2/models/m/versions/1/weights/stage?{query}".encode())
    order = {
        "file": "a/b.safetensors",
        "adapters": [{"name": "s", "scale": 1}],
        "renames": ["a=b"],
        "kind": "weights",
    }
    write("request", "stage", b"\3" + json.dumps(order).encode())

    def input_of(name: str, kind: str, shape: list[int], contents: bytes = b"") -> bytes:
        sizes = b"".join(map(varint, shape))
        return message(
            5, message(1, name.encode()) + message(2, kind.encode()) + message(3, sizes) + contents
        )

    ports = [("x", "FP32", [1, 2]), ("ids", "INT64", [1, 3]), ("mask", "BOOL", [1]), ("half", "FP16", [2])]
    raw = b"".join(message(7, part) for part in (data[:8], data[8:32], data[32:33], data[33:]))
    texts = (
        message(1, b"m") + message(3, b"id") + message(4, message(1, b"timeout") + message(2, number(2, 7)))
    )
    write("request_grpc", "raw", b"\0" + texts + b"".join(input_of(*port) for port in ports) + raw)
    numbers = message(5, message(6, struct.pack("<2f", *x[0])))
    write("request_grpc", "numbers", b"\0" + texts + input_of("x", "FP32", [1, 2], numbers))
    write("request_grpc", "frame", b"\1\0\0\0\0\3" + message(1, b"m"))


def programs() -> None:
    for path in sorted(PASSES.rglob("*.txt")):
        found = re.search(r"^program .*?^}\n", path.read_text(), re.M | re.S)
        if found and len(found[0]) < 800:
            write("ir_text", path.stem, found[0].encode())
        if found and len(found[0]) < 500:
            write("engine_sealed", f"program-{path.stem}", unpacked(found[0]))
    write("engine_sealed", "sizes", unpacked(SIZES))


onnx()
safetensors()
torch()
edits()
engines()
requests()
programs()
