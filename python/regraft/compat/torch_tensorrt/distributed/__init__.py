"""Modules over several machines."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "a module runs on one machine: leave it out")
