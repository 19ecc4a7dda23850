"""Programs of float32 computed in bfloat16 and float16: as near to float32 as PyTorch's autocast, law 1,
refits from checkpoints of other floats; through the command, the package and mutable modules. Then weights
stored as small integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_same
from conftest import Cli, CommandFailed
from regraft import MutableModule
from small import Inputs, answers, arrays, numbers, save_program, save_state, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [pytest.param(d, id=str(d).removeprefix("torch.")) for d in (torch.bfloat16, torch.float16)]
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}


class Block(nn.Module):
    """A layer of a transformer: products, attention, norms, softmax, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.first, self.second = nn.LayerNorm(64), nn.LayerNorm(64)
        self.mlp = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Images(nn.Module):
    """Convolutions of every kind around group and batch norms, pools and resampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        z = nn.functional.interpolate(self.deep(y), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([self.up(y), z], 1).mean((2, 3)))


class Steps(nn.Module):
    """Steps of an LSTM over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0]).softmax(-1)


NETS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "block": (Block, (numbers(3, 17, 64),)),
    "images": (Images, (numbers(2, 3, 16, 16),)),
    "steps": (Steps, (torch.arange(24).reshape(2, 12) * 7 % 50,)),
}


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted.astype(np.float64)))


def autocast(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> np.ndarray:
    def computed() -> np.ndarray:
        with torch.autocast("cpu", dtype=dtype), torch.no_grad():
            return model(*inputs).float().numpy()

    try:
        return computed()
    except RuntimeError:
        # oneDNN has no LSTM of halves on some processors; PyTorch's own runs on all.
        with torch.backends.mkldnn.flags(enabled=False):
            return computed()


def assert_near(found: np.ndarray, model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> None:
    """At most twice as far from float32 as PyTorch is, and not float32 itself."""
    wanted = answers(model, inputs)[0]
    allowed = 2 * distance(autocast(model, inputs, dtype), wanted)
    assert found.dtype == np.float32
    assert 0 < distance(found, wanted) <= allowed, (distance(found, wanted), allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETS)
def test_r_8_command(cli: Cli, name: str, dtype: torch.dtype) -> None:
    build, inputs = NETS[name]
    first, second = seeded(build, 0), seeded(build, 1)
    options = ("--dtype", NAMES[dtype])
    engine = cli.compile(save_program(cli, first, inputs), "refittable", *options)
    before = cli.run(engine, arrays(inputs))
    assert_near(before[0], first, inputs, dtype)

    built = cli.compile(save_program(cli, second, inputs), "refittable", *options)
    wanted = cli.run(built, arrays(inputs))
    refitted, _ = cli.refit(engine, save_state(cli, second.state_dict()))
    assert_same(cli.run(refitted, arrays(inputs)), wanted)
    back, _ = cli.refit(refitted, save_state(cli, first.state_dict()))
    assert_same(cli.run(back, arrays(inputs)), before)

    # A checkpoint in 16 bits is what its float32 values are.
    narrow = {n: t.to(dtype) if t.is_floating_point() else t for n, t in second.state_dict().items()}
    second.load_state_dict(narrow)
    refitted, _ = cli.refit(engine, save_state(cli, narrow))
    built = cli.compile(save_program(cli, second, inputs), "refittable", *options)
    assert_same(cli.run(refitted, arrays(inputs)), cli.run(built, arrays(inputs)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETS)
def test_r_8_package(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    build, inputs = NETS[name]
    first, second = seeded(build, 0), seeded(build, 1)
    compiled = regraft.compile(first, inputs, dtype=dtype)
    with torch.no_grad():
        before = compiled(*inputs)
        assert_near(before.numpy(), first, inputs, dtype)
        compiled.refit(second.state_dict())
        wanted = regraft.compile(second, inputs, dtype=NAMES[dtype])(*inputs)
        assert torch.equal(compiled(*inputs), wanted)
        regraft.save(compiled, tmp_path / "saved")
        assert torch.equal(regraft.load(tmp_path / "saved")(*inputs), wanted)
        compiled.refit(
            {n: t.to(dtype) for n, t in first.state_dict().items() if t.is_floating_point()}, strict=False
        )
        first.load_state_dict(
            {n: t.to(dtype) if t.is_floating_point() else t for n, t in first.state_dict().items()}
        )
        assert torch.equal(compiled(*inputs), regraft.compile(first, inputs, dtype=dtype)(*inputs))


def test_m_7_mutable_modules_keep_their_dtype(tmp_path: Path) -> None:
    build, inputs = NETS["block"]
    mutable = MutableModule(seeded(build, 0), dtype=torch.bfloat16)
    with torch.no_grad():
        first = mutable(*inputs)
        mutable.load_state_dict(seeded(build, 1).state_dict())
        second = mutable(*inputs)
        assert mutable.recompiles == 0 and not torch.equal(first, second)
        assert_near(second.numpy(), seeded(build, 1), inputs, torch.bfloat16)
        MutableModule.save(mutable, tmp_path / "saved")
        loaded = MutableModule.load(tmp_path / "saved", seeded(build, 1))
        assert torch.equal(loaded(*inputs), second)


@pytest.mark.parametrize("dtype", [torch.float32, "float8", 16])
def test_a_dtype_that_is_none_of_the_two(dtype: object) -> None:
    build, inputs = NETS["block"]
    with pytest.raises(
        regraft.CompileError, match=r"dtype: expected torch\.bfloat16, torch\.float16 or None"
    ):
        regraft.compile(seeded(build, 0), inputs, dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(regraft.CompileError, match="dtype: expected"):
        MutableModule(seeded(build, 0), dtype=dtype)


class Deep(nn.Module):
    """Linear layers that int4 takes, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 40), nn.GELU(), nn.Linear(40, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# What rounding to 8 and to 4 bits may cost three layers of random weights.
LOSS = {"int8": 0.02, "int4": 0.2}


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("weights", LOSS)
def test_a_2_weights_of_small_integers(tmp_path: Path, weights: str, rows: int) -> None:
    inputs = (numbers(rows, 64),)
    first, second = seeded(Deep, 0), seeded(Deep, 1)
    compiled = regraft.compile(first, inputs, weights=weights)
    assert compiled.loss is not None and 1e-4 < compiled.loss < LOSS[weights]
    with torch.no_grad():
        before = compiled(*inputs)
        found = distance(before.numpy(), answers(first, inputs)[0]) / np.linalg.norm(
            answers(first, inputs)[0]
        )
        assert found == pytest.approx(compiled.loss, rel=1e-3)
        compiled.refit(second.state_dict())
        assert torch.equal(compiled(*inputs), regraft.compile(second, inputs, weights=weights)(*inputs))
        regraft.save(compiled, tmp_path / "saved")
        assert torch.equal(regraft.load(tmp_path / "saved")(*inputs), compiled(*inputs))
        compiled.refit(first.state_dict())
        assert torch.equal(compiled(*inputs), before)


def test_weights_of_small_integers_by_the_command(cli: Cli) -> None:
    inputs = (numbers(5, 64),)
    program = save_program(cli, seeded(Deep, 0), inputs)
    np.save(cli.folder / "x.npy", inputs[0].numpy())
    exact = cli.inspect(cli.compile(program))["slot_bytes"]
    for weights, most in LOSS.items():
        for sample in ([], ["--sample", str(cli.folder / "x.npy")]):
            facts = json.loads(
                cli.call(
                    "compile", program, "-o", cli.path("q", ".rgf"), "--weights", weights, "--json", *sample
                )
            )
            assert 0 < facts["loss"] < most and facts["slot_bytes"] < exact / 2
    with pytest.raises(CommandFailed, match="--weights"):
        cli.call("compile", program, "-o", cli.path("q", ".rgf"), "--sample", cli.folder / "x.npy")


def test_weights_that_are_none_of_the_two() -> None:
    with pytest.raises(
        regraft.CompileError, match=r"weights: expected one of None, 'int8', 'int4', found 'int2'"
    ):
        regraft.compile(seeded(Deep), (numbers(1, 64),), weights="int2")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norms_of_halves_are_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = {name: torch.randn(8) * 9 for name in ("weight", "bias", "running_mean")}
    net = nn.BatchNorm2d(8).to(dtype).eval().requires_grad_(False)
    net.load_state_dict(values, strict=False)
    # Near the means, where the two terms of a scale and a shift cancel.
    x = (torch.randn(2, 8, 5, 5) + values["running_mean"][:, None, None]).to(dtype)
    made = regraft.compile(net, (x,))(x)
    expected = net.double()(x.double()).to(dtype)
    assert torch.allclose(made, expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
