"""The backend of ``torch.compile``.

.. code-block:: python

    import regraft.dynamo  # not needed where the package is installed

    fast = torch.compile(model, backend="regraft")
    with torch.inference_mode():
        y = fast(x)
        model.load_state_dict(tuned)  # or any other change of weights
        y = fast(x)  # with the new ones
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch._dynamo import list_backends, register_backend
from torch.export.graph_signature import OutputKind

from regraft import _regraft
from regraft._graphs import Cut, CutError, cut, number, numbers_of
from regraft._program import writes_as_results
from regraft.checks import CHECKED, check_names, check_settings, warn
from regraft.compiling import Traced, compile, exported
from regraft.devices import device_name
from regraft.errors import (
    CompileError,
    FallbackWarning,
    GradientError,
    GradientWarning,
    InputError,
    RegraftWarning,
    TrainingWarning,
    WeightsError,
)
from regraft.module import Module
from regraft.mutable.watch import readable

__all__ = ["regraft"]

# Sets of numbers that a graph is compiled for; PyTorch runs it with others.
_MOST_NUMBERS = 8
# Sets of weights that an engine of each is kept for, such as those of the layers that share a graph.
_MOST_WEIGHTS = 64
_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION)

_log = logging.getLogger(__name__)
_version = attrgetter("_version")
_address = torch.Tensor.data_ptr
_stride = torch.Tensor.stride
_size = torch.Tensor.numel

# Version counters, strides, and numbers of elements.
_Facts = tuple[list["int | None"], list[tuple[int, ...]], list[int]]


def regraft(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    name: str | None = None,
) -> _Graph:
    """Compiles a graph that Dynamo captured, at its first call.

    Weights stay live: each call looks for parameters and buffers that are other tensors, or were written to,
    as :class:`regraft.MutableModule` does, and refits what changed. Modules of one class share a graph, and
    each has engines with its weights, which share all slots that are the same.

    What a graph writes to its arguments, such as to static caches, is written. PyTorch runs a graph, with a
    warning, when gradients are asked for, when it writes to buffers (such as batch norm in training), and
    when it cannot be exported or compiled; and under autocast.

    Args:
        gm: the graph.
        example_inputs: what it was traced with.
        options: settings of :func:`regraft.compile`, as ``torch.compile(..., options={...})`` gives them, and
            ``autograd``: what happens when gradients are asked for, as for
            :class:`regraft.MutableModule`.
        mode: the ``mode=`` of ``torch.compile``, whose values are for another backend.
        name: what ``torch.compile`` calls it, without effect.

    Raises:
        CompileError: for options that do not exist or do not fit. Dynamo wraps it. At a call: when
            ``require_full_compilation`` is set and not everything can be compiled.

    Example:
        >>> import regraft, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval()
        >>> fast = torch.compile(net, backend="regraft", options={"threads": 1})
        >>> with torch.inference_mode():
        ...     fast(torch.ones(2, 8)).shape
        torch.Size([2, 16])

    """
    settings = dict(options or {})
    autograd = settings.pop("autograd", "pytorch")
    _check(settings, mode, autograd)
    return _Graph(gm, settings, autograd)


# PyTorch itself loads and registers the backend of an installed package, and takes no name twice.
if "regraft" not in list_backends(exclude_tags=()):
    register_backend(compiler_fn=regraft, name="regraft")


def _check(settings: Mapping[str, Any], mode: str | None, autograd: Any) -> None:
    if mode is not None:
        raise CompileError(
            f'mode={mode!r} is not for backend="regraft"\n'
            '  help: options={"tune": "fast"} or "full" chooses kernels by measuring them'
        )
    if autograd not in ("pytorch", "raise", "ignore"):
        raise CompileError(f"autograd: expected one of pytorch, raise, ignore, found {autograd!r}")
    check_names(settings, compile)
    check_settings(**{name: settings[name] for name in CHECKED if name in settings})
    device_name(settings.get("device"))
    for name, value in (("mode", "refittable"), ("identical", False)):
        if settings.get(name, value) != value:
            raise CompileError(
                f'{name}={settings[name]!r}: torch.compile(backend="regraft") follows the weights of the '
                "module\n  help: leave it out, or use regraft.compile"
            )


class _Graph:
    """A graph of Dynamo's, with a program for each set of numbers that it was called with."""

    def __init__(self, gm: torch.fx.GraphModule, settings: Mapping[str, Any], autograd: str) -> None:
        self._gm = gm
        self._settings = settings
        self._autograd = autograd
        self._numbers = numbers_of(gm)
        self._programs: dict[tuple[Any, ...], _Program | None] = {}
        self._lock = threading.RLock()
        self._warned: set[type[RegraftWarning]] = set()

    def __call__(self, *args: Any) -> Any:
        """What the graph gives."""
        if _is_pytorchs() or (_wants_gradients(args) and not self._ignores_gradients()):
            return self._gm(*args)
        with self._lock:
            program = self._program_of(args)
            module = program.with_weights(args) if program is not None else None
        if program is None or module is None or program.overlap(args):
            return self._gm(*args)
        try:
            with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
                return program.results_of(module.forward(*program.cut.inputs_of(args)), args)
        except InputError as error:
            self._warn(error)
            return self._gm(*args)

    def _ignores_gradients(self) -> bool:
        """Whether a call that needs gradients runs compiled."""
        if self._autograd == "raise":
            raise GradientError(
                "a graph of torch.compile: gradients are asked for, and engines compute none: call under "
                'torch.no_grad() or torch.inference_mode(), or use the option autograd="pytorch" or "ignore"'
            )
        if self._autograd == "pytorch":
            self._warn(
                "gradients are asked for. For the compiled one call under torch.inference_mode() or "
                'torch.no_grad(), or use the option autograd="ignore"',
                GradientWarning,
            )
        return self._autograd == "ignore"

    def _program_of(self, args: Sequence[Any]) -> _Program | None:
        """The program for a call; ``None`` when PyTorch is to run it."""
        numbers = tuple(number(args[place]) for place in self._numbers)
        if numbers not in self._programs:
            if len(self._programs) == _MOST_NUMBERS:
                names = [node.name for node in self._gm.graph.nodes if node.op == "placeholder"]
                which = ", ".join(names[place] for place in self._numbers)
                self._warn(f"it was called with more than {_MOST_NUMBERS} values of {which}: give a tensor")
                return None
            self._programs[numbers] = self._compiled(args)
        return self._programs[numbers]

    def _compiled(self, args: Sequence[Any]) -> _Program | None:
        try:
            return _Program.of(self._gm, args, self._settings)
        except _WritesError:
            self._warn(
                "it writes to weights or buffers of a module, as batch norm does in training: call eval()",
                TrainingWarning,
            )
            return None
        except (CompileError, CutError) as error:
            if self._settings.get("require_full_compilation"):
                raise CompileError(
                    f"a graph of torch.compile cannot be compiled: {error}", getattr(error, "unsupported", ())
                ) from error
            self._warn(error)
            return None

    def _warn(self, why: object, kind: type[RegraftWarning] = FallbackWarning) -> None:
        """Warns once of each graph."""
        if kind not in self._warned:
            self._warned.add(kind)
            warn(kind, f"PyTorch runs a graph of torch.compile: {why}")


