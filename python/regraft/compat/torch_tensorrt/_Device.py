"""Where Torch-TensorRT has its devices."""

from regraft.compat.torch_tensorrt.enums import Device

__all__ = ["Device"]
