"""Where Torch-TensorRT has its enumerations."""

from regraft.compat.torch_tensorrt.enums import DeviceType, EngineCapability, dtype, memory_format

__all__ = ["DeviceType", "EngineCapability", "dtype", "memory_format"]
