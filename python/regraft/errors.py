"""What Regraft raises and warns of. Every message says what happened, where, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "CacheWarning",
    "CompileError",
    "EngineFileError",
    "FallbackWarning",
    "FrozenError",
    "GradientError",
    "GradientWarning",
    "InputError",
    "NotBoundError",
    "NothingCompiledWarning",
    "RangesWarning",
    "RegraftError",
    "RegraftWarning",
    "SettingsWarning",
    "SlowWarning",
    "StaleError",
    "ThrashingWarning",
    "TrainingWarning",
    "Unsupported",
    "UnusedWarning",
    "VerificationError",
    "WeightsError",
]


class Unsupported(NamedTuple):
    """A part of a program that Regraft does not compile."""

    node: str
    """Name of the node, empty where every node of the operator is meant."""
    op: str
    """The operator, such as ``torch.ops.aten.linear.default``; may be empty."""
    reason: str
    """Why not."""


class RegraftError(Exception):
    """Base of all errors of Regraft."""


class CompileError(RegraftError):
    """A program cannot be compiled; ``unsupported`` lists the parts that stand in the way, as far as they are
    known.
    """

    def __init__(self, message: str, unsupported: tuple[tuple[str, str, str], ...] = ()) -> None:
        super().__init__(message)
        self.unsupported = tuple(Unsupported(*part) for part in unsupported)


class WeightsError(RegraftError, ValueError):
    """Weights cannot be read, or do not fit; nothing was changed."""


class InputError(RegraftError, ValueError):
    """The inputs of a call do not fit the program."""


class NotBoundError(RegraftError):
    """A stripped engine was run before it was given weights."""


class FrozenError(RegraftError):
    """A frozen engine was given new weights."""


class EngineFileError(RegraftError):
    """An engine file cannot be read or written, is damaged, or is of another version or machine."""


class VerificationError(RegraftError):
    """A refit does not compute what it should; it was not published."""


class StaleError(RegraftError):
    """What was staged is not based on what serves now."""


class GradientError(RegraftError):
    """Gradients were asked for, and engines compute none."""


class RegraftWarning(UserWarning):
    """Base of all warnings of Regraft. Each names what to do about it."""


class FallbackWarning(RegraftWarning):
    """PyTorch runs what was to run compiled."""


class GradientWarning(FallbackWarning):
    """PyTorch runs a call for its gradients."""


class TrainingWarning(FallbackWarning):
    """A module is in training mode."""


class NothingCompiledWarning(FallbackWarning):
    """All of a program stays in PyTorch."""


class SlowWarning(RegraftWarning):
    """A part of an engine runs slowly: no kernel knows its operator or data type."""


class ThrashingWarning(RegraftWarning):
    """Programs are compiled again and again."""


class RangesWarning(RegraftWarning):
    """Sizes change from call to call: one program takes them all from now on, or could."""


class UnusedWarning(RegraftWarning):
    """A module was wrapped, and what it is wrapped for is never called."""


class CacheWarning(RegraftWarning, RuntimeWarning):
    """The engine cache failed, or held a damaged entry: the engine was built."""


class SettingsWarning(RegraftWarning):
    """Settings were given that change nothing."""
