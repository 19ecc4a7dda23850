"""The compiled module."""

from __future__ import annotations

import functools
import json
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regraft import _regraft
from regraft.caches import CannotTake, taken_apart
from regraft.devices import CPU, moved, place_of_results
from regraft.errors import CompileError, FrozenError, InputError, NotBoundError, Problem, WeightsError
from regraft.kept import KeptRefit, plain_tensor, same_bits, short_name
from regraft.naming import Named, renamed
from regraft.report import Memory, RefitReport, joined, size_text

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure
    from torch.export import ExportedProgram

    from regraft.caches import Carry
    from regraft.calling import CallingConvention
    from regraft.glue import Glue
    from regraft.inputs import InputTypes
    from regraft.partition import PartitionReport

__all__ = ["Compiled", "Module", "Serving"]

Observer = Callable[[str, int, int], object]

# Takes the memory of an output over, without a copy.
_tensor_from: Callable[[Any], torch.Tensor] = torch._C._from_dlpack


@dataclass(frozen=True)
class Compiled:
    """What a program was compiled to, whatever weights serve."""

    convention: CallingConvention
    takes: InputTypes
    glue: Glue | None
    report: PartitionReport
    sources: Mapping[str, bool]
    """Names of all weights of the program; whether a state dict holds them."""
    digest: str
    """What the program computes: see :func:`regraft._program.digest_of`."""
    mode: str
    """``refittable``, ``stripped`` or ``frozen``."""
    keep_sources: str
    cache: tuple[str, ...] = ()
    """For each engine what the cache did: ``off``, ``hit`` or ``built``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings it was compiled with."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Names that are one weight, where one has several."""
    written: tuple[str, ...] = ()
    """Buffers that the program writes to."""
    identical: Mapping[str, str] | None = None
    """Digests of the only weights that parts in PyTorch take; ``None`` where they take any."""
    carry: Carry | None = None
    """What becomes of caches among the arguments."""
    device: str = "cpu"
    """Where the engines run: ``cpu`` or ``cuda:N``."""
    home: str = "cpu"
    """Where the parts in PyTorch run: where the program was when it was exported."""
    overwritten: tuple[int, ...] = ()
    """Which tensors of a call the program writes to: its first results are their new values."""
    program: ExportedProgram | None = field(default=None, repr=False)
    """The program without weights, for saving it."""


