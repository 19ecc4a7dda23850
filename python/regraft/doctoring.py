"""What this machine has, and what is missing."""

from __future__ import annotations

import json
from typing import Any

from regraft import _regraft

__all__ = ["Doctor", "doctor"]


class Doctor(dict[str, Any]):
    """The facts that :func:`doctor` found, by name; ``print`` it."""

    def __init__(self, text: str, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self._text = text

    def __str__(self) -> str:
        return self._text.rstrip()

    __repr__ = __str__


def doctor() -> Doctor:
    """Describes this machine: its processor, its GPUs, and the libraries that these need, with the versions
    that were found and that are needed, and what each missing one costs. No device is opened.

    Example:
        >>> print(regraft.doctor())  # doctest: +SKIP
          regraft    0.1.0
          cpu        AMD EPYC 9R14, x86-64 avx512, 8 threads
          gpu        cuda:0: NVIDIA H100 80GB HBM3, sm_90, 85.0 GB

    """
    # Wheels of NVIDIA's are looked for beside those that this process has loaded something of.
    import numpy  # noqa: F401

    text, facts = _regraft.doctor()
    return Doctor(text, json.loads(facts))
