"""Where Torch-TensorRT has its defaults."""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields
from typing import Any

from regraft.compat.torch_tensorrt.settings import CompilationSettings

__all__ = ["TIMING_CACHE_PATH"]

TIMING_CACHE_PATH = os.path.join(tempfile.gettempdir(), "torch_tensorrt_engine_cache", "timing_cache.bin")
"""Of TensorRT: tuning keeps its records beside the engine cache."""


def __getattr__(name: str) -> Any:
    """The default of a setting, by its name in capitals."""
    found = [about.default for about in fields(CompilationSettings) if about.name.upper() == name]
    if not found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[0]
