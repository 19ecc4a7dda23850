"""What is done with one model: export, compile it whole, compare it with PyTorch, and law 1."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from weights import randomize_
from zoo.case import Call, Case

import regraft
from regraft import _regraft, compiling

# The largest difference from PyTorch, relative to the largest value of an output.
TOLERANCE = 1e-4
# How many times as far as PyTorch an output may be from what PyTorch computes in f64, where that is more:
# some models make much of a rounding.
AS_FAR = 4.0
_SEED_A, _SEED_B = 1, 2
_LONGEST_REASON = 300

Record = dict[str, Any]


class Failed(Exception):
    """A model that does not come through, with the status that its record gets."""

    def __init__(self, status: str, reason: str, **facts: Any) -> None:
        super().__init__(reason)
        self.status, self.facts = status, facts


def check(case: Case) -> Record:
    """The record of a model. ``status`` is

    - ``right``: whole, as PyTorch computes it, and law 1 holds;
    - ``export``: PyTorch does not export it, or exports something else;
    - ``refused``: Regraft does not compile all of it;
    - ``wrong``: an output is off, or a refit gives other bits than a build;
    - ``error``: something else went wrong, here or in the library that the model is from.
    """
    record: Record = {"id": case.id, "library": case.library, "kind": case.kind, "name": case.name}
    seconds: dict[str, float] = {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            record |= _checked(case, seconds)
        record["status"] = "right"
    except Failed as failed:
        record |= {"status": failed.status, "reason": str(failed), **failed.facts}
    except Exception as error:  # whatever a library raises
        record |= {"status": "error", "reason": _short(error)}
    return record | {"seconds": {step: round(taken, 2) for step, taken in seconds.items()}}


def _checked(case: Case, seconds: dict[str, float]) -> Record:
    def timed(step: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return run()
        finally:
            seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start

    first, second = made(case, _SEED_A), made(case, _SEED_B)
    expected_a = timed("PyTorch", lambda: answers(first.module, first))
    expected_b = answers(second.module, second)
    if not expected_a:
        raise Failed("error", "it gives no tensors")
    if not all(t.isfinite().any() for t in expected_a if t.numel()):
        raise Failed("error", "PyTorch's own results are not finite")

    # A module that nothing was computed with: some keep in eval mode what they derive from weights.
    traced = timed("export", lambda: _traced(made(case, _SEED_A)))
    program = traced.program
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    with _facts_of_engines() as facts:
        compiled = timed("compile", lambda: _compiled(traced))
    found: Record = {
        "nodes": nodes,
        "kernels": facts[0]["nodes"],
        "parameters": sum(p.numel() for p in first.module.parameters()),
        "evaluated": [list(group[:3]) for group in facts[0]["evaluated"]],
    }
    given = timed("run", lambda: answers(compiled, first))
    try:
        found["error"] = max(_error(given, expected_a, case, _SEED_A), default=0.0)
    except Failed:
        _check_export(program, first, expected_a)
        raise

    timed("refit", lambda: compiled.refit(second.module.state_dict()))
    refitted = answers(compiled, second)
    for name, value in program.state_dict.items():
        value.copy_(second.module.state_dict()[name])
    built = answers(_compiled(traced), second)
    differ = [i for i, (a, b) in enumerate(zip(refitted, built, strict=True)) if not same(a, b)]
    if differ:
        raise Failed("wrong", f"law 1: outputs {differ} of the refit have other bits than a build's", **found)
    found["error"] = max(found["error"], *_error(refitted, expected_b, case, _SEED_B))
    if found["parameters"] and all(map(same, given, refitted)):
        raise Failed("error", "the weights make no difference", **found)
    return found


def made(case: Case, seed: int) -> Call:
    """The model with weights number ``seed``."""
    torch.manual_seed(0)
    call = case.make()
    return call._replace(module=randomize_(call.module.eval().requires_grad_(False), seed))


def answers(module: Callable[..., Any], call: Call) -> list[Tensor]:
    """All tensors of the result, cloned. A call may write to its caches, so each gets its own."""
    if isinstance(module, regraft.Module):
        module.reset_state()
    args, kwargs = copy.deepcopy((call.args, dict(call.kwargs)))
    torch.manual_seed(0)
    return [t.detach().clone() for t in tensors_of(module(*args, **kwargs))]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Also those in caches of transformers and in distributions of diffusers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif hasattr(value, "layers") and not isinstance(value, nn.Module):
        for layer in value.layers:
            yield from tensors_of([getattr(layer, "keys", None), getattr(layer, "values", None)])
    elif hasattr(value, "self_attention_cache"):
        yield from tensors_of([value.self_attention_cache, value.cross_attention_cache])
    elif hasattr(value, "parameters") and isinstance(value.parameters, Tensor):
        yield value.parameters


def same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.contiguous().numpy().tobytes() == second.contiguous().numpy().tobytes()


def _traced(call: Call) -> compiling.Traced:
    try:
        if call.strict:
            program = torch.export.export(call.module, call.args, dict(call.kwargs), strict=True)
            return compiling.traced(program, None, None, None)
        return compiling.traced(call.module, call.args, dict(call.kwargs), None)
    except regraft.CompileError as error:
        of_pytorch = "torch.export.export cannot export" in str(error)
        raise Failed("export" if of_pytorch else "refused", _short(error)) from error


def _compiled(traced: compiling.Traced) -> regraft.Module:
    try:
        return regraft.compile(traced, require_full_compilation=True, threads=1)
    except regraft.CompileError as error:
        blame = [
            {
                "op": part.op.removeprefix("torch.ops."),
                "why": part.reason,
                "where": _module_of(traced.program, part),
            }
            for part in error.unsupported
        ]
        raise Failed("refused", _short(error), refused=blame) from error


def _module_of(program: ExportedProgram, part: Any) -> str:
    """The path of the module that a refused node is from."""
    for node in program.graph.nodes:
        if node.name == part.node or (not part.node and f"torch.ops.{node.target}" == part.op):
            stack = node.meta.get("nn_module_stack") or {}
            return next((path for path, _ in reversed(stack.values())), "")
    return ""


@contextlib.contextmanager
def _facts_of_engines() -> Iterator[list[Record]]:
    """What is known of the engines that are built: warnings name three operators at most."""
    facts: list[Record] = []
    original = _regraft.compile

    def compile(*args: Any, **kwargs: Any) -> Any:
        model, found = original(*args, **kwargs)
        facts.append(found)
        return model, found

    _regraft.compile = compile
    try:
        yield facts
    finally:
        _regraft.compile = original


def _error(given: Sequence[Tensor], expected: Sequence[Tensor], case: Case, seed: int) -> list[float]:
    """For each output the largest difference, relative to the largest value.

    Raises:
        Failed: when one is off.

    """
    if [(t.shape, t.dtype) for t in given] != [(t.shape, t.dtype) for t in expected]:
        raise Failed("wrong", f"{_types(given)} are given, {_types(expected)} are expected")
    errors = [relative(a, b) for a, b in zip(given, expected, strict=True)]
    off = [i for i, error in enumerate(errors) if not error <= TOLERANCE]
    if off:
        exact = _in_f64(case, seed)
        for i in off:
            own = relative(expected[i], exact[i].to(expected[i].dtype)) if exact else 0.0
            ours = relative(given[i], exact[i].to(given[i].dtype)) if exact else errors[i]
            if not ours <= AS_FAR * own:
                raise Failed("wrong", f"output {i} is off by {errors[i]:.2g} of its largest value")
    return errors


def _check_export(program: ExportedProgram, call: Call, expected: Sequence[Tensor]) -> None:
    """Raises:
    Failed: where PyTorch itself computes something else with the program than with the module.
    """
    errors = list(map(relative, answers(program.module(), call), expected))
    off = [f"output {i} by {error:.2g}" for i, error in enumerate(errors) if not error <= TOLERANCE]
    if off:
        raise Failed("export", f"PyTorch's program does not compute what the module does: {off[0]}")


def relative(given: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest finite value; infinite where other elements are finite,
    or integers differ.
    """
    if not expected.is_floating_point():
        return 0.0 if torch.equal(given, expected) else float("inf")
    finite = expected.isfinite()
    if not torch.equal(given[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = given[finite].double(), expected[finite].double()
    scale = b.abs().max()
    difference = (a - b).abs().max()
    return 0.0 if difference == 0 else float(difference / scale) if scale > 0 else float("inf")


class _Wide(TorchDispatchMode):
    """Everything of f32 is f64, also what a model's code makes f32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(_wide, (args, kwargs or {}))
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def _in_f64(case: Case, seed: int) -> list[Tensor] | None:
    """What PyTorch computes in f64; ``None`` where the model's code does not run in it."""
    call = made(case, seed)
    args, kwargs = pytree.tree_map(_wide, (call.args, dict(call.kwargs)))
    try:
        with _Wide():
            return answers(call.module.double(), Call(call.module, args, kwargs))
    except Exception:  # there is no answer then
        return None


def _types(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors)


def _short(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    named = text if isinstance(error, regraft.CompileError) else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_REASON else named[: _LONGEST_REASON - 3] + "..."
