"""Hooks into the frontend of Torch-TensorRT."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(
    __name__,
    "module.report() says what was done, and REGRAFT_PROGRESS=1 shows it while it is",
)