@dataclass(frozen=True)
class Serving:
    """The engines and weights that a call uses from its start to its end."""

    models: tuple[_regraft.Model, ...]
    kept: Mapping[str, torch.Tensor]
    """Weights of the parts that stay in PyTorch, by name."""
    sessions: tuple[_regraft.Session | None, ...]
    """For engines that keep state between calls, what keeps it."""
    initial: Mapping[str, torch.Tensor]
    """For buffers among ``kept`` that the program writes to, what they were given last."""
    device: str = "cpu"
    """Where the engines run."""

    @classmethod
    def of(
        cls,
        models: Sequence[_regraft.Model],
        kept: Mapping[str, torch.Tensor],
        stateful: Sequence[bool],
        initial: Mapping[str, torch.Tensor],
        device: str,
    ) -> Serving:
        """One whose engines begin with the state that their weights say."""
        sessions = tuple(
            m.session() if has_state else None for m, has_state in zip(models, stateful, strict=True)
        )
        return cls(tuple(models), kept, sessions, initial, device)

    @property
    def is_bound(self) -> bool:
        """Whether there are values for all weights."""
        is_bound = self.__dict__.get("_is_bound", False)
        if not is_bound:
            is_bound = all(model.is_bound for model in self.models) and not any(
                value.is_meta for value in self.kept.values()
            )
            self.__dict__["_is_bound"] = is_bound
        return bool(is_bound)

    def run_engine(self, index: int, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs one of the engines."""
        session = self.sessions[index]
        made = (self.models[index] if session is None else session).run(inputs, _tensor_from)
        return made if self.device == "cpu" else moved(made, place_of_results(inputs, self.device))

    def fork(self) -> Serving:
        """Another that shares everything with this one until it is refitted, but the state, which is
        reset.
        """
        models = tuple(model.fork() for model in self.models)
        stateful = [session is not None for session in self.sessions]
        return Serving.of(models, self.at_first, stateful, self.initial, self.device)

    @property
    def at_first(self) -> dict[str, torch.Tensor]:
        """What is kept, as it was before any call."""
        return {**self.kept, **{name: value.clone() for name, value in self.initial.items()}}

    def reset(self) -> None:
        """Forgets the state."""
        for session in self.sessions:
            if session is not None:
                session.reset()
        for name, value in self.initial.items():
            self.kept[name].copy_(value)


class Module(torch.nn.Module):
    """A compiled module: called as the module that it was made from, with weights that can be replaced.

    :func:`regraft.compile` makes it. Calls may come from many threads, also while the weights are replaced:
    each sees the weights of one moment. Results require no gradient.

    Example:
        >>> compiled = regraft.compile(model, (x,))  # doctest: +SKIP
        >>> y = compiled(x)  # doctest: +SKIP
        >>> compiled.refit(tuned.state_dict())  # doctest: +SKIP
        regraft.RefitReport(62 of 62 sources changed, 21 slots rebuilt, 46.7 MB in 3.9 ms)

    """

    def __init__(self, compiled: Compiled, serving: Serving) -> None:
        super().__init__()
        self._compiled = compiled
        self._serving = serving
        self._refitting = threading.Lock()
        self._loss: float | None = None
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program on what the original module takes.

        Raises:
            InputError: when the inputs do not fit the program.
            NotBoundError: when a stripped module was given no weights yet.
            GradientError: when an input requires a gradient and gradients are on.

        """
        if self._compiled.carry is None:
            return self.run(args, kwargs, ())
        try:
            return self.run(*taken_apart(args, kwargs))
        except CannotTake as error:
            raise InputError(str(error)) from error

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], caches: Sequence[Any]) -> Any:
        """One call, whose ``caches`` were taken apart."""
        compiled, serving = self._compiled, self._serving
        tensors = compiled.convention.flatten(args, kwargs)
        if compiled.overwritten:
            _check_overwritten(tensors, compiled)
        if compiled.glue is None:
            try:
                made = serving.run_engine(0, tensors)
            except InputError as error:
                raise self._with_help(error, tensors) from error
        elif serving.is_bound:
            home = torch.device(compiled.home)
            is_movable = compiled.device != "cpu" or compiled.home != "cpu"
            made = compiled.glue(serving, compiled.takes.checked(tensors, home if is_movable else None))
            if is_movable:
                made = moved(made, place_of_results(tensors, compiled.device))
        else:
            raise NotBoundError(
                "the module is stripped: it has no weights yet; give it all of them by refit()"
            )
        if compiled.overwritten:
            made = _overwrite(tensors, compiled.overwritten, made)
        result = compiled.convention.unflatten(made)
        return result if compiled.carry is None else compiled.carry.result(result, tensors, caches)

    def _with_help(self, error: InputError, tensors: Sequence[Any]) -> InputError:
        """``error`` with what to declare, where a size that is fixed is another."""
        help = self._compiled.takes.help_with(tensors)
        return error if help is None else InputError(f"{error}\n  help: {help}")

    def refit(
        self,
        weights: Mapping[str, Any] | _regraft.StateDict | str | PathLike[str] | None = None,
        *,
        partial: bool = False,
        strict: bool = True,
        key: str | None = None,
        rename: Mapping[str, str] | None = None,
        constants: Collection[str] | str | None = None,
        changed: Collection[str] | str | None = None,
        adapters: Sequence[tuple[_regraft.Adapter, float]] | None = None,
        reject_non_finite: bool = False,
        verify: Sequence[Any] | None = None,
        observer: Observer | None = None,
    ) -> RefitReport:
        """Replaces weights, all or nothing, while calls go on.

        Args:
            weights: tensors by the names of ``state_dict()``, or a weight file (safetensors, ``.pt``,
                ``.bin``, ``.ckpt``, ``.pt2``, ONNX, the index of shards) or a folder of Hugging Face. Tensors
                are read during the call only. Names are taken as they are, or by one rule for all of them:
                what wrappers add is left out (``module.``, ``_orig_mod.``), one prefix is added or removed
                (``model.``, ``net.``), other spellings of layers are read. The report says which.
            partial: take the names that are there and keep the other weights; otherwise all must be given.
            strict: ``False`` ignores names that the program does not have, and keeps weights that are not
                given, as PyTorch does.
            key: the key of a checkpoint that the weights are under, such as ``"ema"``, where it has several;
                or what their names begin with.
            rename: prefixes of names of the weights, with what they are called here, for what no rule
                explains.
            constants: names of non-persistent buffers and constants that the weights may change
                (``"all"``: all that are given). They are the program's: no state dict holds them, and by
                default they are left alone.
            changed: names that are new (``"all"``: all of them); the others are not looked at. By default
                found out.
            adapters: the adapters from now on with their scales, made by :meth:`adapter`; by default those
                that serve.
            reject_non_finite: refuse infinities and NaN.
            verify: inputs of one call; what the refit makes is compared with the reference evaluator on them
                first. For modules of one engine.
            observer: called with ``(phase, bytes done, bytes in all)`` as the refit advances.

        Returns:
            What was done, and how long each phase took.

        Raises:
            WeightsError: with everything that does not fit; nothing is changed then.
            FrozenError: when the module was compiled with ``mode="frozen"``.
            VerificationError: when verification found a difference; nothing is changed then.

        """
        if self._compiled.mode == "frozen":
            raise FrozenError(
                'the module is frozen, so its weights cannot change: compile it with mode="refittable"'
            )
        if isinstance(weights, (str, os.PathLike)):
            weights = _regraft.StateDict.open(weights, key)
        elif weights is not None and not isinstance(weights, (Mapping, _regraft.StateDict)):
            found = type(weights).__name__
            raise WeightsError(
                f"expected a state dict or the path of a weight file, found {found}{_help_with(weights)}"
            )
        elif key is not None and weights is not None:
            weights = _part_of(weights, key)
        named = Named.of(self, weights, partial or not strict, not strict, constants, rename or {})
        weights, changed = named.weights, named.changed(changed)
        options: dict[str, Any] = {
            "partial": partial or not strict,
            "constants": constants,
            "changed": changed,
            "adapters": None if adapters is None else _scaled(adapters),
            "reject_non_finite": reject_non_finite,
            "observer": observer,
        }
        if self._compiled.glue is None:
            return named.told(self._refitted_whole(weights, verify=verify, **options))
        if verify is not None:
            raise WeightsError(
                "verify: for modules of one engine only, and this one has parts in PyTorch (see report())"
            )
        with self._refitting:
            self._serving, report = self._refitted_parts(weights, **options)
        return named.told(report)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As :meth:`refit`, under PyTorch's name: ``strict=False`` ignores names that the program does not
        have, and keeps weights that are not given.

        Returns:
            The names of both, as PyTorch does.

        Raises:
            WeightsError: as :meth:`refit`.
        """
        report = self.refit(state_dict, strict=strict)
        missing = [] if strict else [name for name in report.kept if self._compiled.sources.get(name)]
        unexpected = [name for name, why in report.ignored if why == "unknown"]
        return torch.nn.modules.module._IncompatibleKeys(missing, unexpected)

    def state_dict(self, *, prefix: str = "") -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Copies of the weights that serve, without adapters, on the CPU, by the names of the original
        module.

        Weights that the program never reads are not among them. Buffers that an engine writes to are as they
        were given.

        Raises:
            FrozenError: when the module is frozen.
            NotBoundError: when it has no weights yet.
        """
        if self._compiled.mode == "frozen":
            raise FrozenError("the module is frozen: it holds no weights but those its kernels read")
        if not self._serving.is_bound:
            raise NotBoundError("the module is stripped: it has no weights yet")
        found = {}
        for name in self.sources:
            value = self._weight(name)
            if value is not None:
                found[prefix + name] = value
        return found

    def _weight(self, name: str) -> torch.Tensor | None:
        if name in self._serving.kept:
            return self._serving.kept[name].to(CPU, copy=True)
        for model, read in zip(self.models, self._read, strict=True):
            array = model.source(name) if name in read else None
            if array is not None:
                return torch.utils.dlpack.from_dlpack(array)
        return None

    def fork(self) -> Module:
        """Another module that starts with the same weights and shares all memory that neither changes.

        State that the program keeps between calls is reset: see :meth:`reset_state`.
        """
        return Module(self._compiled, self._serving.fork())

    def adapter(
        self,
        name: str | PathLike[str],
        weights: Mapping[str, Any] | str | PathLike[str] | None = None,
        config: str | PathLike[str] | Mapping[str, Any] | None = None,
        *,
        alpha: float | None = None,
    ) -> _regraft.Adapter:
        """Reads an adapter (LoRA, rsLoRA, DoRA, AdaLoRA, LoHa, LoKr, IA3, full deltas, whole tensors) for
        this module, without applying it.

        How it is scaled, its file says, or an ``adapter_config.json`` beside it.

        Args:
            name: what reports call it. The path of a file alone names it after the file.
            weights: a file or folder that PEFT, diffusers or kohya's scripts wrote, or tensors by their
                names.
            config: PEFT's ``adapter_config.json``, as text, as a path or as a mapping; for tensors, and for
                files that it does not lie beside.
            alpha: what it was trained with, where nothing else says so.

        Raises:
            WeightsError: with every key that matches no weight of an engine. Parts in PyTorch take no
                adapters.

        """
        if weights is None:
            weights, name = name, Path(name).stem
        if self._compiled.glue is None:
            return self.models[0].adapter(str(name), weights, _config_text(config), alpha)
        help = (
            "help: no adapter is applied to what stays in PyTorch (see report()): merge it, give the weights"
        )
        try:
            found = _regraft.adapter_for(self.models, str(name), weights, _config_text(config), alpha)
        except WeightsError as error:
            raise WeightsError(f"{error}\n  {help}", problems=error.problems) from error
        shared = sorted(set(found.sources) & self._serving.kept.keys())
        if shared:
            raise WeightsError(f"{found.name}: {', '.join(shared)}: PyTorch reads it, too\n  {help}")
        return found

    def reset_state(self) -> None:
        """Forgets the state that the program keeps between calls: buffers that it writes to are again what
        they were compiled with or what the last refit that brought them gave them.
        """
        self._serving.reset()

    @property
    def models(self) -> tuple[_regraft.Model, ...]:
        """The engines with the weights that serve."""
        return self._serving.models

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the weights that a full refit must bring."""
        return tuple(name for name, in_state_dict in self._compiled.sources.items() if in_state_dict)

    @property
    def mode(self) -> str:
        """``refittable``, ``stripped`` (until it is given weights) or ``frozen``."""
        if self._compiled.mode == "stripped" and self._serving.is_bound:
            return "refittable"
        return self._compiled.mode

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it was compiled with."""
        return self._compiled.settings

    @property
    def device(self) -> str:
        """Where it runs: ``cpu`` or ``cuda:N``."""
        return self._compiled.device

    @property
    def loss(self) -> float | None:
        """What ``weights`` of small integers cost on the inputs of the export: the norm of the difference of
        all outputs from PyTorch's, next to that of the outputs. ``None`` where weights are as they were, and
        after loading.
        """
        return self._loss

    def report(self) -> PartitionReport:
        """What became of the nodes of the program: engines, and what stays in PyTorch."""
        return self._compiled.report

    def memory(self) -> Memory:
        """Bytes of slots: ``slots`` of this module, of which ``private`` ones are shared with no fork;
        ``in_use`` of this module and all its forks together; ``free`` ones that wait for the next refit;
        ``kept`` of the parts in PyTorch.
        """
        facts = [model.memory() for model in self.models]
        return Memory(
            slots=sum(fact["slots"] for fact in facts),
            private=sum(fact["private"] for fact in facts),
            in_use=sum(fact["in_use"] for fact in facts),
            free=sum(fact["free"] for fact in facts),
            kept=sum(value.nbytes for value in self._serving.kept.values()),
        )

    def plot_memory(self) -> Figure:
        """A picture of :meth:`memory` (needs the extra ``plot``: matplotlib)."""
        from regraft.plotting import plot_memory

        return plot_memory(self)

    def extra_repr(self) -> str:
        """What ``repr`` says."""
        models = self.models
        slots = sum(len(model.slots) for model in models)
        size = sum(bytes for model in models for _, bytes, _ in model.slots)
        parts = [self.mode, f"{len(self.sources)} sources", f"{slots} slots", size_text(size)]
        if self._compiled.glue is not None:
            parts.append(f"{len(models)} engines, {len(self.report().in_pytorch)} nodes in PyTorch")
        return ", ".join([*parts, models[0].target if models else "no engine"])

    def __repr__(self) -> str:
        return f"regraft.Module({self.extra_repr()})"

    def _repr_html_(self) -> str:
        import html

        lines = str(self.report()).splitlines()
        return f"<p>{html.escape(repr(self))}</p><pre>{html.escape(chr(10).join(lines))}</pre>"

    def train(self, mode: bool = True) -> Module:
        """Engines are for inference: only ``mode=False`` is possible."""
        if mode:
            raise FrozenError(
                "a compiled module cannot be trained: train the original, then refit; or use MutableModule"
            )
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Module:
        """What ``to``, ``cuda``, ``half``, ``float`` and the like go through: possible is what changes
        nothing.
        """
        for dtype in self._float_dtypes():
            probe = torch.empty(0, dtype=dtype, device=self._compiled.device)
            try:
                wanted = fn(probe)
            except RuntimeError as error:
                raise CompileError(f"a compiled module cannot move: {error}") from error
            if wanted.dtype != dtype or wanted.device != probe.device:
                what = wanted.device if wanted.device != probe.device else wanted.dtype
                raise CompileError(
                    f"a compiled module cannot move to {what}: its engines are built for "
                    f"{self._target()} in {dtype}\n"
                    f"  help: move the original module (.to), then compile it again"
                )
        return self

    def _float_dtypes(self) -> list[torch.dtype]:
        """Of its weights and inputs."""
        names = {source.dtype for model in self.models for source in model.sources}
        names |= {short_name(one.dtype) for one in self._compiled.takes.inputs}
        floats = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
        return [dtype for name, dtype in floats.items() if name in names] or [torch.float32]

    def _target(self) -> str:
        return self.models[0].target if self.models else "the CPU"

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        copy = self.fork()
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> Any:
        raise TypeError(
            "a compiled module cannot be pickled: use regraft.save(module, folder) and regraft.load(folder)"
        )

    def _refitted_whole(self, weights: Any, *, verify: Any, **options: Any) -> RefitReport:
        """Refits the one engine of a module without parts in PyTorch."""
        model = self.models[0]
        read = self._read_by(weights)
        state = self._state_given(weights, options["changed"])
        if not state:
            return model.refit(read, verify=verify, **options)
        left_out = set(self._compiled.written) - state
        if left_out:
            raise WeightsError(
                f"{', '.join(sorted(state))}: state is replaced as a whole; nothing was changed\n"
                f"  help: give {', '.join(sorted(left_out))}, too"
            )
        with self._refitting:
            # As in PyTorch, what the program wrote there is gone.
            changed = model.fork()
            report = changed.refit(read, verify=verify, **options)
            self._serving = Serving.of([changed], {}, [True], {}, self._compiled.device)
        return report

    def _state_given(self, weights: Any, changed: Any) -> set[str]:
        """Buffers that the program writes to and ``weights`` bring."""
        if weights is None or not self._compiled.written or self._serving.sessions == (None,):
            return set()
        given = set(weights.keys())
        if changed is not None and not isinstance(changed, str):
            given &= set(changed)
        return given & set(self._compiled.written)

    def _read_by(self, weights: Any) -> Any:
        """``weights`` without those that the program has and no engine reads, such as counters."""
        if weights is None:
            return weights
        names = list(map(str, weights.keys()))
        idle = self._idle
        return weights if idle.isdisjoint(names) else _only(weights, [n for n in names if n not in idle])

    @functools.cached_property
    def _read(self) -> tuple[frozenset[str], ...]:
        """Names of the weights that each engine reads. A refit does not change them."""
        return tuple(
            frozenset(name for source in model.sources for name in (source.name, *source.aliases))
            for model in self.models
        )

    @functools.cached_property
    def _idle(self) -> frozenset[str]:
        """Names that the program has and no engine reads, such as counters."""
        return frozenset(self._compiled.sources.keys()).difference(*self._read)

    def _refitted_parts(
        self,
        weights: Any,
        *,
        partial: bool,
        changed: Any,
        constants: Any,
        adapters: list[tuple[_regraft.Adapter, float]] | None,
        **options: Any,
    ) -> tuple[Serving, RefitReport]:
        """What serves after a refit of all parts, and its report; nothing serves yet."""
        compiled, serving = self._compiled, self._serving
        models, reports = tuple(model.fork() for model in serving.models), []
        given = {} if weights is None else {str(name): weights[name] for name in weights.keys()}  # noqa: SIM118
        # What the program has of its own is only changed on purpose.
        own = {name for name, in_state_dict in compiled.sources.items() if not in_state_dict}
        left_alone = [name for name in given if name in own and not _allows(constants, name)]
        given = {name: value for name, value in given.items() if name not in left_alone}
        changed = _with_ties(changed, compiled.ties)
        problems = _share_ties(given, compiled.ties)
        for index, (model, names) in enumerate(zip(models, self._read, strict=True)):
            styles = None if adapters is None else [(one.part(index), scale) for one, scale in adapters]
            mine = None if weights is None else {n: v for n, v in given.items() if n in names}
            mine_changed = (
                changed if changed is None or isinstance(changed, str) else [n for n in changed if n in names]
            )
            try:
                reports.append(
                    model.refit(
                        mine,
                        partial=partial,
                        changed=mine_changed,
                        constants="all",
                        adapters=styles,
                        **options,
                    )
                )
            except WeightsError as error:
                # What is not a list of problems is about something else.
                if not error.problems:
                    raise
                problems += error.problems
        home = torch.device(compiled.home)
        kept = KeptRefit(
            dict(serving.kept), compiled.sources, home, serving.initial.keys(), compiled.identical
        )
        if weights is not None:
            non_finite = options["reject_non_finite"]
            kept.take(given, partial=partial, changed=changed, reject_non_finite=non_finite)
        problems += kept.problems
        if problems:
            listed = list({(problem.name, problem.what): problem for problem in problems}.values())
            lines = [f"  {problem.name}  {problem.what}" for problem in listed]
            message = f"{len(lines)} weights do not fit; nothing was changed\n" + "\n".join(lines)
            raise WeightsError(message, problems=listed)
        new = {name: kept.kept[name].clone() for name in compiled.written if name in kept.applied}
        initial = {**serving.initial, **new}
        # Parts of a program take the state as inputs: it is among what is kept.
        after = Serving.of(models, kept.kept, [False] * len(models), initial, compiled.device)
        report = _with_kept(joined(reports), kept)
        return after, replace(report, ignored=(*report.ignored, *((name, "constant") for name in left_alone)))


