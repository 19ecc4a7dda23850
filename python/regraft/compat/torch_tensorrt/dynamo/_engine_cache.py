"""Where Torch-TensorRT has its engine cache."""

from regraft.compat.torch_tensorrt.cache import BaseEngineCache, DiskEngineCache

__all__ = ["BaseEngineCache", "DiskEngineCache"]
