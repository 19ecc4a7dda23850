"""What a mutable module knows: its programs, and which weights each still has to take in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from regraft import _regraft, caches
from regraft._program import digest_of, tensors_of, without_weights
from regraft.checks import refuse_quantized
from regraft.compiling import Traced, compile, exported_with
from regraft.errors import (
    CompileError,
    FallbackWarning,
    GradientError,
    GradientWarning,
    RangesWarning,
    RegraftWarning,
    ThrashingWarning,
    TrainingWarning,
)
from regraft.module import Module
from regraft.mutable import peft
from regraft.mutable.entry import Entry, types_of
from regraft.mutable.explain import History, difference, other_structure
from regraft.mutable.inputs import Call, Ranges, Takes, for_export
from regraft.mutable.notices import Notices
from regraft.mutable.tree import LOOSE, Tree, same_structure, same_values
from regraft.mutable.watch import Watcher
from regraft.mutable.widening import Widening, as_code, where
from regraft.report import Memory, RefitReport, size_text

__all__ = ["Autograd", "Entry", "State", "WatchMode"]

Autograd = Literal["pytorch", "raise", "ignore"]
WatchMode = Literal["sampled", "full"]

# Programs that are kept for other arguments.
_MOST_ENTRIES = 8
# Calls whose program is known without comparing.
_MOST_CALLS = 256


class State:
    """What stands behind a mutable module. ``module`` is the original, which shares all attributes with the
    mutable one.
    """

    def __init__(
        self,
        module: nn.Module,
        autograd: Autograd,
        watch: WatchMode,
        settings: Mapping[str, Any],
        auto_ranges: bool = True,
        methods: Sequence[str] = (),
        fallback: bool = False,
    ) -> None:
        self.module = module
        self.methods = tuple(methods)
        """What is compiled besides ``forward``."""
        self.fallback = fallback
        """Whether PyTorch runs what cannot be compiled."""
        self.forward_at_first = vars(module).get("forward")
        self.autograd = autograd
        self.watch = watch
        self.auto_ranges = auto_ranges
        self.settings = dict(settings)
        self.ranges = Ranges()
        self.lock = threading.RLock()
        self.entries: list[Entry] = []
        """The last used one is the last."""
        self.calls: dict[tuple[Any, ...], list[tuple[Call, Entry]]] = {}
        """Entries of calls that were seen, without their arguments."""
        self.refits = 0
        self.compilations = 0
        self.last_report: RefitReport | None = None
        self.history = History()
        self.notices = Notices(module, self.history)
        self.widening = Widening()
        self.not_compiled: dict[tuple[Any, ...], str] = {}
        """Calls with caches that cannot be compiled, and why."""
        self._why_new: str | None = None
        """How the structure differs from what the programs were made for."""
        self.cannot_merge: str | None = None
        """Why adapters are PyTorch's matter now."""
        self._look_closely = False
        self.keep_programs = False
        """Whether compiled modules keep their programs, to be saved with them."""
        self._take_apart()

    def method(self, root: nn.Module, name: str) -> Callable[..., Any]:
        """A method of ``root``, which is the module or stands for it. Its ``forward`` is the one that it
        had when it was wrapped: others put theirs around that.
        """
        own = vars(root).get(name)
        if own is not None and (name != "forward" or own is self.forward_at_first):
            return cast(Callable[..., Any], own)
        return cast(Callable[..., Any], getattr(type(root), name).__get__(root))

    @property
    def hooked(self) -> Callable[..., Any] | None:
        """A forward that was put around that of the mutable module, such as by accelerate."""
        own = vars(self.module).get("forward")
        return None if own is self.forward_at_first else own

    def run(
        self,
        pytorch: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str = "forward",
    ) -> Any:
        """One call: compiled, or by ``pytorch``."""
        self.history.calls += 1
        if self.notices.runs_pytorch():
            return pytorch(*args, **kwargs)
        found = self._prepared(args, kwargs, method)
        if found is None:
            return pytorch(*args, **kwargs)
        entry, call, taken = found
        if not torch.is_grad_enabled():
            return entry.compiled._run(call.args, call.kwargs, taken)
        with torch.no_grad():
            return entry.compiled._run(call.args, call.kwargs, taken)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str
    ) -> tuple[Entry, Call, list[Any]] | None:
        """The program of a call, up to date, with the arguments as it takes them and the caches among
        them; ``None`` when PyTorch runs it.
        """
        scaled, scale = peft.scale_of_call(self.module, kwargs)
        try:
            taken_args, taken_kwargs, taken = caches.taken_apart(args, scaled)
        except caches.CannotTake as error:
            self.notices.warn(FallbackWarning, "caches", f"PyTorch runs it: {error}")
            return None
        call = Call.of(taken_args, taken_kwargs, method)
        if torch.is_grad_enabled() and self._wants_gradients(call):
            return None
        with self.lock:
            if self._changed_to_pytorch():
                return None
            if self.tree.tuners and peft.mixes_adapters(kwargs):
                self.history.add("pytorch", "the call has adapters of its own for each sample")
                return None
            falls_back = taken or self.fallback or method != "forward"
            entry = self._entry_or_pytorch(call) if falls_back else self._entry_of(call)
            if entry is not None and entry.writes:
                self.notices.warn(
                    FallbackWarning,
                    "writes",
                    "PyTorch runs it, as it writes to its buffers: regraft.compile keeps such state in "
                    "the engine",
                )
                entry = None
            # Which adapters PyTorch must compute shows when a program takes them in.
            if entry is None or not self._bring_up_to_date(entry, scale):
                return None
        return entry, call, taken

    def _entry_or_pytorch(self, call: Call) -> Entry | None:
        """The program for a call; ``None`` when it cannot be compiled, which is warned about once."""
        kind = call.kind()
        if kind not in self.not_compiled:
            try:
                return self._entry_of(call)
            except CompileError as error:
                if self.settings.get("require_full_compilation"):
                    raise
                self.not_compiled[kind] = str(error).splitlines()[0]
        why = self.not_compiled[kind]
        self.notices.warn(
            FallbackWarning,
            why,
            f"PyTorch runs {call.method}, which cannot be compiled for these arguments: {why}",
        )
        return None

    def _wants_gradients(self, call: Call) -> bool:
        """Whether PyTorch runs the call for its gradients."""
        if self.autograd == "ignore":
            return False
        by_input = any(tensor.requires_grad for tensor in call.tensors())
        if not by_input and not any(tensor.requires_grad for tensor in self.tree.tensors):
            return False
        what = "an input requires" if by_input else "parameters require"
        if self.autograd == "raise":
            raise GradientError(
                f"{type(self.module).__name__}: {what} a gradient, and engines compute none: call under "
                'torch.no_grad() or torch.inference_mode(), or use autograd="pytorch" or "ignore"'
            )
        self.notices.warn(
            GradientWarning,
            "gradients",
            f"{what} a gradient, so PyTorch runs this call of a module in eval mode. For the compiled one "
            "call under torch.inference_mode() or torch.no_grad(), or use "
            'MutableModule(..., autograd="ignore")',
        )
        return True

    def memory(self) -> Memory:
        """What all programs take together."""
        with self.lock:
            modules = [entry.compiled for entry in self.entries]
        models = [model for module in modules for model in module.models]
        each = [module.memory() for module in modules]
        slots = _regraft.slot_bytes_of(models)
        return Memory(
            slots=slots,
            shared=sum(one["slots"] for one in each) - slots,
            free=sum(one["free"] for one in each),
            kept=sum(one["kept"] for one in each),
        )

    def share_slots(self) -> None:
        """Makes slots that several programs have one."""
        models = [model for entry in self.entries for model in entry.compiled.models]
        for index, model in enumerate(models):
            for other in models[:index]:
                model.share_slots_with(other)

    # What changed

    def _changed_to_pytorch(self) -> bool:
        """Looks at the module; whether its calls are PyTorch's matter as it is now."""
        changes = self.watcher.look()
        if changes is not None:
            written = {name for index in changes.tensors for name in self.tree.owners[index]}
            if changes.structure:
                self._take_apart_again(written)
            else:
                self.watcher.rebase()
                self._mark(written)
        if self._look_closely or self.watch == "full":
            self._look_closely = False
            self._mark([*self.tree.sources, *self.tree.tuners, LOOSE])
        why = self.cannot_merge or self.tree.in_pytorch
        if why is not None:
            self.notices.warn(self._kind_of(why), why, f"PyTorch runs it: {why}")
        return why is not None

    @staticmethod
    def _kind_of(why: str) -> type[RegraftWarning]:
        return TrainingWarning if "training mode" in why else FallbackWarning

    def look_closely(self) -> None:
        """Compares everything at the next call."""
        self._look_closely = True

    def _take_apart(self) -> None:
        peft.settle(self.module)
        self.tree = Tree(self.module)
        self.structure = self.tree.structure()
        self.tuner_states = {name: peft.state(tuner) for name, tuner in self.tree.tuners.items()}
        self.watcher = Watcher(self.tree)

    def _take_apart_again(self, written: set[str]) -> None:
        tree, structure, states, watcher = self.tree, self.structure, self.tuner_states, self.watcher
        self._take_apart()
        # Another thread may have written to it meanwhile.
        meanwhile = watcher.look()
        if meanwhile is not None:
            written = written.union(*(tree.owners[index] for index in meanwhile.tensors))
        same = same_structure(structure, self.structure)
        self.cannot_merge = None
        if not same:
            self.not_compiled.clear()
            self._why_new = other_structure(structure, self.structure, same_values)
            for entry in self.entries:
                entry.verified = False
        new = {name for name, tensor in self.tree.sources.items() if tree.sources.get(name) is not tensor}
        new |= {name for names in self._new_owners(tree) for name in names}
        other = {
            name
            for name in states.keys() | self.tuner_states.keys()
            if states.get(name) != self.tuner_states.get(name)
        }
        # Names that are gone belong to a structure that is gone, or to adapters.
        self._mark(written | new | other)

    def _new_owners(self, before: Tree) -> Iterable[tuple[str, ...]]:
        """What owns tensors that were not there before."""
        known = set(map(id, before.tensors))
        return (
            names
            for tensor, names in zip(self.tree.tensors, self.tree.owners, strict=True)
            if id(tensor) not in known
        )

    def _mark(self, names: Collection[str]) -> None:
        """Notes that these sources, or adapters of these layers, may have changed."""
        sources = {name for name in names if name in self.tree.sources}
        others = set(names) - {LOOSE}
        layers = {name for name in others if name not in self.tree.sources or name in self.tree.tuners}
        if layers:
            self.cannot_merge = None
            sources |= self.tree.sources_within(layers)
        for entry in self.entries:
            entry.pending |= sources
            if LOOSE in names:
                entry.pending |= entry.constants.keys()
            entry.stale_adapters |= bool(layers)

    def forked(self, module: nn.Module) -> State:
        """The state of a copy of the module: its programs share what they can with these."""
        with self.lock:
            self._changed_to_pytorch()
            state = State(
                module,
                self.autograd,
                self.watch,
                self.settings,
                self.auto_ranges,
                self.methods,
                self.fallback,
            )
            state.ranges, state.compilations = self.ranges, min(1, len(self.entries))
            state.entries = [
                replace(
                    entry,
                    compiled=entry.compiled.fork(),
                    pending=set(entry.types),
                    stale_adapters=bool(self.tree.tuners),
                    # Which memory of the copy its constants are in, an export tells.
                    verified=entry.verified and not entry.constants,
                )
                for entry in self.entries
            ]
            state.share_slots()
            return state

    # Programs

    def _entry_of(self, call: Call) -> Entry:
        for seen, entry in self.calls.get((call.method, call.key), ()):
            if seen.spec == call.spec and entry.verified:
                self._use(entry)
                return entry
        fitting = [entry for entry in self.entries if entry.takes.fits(call)]
        entry = next((entry for entry in fitting if entry.verified), None) or self._compiled(call, fitting)
        self._use(entry)
        self._remember(call, entry)
        return entry

    def _use(self, entry: Entry) -> None:
        if self.entries[-1] is not entry:
            self.entries = [other for other in self.entries if other is not entry] + [entry]

    def _remember(self, call: Call, entry: Entry) -> None:
        if len(self.calls) >= _MOST_CALLS:
            self.calls.clear()
        known = self.calls.setdefault((call.method, call.key), [])
        known[:] = [(seen, other) for seen, other in known if seen.spec != call.spec]
        known.append((Call((), {}, (), call.spec, call.key, call.method), entry))

    def _compiled(self, call: Call, unverified: list[Entry]) -> Entry:
        """The program for a call, compiled unless one of ``unverified`` is the same. Nothing changes when
        that fails.
        """
        start = time.perf_counter()
        traced = self._traced(call)
        program = traced.program
        digest, types, takes = digest_of(program), types_of(program), Takes.of(call, program)
        for entry in unverified:
            if entry.compiled._compiled.digest == digest and entry.types == types and entry.takes == takes:
                entry.verified, entry.constants = True, self._constants(program)
                entry.pending |= types.keys()
                entry.stale_adapters = True
                return entry
        with _with_help():
            refuse_quantized(self.module)
            siblings = [model for entry in self.entries for model in entry.compiled.models]
            compiled = compile(traced._replace(siblings=siblings), **self.settings)
        if self.keep_programs:
            compiled._compiled = replace(compiled._compiled, program=without_weights(program))
        self._note_compilation(call, compiled, bool(unverified), time.perf_counter() - start)
        entry = Entry(takes, compiled, types, self._constants(program))
        entry.stale_adapters = bool(self.tree.tuners)
        entry.pending = self.tree.sources_within(self.tree.tuners)
        self.compilations += 1
        if len(self.entries) >= _MOST_ENTRIES:
            self.notices.warn(
                ThrashingWarning,
                "thrashing",
                f"more than {_MOST_ENTRIES} programs are in use, and those used least are compiled again: "
                "set_expected_dynamic_shape_range makes one of many sizes, and explain() says why each "
                "was made",
            )
        self.entries = [*self.entries[-(_MOST_ENTRIES - 1) :], entry]
        self.calls.clear()
        return entry

    def _traced(self, call: Call) -> Traced:
        """The program of a call, with sizes that may change as they are declared or showed to."""
        root = peft.shadow(self.module)
        # Ranges are those of forward.
        dims = self.ranges.fitting(call) if call.method == "forward" else [{} for _ in call.leaves]
        if any(isinstance(value, caches.Parts) for value in (*call.args, *call.kwargs.values())):
            dims = [{**more, **axes} for axes, more in zip(dims, caches.open_axes(call.leaves), strict=True)]
        wider = self.widening.of(call, dims)
        if wider is not None:
            sizes = where(call.places(self.method(root, call.method)), dims, wider)
            said = f"programs were compiled for calls that differ in sizes alone: {sizes}"
            if not self.auto_ranges:
                self.notices.warn(RangesWarning, "ranges", f"{said}. {as_code(call, wider)} makes them one")
                return self._exported(root, call, dims)
            try:
                traced = self._exported(root, call, wider)
            except CompileError:
                # Those sizes decide what the module computes.
                self.widening.refused(call)
            else:
                self.widening.widened(call, wider)
                self.notices.warn(
                    RangesWarning,
                    "ranges",
                    f"{said}. The one compiled now takes any: {as_code(call, wider)} says so from the start",
                )
                return traced
        return self._exported(root, call, dims)

    def _exported(self, root: nn.Module, call: Call, dims: list[dict[int, Any]]) -> Traced:
        method = self.method(root, call.method)
        args, kwargs, shapes = for_export(method, call, dims)
        with torch.inference_mode(False), _with_help():
            return exported_with(root, method, args, kwargs, shapes)

    def _note_compilation(self, call: Call, compiled: Module, is_other: bool, seconds: float) -> None:
        if not self.entries:
            why = "the first call"
        elif is_other or not any(entry.verified for entry in self.entries):
            why = self._why_new or "the module is another one"
        else:
            why = difference(
                call,
                [entry.takes for entry in self.entries],
                call.places(self.method(self.module, call.method)),
            )
        count = len(compiled.models)
        self.history.add("compile", why, seconds, f"{count} engine{'' if count == 1 else 's'}")

    def _constants(self, program: ExportedProgram) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors_of(program).items() if name not in self.tree.sources}

    # Weights

    def _bring_up_to_date(self, entry: Entry, scale: float) -> bool:
        """Refits a program with what is pending and adapters scaled with ``scale`` besides; ``False`` when
        PyTorch must compute the adapters.
        """
        try:
            refitted = entry.bring_up_to_date(self.tree, scale)
        except peft.CannotMerge as error:
            self.cannot_merge = str(error)
            self.notices.warn(FallbackWarning, self.cannot_merge, f"PyTorch runs it: {error}")
            return False
        # Weights of parts in PyTorch have no slots.
        if refitted is not None and (refitted.report.recomputed_slots or refitted.report.applied):
            self.refits += 1
            self.last_report = refitted.report
            self.history.add("refit", refitted.why(), refitted.seconds, size_text(refitted.report.bytes))
        return True


@contextlib.contextmanager
def _with_help() -> Iterator[None]:
    try:
        yield
    except CompileError as error:
        help = "help: what served before still does; .module runs in PyTorch"
        raise CompileError(f"{error}\n  {help}", error.unsupported) from error
