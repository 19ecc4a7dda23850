"""What makes layers of TensorRT from operators."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__,
    "it makes layers of TensorRT: docs/operators.md lists the operators that Regraft takes",
)
