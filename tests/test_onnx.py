"""ONNX models that PyTorch exports: PyTorch's answers, refits, and law 1."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import regraft
from comparing import assert_close, assert_same, same
from conftest import Cli, CommandFailed
from models import randomize_


class Convolutions(nn.Module):
    """What image models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.deep(nn.functional.max_pool2d(x, 3, 1, 1))
        x = nn.functional.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Encoder(nn.Module):
    """What language models are made of, with a batch and a length that change."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.places = nn.Embedding(64, 32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.words(ids) + self.places(torch.arange(length))
        split = lambda t: t.view(batch, length, 4, 8).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        scores = q @ k.transpose(-1, -2) / 8**0.5 + bias
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 32)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.mlp(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 8, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, _) = self.lstm(x)
        return self.gru(y)[0], h


def ids(batch: int, length: int) -> tuple[Tensor, ...]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return torch.randint(0, 100, (batch, length)), mask


MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[Tensor, ...]], dict[str, dict[int, str]]]] = {
    "convolutions": (Convolutions, [(torch.randn(2, 3, 32, 32),)], {}),
    "encoder": (
        Encoder,
        [ids(2, 12), ids(3, 7), ids(1, 1)],
        {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
    ),
    "recurrent": (Recurrent, [(torch.randn(2, 5, 8),)], {}),
}
NAMES = {"convolutions": ["x"], "encoder": ["ids", "mask"], "recurrent": ["x"]}


def built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return randomize_(MODELS[name][0](), seed).eval()


def export(name: str, seed: int, path: Path, *, fold: bool = False, opset: int = 17) -> nn.Module:
    """Without folding, weights keep the names that they have in the module."""
    module, (_, inputs, dynamic) = built(name, seed), MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs[0],
            str(path),
            input_names=NAMES[name],
            dynamic_axes=dynamic,
            opset_version=opset,
            do_constant_folding=fold,
            dynamo=False,
        )
    return module


def expected(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        out = module(*inputs)
    return [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]


def feeds(name: str) -> list[dict[str, np.ndarray]]:
    return [{n: t.numpy() for n, t in zip(NAMES[name], i, strict=True)} for i in MODELS[name][1]]


@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_law_1(cli: Cli, name: str, fold: bool) -> None:
    first, second = cli.path(name, ".onnx"), cli.path(name, ".onnx")
    a, b = export(name, 1, first, fold=fold), export(name, 2, second, fold=fold)
    engine = cli.compile(first)
    with_a = cli.run_all(engine, feeds(name))
    for actual, inputs in zip(with_a, MODELS[name][1], strict=True):
        assert_close(actual, expected(a, inputs))

    refitted, _ = cli.refit(engine, second)
    with_b = cli.run_all(refitted, feeds(name))
    for actual, inputs in zip(with_b, MODELS[name][1], strict=True):
        assert_close(actual, expected(b, inputs))
    assert not same(with_a[0], with_b[0])
    for from_refit, from_build in zip(with_b, cli.run_all(cli.compile(second), feeds(name)), strict=True):
        assert_same(from_refit, from_build)


def test_a_state_dict_refits_what_keeps_its_names(cli: Cli) -> None:
    program, weights = cli.path("encoder", ".onnx"), cli.path("weights", ".safetensors")
    export("encoder", 1, program)
    tuned = built("encoder", 3)
    save_file(tuned.state_dict(), weights)
    refitted, _ = cli.refit(cli.compile(program), weights)
    inputs = MODELS["encoder"][1][0]
    assert_close(cli.run(refitted, feeds("encoder")[0]), expected(tuned, inputs))


def test_weights_beside_the_model(cli: Cli) -> None:
    program = cli.path("encoder", ".onnx")
    module = export("encoder", 1, program)
    model = onnx.load(program)
    onnx.save(model, program, save_as_external_data=True, location="weights.data", size_threshold=0)
    answers = expected(module, MODELS["encoder"][1][0])
    assert_close(cli.run(cli.compile(program), feeds("encoder")[0]), answers)

    # No path leads out of the folder.
    program.write_bytes(program.read_bytes().replace(b"weights.data", b"../../w.data"))
    with pytest.raises(CommandFailed, match=r"\.\./\.\./w\.data"):
        cli.compile(program)


def test_python_compiles_and_refits_a_model(tmp_path: Path) -> None:
    program, tuned = tmp_path / "encoder.onnx", tmp_path / "tuned.onnx"
    a, b = export("encoder", 1, program), export("encoder", 2, tuned)
    model = regraft.compile(program)
    for module, step in [(a, None), (b, tuned)]:
        if step is not None:
            model.refit(step)
        for inputs in MODELS["encoder"][1]:
            found = model.run([t.numpy() for t in inputs])
            assert_close([np.asarray(array) for array in found], expected(module, inputs))
    assert [name for name, _ in model.inputs] == NAMES["encoder"] and model.mode == "refittable"
    assert not regraft.compile(str(program), mode="stripped").is_bound
    assert regraft.compile(program, mode="frozen").mode == "frozen"


def test_python_refuses_what_has_no_meaning_for_a_file(tmp_path: Path) -> None:
    program = tmp_path / "encoder.onnx"
    export("encoder", 1, program)
    with pytest.raises(regraft.CompileError, match="says itself what its inputs are"):
        regraft.compile(program, dynamic_shapes={"x": None})
    with pytest.raises(regraft.CompileError, match="compiled whole"):
        regraft.compile(program, torch_executed_ops={"Gather"})
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(program.read_bytes()[:200])
    with pytest.raises(regraft.CompileError, match=r"damaged\.onnx"):
        regraft.compile(damaged)
    with pytest.raises(regraft.CompileError, match=r"missing\.onnx"):
        regraft.compile(tmp_path / "missing.onnx")


def test_an_unknown_operator_is_named(cli: Cli) -> None:
    program = cli.path("encoder", ".onnx")
    export("encoder", 1, program)
    model = onnx.load(program)
    model.graph.node[3].op_type = "Frobnicate"
    onnx.save(model, program)
    with pytest.raises(CommandFailed, match=r"ai\.onnx\.Frobnicate"):
        cli.compile(program)
