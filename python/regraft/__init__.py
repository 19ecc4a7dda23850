"""Regraft compiles a trained network once and lets you replace its weights without compiling again.

.. code-block:: python

    compiled = regraft.compile(torch.export.export(model, inputs))
    y = compiled(*inputs)
    compiled.refit(tuned_model.state_dict())  # a few milliseconds; the next call has the new weights

``import regraft`` needs NumPy only: :class:`Model` loads, runs and refits engine files. Everything that takes
PyTorch modules imports PyTorch when it is first used.
"""

from __future__ import annotations

import atexit
import importlib
from typing import TYPE_CHECKING, Any

from regraft._regraft import (
    Adapter,
    Array,
    DiskCache,
    Model,
    Session,
    StateDict,
    __version__,
    before_exit,
)
from regraft.doctoring import doctor
from regraft.errors import (
    CacheWarning,
    CompileError,
    EngineFileError,
    FallbackWarning,
    FrozenError,
    GradientError,
    GradientWarning,
    InputError,
    NotBoundError,
    NothingCompiledWarning,
    RangesWarning,
    RegraftError,
    RegraftWarning,
    SettingsWarning,
    SlowWarning,
    StaleError,
    ThrashingWarning,
    TrainingWarning,
    Unsupported,
    UnusedWarning,
    VerificationError,
    WeightsError,
)
from regraft.report import RefitReport
from regraft.saving import load, save

if TYPE_CHECKING:
    from regraft.compiling import compile, dry_run
    from regraft.hub import from_pretrained, push_to_hub
    from regraft.module import Module
    from regraft.mutable import MutableModule
    from regraft.partition import PartitionReport
    from regraft.pipelines import wrap
    from regraft.refitting import refit_module_weights

__all__ = [
    "Adapter",
    "Array",
    "CacheWarning",
    "CompileError",
    "DiskCache",
    "EngineFileError",
    "FallbackWarning",
    "FrozenError",
    "GradientError",
    "GradientWarning",
    "InputError",
    "Model",
    "Module",
    "MutableModule",
    "NotBoundError",
    "NothingCompiledWarning",
    "PartitionReport",
    "RangesWarning",
    "RefitReport",
    "RegraftError",
    "RegraftWarning",
    "Session",
    "SettingsWarning",
    "SlowWarning",
    "StaleError",
    "StateDict",
    "ThrashingWarning",
    "TrainingWarning",
    "Unsupported",
    "UnusedWarning",
    "VerificationError",
    "WeightsError",
    "__version__",
    "compile",
    "doctor",
    "dry_run",
    "from_pretrained",
    "load",
    "push_to_hub",
    "refit_module_weights",
    "save",
    "wrap",
]

# Daemon threads in a call must not come back to an interpreter that is ending.
atexit.register(before_exit)

# Where the names are that need PyTorch.
_WITH_TORCH = {
    "Module": "regraft.module",
    "MutableModule": "regraft.mutable",
    "PartitionReport": "regraft.partition",
    "compile": "regraft.compiling",
    "dry_run": "regraft.compiling",
    "from_pretrained": "regraft.hub",
    "push_to_hub": "regraft.hub",
    "refit_module_weights": "regraft.refitting",
    "wrap": "regraft.pipelines",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'regraft' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WITH_TORCH[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
