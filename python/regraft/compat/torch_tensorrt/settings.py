"""The compilation settings of Torch-TensorRT: what each is here."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from typing import Any

import torch

from regraft.compat.torch_tensorrt.cache import engine_cache_of
from regraft.compat.torch_tensorrt.enums import Device, EngineCapability, dtype
from regraft.errors import SettingsWarning

__all__ = [
    "CompilationSettings",
    "Role",
    "for_mutable",
    "for_torch_compile",
    "from_regraft",
    "gathered",
    "report_without_effect",
    "settings_are_compatible",
    "to_regraft",
]


class Role(Enum):
    """What becomes of a setting."""

    HONOURED = auto()
    GPU = auto()
    """About GPUs, TensorRT or the way Torch-TensorRT compiles: without effect."""
    PRECISION = auto()
    """About arithmetic in another precision: without effect, the model's own precision is kept."""
    FORMER = auto()
    """A former name of ``immutable_weights``, with the opposite meaning."""


# What callers give to whichever function they call, with the values that mean what is done anyway.
_FOR_CALLERS: dict[str, tuple[Any, ...]] = {
    "ir": ("default", "dynamo", "torch_compile", "exported_program"),
    "strict": (False, True),
    "allow_complex_dtypes": (False, True),
}
# Names that immutable_weights had, with the opposite meaning.
_FORMER = frozenset({"make_refittable", "make_refitable", "refit"})


_HONOURED = {"role": Role.HONOURED}
_GPU = {"role": Role.GPU}
_PRECISION = {"role": Role.PRECISION}
_FORMER_NAME = {"role": Role.FORMER}


