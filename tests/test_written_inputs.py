"""Programs that write to their inputs, compiled by the command: the new values are outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comparing import assert_close, assert_same
from conftest import Cli
from small import compile_model, numbers, save_program, seeded


class Cached(nn.Module):
    """Puts a row into a cache through a view, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor, calls: Tensor) -> Tensor:
        cache[1:].copy_(cache[:-1].clone())
        cache[0] = self.fc(x)
        calls += 1
        return cache.sum(0) * calls


@pytest.mark.parametrize("decompose", [False, True], ids=["exported", "decomposed"])
def test_new_values_are_outputs_and_go_round(cli: Cli, decompose: bool) -> None:
    inputs = (numbers(4), torch.zeros(3, 4), torch.zeros(1))
    model, tuned = seeded(Cached, 0), seeded(Cached, 1)
    engine = compile_model(cli, model, inputs, decompose=decompose)
    weights = save_program(cli, tuned, inputs, decompose=decompose)
    outputs = [output["name"] for output in cli.inspect(engine)["outputs"]]
    assert outputs == ["output", "cache.new", "calls.new"]

    refitted, _ = cli.refit(engine, weights)
    for net, file in ((model, engine), (tuned, refitted)):
        cache, calls = torch.zeros(3, 4), torch.zeros(1)
        feeds: dict[str, np.ndarray] = {
            "cache": np.zeros((3, 4), np.float32),
            "calls": np.zeros(1, np.float32),
        }
        for step in range(3):
            x = numbers(4, seed=step)
            with torch.no_grad():
                wanted = net(x, cache, calls)
            found = cli.run(file, {"x": x.numpy(), **feeds})
            assert_close(found, [wanted.numpy(), cache.numpy(), calls.numpy()])
            feeds = {"cache": found[1], "calls": found[2]}
    again = cli.run(cli.compile(weights), {"x": numbers(4).numpy(), **feeds})
    assert_same(cli.run(refitted, {"x": numbers(4).numpy(), **feeds}), again)
