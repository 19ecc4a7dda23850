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
    f4 = torch.float4_e2m1fn_x2

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
    float4 = f4
    fp4 = f4
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

    def try_to(self, t: Any, use_default: Any = False) -> torch.dtype | None:
        """As :meth:`to`; ``None`` instead of an error."""
        try:
            return self.to(t, use_default)
        except TypeError:
            return None

    @classmethod
    def try_from(cls, t: Any, use_default: Any = False) -> dtype | None:
        """As :meth:`of`; ``None`` instead of an error, or ``f32`` if ``use_default``."""
        try:
            return cls.of(t)
        except TypeError:
            return cls.f32 if use_default else None

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


class _OfTensorRT(Enum):
    """Members that TensorRT has, too, which is not used here."""

    def to(self, t: type, use_default: bool = False) -> Any:
        """The member itself.

        Raises:
            TypeError: for a type of another library.
        """
        if t is not type(self):
            raise TypeError(f"{self}: TensorRT is not used here, so there is no {t!r} to convert it to")
        return self

    def try_to(self, t: type, use_default: bool = False) -> Any:
        """As :meth:`to`; ``None`` instead of an error."""
        return self if t is type(self) else None

    @classmethod
    def try_from(cls, value: Any, use_default: bool = False) -> Any:
        """The member for a value, ``None`` when there is none."""
        try:
            return cls(value)
        except ValueError:
            return None


class memory_format(_OfTensorRT):
    """The order of a tensor's elements in memory; ``value`` is PyTorch's. The last ones are TensorRT's alone,
    which no input can have here.
    """

    contiguous = torch.contiguous_format
    channels_last = torch.channels_last
    channels_last_3d = torch.channels_last_3d
    linear = contiguous
    hwc = channels_last
    dhwc = channels_last_3d
    cdhw32 = "cdhw32"
    chw2 = "chw2"
    chw4 = "chw4"
    chw16 = "chw16"
    chw32 = "chw32"
    dhwc8 = "dhwc8"
    dla_hwc4 = "dla_hwc4"
    dla_linear = "dla_linear"
    hwc8 = "hwc8"
    hwc16 = "hwc16"

    def to(self, t: Any = torch.memory_format, use_default: bool = False) -> Any:
        """PyTorch's.

        Raises:
            TypeError: for one of TensorRT's alone, and another type than ``torch.memory_format``.
        """
        if t is not torch.memory_format or not isinstance(self.value, torch.memory_format):
            return super().to(t)
        return self.value

    def try_to(self, t: Any, use_default: bool = False) -> Any:
        """As :meth:`to`; ``None`` instead of an error."""
        try:
            return self.to(t)
        except TypeError:
            return None


class DeviceType(_OfTensorRT):
    """Kinds of devices."""

    UNKNOWN = 0
    GPU = 1
    DLA = 2


class EngineCapability(_OfTensorRT):
    """What a GPU engine may use; has no effect here."""

    STANDARD = "standard"
    SAFETY = "safety"
    DLA_STANDALONE = "dla_standalone"


@dataclass(frozen=True)
class Device:
    """A GPU, as code for Torch-TensorRT names it; on a machine without one engines run on the CPU. Or
    ``"cpu"``, which is not a device there.

    Example:
        >>> Device("cuda:1").gpu_id
        1
        >>> Device("cpu").to(torch.device)
        device(type='cpu')
    """

    spec: str = ""
    gpu_id: int = -1
    dla_core: int = -1
    allow_gpu_fallback: bool = False

    def __post_init__(self) -> None:
        if not self.spec or self.spec == "cpu":
            return
        kind, _, number = self.spec.partition(":")
        if kind not in ("cuda", "gpu", "dla") or not (number or "0").isdigit():
            raise ValueError(f'Device({self.spec!r}): expected "cuda:N", "gpu:N", "dla:N" or "cpu"')
        object.__setattr__(self, "dla_core" if kind == "dla" else "gpu_id", int(number or 0))

    def to(self, t: type = torch.device) -> torch.device:
        """PyTorch's name of it.

        Raises:
            TypeError: when ``t`` is not ``torch.device``.
            ValueError: for an accelerator that PyTorch does not know.
        """
        if t is not torch.device:
            raise TypeError(f"a device is converted to torch.device only, not to {t!r}")
        if self.spec == "cpu":
            return torch.device("cpu")
        if self.gpu_id < 0:
            raise ValueError("the device is not a GPU")
        return torch.device("cuda", self.gpu_id)

    @property
    def device_type(self) -> DeviceType:
        """The kind of device it names; unknown for the CPU."""
        if self.spec == "cpu":
            return DeviceType.UNKNOWN
        return DeviceType.DLA if self.dla_core >= 0 else DeviceType.GPU
