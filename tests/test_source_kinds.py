"""Tensors that are not plain parameters (R-6, R-8), and tied ones (R-7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comparing import assert_close, assert_same
from conftest import Cli, CommandFailed
from small import (
    Inputs,
    answers,
    arrays,
    assert_refits,
    compile_model,
    numbers,
    save_program,
    save_state,
    seeded,
)
from test_sources import TOKENS, Net

X: Inputs = (numbers(5, 8),)

# ------------------------------------------------------------------- constants that are not parameters


class Scaled(nn.Module):
    """Numbers in the code, beside weights that they may be merged with."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x * 0.5) + 2) / 3


class Lifted(nn.Module):
    """A tensor that forward makes: export lifts it to a constant of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([0.5, -1.0, 2.0, 3.5]) + torch.tensor(0.25)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(16, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, 2 * x.shape[0], 2)
        angles = torch.arange(0, 4, 0.5)
        return self.fc(x + self.positions(steps)) + torch.cos(angles)


class Buffers(nn.Module):
    """One buffer that is in the state dict, and one that is only in the program."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("kept", torch.randn(8))
        self.register_buffer("dropped", torch.arange(8).float() / 4, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.dropped) * self.kept + self.dropped


def angles(positions: int, half: int) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    return torch.arange(positions)[:, None] * frequencies


class Rotary(nn.Module):
    """Queries and keys turned by a table of cosines and sines."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.register_buffer("cos", angles(6, 8).cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles(6, 8).sin().repeat(1, 2), persistent=True)

    def turn(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-right, left), dim=-1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(self.q(x)) @ self.turn(self.k(x)).transpose(-1, -2)


class ComplexRotary(Rotary):
    """The same, with a table of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(6, 8), angles(6, 8)), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (8, 2)))
        return torch.view_as_real(pairs * self.table).flatten(-2)


class Cumulated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps.cumsum(0) + self.steps.cumsum(1)


class Bags(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(12, 8, mode=mode)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.bag(tokens))


BAGS: Inputs = (torch.tensor([[3, 0, 11], [7, 7, 1]]),)

CONSTANTS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "scalar": (Scaled, X),
    "lifted": (Lifted, X),
    "arange": (Steps, X),
    "buffers": (Buffers, X),
    "rotary": (Rotary, (numbers(2, 6, 16),)),
    "complex_rotary": (ComplexRotary, (numbers(2, 6, 16),)),
    "cumsum": (Cumulated, X),
    "embedding_bag_sum": (lambda: Bags("sum"), BAGS),
    "embedding_bag_mean": (lambda: Bags("mean"), BAGS),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_r_6_constants(cli: Cli, name: str) -> None:
    model, inputs = CONSTANTS[name]
    assert_refits(cli, lambda seed: seeded(model, seed), inputs)


class ComplexWeights(nn.Module):
    """A parameter and a buffer of complex numbers that a state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.turns = nn.Parameter(torch.randn(6, dtype=torch.complex64))
        self.register_buffer("table", torch.polar(torch.rand(6) + 0.5, torch.randn(6)))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.fc(x).unflatten(-1, (6, 2)))
        return torch.view_as_real(pairs * self.turns * self.table.conj()).flatten(-2)


def test_r_6_complex_weights_from_programs(cli: Cli) -> None:
    """Files that do not bring them say so; programs do."""
    first, second = seeded(ComplexWeights, 0), seeded(ComplexWeights, 1)
    inputs = (numbers(3, 12),)
    engine = compile_model(cli, first, inputs)
    refitted, _ = cli.refit(engine, save_program(cli, second, inputs))
    found = cli.run(refitted, arrays(inputs))
    assert_close(found, answers(second, inputs))
    assert_same(found, cli.run(compile_model(cli, second, inputs), arrays(inputs)))
    state = cli.path("state", ".safetensors")
    save_file(second.state_dict(), state)
    with pytest.raises(
        CommandFailed, match=r"exit status 1\n(.|\n)*table +missing: in its place is a tensor of C64"
    ):
        cli.refit(engine, state)


def test_r_6_non_persistent_buffers_stay(cli: Cli) -> None:
    """They are not a part of a state dict: a refit neither asks for them nor takes them."""
    first, second = seeded(Buffers, 0), seeded(Buffers, 1)
    engine = compile_model(cli, first, X)
    assert set(second.state_dict()) == {"fc.weight", "fc.bias", "kept"}
    _, report = cli.refit(engine, save_state(cli, second.state_dict()))
    assert "dropped" not in report["applied"]


# ------------------------------------------------------------------------- parameters of every sort


class Doubles(nn.Module):
    """A float64 parameter in a float32 program: rounded where the program says so."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(x)
        return y * self.scale.float(), y.double() * self.scale


