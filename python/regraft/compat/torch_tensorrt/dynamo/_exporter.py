"""Where Torch-TensorRT has its exporter."""

from regraft.compat.torch_tensorrt.dynamo import export

__all__ = ["export"]
