"""What Regraft raises and warns of. Every message says what happened, where, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
    "Problem",
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


class Problem(NamedTuple):
    """One reason why weights or an adapter do not fit."""

    kind: str
    """Of weights: ``missing``, ``unknown``, ``mismatch``, ``non_finite``, ``tied_differ``, ``ambiguous`` and
    others. Of adapters: ``unmatched``, ``incomplete``, ``shape``, ``unsupported``, ``twice``, ``ambiguous``,
    ``config``, ``no_scale``, ``empty``.
    """
    name: str
    """The weight, the name that was given, or the adapter's key."""
    what: str
    """What is wrong with it, in words."""
    details: Mapping[str, Any] = MappingProxyType({})
    """What depends on the kind, such as ``expected`` and ``found``, or ``suggestion``."""


class WeightsError(RegraftError, ValueError):
    """Weights or an adapter cannot be read, or do not fit; nothing was changed.

    ``problems`` lists every reason, and ``cause`` says what they have in common: ``few_keys``,
    ``only_unknown``, ``near_rule``, ``folded_norm``, ``quantized``, ``other_model``, ``ambiguous``,
    ``several``, ``no_scale`` of an adapter, and others; empty where nothing is known.
    """

    problems: tuple[Problem, ...]
    cause: str

    def __init__(self, message: str, facts: str = "", problems: Iterable[Problem] = ()) -> None:
        known: dict[str, Any] = json.loads(facts) if facts else {}
        cause: dict[str, Any] = known.get("cause", {})
        help = _help_for(cause)
        super().__init__(f"{message}\n  help: {help}" if help else message)
        self.cause = cause.get("cause", "")
        listed = known.get("problems", ())
        self.problems = (*map(_problem_of, listed), *problems)

    def __reduce__(self) -> Any:
        return _weights_error, (str(self), self.problems, self.cause)


def _problem_of(fact: dict[str, Any]) -> Problem:
    of_name = ("problem", "name", "key", "field")
    details = {key: value for key, value in fact["details"].items() if key not in of_name}
    return Problem(fact["details"]["problem"], fact["name"], fact["what"], details)


def _weights_error(message: str, problems: tuple[Problem, ...], cause: str) -> WeightsError:
    error = WeightsError(message, problems=problems)
    error.cause = cause
    return error


def _help_for(cause: Mapping[str, Any]) -> str:
    """What to do about weights that do not fit. Advice must not lead to weights that are mixed of two."""
    match cause.get("cause"):
        case "few_keys":
            return "partial=True takes the weights that are given and keeps the others"
        case "only_unknown":
            return "strict=False ignores names that the program does not have, as PyTorch does"
        case "near_rule":
            rule = f" {cause['rule']}" if cause["rule"] else ""
            found = f"{cause['matched']} of {cause['of']} names match{rule}"
            return f"{found}; rename={{'from': 'to'}} renames others"
        case "folded_norm":
            return (
                f"the file has none of the {cause['norms']} batch norms, such as {cause['module']}: an "
                "optimizer folded them into other weights; export the model without optimization "
                "(torch.onnx.export(..., optimize=False, do_constant_folding=False)), or save its "
                "state_dict()"
            )
        case "quantized":
            return (
                f"the weights are quantized ({cause['format']}), which Regraft does not read: give those in "
                "float32, float16 or bfloat16 that they were made of, or dequantize them with the tool that "
                "wrote them"
            )
        case "other_model":
            return "the weights are of another model or size than the compiled one: compile that model"
        case "other_program":
            return "the file is of another program than the compiled one: compile that file"
        case "ambiguous":
            return "say which is meant: rename={'from': 'to'}, or key= for one part of a file"
        case "not_identical":
            return "give the weights that it was compiled with, or compile it with identical=False"
        case "non_finite":
            return "reject_non_finite=False takes such values as they are"
        case "several":
            return "choose one: " + ", ".join(f"key={key!r}" for key in cause["keys"])
        case "no_scale":
            return "adapter(..., alpha=16) states it, adapter(..., config=...) gives the configuration"
        case "no_key":
            return "key= names one of them" if cause["keys"] else "leave key= out to read the whole file"
        case _:
            return ""


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
    """Gradients were needed, and engines compute none."""


class RegraftWarning(UserWarning):
    """Base of all warnings of Regraft. Each names what to do about it."""


class FallbackWarning(RegraftWarning):
    """PyTorch runs something that should have run compiled."""


class GradientWarning(FallbackWarning):
    """PyTorch runs a call for its gradients."""


class TrainingWarning(FallbackWarning):
    """A module is in training mode."""


class NothingCompiledWarning(FallbackWarning):
    """All of a program stays in PyTorch."""


class SlowWarning(RegraftWarning):
    """A part of an engine runs slowly: its operator or data type has no kernel."""


class ThrashingWarning(RegraftWarning):
    """Programs are compiled again and again."""


class RangesWarning(RegraftWarning):
    """Sizes change from call to call: one program takes them all from now on, or could."""


class UnusedWarning(RegraftWarning):
    """A module was wrapped, and the wrapped method is never called."""


class CacheWarning(RegraftWarning, RuntimeWarning):
    """The engine cache failed, or held a damaged entry: the engine was built."""


class SettingsWarning(RegraftWarning):
    """Settings were given that have no effect."""
