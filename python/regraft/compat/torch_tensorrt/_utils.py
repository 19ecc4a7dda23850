"""What Torch-TensorRT asks of a machine, for code that asks it, too."""

import torch

__all__ = [
    "check_native_trt_collectives",
    "is_orin",
    "is_platform_supported_for_trtllm",
    "is_tegra_platform",
    "is_tensorrt_rtx",
    "is_tensorrt_rtx_version_supported",
    "is_tensorrt_version_supported",
    "is_thor",
    "sanitized_torch_version",
]


def sanitized_torch_version() -> str:
    """Of PyTorch, without what a build added."""
    return str(torch.__version__).partition("+")[0]


def is_tensorrt_version_supported(min_version: str) -> bool:
    """No: TensorRT is not used here."""
    return False


is_tensorrt_rtx_version_supported = is_tensorrt_version_supported


def is_tegra_platform() -> bool:
    """No: engines are made for processors and for GPUs in servers."""
    return False


is_orin = is_tensorrt_rtx = is_thor = is_platform_supported_for_trtllm = check_native_trt_collectives = (
    is_tegra_platform
)
