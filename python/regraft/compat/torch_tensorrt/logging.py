"""``torch_tensorrt.logging``: Python's logging, under the logger of this package."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from regraft.compat.torch_tensorrt.absent import absent

__all__ = ["debug", "errors", "graphs", "info", "internal_errors", "set_level", "warnings"]

_logger = logging.getLogger("regraft")


def set_level(level: int, logger: logging.Logger | None = None) -> None:
    """Of what is shown, by this package or by ``logger``."""
    (logger or _logger).setLevel(level)


@contextlib.contextmanager
def _at(level: int) -> Iterator[None]:
    before = _logger.level
    _logger.setLevel(level)
    try:
        yield
    finally:
        _logger.setLevel(before)


def debug() -> contextlib.AbstractContextManager[None]:
    """Shows everything."""
    return _at(logging.DEBUG)


graphs = debug


def info() -> contextlib.AbstractContextManager[None]:
    """Shows what is of interest."""
    return _at(logging.INFO)


def warnings() -> contextlib.AbstractContextManager[None]:
    """Shows warnings."""
    return _at(logging.WARNING)


def errors() -> contextlib.AbstractContextManager[None]:
    """Shows errors alone."""
    return _at(logging.ERROR)


internal_errors = errors

__getattr__ = absent(
    __name__, {"TRT_LOGGER": "it is TensorRT's: messages here are of Python's logger \"regraft\""}
)
