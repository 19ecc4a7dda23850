"""Where Torch-TensorRT has its tracer."""

from regraft.compat.torch_tensorrt.dynamo._tracing import build_dim_registry, trace

__all__ = ["build_dim_registry", "trace"]
