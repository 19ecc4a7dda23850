"""Where Torch-TensorRT has its mutable module."""

from regraft.compat.torch_tensorrt.dynamo._mutable import MutableTorchTensorRTModule, RefitFlag, RefitState

__all__ = ["MutableTorchTensorRTModule", "RefitFlag", "RefitState"]