class Narrow(nn.Module):
    """Parameters of 16 bits, widened before they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8).to(dtype))
        self.bias = nn.Parameter(torch.randn(6).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float(), self.bias.float())


class Indices(nn.Module):
    """An int64 buffer, with values that no float32 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("order", torch.randperm(8))
        self.register_buffer("large", torch.randint(2**60, 2**62, (3,)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x)[:, self.order], self.large + 1


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.temperature = nn.Parameter(torch.randn(()).abs() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.temperature.exp()


class Empty(nn.Module):
    """A tensor without elements, put before another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.prefix = nn.Parameter(torch.randn(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.prefix, self.fc(x)))


class Transposed(nn.Module):
    """Parameters whose elements do not lie in order, nor side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6).t())
        self.bias = nn.Parameter(torch.randn(12)[::2])
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
        assert not self.weight.is_contiguous() and not self.bias.is_contiguous()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = x[:, :3, None, None] * torch.ones(5, 5)
        return nn.functional.linear(x, self.weight, self.bias), nn.functional.conv2d(image, self.kernel)


class Viewing(nn.Module):
    """Parameters and buffers that lie in one storage, in parts that overlap."""

    def __init__(self) -> None:
        super().__init__()
        storage = torch.randn(64)
        self.first = nn.Parameter(storage[:48].view(6, 8))
        self.second = nn.Parameter(storage[16:].view(6, 8))
        self.register_buffer("row", storage[24:32])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x * self.row, self.first) + nn.functional.linear(x, self.second)


SORTS: dict[str, Callable[[], nn.Module]] = {
    "float64": Doubles,
    "float16": lambda: Narrow(torch.float16),
    "bfloat16": lambda: Narrow(torch.bfloat16),
    "int64_buffer": Indices,
    "scalar": Scalar,
    "empty": Empty,
    "non_contiguous": Transposed,
    "shared_storage": Viewing,
}


@pytest.mark.parametrize("name", SORTS)
def test_r_8_parameters(cli: Cli, name: str) -> None:
    assert_refits(cli, lambda seed: seeded(SORTS[name], seed), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_r_8_half_precision_program(cli: Cli, dtype: torch.dtype) -> None:
    """All arithmetic in 16 bits: PyTorch's rounding is not ours, so law 1 alone is asked for in full."""
    inputs = (numbers(5, 8).to(dtype).float(),)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4).to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(dtype)).float()

    first, second = seeded(Half, 0), seeded(Half, 1)
    refitted, _ = cli.refit(compile_model(cli, first, inputs), save_state(cli, second.state_dict()))
    outputs = cli.run(refitted, arrays(inputs))
    assert_same(outputs, cli.run(compile_model(cli, second, inputs), arrays(inputs)))
    rounding = torch.finfo(dtype).eps
    np.testing.assert_allclose(outputs[0], answers(second, inputs)[0], rtol=4 * rounding, atol=4 * rounding)


def test_r_8_float32_weights_from_narrower_and_wider_files(cli: Cli) -> None:
    """A checkpoint in another float type is cast to the program's, as `load_state_dict` does."""
    engine = compile_model(cli, seeded(Net, 0), TOKENS)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {
            n: t.to(dtype) if t.is_floating_point() else t for n, t in seeded(Net, 1).state_dict().items()
        }
        model = seeded(Net, 0)
        model.load_state_dict(cast)
        refitted, _ = cli.refit(engine, save_state(cli, cast))
        outputs = cli.run(refitted, arrays(TOKENS))
        assert_close(outputs, answers(model, TOKENS))
        assert_same(outputs, cli.run(compile_model(cli, model, TOKENS), arrays(TOKENS)))


# ----------------------------------------------------- weights that the program computes from parameters


PARAMETRISED: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), (numbers(5, 8),)),
    "weight_norm_of_all": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 6), dim=None),
        (numbers(5, 8),),
    ),
    "weight_norm_of_convolution": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 6, 3), dim=1),
        (numbers(2, 5, 8),),
    ),
    "weight_norm_older": (
        lambda: nn.utils.weight_norm(nn.ConvTranspose1d(5, 6, 4, stride=2)),
        (numbers(2, 5, 8),),
    ),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)), (numbers(5, 8),)),
}


