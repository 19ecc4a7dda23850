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
from regraft.compat.torch_tensorrt.engine import TorchTensorRTModule
from regraft.errors import SettingsWarning
from regraft.module import Module

__all__ = [
    "RuntimeSettings",
    "TorchTensorRTModule",
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


class _Outputs:
    """A context that gives the module itself, with the switches that Torch-TensorRT's has."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __enter__(self) -> Any:
        return self._module

    def __exit__(self, *error: object) -> None:
        pass

    def set_pre_allocated_output(self, enable: bool) -> None:
        """Without effect."""

    def set_output_allocator_output(self, enable: bool) -> None:
        """Without effect."""


def enable_pre_allocated_outputs(module: Any) -> _Outputs:
    """A context that gives the module itself: results own their memory here."""
    _say("enable_pre_allocated_outputs")
    return _Outputs(module)


def enable_output_allocator(module: Any) -> _Outputs:
    """A context that gives the module itself: results own their memory here."""
    _say("enable_output_allocator")
    return _Outputs(module)


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


class weight_streaming:
    """Weights are in the memory that engines run in, all of them: budgets are kept, and change nothing.

    Example:
        >>> with weight_streaming(module) as context:  # doctest: +SKIP
        ...     context.device_budget = context.total_device_budget // 2
    """

    def __init__(self, module: Any) -> None:
        _say("weight_streaming")
        self.total_device_budget: int = module.memory()["slots"] if isinstance(module, Module) else 0
        self._budget = self.total_device_budget

    @property
    def device_budget(self) -> int:
        """What was set, at most all of it."""
        return self._budget

    @device_budget.setter
    def device_budget(self, budget: int) -> None:
        if budget < 0:
            raise RuntimeError(f"device_budget: expected a number of bytes, found {budget}")
        self._budget = min(budget, self.total_device_budget)

    def get_automatic_weight_streaming_budget(self) -> int:
        """All of it."""
        return self.total_device_budget

    def __enter__(self) -> weight_streaming:
        return self

    def __exit__(self, *error: object) -> None:
        self._budget = self.total_device_budget
