"""``torch_tensorrt.dynamo.runtime``."""

from regraft.compat.torch_tensorrt.dynamo._mutable import MutableTorchTensorRTModule

__all__ = ["MutableTorchTensorRTModule"]
