"""Where Torch-TensorRT has its compiler."""

from regraft.compat.torch_tensorrt.dynamo import (
    CompilationSettings,
    compile,
    convert_exported_program_to_serialized_trt_engine,
)
from regraft.compat.torch_tensorrt.dynamo._convert import convert_module_to_trt_engine

__all__ = [
    "CompilationSettings",
    "compile",
    "convert_exported_program_to_serialized_trt_engine",
    "convert_module_to_trt_engine",
]