class _WritesError(Exception):
    """A graph writes to weights."""


def _wants_gradients(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _is_pytorchs() -> bool:
    """Whether a call is PyTorch's matter under modes that change what operators do."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class _Program:
    """A graph compiled, with an engine for each set of weights that it is called with."""

    def __init__(self, gm: torch.fx.GraphModule, settings: Mapping[str, Any], cut: Cut) -> None:
        self.cut = cut
        self._gm = gm
        self._settings = settings
        self._served: list[_Served] = []
        """The last used one is the last."""
        self._written: tuple[int, ...] = ()
        """Arguments that it writes to: their new values are its first results."""

    @classmethod
    def of(
        cls, gm: torch.fx.GraphModule, args: Sequence[Any], settings: Mapping[str, Any]
    ) -> _Program | None:
        """The program of a call; ``None`` when there is nothing to compile.

        Raises:
            CompileError, CutError: when it cannot be compiled.
            _WritesError: when it writes to weights.

        """
        taken = _taken_apart(gm, args)
        if taken is None:
            return None
        program = cls(gm, settings, taken[1])
        weights = program.cut.weights_of(args)
        # What is written from here on is seen at the next call.
        facts = _facts_of(weights)
        module = program._compiled(taken[0], args)
        if not module.models:
            _log.info("PyTorch runs a graph: %s", module.report())
            return None
        served = _Served(module, _ties(weights))
        served.rebase(weights, facts)
        program._served.append(served)
        return program

    def overlap(self, args: Sequence[Any]) -> bool:
        """Whether arguments share memory with one that is written to."""
        if not self._written:
            return False
        memory = [arg.untyped_storage()._cdata for arg in args if isinstance(arg, torch.Tensor)]
        return any(memory.count(args[place].untyped_storage()._cdata) > 1 for place in self._written)

    def results_of(self, made: Sequence[torch.Tensor], args: Sequence[Any]) -> tuple[Any, ...]:
        """The results of the graph from those of the module, after what it writes is written."""
        for place, value in zip(self._written, made, strict=False):
            args[place].copy_(value)
        return self.cut.results_of(made[len(self._written) :], args)

    def with_weights(self, args: Sequence[Any]) -> Module:
        """A module with the weights of a call."""
        weights = self.cut.weights_of(args)
        served = self._served_with(weights)
        facts = _facts_of(weights)
        changed = served.changed(weights, facts)
        if changed:
            served.rebase(weights, facts)
            try:
                self._bring_up_to_date(served, weights, changed, args)
            except BaseException:
                served.forget()
                raise
        return served.module

    def _served_with(self, weights: Sequence[torch.Tensor]) -> _Served:
        """The engine for these weights."""
        for index in range(len(self._served) - 1, -1, -1):
            served = self._served[index]
            if served.has(weights):
                if index != len(self._served) - 1:
                    self._served.append(self._served.pop(index))
                return served
        for served in self._served:
            if served.had(weights):
                return served
        last = self._served[-1]
        self._served = [served for served in self._served if served.is_alive][1 - _MOST_WEIGHTS :]
        self._served.append(_Served(last.module.fork(), last.ties))
        return self._served[-1]

    def _bring_up_to_date(
        self, served: _Served, weights: Sequence[torch.Tensor], changed: Collection[int], args: Sequence[Any]
    ) -> None:
        ties = _ties(weights)
        known = served.module._compiled.sources
        new = {self.cut.weights[index]: weights[index].detach() for index in changed}
        new = {name: weight for name, weight in new.items() if name in known}
        if ties == served.ties:
            try:
                served.module.refit(new, partial=True, constants="all")
                return
            except WeightsError as error:
                _log.info("compiled again: %s", error)
        taken = _taken_apart(self._gm, args)
        if taken is None:
            raise CompileError("a graph of torch.compile became another one: call torch.compiler.reset()")
        module = self._compiled(taken[0], args)
        served.module, served.ties = module, ties

    def _compiled(self, module: torch.fx.GraphModule, args: Sequence[Any]) -> Module:
        """Raises :class:`_WritesError` when the program writes to its weights."""
        with torch.inference_mode(False), torch.no_grad():
            inputs = [x.clone() if x.is_inference() else x for x in self.cut.inputs_of(args)]
            program = exported(module, inputs, None, self.cut.dynamic_shapes)
            program, written = writes_as_results(program)
            if any(spec.kind in _MUTATIONS for spec in program.graph_signature.output_specs):
                raise _WritesError
            self._written = tuple(self.cut.inputs[index] for index in written)
            return compile(Traced(program, is_part=True), **self._settings)


def _taken_apart(gm: torch.fx.GraphModule, args: Sequence[Any]) -> tuple[torch.fx.GraphModule, Cut] | None:
    with torch.inference_mode(False), torch.no_grad():
        return cut(gm, args)


class _Served:
    """A module, and what its weights were made of. Holds none of these tensors."""

    def __init__(self, module: Module, ties: tuple[int, ...]) -> None:
        self.module = module
        self.ties = ties
        """Which weights were one when the module was compiled."""
        self._native = _regraft.Watch()
        self._weights: list[weakref.ref[torch.Tensor]] | None = None
        self._facts: _Facts = ([], [], [])

    def rebase(self, weights: Sequence[torch.Tensor], facts: _Facts) -> None:
        """Takes these weights for those of the module, as they were when ``facts`` were found."""
        self._weights = list(map(weakref.ref, weights))
        self._facts = facts
        self._native.watch_memory(list(map(_address, weights)), list(map(readable, weights)))

    def forget(self) -> None:
        """It is made of nothing that is known."""
        self._weights = None

    def has(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether it is made of these tensors."""
        return self._weights is not None and all(
            ref() is weight for ref, weight in zip(self._weights, weights, strict=True)
        )

    def had(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether it was made of some of these tensors, and of others that are gone."""
        if self._weights is None:
            return False
        seen = [ref() for ref in self._weights]
        return all(old is None or old is new for old, new in zip(seen, weights, strict=True))

    @property
    def is_alive(self) -> bool:
        """Whether there are the tensors still that it was made of."""
        return self._weights is not None and all(ref() is not None for ref in self._weights)

    def changed(self, weights: Sequence[torch.Tensor], facts: _Facts) -> Collection[int]:
        """Indices of weights that are other tensors, or were written to."""
        if self._weights is None:
            return range(len(weights))
        addresses = list(map(_address, weights))
        found: set[int] = set()
        if facts != self._facts or not self.has(weights):
            for index, (ref, weight) in enumerate(zip(self._weights, weights, strict=True)):
                version, *layout = (fact[index] for fact in facts)
                old_version, *old_layout = (fact[index] for fact in self._facts)
                if ref() is not weight or version != old_version or layout != old_layout:
                    found.add(index)
                if layout != old_layout:
                    # It may be smaller than it was, and is not read.
                    addresses[index] = 0
        found.update(self._native.changed_memory(addresses))
        return found


def _facts_of(weights: Sequence[torch.Tensor]) -> _Facts:
    try:
        versions: list[int | None] = list(map(_version, weights))
    except RuntimeError:
        # Tensors made in inference mode have no version counter.
        versions = [None if weight.is_inference() else weight._version for weight in weights]
    return versions, list(map(_stride, weights)), list(map(_size, weights))


def _ties(weights: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """For each weight the first one that is the same memory, seen the same way."""
    first: dict[Any, int] = {}
    keys = [
        (_address(weight), weight.dtype, weight.shape, weight.stride()) if weight.numel() else index
        for index, weight in enumerate(weights)
    ]
    return tuple(first.setdefault(key, index) for index, key in enumerate(keys))
