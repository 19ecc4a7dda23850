"""What cuts programs, which Regraft does in its own way."""

from regraft.compat.torch_tensorrt.absent import all_absent

__getattr__ = all_absent(__name__, "Regraft cuts programs itself: dynamo.compile(dryrun=True) shows how")
