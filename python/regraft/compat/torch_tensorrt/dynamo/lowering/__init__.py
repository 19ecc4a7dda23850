"""What Torch-TensorRT does to programs before TensorRT sees them, which Regraft does in its own way."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__, "Regraft lowers programs itself: regraft compile --dump-dir shows what becomes of one"
)
