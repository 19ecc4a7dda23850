"""A module whose weights, adapters and structure may change at any time, and that stays compiled."""

from regraft.mutable.module import MutableModule

__all__ = ["MutableModule"]
