"""Where Torch-TensorRT has its settings."""

from regraft.compat.torch_tensorrt.settings import CompilationSettings

__all__ = ["CompilationSettings"]
