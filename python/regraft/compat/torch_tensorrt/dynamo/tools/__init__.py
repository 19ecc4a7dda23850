"""Tools about the converters of Torch-TensorRT."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "docs/operators.md lists the operators that Regraft takes")
