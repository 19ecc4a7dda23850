"""The FX frontend, which does not exist here."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "the FX frontend has none here: export the module with torch.export")
