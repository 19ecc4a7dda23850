"""Engine caches under the names of Torch-TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import regraft
import regraft.compat.torch_tensorrt as torch_tensorrt
from regraft.compat.torch_tensorrt.dynamo._engine_cache import BaseEngineCache
from test_compat import INPUTS, close, net


class InMemory(BaseEngineCache):
    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    def save(self, hash: str, blob: bytes, *args: Any, **kwargs: Any) -> None:
        self.entries[hash] = blob

    def load(self, hash: str, *args: Any, **kwargs: Any) -> bytes | None:
        return self.entries.get(hash)


def cached(module: Any) -> tuple[str, ...]:
    return module._compiled.cache


def test_a_custom_engine_cache() -> None:
    cache = InMemory()
    program, tuned = torch.export.export(net(0), tuple(INPUTS)), torch.export.export(net(1), tuple(INPUTS))
    compile = torch_tensorrt.dynamo.compile
    assert cached(compile(program, custom_engine_cache=cache)) == ("off",)
    assert cached(compile(program, custom_engine_cache=cache, reuse_cached_engines=True)) == ("built",)
    assert not cache.entries
    assert cached(compile(program, custom_engine_cache=cache, cache_built_engines=True)) == ("built",)
    assert len(cache.entries) == 1
    hit = compile(tuned, custom_engine_cache=cache, reuse_cached_engines=True)
    assert cached(hit) == ("hit",)
    close(hit(*INPUTS), net(1)(*INPUTS))
    both = {"cache_built_engines": True, "reuse_cached_engines": True, "custom_engine_cache": cache}
    assert cached(compile(program, **both)) == ("hit",)
    cache.entries = dict.fromkeys(cache.entries, b"no engine")
    with pytest.warns(RuntimeWarning, match="built again"):
        assert cached(compile(program, **both)) == ("built",)
    assert cached(compile(program, **both)) == ("hit",)
    with pytest.raises(TypeError, match="BaseEngineCache"):
        compile(program, **(both | {"custom_engine_cache": {}}))


def test_the_engine_cache_on_disk(tmp_path: Path) -> None:
    program = torch.export.export(net(0), tuple(INPUTS))
    settings = {
        "cache_built_engines": True,
        "reuse_cached_engines": True,
        "engine_cache_dir": str(tmp_path / "engines"),
        "engine_cache_size": 1 << 30,
    }
    assert cached(torch_tensorrt.dynamo.compile(program, **settings)) == ("built",)
    assert cached(torch_tensorrt.dynamo.compile(program, **settings)) == ("hit",)
    with pytest.warns(UserWarning, match="cache_built_engines=False"):
        torch_tensorrt.dynamo.compile(program, **(settings | {"cache_built_engines": False}))


def test_hashes_and_entries_of_caches() -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    programs = [torch.export.export(net(s), tuple(INPUTS), dynamic_shapes={"x": {0: batch}}) for s in (0, 1)]
    spec = torch_tensorrt.Input(min_shape=(1, 3, 16, 16), opt_shape=(2, 3, 16, 16), max_shape=(8, 3, 16, 16))
    other = torch_tensorrt.Input(min_shape=(1, 3, 16, 16), opt_shape=(2, 3, 16, 16), max_shape=(9, 3, 16, 16))
    settings = torch_tensorrt.dynamo.CompilationSettings()
    hashes = [BaseEngineCache.get_hash(p.module(), (spec,), settings) for p in programs]
    assert hashes[0] == hashes[1]
    assert hashes[0] != BaseEngineCache.get_hash(programs[0].module(), (other,), settings)
    frozen = torch_tensorrt.dynamo.CompilationSettings(immutable_weights=True)
    assert hashes[0] != BaseEngineCache.get_hash(programs[0].module(), (spec,), frozen)
    packed = BaseEngineCache.pack(b"engine", ["x"], {"a": 1})
    assert BaseEngineCache.unpack(packed) == (b"engine", ["x"], {"a": 1})
    deep, mapping = b"[" * 100_000, b'{"a": 1}'
    hostile = (len(text).to_bytes(8, "little") + text for text in (deep, mapping))
    for damaged in (b"", packed[:10], b"\xff" * 20, *hostile):
        with pytest.raises(regraft.EngineFileError, match="damaged"):
            BaseEngineCache.unpack(damaged)

    cache = InMemory()
    assert cache.check(hashes[0]) is None
    cache.insert(hashes[0], (b"engine", ["x"]))
    assert cache.check(hashes[0]) == (b"engine", ["x"])
