"""Where Torch-TensorRT has its settings."""

from regraft.compat.torch_tensorrt.settings import CompilationSettings, settings_are_compatible

__all__ = ["CompilationSettings", "settings_are_compatible"]
