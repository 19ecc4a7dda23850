"""Data types, memory formats and devices, under Torch-TensorRT's names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

__all__ = ["Device", "DeviceType", "EngineCapability", "dtype", "memory_format"]


class dtype(Enum):
    """A data type; ``value`` is PyTorch's.

    Example:
        >>> dtype.half.to(torch.dtype)
        torch.float16
    """

    unknown = None
    u8 = torch.uint8
    i8 = torch.int8
    i32 = torch.int32
    i64 = torch.int64
    f16 = torch.float16
    f32 = torch.float32
    f64 = torch.float64
    b = torch.bool
    bf16 = torch.bfloat16
    f8 = torch.float8_e4m3fn

    uint8 = u8
    int8 = i8
    int32 = i32
    long = i64
    int64 = i64
    half = f16
    fp16 = f16
    float16 = f16
    fp32 = f32
    float32 = f32
    double = f64
    fp64 = f64
    float64 = f64
    bfloat16 = bf16
    float8 = f8
    fp8 = f8
    bool = b
    int = i32
    float = f32

    def __eq__(self, other: object) -> bool:  # type: ignore[valid-type]
        # PyTorch's data types are the same things.
        if isinstance(other, torch.dtype):
            return bool(self.value == other)
        return self is other

    def __hash__(self) -> int:  # type: ignore[valid-type]
        return hash(self.value)

    def to(self, t: Any = torch.dtype, use_default: Any = False) -> torch.dtype:
        """PyTorch's data type; ``float32`` for an unknown one if ``use_default``.

        Raises:
            TypeError: for an unknown data type without ``use_default``, or when ``t`` is not ``torch.dtype``.
        """
        if t is not torch.dtype:
            raise TypeError(f"a data type is converted to torch.dtype only, not to {t!r}")
        if self.value is None and not use_default:
            raise TypeError("the data type is not known: give dtype=")
        return self.value or torch.float32

    @classmethod
    def of(cls, value: dtype | torch.dtype | None) -> dtype:
        """The member for a data type of either library, ``unknown`` for None.

        Raises:
            TypeError: for anything else.
        """
        try:
            return cls(value)
        except ValueError:
            raise TypeError(
                f"expected a torch.dtype or torch_tensorrt.dtype that Regraft knows, found {value!r}"
            ) from None


class memory_format(Enum):
    """The order of a tensor's elements in memory; ``value`` is PyTorch's."""

    contiguous = torch.contiguous_format
    channels_last = torch.channels_last
    channels_last_3d = torch.channels_last_3d
    linear = contiguous
    hwc = channels_last
    dhwc = channels_last_3d


class DeviceType(Enum):
    """Kinds of devices."""

    UNKNOWN = 0
    GPU = 1
    DLA = 2


class EngineCapability(Enum):
    """What a GPU engine may use; has no effect here."""

    STANDARD = "standard"
    SAFETY = "safety"
    DLA_STANDALONE = "dla_standalone"


@dataclass(frozen=True)
class Device:
    """A GPU, as code for Torch-TensorRT names it; on a machine without one engines run on the CPU.

    Example:
        >>> Device("cuda:1").gpu_id
        1
    """

    spec: str = ""
    gpu_id: int = -1
    dla_core: int = -1
    allow_gpu_fallback: bool = False

    def __post_init__(self) -> None:
        if not self.spec:
            return
        kind, _, number = self.spec.partition(":")
        if kind not in ("cuda", "gpu", "dla") or not (number or "0").isdigit():
            raise ValueError(f'Device({self.spec!r}): expected "cuda:N", "gpu:N" or "dla:N"')
        object.__setattr__(self, "dla_core" if kind == "dla" else "gpu_id", int(number or 0))

    @property
    def device_type(self) -> DeviceType:
        """The kind of device it names."""
        return DeviceType.DLA if self.dla_core >= 0 else DeviceType.GPU
