"""Progress bars of compiling and refitting: shown in notebooks and terminals, and nowhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """What is being done, on one line that goes away. Silent unless tqdm is installed and somebody looks."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, name: str) -> None:
        """A step begins."""

    @property
    def observer(self) -> None:
        """Sees a refit advance; ``None`` when nobody looks."""
        return None

    def finish(self, text: str) -> None:
        """What came of it."""
