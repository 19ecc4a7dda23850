"""Generated checkpoints: random modules under random names in random containers, sound and spoiled.

Each is given to the package and to PyTorch, which gets the state dict under the names of the module. Where
PyTorch's `load_state_dict` takes it, both must compute the same; where PyTorch refuses it, so must the
package, but for the reasons in `LENIENT`. `REGRAFT_CASES=300` tries as many; 40 are tried otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import regraft
from checkpoints import CONTAINERS, cases, randomized
from regraft.errors import WeightsError

State = dict[str, torch.Tensor]

# What PyTorch refuses and the package takes: tensors that no result depends on.
LENIENT = {"without counters", "counter of another shape"}

WRAPPERS = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
FRONTS = ["model", "net", "base_model.model", "generator", "student.backbone", "module.model"]


class Sum(nn.Module):
    """Modules whose results are added."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = [part(x) for part in self.children()]
        return torch.stack(results).sum(0)


class Offset(nn.Module):
    """A parameter, a buffer, and a buffer that no state dict holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("table", torch.linspace(0.5, 1.5, width), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain * self.table + self.shift


def layer(rng: random.Random, width: int) -> nn.Module:
    """A layer that keeps the width."""
    kind = rng.randrange(8)
    if kind == 0:
        return nn.LayerNorm(width)
    if kind == 1:
        return nn.BatchNorm1d(width)
    if kind == 2:
        return nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
    if kind == 3:
        return Offset(width)
    if kind == 4:
        inner = rng.choice([width, width + 2])
        return nn.Sequential(
            nn.Linear(width, inner, bias=rng.random() < 0.7), nn.Tanh(), nn.Linear(inner, width)
        )
    if kind == 5:
        return nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))
    return nn.Linear(width, width, bias=rng.random() < 0.8)


def names_of_parts(rng: random.Random, count: int) -> list[str]:
    pool = ["encoder", "decoder", "model", "net", "head", "module", "layers", "norm", "proj", "backbone"]
    return rng.sample(pool, count)


def module_of(rng: random.Random) -> nn.Module:
    """A module of two levels."""
    width = rng.choice([3, 4, 6])
    parts: dict[str, nn.Module] = {}
    for name in names_of_parts(rng, rng.randint(1, 3)):
        parts[name] = nn.Sequential(*(layer(rng, width) for _ in range(rng.randint(1, 3))))
    body = nn.Sequential(Sum(parts), nn.Tanh(), layer(rng, width))
    return nn.Sequential(body, layer(rng, width)) if rng.random() < 0.5 else body


def renamed(rng: random.Random, state: State) -> tuple[str, State]:
    """The state under other names, all of them by one rule."""
    kind = rng.choice(["plain", "front", "front", "wrapper", "inside", "spelling"])
    if kind == "front":
        front = rng.choice(FRONTS)
        return f"front {front}", {f"{front}.{name}": value for name, value in state.items()}
    if kind == "wrapper":
        front = ".".join(rng.sample(WRAPPERS, rng.randint(1, 2)))
        return f"wrapper {front}", {f"{front}.{name}": value for name, value in state.items()}
    if kind == "inside":
        wrapper = rng.choice(WRAPPERS)
        depth = rng.randint(1, 2)

        def inside(name: str) -> str:
            parts = name.split(".")
            at = min(depth, len(parts) - 1)
            return ".".join([*parts[:at], wrapper, *parts[at:]])

        return f"inside {wrapper}", {inside(name): value for name, value in state.items()}
    if kind == "spelling":
        olds = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
            "parametrizations.weight.original": "weight_orig",
            "parametrizations.weight.0._u": "weight_u",
            "parametrizations.weight.0._v": "weight_v",
        }

        def old(name: str) -> str:
            for new, spelled in olds.items():
                if name == new or name.endswith("." + new):
                    return name.removesuffix(new) + spelled
            return name

        return "spelling", {old(name): value for name, value in state.items()}
    return "plain", dict(state)


def spoiled(rng: random.Random, state: State, module: nn.Module) -> tuple[str, State]:
    """The state with something changed, and what."""
    state = dict(state)
    kind = rng.choice(
        [
            "sound",
            "sound",
            "sound",
            "missing",
            "extra",
            "shape",
            "constant",
            "dtype",
            "without counters",
            "counter of another shape",
            "swapped",
        ]
    )
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    name = rng.choice(names)
    if kind == "missing":
        del state[name]
    elif kind == "extra":
        state[rng.choice(["extra.weight", "loss.weight", f"{name}_old"])] = torch.ones(3)
    elif kind == "shape":
        state[name] = torch.ones([*state[name].shape, 2])
    elif kind == "constant":
        constants = {name for name, _ in module.named_buffers()} - state.keys()
        if not constants:
            return "sound", state
        state[sorted(constants)[0]] = torch.zeros(3)
    elif kind == "dtype":
        dtype = rng.choice([torch.float64, torch.bfloat16, torch.float16])
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    elif kind == "without counters":
        state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    elif kind == "counter of another shape":
        state = {n: torch.ones(2) if n.endswith("num_batches_tracked") else v for n, v in state.items()}
    elif kind == "swapped":
        other = rng.choice(names)
        state[name], state[other] = state[other], state[name]
    return kind, state


def reference(make: Callable[[], nn.Module], kind: str, state: State) -> nn.Module | None:
    """What PyTorch makes of the state; `None` when it refuses."""
    net = make().eval()
    constants = {name for name, _ in net.named_buffers()} - net.state_dict().keys()
    own = net.state_dict()
    # What no state dict holds is not a weight: the package leaves it alone and says so.
    state = {name: value for name, value in state.items() if name not in constants}
    if kind in LENIENT:
        state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
        counters = {n: v for n, v in own.items() if n.endswith("num_batches_tracked")}
        state = {**counters, **state}
    try:
        net.load_state_dict(state)
    except RuntimeError:
        return None
    return net


@pytest.mark.parametrize("seed", range(cases(40)))
def test_case(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    structure = rng.randrange(1 << 30)

    def make() -> nn.Module:
        return module_of(random.Random(structure))

    rows = torch.linspace(-1.0, 1.0, 60).reshape(-1)
    engine = randomized(make(), seed)
    for width in (3, 4, 6):
        x = rows[: 5 * width].reshape(5, width)
        try:
            with torch.no_grad():
                engine(x)
            break
        except RuntimeError:
            continue
    compiled = regraft.compile(torch.export.export(engine, (x,)))
    for round in range(3):
        folder = tmp_path / str(round)
        folder.mkdir()
        kind, state = spoiled(rng, randomized(make(), seed + 1000 * (round + 1)).state_dict(), engine)
        naming, named = renamed(rng, state)
        container = rng.choice(sorted(CONTAINERS))
        what = f"seed {seed}, round {round}: {kind}, {naming}, {container}"
        expected = reference(make, kind, state)
        before = compiled(x)
        refusal = refit(compiled, CONTAINERS[container](named, folder))
        if refusal is not None:
            assert expected is None, f"{what}: refused, and PyTorch takes it\n{refusal}"
            assert torch.allclose(compiled(x), before, rtol=0, atol=0, equal_nan=True), (
                f"{what}: a refused refit changed something"
            )
            continue
        assert expected is not None, f"{what}: taken, and PyTorch refuses it"
        with torch.no_grad():
            wanted = expected(x)
        # A variance that was swapped for a bias has roots that are none, in PyTorch as here.
        assert torch.allclose(compiled(x), wanted, rtol=2e-3, atol=2e-4, equal_nan=True), what


def refit(module: regraft.Module, path: Path) -> str | None:
    """Why the weights are refused, if they are."""
    try:
        module.refit(path)
    except WeightsError as error:
        return str(error)
    return None
