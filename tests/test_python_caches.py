"""Caches of engines that the package is given: scenarios C-3, C-6 and C-7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_same
from module_checks import assert_agrees, called
from refit_checks import net, results_of_second
from small import Shelf, seeded, uncompiled
from test_source_kinds import X
from test_sources import TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_c_3_a_hit_is_a_fresh_build_with_its_own_weights() -> None:
    shelf = Shelf()
    first = regraft.compile(net(0), TOKENS, engine_cache=shelf)
    assert len(shelf.entries) == 1 and first._compiled.cache == ("built",)
    second = regraft.compile(net(1), TOKENS, engine_cache=shelf)
    assert second._compiled.cache == ("hit",)
    assert_same(called(second, TOKENS), results_of_second())
    second.refit(net(0).state_dict())
    assert_same(called(second, TOKENS), called(first, TOKENS))


class Cut(nn.Module):
    """Two engines with an operator between that stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(uncompiled(torch.relu(self.first(x))).tanh())


@pytest.mark.parametrize("kind", ["object", "disk"])
def test_c_7_each_engine_of_a_module_is_cached(kind: str, tmp_path: Path) -> None:
    cache: Any = Shelf() if kind == "object" else regraft.DiskCache(tmp_path / "engines", 1_000_000_000)
    first = regraft.compile(seeded(Cut, 0), X, min_block_size=1, engine_cache=cache)
    assert first._compiled.cache == ("built", "built")
    second = regraft.compile(seeded(Cut, 1), X, min_block_size=1, engine_cache=cache)
    assert second._compiled.cache == ("hit", "hit")
    assert_agrees(second, seeded(Cut, 1), X)
    assert_same(called(second, X), called(regraft.compile(seeded(Cut, 1), X, min_block_size=1), X))
    if isinstance(cache, Shelf):
        assert len(cache.entries) == 2
        assert len(cache.asked) == 4


def test_c_6_damaged_entries_of_a_cache_are_misses() -> None:
    shelf = Shelf()
    regraft.compile(net(0), TOKENS, engine_cache=shelf)
    [(key, entry)] = shelf.entries.items()
    expected = called(regraft.compile(net(1), TOKENS), TOKENS)
    places = np.random.default_rng(0).integers(0, len(entry), 12)
    for damaged in [b"", entry[: len(entry) // 2], *(flipped(entry, int(place)) for place in places)]:
        shelf.entries[key] = damaged
        with pytest.warns(RuntimeWarning, match="built again"):
            module = regraft.compile(net(1), TOKENS, engine_cache=shelf)
        assert_same(called(module, TOKENS), expected)


def flipped(entry: bytes, place: int) -> bytes:
    return entry[:place] + bytes([entry[place] ^ 4]) + entry[place + 1 :]


@pytest.mark.parametrize("failing", ["get", "put"])
def test_c_7_a_failing_cache_object_is_a_warning(failing: str) -> None:
    class Failing(Shelf):
        def get(self, key: str) -> Any:
            return 1 / 0 if failing == "get" else None

        def put(self, key: str, entry: bytes) -> None:
            if failing == "put":
                raise OSError("the shelf is full")

    with pytest.warns(RuntimeWarning, match="ZeroDivisionError" if failing == "get" else "full"):
        module = regraft.compile(net(0), TOKENS, engine_cache=Failing())
    assert_agrees(module, net(0), TOKENS)


def test_c_7_what_is_no_cache_is_refused() -> None:
    for cache in ("folder", object(), 7):
        with pytest.raises(regraft.CompileError, match="get, put and remove"):
            regraft.compile(net(0), TOKENS, engine_cache=cache)
