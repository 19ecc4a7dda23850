"""Where Torch-TensorRT has its inputs."""

from regraft.compat.torch_tensorrt.input import Input

__all__ = ["Input"]
