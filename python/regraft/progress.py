"""Progress of compiling and refitting: a line in terminals and notebooks that goes away, and nothing
elsewhere.

``REGRAFT_PROGRESS=0`` turns it off, ``REGRAFT_PROGRESS=1`` on wherever it is written to. With tqdm installed
(the extra ``progress``) it is one of its bars.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

# What takes less than this shows nothing.
_PATIENCE = 0.5
_WIDTH = 30


class Progress:
    """What is being done, as a context: steps with names, and bytes of slots."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = _is_watched()
        self._began = time.monotonic()
        self._line: _Line | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.clear()

    def step(self, name: str) -> None:
        """A step begins."""
        self._show(f"{self._what}: {name}", 0, 0)

    @property
    def observer(self) -> Callable[[str, int, int], object] | None:
        """Sees a refit advance; ``None`` when nobody looks, so that it costs nothing."""
        if not self._shown:
            return None
        return lambda phase, done, total: self._show(f"{self._what}: {phase}", done, total)

    def _show(self, text: str, done: int, total: int) -> None:
        if not self._shown:
            return
        if self._line is None:
            if time.monotonic() - self._began < _PATIENCE:
                return
            self._line = _line()
        self._line.show(text, done, total)


class _Line:
    """A line that is written over."""

    def __init__(self) -> None:
        self._length = 0

    def show(self, text: str, done: int, total: int) -> None:
        if total:
            filled = _WIDTH * done // total
            text += f" [{'#' * filled}{'.' * (_WIDTH - filled)}] {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        print(f"\r{text:<{self._length}}", end="", file=sys.stderr, flush=True)
        self._length = len(text)

    def clear(self) -> None:
        print(f"\r{'':<{self._length}}\r", end="", file=sys.stderr, flush=True)


class _Bar(_Line):
    """A bar of tqdm."""

    def __init__(self, tqdm: Any) -> None:
        super().__init__()
        self._bar = tqdm(total=0, unit="B", unit_scale=True, leave=False)

    def show(self, text: str, done: int, total: int) -> None:
        self._bar.set_description(text, refresh=False)
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def clear(self) -> None:
        self._bar.close()


def _line() -> _Line:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line()
    return _Bar(tqdm)


def _is_watched() -> bool:
    """Whether somebody looks: a terminal, or a notebook."""
    wanted = os.environ.get("REGRAFT_PROGRESS", "")
    if wanted:
        return wanted != "0"
    shell = sys.modules.get("IPython")
    in_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return in_notebook or bool(sys.stderr and sys.stderr.isatty())
