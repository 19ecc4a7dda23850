"""``torch_tensorrt.dynamo.runtime``."""

from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo._mutable import MutableTorchTensorRTModule

__all__ = ["MutableTorchTensorRTModule"]

__getattr__ = absent(
    __name__,
    {
        "TorchTensorRTModule": "compiled modules are CompiledModule, with Engine for each engine",
        "PythonTorchTensorRTModule": "compiled modules are CompiledModule, with Engine for each engine",
        "ResourceAllocationStrategy": "resources are allocated as they are needed: leave it out",
    },
)
