"""The compiled module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from regraft import _regraft
from regraft.errors import FrozenError, WeightsError
from regraft.report import RefitReport

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

    from regraft.calling import CallingConvention
    from regraft.glue import Glue
    from regraft.partition import PartitionReport

__all__ = ["Compiled", "Module", "Serving"]

Observer = Callable[[str, int, int], object]

# Takes the memory of an output over, without a copy.
_tensor_from: Callable[[Any], torch.Tensor] = torch._C._from_dlpack


@dataclass(frozen=True)
class Compiled:
    """What a program was compiled to, whatever weights serve."""

    convention: CallingConvention
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


@dataclass(frozen=True)
class Serving:
    """The engines and weights that a call uses from its start to its end."""

    models: tuple[_regraft.Model, ...]
    kept: Mapping[str, torch.Tensor]
    """Weights of the parts that stay in PyTorch, by name."""
    sessions: tuple[_regraft.Session | None, ...]
    """For engines that keep state between calls, what keeps it."""

    @classmethod
    def of(
        cls, models: Sequence[_regraft.Model], kept: Mapping[str, torch.Tensor], stateful: Sequence[bool]
    ) -> Serving:
        """The first of a module."""
        sessions = tuple(
            m.session() if has_state else None for m, has_state in zip(models, stateful, strict=True)
        )
        return cls(tuple(models), kept, sessions)

    def run_engine(self, index: int, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs one of the engines."""
        session = self.sessions[index]
        return (self.models[index] if session is None else session).run(inputs, _tensor_from)

    def fork(self, written: Collection[str]) -> Serving:
        """Another that shares everything with this one until it is refitted, but what the program writes to.

        Engines that keep state begin anew, from their weights.
        """
        models = tuple(model.fork() for model in self.models)
        kept = {name: value.clone() if name in written else value for name, value in self.kept.items()}
        return Serving.of(models, kept, [session is not None for session in self.sessions])


