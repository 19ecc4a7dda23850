"""``MutableTorchTensorRTModule``, which is :class:`regraft.MutableModule` under another name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch

import regraft
from regraft.compat.torch_tensorrt.settings import (
    CompilationSettings,
    for_mutable,
    gathered,
    report_without_effect,
)

__all__ = ["MutableTorchTensorRTModule"]


class MutableTorchTensorRTModule(regraft.MutableModule):
    """A module that is compiled at its first call, and follows every change of the original from then on.

    Changed values are refitted, also adapters of PEFT; a changed structure is compiled again. As with
    Torch-TensorRT, results require no gradient; :class:`regraft.MutableModule` can go through PyTorch
    instead.

    Args:
        pytorch_model: the module, which stays as it is and may go on changing.
        immutable_weights: must be False.
        strict: accepted and without meaning: modules are traced in the form that ``strict=False`` names.
        config: settings, as an object or a mapping.
        **settings: settings by keyword: those of :class:`CompilationSettings`.

    Raises:
        TypeError: for a setting that does not exist, with the name that was probably meant.
        ValueError: for ``immutable_weights=True``, ``strip_engine_weights=True`` or ``dryrun``.

    Example:
        >>> mutable = MutableTorchTensorRTModule(model)  # doctest: +SKIP
        >>> mutable(x)  # compiles  # doctest: +SKIP
        >>> mutable.load_state_dict(tuned)  # the next call has the new weights  # doctest: +SKIP
    """

    # The attributes are those of the original.
    __slots__ = ()

    def __new__(
        cls,
        pytorch_model: torch.nn.Module,
        *,
        immutable_weights: bool = False,
        strict: bool = True,
        config: CompilationSettings | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> MutableTorchTensorRTModule:
        chosen = gathered(config, {"immutable_weights": immutable_weights, **settings})
        wanted = for_mutable(chosen)
        report_without_effect(chosen)
        return _renamed(regraft.MutableModule(pytorch_model, autograd="ignore", **wanted))

    def __init__(self, *args: Any, **settings: Any) -> None:
        # All is done.
        pass

    def update_refit_condition(self) -> None:
        """Looks at every byte of the weights; calls look at samples of them."""
        self.refresh()

    def refit_gm(self) -> None:
        """Brings the engines up to date with the original now, not at the next call."""
        self.refresh()

    @staticmethod
    def load(
        path: str | os.PathLike[str], pytorch_model: torch.nn.Module | None = None
    ) -> MutableTorchTensorRTModule:
        """Loads what ``save`` wrote. The code of the module is not in it: give the module.

        Raises:
            TypeError: without a module.
            regraft.EngineFileError: when the folder is damaged, of another version, or built for another
            machine.
        """
        if pytorch_model is None:
            raise TypeError(
                "load(path, pytorch_model): saved modules hold no code, so the module must be given"
            )
        return _renamed(regraft.MutableModule.load(path, pytorch_model))


_CLASSES: dict[type, type] = {}


def _renamed(mutable: regraft.MutableModule) -> MutableTorchTensorRTModule:
    """The same object, of a class that also has the methods above."""
    made = type(mutable)
    if made not in _CLASSES:
        names = {
            "__slots__": (),
            "__module__": made.__module__,
            "__doc__": made.__doc__,
            "forward": made.forward,
        }
        _CLASSES[made] = type(made.__name__, (MutableTorchTensorRTModule, made), names)
    object.__setattr__(mutable, "__class__", _CLASSES[made])
    return cast(MutableTorchTensorRTModule, mutable)