@dataclass(kw_only=True)
class CompilationSettings:
    """All settings, with Torch-TensorRT's defaults but for two.

    ``immutable_weights`` is False: an engine that can be refitted is as fast here as one that cannot. The
    engine cache is Regraft's own, with its limit, unless ``engine_cache_dir`` and ``engine_cache_size`` say
    otherwise.
    """

    # What is compiled, and what stays in PyTorch.
    min_block_size: int = field(default=5, metadata=_HONOURED)
    torch_executed_ops: Collection[Any] = field(default=(), metadata=_HONOURED)
    require_full_compilation: bool = field(default=False, metadata=_HONOURED)
    dryrun: bool | str = field(default=False, metadata=_HONOURED)
    # Levels up to 3 take kernels by rule, 4 and 5 measure them.
    optimization_level: int | None = field(default=None, metadata=_HONOURED)
    # What can be done with the weights.
    immutable_weights: bool = field(default=False, metadata=_HONOURED)
    strip_engine_weights: bool = field(default=False, metadata=_HONOURED)
    refit_identical_engine_weights: bool = field(default=False, metadata=_HONOURED)
    # The engine cache.
    cache_built_engines: bool = field(default=False, metadata=_HONOURED)
    reuse_cached_engines: bool = field(default=False, metadata=_HONOURED)
    engine_cache_dir: str | os.PathLike[str] | None = field(default=None, metadata=_HONOURED)
    engine_cache_size: int | None = field(default=None, metadata=_HONOURED)
    custom_engine_cache: Any = field(default=None, metadata=_HONOURED)
    # Former names.
    make_refittable: bool | None = field(default=None, metadata=_FORMER_NAME)
    make_refitable: bool | None = field(default=None, metadata=_FORMER_NAME)
    refit: bool | None = field(default=None, metadata=_FORMER_NAME)

    enabled_precisions: Collection[torch.dtype | dtype] = field(
        default=(torch.float32, dtype.f32), metadata=_PRECISION
    )
    disable_tf32: bool = field(default=False, metadata=_GPU)
    truncate_double: bool = field(default=False, metadata=_PRECISION)
    truncate_long_and_double: bool = field(default=False, metadata=_PRECISION)
    use_fp32_acc: bool = field(default=False, metadata=_PRECISION)
    use_explicit_typing: bool = field(default=True, metadata=_GPU)
    enable_autocast: bool = field(default=False, metadata=_PRECISION)
    autocast_low_precision_type: torch.dtype | dtype | None = field(default=None, metadata=_PRECISION)
    autocast_excluded_nodes: Collection[str] = field(default=(), metadata=_PRECISION)
    autocast_excluded_ops: Collection[Any] = field(default=(), metadata=_PRECISION)
    autocast_max_output_threshold: float = field(default=512, metadata=_PRECISION)
    autocast_max_depth_of_reduction: int | None = field(default=None, metadata=_PRECISION)
    autocast_calibration_dataloader: Any = field(default=None, metadata=_PRECISION)

    device: Any = field(default=None, metadata=_GPU)
    workspace_size: int = field(default=0, metadata=_GPU)
    max_aux_streams: int | None = field(default=None, metadata=_GPU)
    version_compatible: bool = field(default=False, metadata=_GPU)
    hardware_compatible: bool = field(default=False, metadata=_GPU)
    sparse_weights: bool = field(default=False, metadata=_GPU)
    engine_capability: EngineCapability = field(default=EngineCapability.STANDARD, metadata=_GPU)
    num_avg_timing_iters: int = field(default=1, metadata=_GPU)
    timing_cache_path: str | None = field(default=None, metadata=_GPU)
    tiling_optimization_level: str = field(default="none", metadata=_GPU)
    l2_limit_for_tiling: int = field(default=-1, metadata=_GPU)
    dla_sram_size: int = field(default=1048576, metadata=_GPU)
    dla_local_dram_size: int = field(default=1073741824, metadata=_GPU)
    dla_global_dram_size: int = field(default=536870912, metadata=_GPU)
    lazy_engine_init: bool = field(default=False, metadata=_GPU)
    enable_weight_streaming: bool = field(default=False, metadata=_GPU)
    weight_streaming_budget: int | None = field(default=None, metadata=_GPU)
    offload_module_to_cpu: bool = field(default=False, metadata=_GPU)
    dynamically_allocate_resources: bool = field(default=False, metadata=_GPU)
    enable_resource_partitioning: bool = field(default=False, metadata=_GPU)
    cpu_memory_budget: int | None = field(default=None, metadata=_GPU)
    enable_cross_compile_for_windows: bool = field(default=False, metadata=_GPU)
    use_distributed_mode_trace: bool = field(default=False, metadata=_GPU)
    use_python_runtime: bool | None = field(default=False, metadata=_GPU)
    pass_through_build_failures: bool = field(default=False, metadata=_GPU)
    allow_complex_guards_as_runtime_asserts: bool = field(default=False, metadata=_GPU)
    prefer_deferred_runtime_asserts_over_guards: bool = field(default=False, metadata=_GPU)
    use_fast_partitioner: bool = field(default=True, metadata=_GPU)
    use_complex_decomposition: bool = field(default=True, metadata=_GPU)
    enable_experimental_decompositions: bool = field(default=False, metadata=_GPU)
    assume_dynamic_shape_support: bool = field(default=False, metadata=_GPU)
    decompose_attention: bool = field(default=False, metadata=_GPU)
    attn_bias_is_causal: bool = field(default=True, metadata=_GPU)
    fallback_data_dependent_ops: bool = field(default=False, metadata=_GPU)
    disabled_constant_fold_exclusions: Collection[str] = field(default=(), metadata=_GPU)
    torch_executed_modules: Collection[str] = field(default=(), metadata=_GPU)
    debug: bool = field(default=False, metadata=_GPU)

    def __post_init__(self) -> None:
        for former in _FORMER:
            value = getattr(self, former)
            if value is None:
                continue
            if value and self.immutable_weights:
                raise ValueError(f"{former}=True contradicts immutable_weights=True")
            self.immutable_weights = not value
            setattr(self, former, None)
        if self.immutable_weights and self.refit_identical_engine_weights:
            raise ValueError("refit_identical_engine_weights=True needs immutable_weights=False")

    def without_effect(self) -> dict[Role, list[str]]:
        """Names of the settings that differ from their defaults and change nothing."""
        found: dict[Role, list[str]] = {Role.GPU: [], Role.PRECISION: []}
        for about in fields(self):
            role = about.metadata["role"]
            if about.name == "device" and device_of(self) is not None:
                continue
            if role in found and _asks_for_something(getattr(self, about.name), about.default):
                found[role].append(about.name)
        if self.reuse_cached_engines and not self.cache_built_engines and self.custom_engine_cache is None:
            found[Role.GPU].append(
                "cache_built_engines=False (the cache on disk stores what it does not have)"
            )
        return found


