"""Kernels of one's own, which engines of Regraft do not run."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__,
    "it makes plugins of TensorRT from kernels: leave the operator in PyTorch (torch_executed_ops)",
)
