"""Where Torch-TensorRT has its mutable module."""

from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo._mutable import (
    DynamicShapeOutOfRangeException,
    MutableTorchTensorRTModule,
    RefitFlag,
    RefitState,
)

__all__ = ["DynamicShapeOutOfRangeException", "MutableTorchTensorRTModule", "RefitFlag", "RefitState"]

__getattr__ = absent(
    __name__, {"recursively_remove_trigger": "modules are looked at, not wrapped: there is nothing to remove"}
)
