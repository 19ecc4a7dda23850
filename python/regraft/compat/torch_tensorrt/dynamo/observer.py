"""Functions that tell who asks when they are called, and with what."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

__all__ = ["CallableObservers", "ObserveContext", "ObservedCallable", "Observer", "observable"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObserveContext:
    """A call of an observed function."""

    callable: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    return_value: Any = None
    """What it gave; ``None`` before the call, and where it raised."""


class Observer:
    """Who is told, in the context (:mod:`contextvars`) that they were added in."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._told: ContextVar[tuple[Callable[..., Any], ...]] = ContextVar(f"observer {name}", default=())

    @contextlib.contextmanager
    def add(self, callback: Callable[..., Any]) -> Iterator[None]:
        """Tells ``callback`` while the ``with`` block runs."""
        token = self._told.set((*self._told.get(), callback))
        try:
            yield
        finally:
            self._told.reset(token)

    def observe(self, *args: Any, **kwargs: Any) -> None:
        """Tells everyone. What they raise is only logged: they are not part of the work."""
        for callback in self._told.get():
            try:
                callback(*args, **kwargs)
            except Exception:
                _log.warning("an observer failed", exc_info=True)


@dataclass(frozen=True)
class CallableObservers:
    """Who is told of a function's calls."""

    pre: Observer = field(default_factory=lambda: Observer("pre"))
    """Before each."""
    post: Observer = field(default_factory=lambda: Observer("post"))
    """After each, also one that raised."""


class ObservedCallable(Generic[_P, _R]):
    """A function whose calls can be observed."""

    def __init__(self, function: Callable[_P, _R]) -> None:
        functools.update_wrapper(self, function)
        self.orig_func = function
        self.observers = CallableObservers()

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Calls the function."""
        self.observers.pre.observe(ObserveContext(self.orig_func, args, kwargs))
        result: _R | None = None
        try:
            result = self.orig_func(*args, **kwargs)
            return result
        finally:
            self.observers.post.observe(ObserveContext(self.orig_func, args, kwargs, result))


def observable() -> Callable[[Callable[_P, _R]], ObservedCallable[_P, _R]]:
    """A decorator for functions whose calls can be observed.

    Example:
        >>> @observable()
        ... def double(x):
        ...     return 2 * x
        >>> with double.observers.post.add(lambda call: print(call.args, call.return_value)):
        ...     y = double(3)
        (3,) 6
    """
    return ObservedCallable
