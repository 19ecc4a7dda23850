"""Where Torch-TensorRT has its main functions."""

from regraft.compat.torch_tensorrt import (
    InputType,
    compile,
    convert_method_to_trt_engine,
    load,
    save,
    torch_compile,
)

__all__ = ["InputType", "compile", "convert_method_to_trt_engine", "load", "save", "torch_compile"]
