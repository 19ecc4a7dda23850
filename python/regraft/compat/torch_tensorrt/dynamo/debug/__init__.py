"""Looks at what TensorRT builds."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__,
    "regraft compile --dump-dir shows every stage, and module.report() what stays in PyTorch",
)
