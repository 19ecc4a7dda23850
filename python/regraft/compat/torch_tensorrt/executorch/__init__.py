"""ExecuTorch, which does not run engines of Regraft."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "engines are run by regraft alone: torch_tensorrt.save writes them")
