"""Where Torch-TensorRT has its tracer."""

from regraft.compat.torch_tensorrt.dynamo._tracing import trace

__all__ = ["trace"]
