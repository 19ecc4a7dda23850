"""Where Torch-TensorRT has its backend of ``torch.compile``."""

from regraft.compat.torch_tensorrt.dynamo.backend import backends
from regraft.compat.torch_tensorrt.dynamo.backend.backends import torch_tensorrt_backend

__all__ = ["backends", "torch_tensorrt_backend"]