def gathered(
    config: CompilationSettings | Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> CompilationSettings:
    """The settings of ``config=`` and of keywords, which win.

    Raises:
        TypeError: with every name that is not a setting.
        ValueError: when settings contradict each other.
    """
    known = {about.name for about in fields(CompilationSettings)}
    given = dict(vars(config)) if isinstance(config, CompilationSettings) else dict(config or {})
    if not _FORMER.isdisjoint(settings):
        given.pop("immutable_weights", None)
    given.update(settings)
    for name, values in _FOR_CALLERS.items():
        if given.pop(name, values[0]) not in values:
            raise ValueError(f"{name}={settings.get(name)!r}: expected one of {', '.join(map(repr, values))}")
    unknown = [name for name in given if name not in known]
    if unknown:
        lines = []
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=1)
            lines.append(f"  {name}" + (f"; did you mean {near[0]}?" if near else ""))
        raise TypeError("Torch-TensorRT has no such settings\n" + "\n".join(lines))
    return CompilationSettings(**given)


# Settings that decide what an engine is: one that was built with others is another engine.
_OF_ENGINES = (
    "immutable_weights",
    "min_block_size",
    "optimization_level",
    "refit_identical_engine_weights",
    "require_full_compilation",
    "strip_engine_weights",
    "torch_executed_ops",
)


def settings_are_compatible(set_a: CompilationSettings, set_b: CompilationSettings) -> tuple[bool, set[str]]:
    """Whether an engine that was built with one can be used with the other, and which settings speak against
    it.
    """

    def of(settings: CompilationSettings, name: str) -> Any:
        value = getattr(settings, name)
        return sorted(map(str, value)) if name == "torch_executed_ops" else value

    other = {name for name in _OF_ENGINES if of(set_a, name) != of(set_b, name)}
    return not other, other


def report_without_effect(
    settings: CompilationSettings, stacklevel: int = 2, *, is_live: bool = False
) -> None:
    """One warning that names all settings that were given and change nothing; none if there are none.
    ``is_live``: the weights of ``torch.compile``.
    """
    found = settings.without_effect()
    if is_live:
        names = ("strip_engine_weights", "refit_identical_engine_weights")
        found[Role.GPU] += [
            f"{name} (weights of torch.compile stay live)" for name in names if getattr(settings, name)
        ]
    parts = []
    if found[Role.GPU]:
        parts.append(f"without effect here: {', '.join(found[Role.GPU])}")
    if found[Role.PRECISION]:
        parts.append(
            f"weights and arithmetic keep the precision of the model, whatever these say: "
            f"{', '.join(found[Role.PRECISION])}"
        )
    if parts:
        warnings.warn(
            "regraft.compat.torch_tensorrt: " + "; ".join(parts), SettingsWarning, stacklevel=stacklevel + 1
        )


