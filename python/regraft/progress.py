"""Progress of compiling and refitting: a line in terminals and notebooks that goes away, and nothing
elsewhere.

``REGRAFT_PROGRESS=0`` turns it off, ``REGRAFT_PROGRESS=1`` on wherever it is written to. With tqdm installed
(the extra ``progress``) it is one of its bars.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

# What takes less than this shows nothing.
_PATIENCE = 0.5
# Seconds between two pictures of a line.
_PAUSE = 0.05
_WIDTH = 30


class Progress:
    """What is being done, as a context: steps with names, and bytes of slots.

    Nothing is drawn or observed for what is known to be ``quick``.

    >>> with Progress("compile") as progress:
    ...     progress.step("export")
    """

    def __init__(self, what: str, *, quick: bool = False) -> None:
        self._what = what
        self._watched = not quick and _is_watched()
        # Draws what there is when patience is over: a step may take long and say nothing.
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._state = (what, 0, 0)
        self._line: _Line | None = None
        self._next = time.monotonic() + _PATIENCE

    def __enter__(self) -> Progress:
        if self._watched:
            self._timer = threading.Timer(_PATIENCE, self._draw)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._watched = False
            if self._line is not None:
                self._line.clear()

    def step(self, name: str) -> None:
        """A step begins."""
        self._show(f"{self._what}: {name}", 0, 0)

    @property
    def observer(self) -> Callable[[str, int, int], object] | None:
        """Sees a refit advance; ``None`` when nothing is drawn, so that it costs nothing."""
        if not self._watched:
            return None
        return lambda phase, done, total: self._show(f"{self._what}: {phase}", done, total)

    def tuning(self, step: str) -> Callable[[int, int, float], object] | None:
        """Sees the tuning of a step advance; ``None`` when nothing is drawn."""
        if not self._watched:
            return None
        return lambda number, count, seconds: self._show(
            f"{self._what}: {step}, tuning problem {number} of {count}, about {_time(seconds)} left", 0, 0
        )

    def _show(self, text: str, done: int, total: int) -> None:
        self._state = (text, done, total)
        # Steps are few; slots may be many.
        if self._watched and time.monotonic() >= self._next:
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if self._watched:
                self._line = self._line or _line()
                self._line.show(*self._state)
                self._next = time.monotonic() + _PAUSE


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


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
        self._bar = tqdm(total=0, unit="B", unit_scale=True, leave=False, bar_format="{desc}")

    def show(self, text: str, done: int, total: int) -> None:
        bar = self._bar
        bar.set_description_str(text, refresh=False)
        if total != bar.total:
            bar.bar_format = "{desc} |{bar}| {n_fmt}B of {total_fmt}B" if total else "{desc}"
            # Notebooks learn of a new total by this only.
            bar.reset(total=total)
        bar.n = done
        bar.refresh()

    def clear(self) -> None:
        self._bar.close()


def _line() -> _Line:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line()
    return _Bar(tqdm)


def _is_watched() -> bool:
    """Whether there is a display: a terminal, or a notebook."""
    wanted = os.environ.get("REGRAFT_PROGRESS", "")
    if wanted:
        return wanted != "0"
    shell = sys.modules.get("IPython")
    in_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return in_notebook or bool(sys.stderr and sys.stderr.isatty())
