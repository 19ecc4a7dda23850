"""Where Torch-TensorRT runs engines of TensorRT from Python."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__, "TorchTensorRTModule runs the bytes of an engine, and module.models has those of a module"
)
