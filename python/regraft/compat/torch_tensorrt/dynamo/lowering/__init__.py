"""What Torch-TensorRT does to programs before TensorRT sees them, which Regraft does in its own way."""

from regraft.compat.torch_tensorrt.absent import absent

_WHY = "Regraft lowers programs itself: regraft compile --dump-dir shows what becomes of one"
__getattr__ = absent(
    __name__,
    dict.fromkeys(
        (
            "ATEN_LOWERING_PASSES",
            "ATEN_PRE_LOWERING_PASSES",
            "SubgraphBuilder",
            "TORCH_TRT_DECOMPOSITIONS",
            "get_decompositions",
            "post_lowering",
            "pre_export_lowering",
            "torch_disabled_decompositions",
            "torch_enabled_decompositions",
        ),
        _WHY,
    ),
)
