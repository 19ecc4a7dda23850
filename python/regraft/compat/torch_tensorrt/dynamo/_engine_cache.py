"""Where Torch-TensorRT has its engine cache."""

from typing import Any

from regraft.compat.torch_tensorrt.cache import BaseEngineCache, DiskEngineCache

__all__ = ["BaseEngineCache", "DiskEngineCache", "UnpackedCacheHit"]

UnpackedCacheHit = tuple[Any, ...]
"""An engine with facts about it, as ``BaseEngineCache.unpack`` gives it."""