def _check_overwritten(tensors: Sequence[Any], compiled: Compiled) -> None:
    """Checks that tensors that the program writes to share no memory with other inputs."""
    named = [
        name
        for name, leaf in zip(compiled.convention.names, compiled.convention.inputs, strict=True)
        if leaf is None
    ]
    memory = [
        tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None for tensor in tensors
    ]
    for place in compiled.overwritten:
        if memory[place] is None:
            raise InputError(f"input {named[place]}: the program writes to it: give a tensor of PyTorch")
        if memory.count(memory[place]) > 1:
            raise InputError(
                f"input {named[place]}: the program writes to it, and another input shares its memory: "
                "give a copy (.clone())"
            )


def _overwrite(tensors: Sequence[Any], places: Sequence[int], made: list[Any]) -> list[Any]:
    """Writes the first results to the tensors of a call; the others."""
    with torch.no_grad():
        for place, value in zip(places, made, strict=False):
            tensors[place].copy_(value)
    return made[len(places) :]


def _help_with(weights: Any) -> str:
    if isinstance(weights, torch.nn.Module):
        return "\n  help: give its state_dict()"
    if hasattr(weights, "graph_signature"):
        return "\n  help: give its state_dict, or regraft.refit_module_weights takes programs"
    return ""


def _config_text(config: str | PathLike[str] | Mapping[str, Any] | None) -> str | None:
    """The JSON of an adapter's configuration."""
    if config is None or (isinstance(config, str) and not config.endswith(".json")):
        return config
    if isinstance(config, Mapping):
        return json.dumps(
            config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
        )
    return Path(config).read_text(encoding="utf-8")