def to_regraft(settings: CompilationSettings) -> dict[str, Any]:
    """Keyword arguments of :func:`regraft.compile` that mean the same."""
    level = settings.optimization_level or 0
    mode = "stripped" if settings.strip_engine_weights else "refittable"
    return {
        # Torch-TensorRT ignores strip_engine_weights for engines that cannot be refitted.
        "mode": "frozen" if settings.immutable_weights else mode,
        "identical": settings.refit_identical_engine_weights,
        "require_full_compilation": settings.require_full_compilation,
        "min_block_size": settings.min_block_size,
        "torch_executed_ops": [name for op in settings.torch_executed_ops for name in _names_of(op)],
        "engine_cache": engine_cache_of(
            settings.custom_engine_cache,
            folder=settings.engine_cache_dir,
            limit=settings.engine_cache_size,
            stores=settings.cache_built_engines,
            reads=settings.reuse_cached_engines,
        ),
        "tune": "full" if level >= 5 else "fast" if level == 4 else "off",
        "device": device_of(settings),
    }


def from_regraft(settings: Mapping[str, Any]) -> CompilationSettings:
    """The settings of a compiled module under Torch-TensorRT's names."""
    same = ("min_block_size", "torch_executed_ops", "require_full_compilation")
    chosen = {name: settings[name] for name in same if name in settings}
    chosen["torch_executed_ops"] = tuple(chosen.get("torch_executed_ops", ()))
    levels = {"fast": 4, "full": 5}
    return CompilationSettings(
        immutable_weights=settings.get("mode") == "frozen",
        strip_engine_weights=settings.get("mode") == "stripped",
        refit_identical_engine_weights=settings.get("identical", False),
        optimization_level=levels.get(settings.get("tune", "off")),
        **chosen,
    )


def device_of(settings: CompilationSettings) -> str | None:
    """The device that is asked for, as :func:`regraft.compile` takes it; ``None`` when none is, or a GPU on
    a machine without one, where engines run on the CPU.
    """
    device = settings.device
    if isinstance(device, Device) and device.dla_core >= 0:
        # There is none: the warning comes where the module is compiled.
        return f"dla:{device.dla_core}"
    if isinstance(device, Device) and device.spec != "cpu":
        device = f"cuda:{device.gpu_id}" if device.gpu_id >= 0 else None
    elif isinstance(device, Device):
        device = device.spec
    elif isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    if device is None:
        return None
    name = str(device).replace("gpu", "cuda")
    return None if name.startswith("cuda") and not torch.cuda.is_available() else name


def for_mutable(settings: CompilationSettings) -> dict[str, Any]:
    """Keyword arguments of :class:`regraft.MutableModule` that mean the same.

    Raises:
        ValueError: for settings of modules that cannot follow their original.
    """
    modes = ("immutable_weights", "strip_engine_weights", "refit_identical_engine_weights", "dryrun")
    for name in modes:
        if getattr(settings, name):
            raise ValueError(f"{name}: the module has weights and is refitted when they change: leave it out")
    wanted = to_regraft(settings)
    for name in ("mode", "identical"):
        del wanted[name]
    return wanted


def for_torch_compile(settings: CompilationSettings) -> dict[str, Any]:
    """Options of ``torch.compile(backend="regraft")`` that mean the same. As with Torch-TensorRT, results
    require no gradient, and ``strip_engine_weights`` is not for it: weights stay live, and so are those of
    ``refit_identical_engine_weights``.

    Raises:
        ValueError: for settings of modules that cannot follow their original.
    """
    live = replace(settings, strip_engine_weights=False, refit_identical_engine_weights=False)
    return {**for_mutable(live), "autograd": "ignore"}


def _names_of(op: Any) -> list[str]:
    """``aten.relu.default`` for an operator or its name; all overloads of a packet."""
    if isinstance(op, torch._ops.OpOverloadPacket):
        overloads: list[str] = op.overloads()  # type: ignore[no-untyped-call]
        return [f"{op}.{overload}" for overload in overloads]
    return [str(op).removeprefix("torch.ops.")]


def _asks_for_something(value: Any, default: Any) -> bool:
    """Whether a setting that has no effect was set to anything that it would have had one with."""
    if isinstance(value, Collection) and not isinstance(value, str):
        return not set(value) <= set(default)
    if isinstance(value, (torch.device, str)):
        return str(value) not in ("cpu", str(default))
    return value is not None and value != default