class Module(torch.nn.Module):
    """A compiled module: called as the module that it was made from, with weights that can be replaced.

    :func:`regraft.compile` makes it. Calls may come from many threads, also while the weights are replaced:
    each sees the weights of one moment. Results require no gradient.

    Example:
        >>> compiled = regraft.compile(model, (x,))  # doctest: +SKIP
        >>> y = compiled(x)  # doctest: +SKIP
        >>> compiled.refit(tuned.state_dict())  # doctest: +SKIP
        regraft.RefitReport(62 of 62 sources changed, 21 slots made anew, 46.7 MB in 3.9 ms)

    """

    def __init__(self, compiled: Compiled, serving: Serving) -> None:
        super().__init__()
        self._compiled = compiled
        self._serving = serving
        self._refitting = threading.Lock()
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program on what the original module takes.

        Raises:
            InputError: when the inputs do not fit the program.
            NotBoundError: when a stripped module was given no weights yet.
            GradientError: when an input requires a gradient and gradients are on.

        """
        compiled, serving = self._compiled, self._serving
        tensors = compiled.convention.flatten(args, kwargs)
        if compiled.glue is None:
            return compiled.convention.unflatten(serving.run_engine(0, tensors))
        return compiled.convention.unflatten(compiled.glue(serving, tensors))

    def refit(
        self,
        weights: Mapping[str, Any] | _regraft.StateDict | str | PathLike[str] | None = None,
        *,
        partial: bool = False,
        changed: Collection[str] | str | None = None,
        adapters: Sequence[tuple[_regraft.Adapter, float]] | None = None,
        reject_non_finite: bool = False,
        verify: Sequence[Any] | None = None,
        observer: Observer | None = None,
    ) -> RefitReport:
        """Replaces weights, all or nothing, while calls go on.

        Args:
            weights: tensors by the names of ``state_dict()``, or a weight file (safetensors, ``.pt``,
                ``.bin``, ``.pt2``, ONNX, or the index of shards). Tensors are read during the call only.
            partial: take the names that are there and keep the other weights; otherwise all must be given.
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
            FrozenError: when the module was compiled with ``make_refittable=False``.
            VerificationError: when verification found a difference; nothing is changed then.

        """
        if self._compiled.mode == "frozen":
            raise FrozenError(
                "the module is frozen, so its weights cannot change: compile it with make_refittable=True"
            )
        if weights is not None and not isinstance(weights, (Mapping, _regraft.StateDict)):
            weights = _regraft.StateDict.open(weights)
        options: dict[str, Any] = {
            "partial": partial,
            "changed": changed,
            "adapters": adapters,
            "reject_non_finite": reject_non_finite,
            "observer": observer,
        }
        if self._compiled.glue is None:
            model = self.models[0]
            return RefitReport.from_json(
                [model.refit(self._read_by(model, weights), verify=verify, **options)]
            )
        if verify is not None or adapters:
            what = "verify" if verify is not None else "adapters"
            raise WeightsError(
                f"{what}: for modules of one engine only, and this one has parts in PyTorch (see report())"
            )
        with self._refitting:
            self._serving, report = self._refitted_parts(weights, **options)
        return report

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As :meth:`refit`, under PyTorch's name: ``strict=False`` keeps weights that are not given.

        Raises:
            WeightsError: as :meth:`refit`, also for unknown names when not ``strict``.
        """
        self.refit(state_dict, partial=not strict)
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def state_dict(self, *, prefix: str = "") -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Copies of the weights that serve, without adapters, by the names of the original module.

        Weights that the program never reads are not among them.

        Raises:
            FrozenError: when the module is frozen.
            NotBoundError: when it has no weights yet.
        """
        if self._compiled.mode == "frozen":
            raise FrozenError("the module is frozen: it holds no weights but those its kernels read")
        found = {}
        for name in self.sources:
            value = self._weight(name)
            if value is not None:
                found[prefix + name] = value
        return found

    def _weight(self, name: str) -> torch.Tensor | None:
        if name in self._serving.kept:
            return self._serving.kept[name].clone()
        for model in self.models:
            array = model.source(name) if name in self._names(model) else None
            if array is not None:
                return torch.utils.dlpack.from_dlpack(array)
        return None

    def fork(self) -> Module:
        """Another module that starts with the same weights and shares all memory that neither changes."""
        written = self._compiled.glue.mutated if self._compiled.glue is not None else ()
        return Module(self._compiled, self._serving.fork(written))

    def adapter(
        self, name: str, weights: Mapping[str, Any] | str | PathLike[str], config: str | None = None
    ) -> _regraft.Adapter:
        """Reads an adapter (LoRA, rsLoRA, DoRA, LoHa, LoKr, full deltas) for this module, without applying
        it.

        Args:
            name: what reports call it.
            weights: a file or folder that PEFT, diffusers or kohya's scripts wrote, or tensors by their
                names.
            config: the text of PEFT's ``adapter_config.json``, for tensors.

        Raises:
            WeightsError: with every key that matches no weight. Also for a module of several engines.

        """
        if len(self.models) != 1 or self._compiled.glue is not None:
            raise WeightsError(
                f"{name}: adapters are read for modules of one engine, this one has {len(self.models)} "
                "and parts in PyTorch\n"
                "  help: give the merged weights to refit(); report() says what stays in PyTorch"
            )
        return self.models[0].adapter(name, weights, config)

    def reset_state(self) -> None:
        """Forgets the state that the program keeps between calls (buffers that it writes to)."""
        for session in self._serving.sessions:
            if session is not None:
                session.reset()

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
        if self._compiled.mode == "stripped" and all(model.is_bound for model in self.models):
            return "refittable"
        return self._compiled.mode

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it was compiled with."""
        return self._compiled.settings

    def report(self) -> PartitionReport:
        """What became of the nodes of the program: engines, and what stays in PyTorch."""
        return self._compiled.report

    def memory(self) -> dict[str, int]:
        """Bytes of slots: ``slots`` of this module, of which ``private`` ones are shared with no fork;
        ``in_use`` of this module and all its forks together; ``free`` ones that wait for the next refit;
        ``kept`` of the parts in PyTorch.
        """
        facts = [model.memory() for model in self.models]
        return {
            "slots": sum(fact["slots"] for fact in facts),
            "private": sum(fact["private"] for fact in facts),
            "in_use": sum(fact["in_use"] for fact in facts),
            "free": sum(fact["free"] for fact in facts),
            "kept": sum(value.nbytes for value in self._serving.kept.values()),
        }

    def plot_memory(self) -> Figure:
        """A picture of :meth:`memory` (needs the extra ``plot``: matplotlib)."""
        from regraft.plotting import plot_memory

        return plot_memory(self)

    def extra_repr(self) -> str:
        """What ``repr`` says."""
        models = self.models
        slots = sum(len(model.slots) for model in models)
        size = sum(bytes for model in models for _, bytes, _ in model.slots) / 1e6
        parts = [self.mode, f"{len(self.sources)} sources", f"{slots} slots", f"{size:.1f} MB"]
        if self._compiled.glue is not None:
            parts.append(f"{len(models)} engines, {len(self.report().in_pytorch)} nodes in PyTorch")
        return ", ".join([*parts, models[0].target if models else "no engine"])

    def __repr__(self) -> str:
        return f"regraft.Module({self.extra_repr()})"

    def train(self, mode: bool = True) -> Module:
        """Engines are for inference: only ``mode=False`` is possible."""
        if mode:
            raise FrozenError(
                "a compiled module cannot be trained: train the original, then refit; or use MutableModule"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        copy = self.fork()
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> Any:
        raise TypeError(
            "a compiled module cannot be pickled: use regraft.save(module, folder) and regraft.load(folder)"
        )

    def _read_by(self, model: _regraft.Model, weights: Any) -> Any:
        """``weights`` without those that the program has and no engine reads, such as counters."""
        if weights is None or self._compiled.sources.keys() <= self._names(model):
            return weights
        known = self._names(model)
        idle = {
            name for name in map(str, weights.keys()) if name in self._compiled.sources and name not in known
        }
        return (
            _only(weights, [name for name in map(str, weights.keys()) if name not in idle])
            if idle
            else weights
        )

    @staticmethod
    def _names(model: _regraft.Model) -> set[str]:
        return {name for source in model.sources for name in (source.name, *source.aliases)}

    def _refitted_parts(
        self, weights: Any, *, partial: bool, changed: Any, **options: Any
    ) -> tuple[Serving, RefitReport]:
        """What serves after a refit of all parts, and its report; nothing serves yet."""
        models = tuple(model.fork() for model in self.models)
        kept, problems, reports = dict(self._serving.kept), [], []
        given = set(weights.keys()) if weights is not None else set()
        problems += [f"  {name}  unknown" for name in sorted(given - self._compiled.sources.keys())]
        for model in models:
            names = self._names(model)
            mine = None if weights is None else _only(weights, sorted(given & names))
            mine_changed = (
                changed if changed is None or isinstance(changed, str) else [n for n in changed if n in names]
            )
            try:
                reports.append(model.refit(mine, partial=partial, changed=mine_changed, **options))
            except WeightsError as error:
                problems += [line for line in str(error).splitlines()[1:] if "help:" not in line]
        for name in kept:
            if name not in given:
                if not partial and self._compiled.sources[name] and weights is not None:
                    problems.append(f"  {name}  missing")
                continue
            value = _as_torch(weights[name])
            if value.shape != kept[name].shape or value.is_floating_point() != kept[name].is_floating_point():
                problems.append(f"  {name}  expected {_type(kept[name])}, found {_type(value)}")
                continue
            kept[name] = value.detach().to(kept[name].dtype).clone()
        if problems:
            lines = "\n".join(dict.fromkeys(problems))
            raise WeightsError(f"{len(set(problems))} weights do not fit; nothing was changed\n{lines}")
        # Parts of a program take the state as inputs: it is among what is kept.
        return Serving.of(models, kept, [False] * len(models)), RefitReport.from_json(reports)


def _only(weights: Any, names: list[str]) -> Any:
    if isinstance(weights, _regraft.StateDict):
        return weights.only(names)
    return {name: weights[name] for name in names}


def _as_torch(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.utils.dlpack.from_dlpack(value)


def _type(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
