"""The name of the backend, where ``torch.compile`` looks for it.

Installed packages have an entry point. This is for those that are imported from a folder, and imports nothing
of PyTorch.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["announce"]

_REGISTRY = "torch._dynamo.backends.registry"


def announce() -> None:
    """Puts the backend on PyTorch's list, now or when there is one."""
    registry = sys.modules.get(_REGISTRY)
    if registry is not None:
        _enter(registry)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def _enter(registry: ModuleType) -> None:
    from importlib.metadata import EntryPoint

    backend = EntryPoint("regraft", "regraft.dynamo:regraft", "torch_dynamo_backends")
    registry._BACKENDS.setdefault(backend.name, backend)


class _WhenImported(MetaPathFinder):
    """Sees the import of PyTorch's list of backends, which is otherwise as it is."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _enter(module)

    def __getattr__(self, name: str) -> Any:
        # Sources and resources are found through the loader.
        return getattr(self._loader, name)
