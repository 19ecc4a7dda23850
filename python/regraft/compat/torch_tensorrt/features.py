"""What Torch-TensorRT's ``ENABLED_FEATURES`` tells."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ENABLED_FEATURES", "FeatureSet"]


class FeatureSet(NamedTuple):
    """Which parts of Torch-TensorRT there are."""

    torchscript_frontend: bool = False
    torch_tensorrt_runtime: bool = True
    dynamo_frontend: bool = True
    fx_frontend: bool = False
    refit: bool = True
    qdp_plugin: bool = False
    windows_cross_compile: bool = False
    tensorrt_rtx: bool = False
    trtllm_for_nccl: bool = False
    native_trt_collectives: bool = False
    complex_decomposition: bool = True


ENABLED_FEATURES = FeatureSet()
