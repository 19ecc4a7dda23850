"""Passes over programs, which Regraft has its own of."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__,
    "Regraft lowers programs itself: regraft compile --dump-dir shows what becomes of one",
)
