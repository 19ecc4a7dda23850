"""The compiled module."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regraft import _regraft
from regraft._compiled import Compiled, Serving
from regraft.caches import CannotTake, taken_apart
from regraft.devices import CPU, moved, place_of_results
from regraft.errors import CompileError, FrozenError, InputError, NotBoundError, WeightsError
from regraft.given import (
    check_overwritten,
    config_text,
    help_with,
    only,
    overwrite,
    part_of,
    scaled,
)
from regraft.kept import short_name
from regraft.naming import Named
from regraft.parts import refitted_parts
from regraft.report import Memory, RefitReport, size_text

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

    from regraft.partition import PartitionReport

__all__ = ["Module"]

Observer = Callable[[str, int, int], object]


class Module(torch.nn.Module):
    """A compiled module: called as the module that it was made from, with weights that can be replaced.

    :func:`regraft.compile` makes it. Calls may come from many threads, also while the weights are replaced:
    each uses one set of weights. Results have no gradients.

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
            return self._run(args, kwargs, ())
        try:
            return self._run(*taken_apart(args, kwargs))
        except CannotTake as error:
            raise InputError(str(error)) from error

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], caches: Sequence[Any]) -> Any:
        """One call, whose ``caches`` were taken apart."""
        compiled, serving = self._compiled, self._serving
        tensors = compiled.convention.flatten(args, kwargs)
        if compiled.overwritten:
            check_overwritten(tensors, compiled)
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
            made = overwrite(tensors, compiled.overwritten, made)
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
                (``"all"``: all that are given). They belong to the program, no state dict contains them,
                and by default they are kept.
            changed: names whose weights are new (``"all"``: all of them); others are ignored. By default
                they are compared.
            adapters: the adapters from now on with their scales, made by :meth:`adapter`; by default those
                that serve.
            reject_non_finite: refuse infinities and NaN.
            verify: inputs of one call, on which the result is first compared with the reference evaluator.
                For modules of one engine.
            observer: called with ``(phase, bytes done, bytes in all)`` as the refit advances.

        Returns:
            What changed, and the time of each phase.

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
                f"expected a state dict or the path of a weight file, found {found}{help_with(weights)}"
            )
        elif key is not None and weights is not None:
            weights = part_of(weights, key)
        named = Named.of(self, weights, partial or not strict, not strict, constants, rename or {})
        weights, changed = named.weights, named.changed(changed)
        options: dict[str, Any] = {
            "partial": partial or not strict,
            "constants": constants,
            "changed": changed,
            "adapters": None if adapters is None else scaled(adapters),
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
            self._serving, report = refitted_parts(
                self._compiled, self._serving, self._read, weights, **options
            )
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

        The scale comes from its file, or from an ``adapter_config.json`` beside it.

        Args:
            name: its name in reports; a path alone is read, and gives the name of the file.
            weights: a file or folder that PEFT, diffusers or kohya's scripts wrote, or tensors by their
                names.
            config: PEFT's ``adapter_config.json``, as text, as a path or as a mapping; for tensors, and for
                files without one beside them.
            alpha: the alpha it was trained with, where nothing else states it.

        Raises:
            WeightsError: with every key that matches no weight of an engine. Parts in PyTorch take no
                adapters.

        """
        if weights is None:
            weights, name = name, Path(name).stem
        if self._compiled.glue is None:
            return self.models[0].adapter(str(name), weights, config_text(config), alpha)
        help = (
            "help: no adapter is applied to what stays in PyTorch (see report()): merge it, give the weights"
        )
        try:
            found = _regraft.adapter_for(self.models, str(name), weights, config_text(config), alpha)
        except WeightsError as error:
            raise WeightsError(f"{error}\n  {help}", problems=error.problems) from error
        shared = sorted(set(found.sources) & self._serving.kept.keys())
        if shared:
            raise WeightsError(f"{found.name}: {', '.join(shared)}: PyTorch reads it, too\n  {help}")
        return found

    def reset_state(self) -> None:
        """Resets the state that the program keeps between calls: buffers that it writes to get the values
        that they were compiled with, or that the last refit gave them.
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
        """The error of ``weights`` of small integers on the inputs of the export: the norm of the difference
        from PyTorch's outputs, relative to the norm of these. ``None`` for weights that are not rounded, and
        after loading.
        """
        return self._loss

    def report(self) -> PartitionReport:
        """Which nodes of the program are in engines, and which stay in PyTorch."""
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
        """The text between the parentheses of ``repr``."""
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
        idle = self._idle
        if idle.isdisjoint(weights.keys()):
            return weights
        return only(weights, [name for name in map(str, weights.keys()) if name not in idle])

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
