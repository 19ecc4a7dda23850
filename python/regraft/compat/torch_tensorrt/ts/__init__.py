"""TorchScript, which has no frontend here."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "TorchScript has no frontend here: export the module with torch.export")
