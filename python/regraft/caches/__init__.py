"""Caches of transformers among the arguments and results of a call, and other objects that no program knows.

A program takes the tensors of a cache and gives the new ones. What else a cache consists of is part of
the program, but for lengths that grow: a program takes each as the size of a tensor without elements.
Results go back into the objects of the caller: those of a static cache in place.

PyTorch and this package only: transformers is used only when it has been imported already.
"""

from __future__ import annotations

from regraft.caches.carry import Carry
from regraft.caches.parts import CannotTake, Parts, is_length, open_axes, taken_apart
from regraft.caches.tracing import Tracer

__all__ = ["CannotTake", "Carry", "Parts", "Tracer", "is_length", "open_axes", "taken_apart"]
