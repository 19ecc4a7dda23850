"""Where Torch-TensorRT says what it has."""

from regraft.compat.torch_tensorrt.features import ENABLED_FEATURES, FeatureSet

__all__ = ["ENABLED_FEATURES", "FeatureSet"]
