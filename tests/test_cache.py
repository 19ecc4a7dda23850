"""The engine cache on programs that PyTorch exports: what is the same program, and what is not.

Each program is exported again; keys are those that `regraft compile --json` tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import Dim, export, save

from comparing import assert_close
from conftest import Cli


def compile_to(cli: Cli, program: Path, *options: str) -> dict:
    engine = cli.path("engine", ".rgf")
    facts = json.loads(cli.call("compile", program, "-o", engine, "--json", *options))
    return facts | {"path": engine}


def archive(cli: Cli, module: nn.Module, inputs: tuple, **options: object) -> Path:
    path = cli.path("program", ".pt2")
    save(export(module.eval(), inputs, **options), str(path))
    return path


class Net(nn.Module):
    """A small network in which names, arguments and the order of operands can be varied."""

    def __init__(self, width: int = 8, axis: int = 1, swapped: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(4, width)
        self.axis, self.swapped = axis, swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x), self.second(x)
        return torch.softmax(b - a if self.swapped else a - b, dim=self.axis)


class Renamed(nn.Module):
    """`Net` under other names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.left = nn.Linear(4, 8)
        self.right = nn.Linear(4, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.left(features) - self.right(features), dim=1)


INPUT = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def key(cli: Cli, module: nn.Module, *inputs: torch.Tensor, **options: object) -> str:
    return compile_to(cli, archive(cli, module, inputs or (INPUT,), **options))["cache_key"]


def test_c_1_other_weights_names_and_exports_are_hits(cli: Cli) -> None:
    first = compile_to(cli, archive(cli, Net(seed=0), (INPUT,)))
    assert first["cache"] == "stored"
    for module in (Net(seed=0), Net(seed=7), Renamed(seed=7)):
        again = compile_to(cli, archive(cli, module, (INPUT,)))
        assert (again["cache"], again["cache_key"]) == ("hit", first["cache_key"])
        with torch.no_grad():
            assert_close(cli.run(again["path"], [INPUT.numpy()]), [module(INPUT).numpy()])
    # The names are those of the program that was compiled.
    facts = json.loads(cli.call("inspect", again["path"], "--sources", "--json"))
    assert {source["name"] for source in facts["source_list"]} == set(Renamed().state_dict())
    assert facts["inputs"][0]["name"] == "features"


def test_c_1_settings_in_another_order(cli: Cli) -> None:
    program = archive(cli, Net(), (INPUT,))
    one = compile_to(cli, program, "--mode", "stripped", "--threads", "1", "--tune", "off")
    other = compile_to(cli, program, "--tune", "off", "--threads", "1", "--mode", "stripped")
    assert (other["cache"], other["cache_key"]) == ("hit", one["cache_key"])


def test_c_2_what_differs_is_a_miss(cli: Cli) -> None:
    half = Net().half()
    batch = {"x": {0: Dim("batch", min=1, max=16)}}
    wider = {"x": {0: Dim("batch", min=1, max=32)}}
    variants: dict[str, Callable[[], str]] = {
        "as it is": lambda: key(cli, Net()),
        "softmax over dim 0": lambda: key(cli, Net(axis=0)),
        "y - x": lambda: key(cli, Net(swapped=True)),
        "another batch": lambda: key(cli, Net(), torch.randn(5, 4)),
        "another width": lambda: key(cli, Net(width=9)),
        "half precision": lambda: key(cli, half, INPUT.half()),
        "a dynamic batch": lambda: key(cli, Net(), dynamic_shapes=batch),
        "a wider range": lambda: key(cli, Net(), dynamic_shapes=wider),
    }
    keys = {what: make() for what, make in variants.items()}
    assert len(set(keys.values())) == len(keys), keys


def test_c_2_tuning_counts(cli: Cli) -> None:
    program = archive(cli, Net(), (INPUT,))
    records = cli.path("records", ".json")
    untuned, tuned = compile_to(cli, program), compile_to(cli, program, "--tune", "fast")
    # Records are there only when an engine is built.
    saved = compile_to(cli, program, "--tune", "fast", "--save-tune-records", str(records))
    assert saved["cache"] == "off" and saved["tuning"]["measured"] == 0
    pinned = compile_to(cli, program, "--tune-records", str(records))
    assert len({facts["cache_key"] for facts in (untuned, tuned, pinned)}) == 3
    again = compile_to(cli, program, "--tune-records", str(records), "--no-cache")
    assert again["path"].read_bytes() == pinned["path"].read_bytes() == saved["path"].read_bytes()


def test_c_3_a_hit_takes_new_weights(cli: Cli) -> None:
    from safetensors.torch import save_file

    compile_to(cli, archive(cli, Net(seed=0), (INPUT,)))
    hit = compile_to(cli, archive(cli, Net(seed=1), (INPUT,)))
    assert hit["cache"] == "hit"
    weights = cli.path("weights", ".safetensors")
    other = Net(seed=2)
    save_file(other.state_dict(), weights)
    refitted, _ = cli.refit(hit["path"], weights)
    fresh = compile_to(cli, archive(cli, Net(seed=2), (INPUT,)), "--no-cache")
    outputs = [cli.run(engine, [INPUT.numpy()]) for engine in (refitted, fresh["path"])]
    assert all(np.array_equal(a, b) for a, b in zip(*outputs, strict=True))
    with torch.no_grad():
        assert_close(outputs[0], [other(INPUT).numpy()])
