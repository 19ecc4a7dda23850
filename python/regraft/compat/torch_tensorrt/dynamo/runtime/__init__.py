"""``torch_tensorrt.dynamo.runtime``."""

from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo._mutable import MutableTorchTensorRTModule
from regraft.compat.torch_tensorrt.engine import TorchTensorRTModule

__all__ = ["MutableTorchTensorRTModule", "PythonTorchTensorRTModule", "TorchTensorRTModule"]

PythonTorchTensorRTModule = TorchTensorRTModule

__getattr__ = absent(
    __name__,
    {
        "ResourceAllocationStrategy": "resources are allocated as they are needed: leave it out",
        **dict.fromkeys(
            (
                "FakeTRTEngine",
                "fake_aten_cudnn_grid_sampler",
                "fake_no_op_placeholder_for_execute_engine",
                "fake_tensorrt_execute_engine",
                "no_op_placeholder_for_execute_engine",
            ),
            "engines are not operators of PyTorch: a compiled module is exported as the program that it was",
        ),
    },
)
