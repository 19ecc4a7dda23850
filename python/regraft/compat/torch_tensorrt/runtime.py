"""``torch_tensorrt.runtime``: what is about GPUs is accepted and changes nothing, with one warning for
each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from regraft.checks import warn
from regraft.compat.torch_tensorrt.absent import absent
from regraft.errors import SettingsWarning

__all__ = [
    "RuntimeSettings",
    "enable_cudagraphs",
    "enable_output_allocator",
    "enable_pre_allocated_outputs",
    "get_cudagraphs_mode",
    "get_whole_cudagraphs_mode",
    "optimization_profile",
    "runtime_cache",
    "runtime_config",
    "set_cudagraphs_mode",
    "set_dynamic_shapes_kernel_strategy",
    "set_multi_device_safe_mode",
    "weight_streaming",
]

__getattr__ = absent(
    __name__,
    {
        "TorchTensorRTModule": "compiled modules are CompiledModule, with Engine for each engine",
        "RuntimeCache": "kernels that were compiled for a GPU are kept by themselves: leave it out",
    },
)

_warned: set[str] = set()
_modes = {"cudagraphs": False}


def _say(name: str) -> None:
    if name not in _warned:
        _warned.add(name)
        warn(
            SettingsWarning,
            f"compat.torch_tensorrt: runtime.{name} is about how TensorRT runs, and engines do that in their "
            "own way: leave it out",
        )


def set_cudagraphs_mode(mode: bool) -> None:
    """Without effect on the CPU."""
    _say("set_cudagraphs_mode")
    _modes["cudagraphs"] = bool(mode)


def get_cudagraphs_mode() -> bool:
    """What was set."""
    return _modes["cudagraphs"]


def get_whole_cudagraphs_mode() -> bool:
    """What was set."""
    return _modes["cudagraphs"]


@contextlib.contextmanager
def enable_cudagraphs(compiled_module: Any, cuda_graph_strategy: str | None = None) -> Iterator[Any]:
    """The module itself: without effect on the CPU."""
    _say("enable_cudagraphs")
    yield compiled_module


@contextlib.contextmanager
def set_multi_device_safe_mode(mode: bool = True) -> Iterator[None]:
    """Without effect on the CPU."""
    _say("set_multi_device_safe_mode")
    yield


@contextlib.contextmanager
def enable_pre_allocated_outputs(module: Any) -> Iterator[Any]:
    """The module itself: results own their memory here."""
    _say("enable_pre_allocated_outputs")
    yield module


@contextlib.contextmanager
def enable_output_allocator(module: Any) -> Iterator[Any]:
    """The module itself: results own their memory here."""
    _say("enable_output_allocator")
    yield module


@dataclass(frozen=True)
class RuntimeSettings:
    """How TensorRT is to run; engines of Regraft run in their own way."""

    dynamic_shapes_kernel_specialization_strategy: str = "lazy"
    cuda_graph_strategy: str = "disabled"
    runtime_cache: Any = None

    def merge(self, **overrides: Any) -> RuntimeSettings:
        """The same settings but for these."""
        return replace(self, **overrides)


@contextlib.contextmanager
def runtime_config(
    target_or_targets: Any, settings: RuntimeSettings | None = None, **overrides: Any
) -> Iterator[Any]:
    """The module itself: without effect."""
    (settings or RuntimeSettings()).merge(**overrides)
    _say("runtime_config")
    yield target_or_targets


@contextlib.contextmanager
def runtime_cache(target_or_targets: Any, path: Any = None, *, autosave: bool = True) -> Iterator[None]:
    """Without effect: kernels that were compiled for a GPU are kept by themselves."""
    _say("runtime_cache")
    yield


@contextlib.contextmanager
def set_dynamic_shapes_kernel_strategy(target_or_targets: Any, strategy: str = "lazy") -> Iterator[Any]:
    """The module itself: one engine serves the whole range of its sizes."""
    _say("set_dynamic_shapes_kernel_strategy")
    yield target_or_targets


@contextlib.contextmanager
def optimization_profile(module: Any, profile: Any = None) -> Iterator[Any]:
    """The module itself: one engine serves the whole range of its sizes."""
    _say("optimization_profile")
    yield module


@contextlib.contextmanager
def weight_streaming(module: Any) -> Iterator[_Streaming]:
    """Weights are in the memory that engines run in: without effect on the CPU."""
    _say("weight_streaming")
    yield _Streaming(module)


class _Streaming:
    def __init__(self, module: Any) -> None:
        total = module.memory()["slots"] if hasattr(module, "memory") else 0
        self.total_device_budget = total
        self.device_budget = total

    def get_automatic_weight_streaming_budget(self) -> int:
        """All of it."""
        return int(self.total_device_budget)