class Computed(nn.Module):
    """A linear layer whose weight is made of two parameters."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.first, self.second = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.make(self.first, self.second))


def without_the_mean(a: Tensor, b: Tensor) -> Tensor:
    """Weight standardization."""
    deviation, mean = torch.std_mean(a, dim=1, keepdim=True)
    return (a - mean) / (deviation + 1e-5) + b


RECIPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda a, b: a * b * 0.5,
    "quotient": lambda a, b: a / (b.abs() + 0.1),
    "outer": lambda a, b: torch.outer(a[:, 0], b[0]),
    "matmul": lambda a, b: a @ b.t() @ a,
    "einsum": lambda a, b: torch.einsum("ij,kj,kl->il", a, b, b),
    "concatenation": lambda a, b: torch.cat((a[:2], b[1:4], a[5:])),
    "stack": lambda a, b: torch.stack((a, b)).amax(0),
    "choice": lambda a, b: torch.where(a > b, a, -b),
    "softmax": lambda a, b: a.softmax(1) + b.log_softmax(0),
    "norms": lambda a, b: a / a.norm(dim=1, keepdim=True) + nn.functional.normalize(b, dim=0),
    "extremes": lambda a, b: a - a.amin() + b.amax(1, keepdim=True),
    "rounded": lambda a, b: (a * 16).round().clamp(-20, 20) / 16 + b.sign(),
    "flipped": lambda a, b: a.flip(1) + b.roll(3, 0),
    "gathered": lambda a, b: a[torch.tensor([5, 0, 0, 3, 2, 1])] + b.index_select(1, torch.arange(7, -1, -1)),
    "triangular": lambda a, b: a.tril() + b.triu(1),
    "standardized": without_the_mean,
    "through_float64": lambda a, b: (a.double() * b.double()).float(),
    "through_bfloat16": lambda a, b: a.bfloat16().float() + b.half().float(),
    "argmax": lambda a, b: a * (a.argmax(1, keepdim=True) == torch.arange(8)) + b,
    "cumulative": lambda a, b: a.cumsum(0) * 0.1 + b.cumsum(1),
    "repeated": lambda a, b: a[:3].repeat(2, 1) + b[:, :4].repeat_interleave(2, dim=1),
    "padded": lambda a, b: nn.functional.pad(a[1:-1, 2:], (1, 1, 0, 2)) + b,
    "gelu": lambda a, b: nn.functional.gelu(a) + nn.functional.softplus(b),
}


@pytest.mark.parametrize("name", RECIPES)
def test_r_6_weights_computed_from_parameters(cli: Cli, name: str) -> None:
    assert_refits(cli, lambda seed: seeded(lambda: Computed(RECIPES[name]), seed), X)


@pytest.mark.parametrize("decompose", [False, True], ids=["exported", "decomposed"])
@pytest.mark.parametrize("name", PARAMETRISED)
def test_r_6_parametrized_weights(cli: Cli, name: str, decompose: bool) -> None:
    """Weights by length and direction, or divided by their largest singular value."""
    build, inputs = PARAMETRISED[name]
    assert_refits(cli, lambda seed: seeded(build, seed), inputs, decompose=decompose)


# ------------------------------------------------- one tensor under several names and in several places


class Tied(nn.Module):
    """An output layer that is the embedding; a weight in two layouts; parts of a tensor in several ops."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight
        self.square = nn.Parameter(torch.randn(8, 8))
        self.parts = nn.Parameter(torch.randn(16, 8))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        x = nn.functional.linear(x, self.square) + x @ self.square
        x = nn.functional.linear(x, self.parts[:8]) * self.parts[8] + nn.functional.linear(
            x, self.parts[4:12]
        )
        return self.head(torch.tanh(x)), self.parts[15]


def test_r_7_tied_and_sliced(cli: Cli) -> None:
    assert_refits(cli, lambda seed: seeded(Tied, seed), TOKENS)


def test_r_7_either_name_of_a_tied_weight(cli: Cli) -> None:
    first, second = seeded(Tied, 0), seeded(Tied, 1)
    engine = compile_model(cli, first, TOKENS)
    wanted = cli.run(compile_model(cli, second, TOKENS), arrays(TOKENS))
    for left_out in ("embedding.weight", "head.weight"):
        state = {name: value for name, value in second.state_dict().items() if name != left_out}
        refitted, _ = cli.refit(engine, save_state(cli, state))
        assert_same(cli.run(refitted, arrays(TOKENS)), wanted)
    # Two names that are one tensor cannot have two values.
    untied = dict(second.state_dict()) | {"head.weight": torch.randn(12, 8)}
    with pytest.raises(CommandFailed, match=r"exit status 1\n(.|\n)*head.weight"):
        cli.refit(engine, save_state(cli, untied))
