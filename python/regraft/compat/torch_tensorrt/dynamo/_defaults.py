"""Where Torch-TensorRT has its defaults."""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields
from typing import Any

from regraft.compat.torch_tensorrt.enums import Device, dtype
from regraft.compat.torch_tensorrt.settings import CompilationSettings

__all__ = [
    "CUDA_GRAPH_STRATEGY",
    "DEBUG_LOGGING_DIR",
    "DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGY",
    "RUNTIME_CACHE_PATH",
    "SUPPORTED_KERNEL_PRECISIONS",
    "TIMING_CACHE_PATH",
    "current_user",
    "default_device",
]

TIMING_CACHE_PATH = os.path.join(tempfile.gettempdir(), "torch_tensorrt_engine_cache", "timing_cache.bin")
"""Of TensorRT: tuning keeps its records beside the engine cache."""
SUPPORTED_KERNEL_PRECISIONS = {dtype.f32, dtype.f16, dtype.bf16, dtype.i8}
CUDA_GRAPH_STRATEGY = "disabled"
DYNAMIC_SHAPES_KERNEL_SPECIALIZATION_STRATEGY = "lazy"
current_user = str(os.getuid()) if hasattr(os, "getuid") else "user"
DEBUG_LOGGING_DIR = os.path.join(tempfile.gettempdir(), f"torch_tensorrt_{current_user}", "debug_logs")
RUNTIME_CACHE_PATH = os.path.join(
    tempfile.gettempdir(), f"torch_tensorrt_{current_user}", "runtime_cache.bin"
)


def default_device() -> Device:
    """The first GPU, where there is one."""
    return Device(gpu_id=0)


def __getattr__(name: str) -> Any:
    """The default of a setting, by its name in capitals."""
    found = [about.default for about in fields(CompilationSettings) if about.name.upper() == name]
    if not found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[0]
