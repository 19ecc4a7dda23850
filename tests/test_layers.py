"""Layers of their own kinds under refit (R-4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from comparing import assert_close, assert_same, same
from conftest import Cli
from small import (
    Inputs,
    answers,
    arrays,
    assert_refits,
    compile_model,
    numbers,
    save_state,
    seeded,
)
from test_source_kinds import X
from test_sources import TOKENS, Net

# ---------------------------------------------------------------------------------- layers of every kind


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


IMAGE: Inputs = (numbers(2, 4, 9, 7),)
SEQUENCE: Inputs = (numbers(2, 5, 8),)

LAYERS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), IMAGE),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), IMAGE),
    "reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), IMAGE),
    "convolution_1d": (lambda: nn.Conv1d(5, 6, 3), SEQUENCE),
    "convolution_3d": (lambda: nn.Conv3d(2, 3, 2), (numbers(1, 2, 4, 5, 3),)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), IMAGE),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE),
    "layer_norm": (lambda: randomized(nn.LayerNorm(8)), X),
    "group_norm": (lambda: randomized(nn.GroupNorm(2, 4)), IMAGE),
    "instance_norm": (lambda: randomized(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "rms_norm": (lambda: randomized(nn.RMSNorm(8)), X),
    "linear": (lambda: nn.Linear(8, 6), X),
    "linear_without_bias": (lambda: nn.Linear(8, 6, bias=False), X),
    "prelu": (lambda: randomized(nn.PReLU(4)), IMAGE),
    "attention": (lambda: Twice(nn.MultiheadAttention(8, 2, batch_first=True), 3), SEQUENCE),
    "transformer": (
        lambda: randomized(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        SEQUENCE,
    ),
    "lstm": (Recurrent, SEQUENCE),
}


class Twice(nn.Module):
    """Gives a layer of several inputs the same one each time."""

    def __init__(self, layer: nn.Module, inputs: int = 2) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(*(x,) * self.inputs)
        return output[0] if isinstance(output, tuple) else output


def randomized(layer: nn.Module) -> nn.Module:
    """Norms begin as ones and zeros, which a refit could not be told from."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5 + 0.5)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_r_4_layers(cli: Cli, name: str) -> None:
    build, inputs = LAYERS[name]
    assert_refits(cli, lambda seed: seeded(build, seed), inputs)


BATCH_NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize("changed", [*([name] for name in BATCH_NORM), BATCH_NORM], ids="-".join)
def test_r_4_tensors_of_a_batch_norm(cli: Cli, changed: list[str]) -> None:
    """Each of the five changed alone, and all together, beside a convolution that stays."""
    first, second = seeded(Net, 0), seeded(Net, 0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in changed:
            tensor = getattr(second.norm, name)
            values = torch.rand(4, generator=generator) + 0.5
            tensor.copy_(torch.tensor(90) if name == "num_batches_tracked" else values)
    some = {f"norm.{name}": second.state_dict()[f"norm.{name}"] for name in changed}
    engine = compile_model(cli, first, TOKENS)
    refitted, report = cli.refit(engine, save_state(cli, some), partial=True)
    outputs = cli.run(refitted, arrays(TOKENS))
    assert_close(outputs, answers(second, TOKENS))
    assert_same(outputs, cli.run(compile_model(cli, second, TOKENS), arrays(TOKENS)))
    unread = changed == ["num_batches_tracked"]
    assert same(outputs, cli.run(engine, arrays(TOKENS))) == unread
    for slot in report["recomputed_slots"]:
        assert set(slot["sources"]) & set(some), f"{slot['name']} was recomputed for nothing"
