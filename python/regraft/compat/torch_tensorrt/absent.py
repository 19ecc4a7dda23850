"""Names of Torch-TensorRT that stand for TensorRT itself or for the way Torch-TensorRT compiles: they can
be imported, and say what to do instead when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

__all__ = ["Absent", "absent", "all_absent"]


class Absent:
    """A name that stands for nothing here.

    Raises:
        NotImplementedError: with the reason, as soon as anything is done with it.
    """

    def __init__(self, name: str, why: str) -> None:
        self.__name__ = name
        self._why = why

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises."""
        raise NotImplementedError(f"torch_tensorrt.{self.__name__}: {self._why}")

    def __getattr__(self, name: str) -> Any:
        # What Python asks of any object is answered as usual.
        if name.startswith("__"):
            raise AttributeError(name)
        self()

    def __repr__(self) -> str:
        return f"<torch_tensorrt.{self.__name__}, which Regraft has not: {self._why}>"


def absent(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for such names, with the reasons."""

    def find(name: str) -> Any:
        if name in names:
            return Absent(_within(module, name), names[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def all_absent(module: str, why: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` where all its public names are such, with one reason."""

    def find(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return Absent(_within(module, name), why)

    return find


def _within(module: str, name: str) -> str:
    front = module.split(".torch_tensorrt", 1)[1].lstrip(".")
    return f"{front}.{name}" if front else name