def _scaled(adapters: Any) -> list[tuple[_regraft.Adapter, float]]:
    """``adapters`` as a list, of which each was looked at."""
    pairs = list(adapters) if isinstance(adapters, Iterable) else [adapters]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], _regraft.Adapter):
            raise WeightsError(
                f"adapters: expected pairs of an adapter and its scale, found {pair!r}\n"
                "  help: read one with module.adapter(name, file), then give [(adapter, 1.0)]"
            )
        if not isinstance(pair[1], (int, float)) or not math.isfinite(pair[1]):
            raise WeightsError(f"{pair[0].name}: expected a finite scale, found {pair[1]!r}")
    return [(adapter, float(scale)) for adapter, scale in pairs]


def _only(weights: Any, names: list[str]) -> Any:
    if isinstance(weights, _regraft.StateDict):
        return weights.only(names)
    return {name: weights[name] for name in names}


def _with_ties(changed: Any, ties: Sequence[Sequence[str]]) -> Any:
    """Names that changed, with all other names of the same weights."""
    if changed is None or isinstance(changed, str):
        return changed
    names = set(changed)
    return names.union(*(group for group in ties if names & set(group)))


def _share_ties(given: dict[str, Any], ties: Sequence[Sequence[str]]) -> list[Problem]:
    """Gives all names of a weight the value that one of them has; what speaks against it."""
    problems: list[Problem] = []
    for group in ties:
        present = [name for name in group if name in given]
        if not present:
            continue
        value = given[present[0]]
        for name in present[1:]:
            if given[name] is not value and not same_bits(
                plain_tensor(given[name], CPU), plain_tensor(value, CPU)
            ):
                what = f"is the same weight as {present[0]}, and has another value"
                problems.append(Problem("tied_differ", name, what))
        given.update(dict.fromkeys(group, value))
    return problems


def _allows(constants: Any, name: str) -> bool:
    """Whether a weight that no state dict holds may be changed."""
    return constants == "all" if constants is None or isinstance(constants, str) else name in constants


def _part_of(weights: Any, key: str) -> Any:
    """What is under ``key`` in a checkpoint that was loaded, or the tensors whose names begin with it."""
    value: Any = weights
    for part in [key] if key in weights else key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        return value
    front = f"{key}."
    names = {name: name.removeprefix(front) for name in map(str, weights.keys()) if name.startswith(front)}
    if not names:
        raise WeightsError(f"there are no weights under {key!r}")
    return renamed(weights, names)


def _with_kept(report: RefitReport, kept: KeptRefit) -> RefitReport:
    """The report of the engines, with what was done to the parts in PyTorch."""
    applied = tuple(dict.fromkeys((*report.applied, *kept.applied)))
    return replace(
        report,
        applied=applied,
        unchanged=tuple(
            n for n in dict.fromkeys((*report.unchanged, *kept.unchanged)) if n not in set(applied)
        ),
        kept=tuple(dict.fromkeys((*report.kept, *kept.not_given))),
    )
