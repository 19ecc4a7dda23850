"""``MutableTorchTensorRTModule``, which is :class:`regraft.MutableModule` under another name."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram

import regraft
from regraft.checks import warn
from regraft.compat.torch_tensorrt.dynamo import _shapes
from regraft.compat.torch_tensorrt.dynamo._shapes import DynamicShapeOutOfRangeException
from regraft.compat.torch_tensorrt.files import packed, program_of, unpacked, with_weights
from regraft.compat.torch_tensorrt.settings import (
    CompilationSettings,
    for_mutable,
    gathered,
    report_without_effect,
)
from regraft.errors import CompileError, SettingsWarning
from regraft.kept import same_bits
from regraft.mutable.state import State

__all__ = ["DynamicShapeOutOfRangeException", "MutableTorchTensorRTModule", "RefitFlag", "RefitState"]


class MutableTorchTensorRTModule(regraft.MutableModule):
    """A module that is compiled at its first call, and follows every change of the original from then on.

    Changed values are refitted, also adapters of PEFT; a changed structure is compiled again. As with
    Torch-TensorRT, results require no gradient; :class:`regraft.MutableModule` can go through PyTorch
    instead.

    Args:
        pytorch_model: the module, which stays as it is and may go on changing.
        immutable_weights: must be False.
        strict: accepted and without meaning: modules are traced in the form that ``strict=False`` names.
        config: settings, as an object or a mapping.
        **settings: settings by keyword: those of :class:`CompilationSettings`.

    Raises:
        TypeError: for a setting that does not exist, with the name that was probably meant.
        ValueError: for ``immutable_weights=True``, ``strip_engine_weights=True`` or ``dryrun``.

    Example:
        >>> mutable = MutableTorchTensorRTModule(model)  # doctest: +SKIP
        >>> mutable(x)  # compiles  # doctest: +SKIP
        >>> mutable.load_state_dict(tuned)  # the next call has the new weights  # doctest: +SKIP
    """

    # The attributes are those of the original.
    __slots__ = ()

    def __new__(
        cls,
        pytorch_model: torch.nn.Module,
        *,
        immutable_weights: bool = False,
        strict: bool = True,
        config: CompilationSettings | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> MutableTorchTensorRTModule:
        chosen = gathered(config, {"immutable_weights": immutable_weights, **settings})
        wanted = for_mutable(chosen)
        report_without_effect(chosen)
        return _renamed(regraft.MutableModule(pytorch_model, autograd="ignore", **wanted))

    def __init__(self, *args: Any, **settings: Any) -> None:
        # All is done.
        pass

    def update_refit_condition(self) -> None:
        """Looks at every byte of the weights, and sets :attr:`refit_state` to what they need."""
        state = self._regraft_state
        state.look_closely()
        self.refit_state.set_state(_condition(state))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's; the next call refits."""
        result = super().load_state_dict(*args, **kwargs)
        if self._regraft_state.entries:
            self.refit_state.note(RefitFlag.NEEDS_REFIT)
        return result

    def refit_gm(self) -> None:
        """Brings the program that ran last up to date with the original now, not at the next call."""
        state = self._regraft_state
        with state.lock:
            state.look_closely()
            if state._changed_to_pytorch() or not state.entries or not state.entries[-1].verified:
                return
            state._bring_up_to_date(state.entries[-1], state.entries[-1].scale)

    def get_exported_program(self) -> ExportedProgram:
        """The program that ran last, with the weights of now.

        Raises:
            regraft.CompileError: before the first call, and where caches or adapters are part of the call.
        """
        program = _program_of(self)
        if program is None:
            raise CompileError(
                "there is no program to give: call the module once, without caches and adapters; "
                "torch.export.export takes its original_model"
            )
        return program

    def set_weight_streaming_ctx(self, requested_budget: int | None = None) -> None:
        """Without effect: weights are in the memory that engines run in."""
        warn(
            SettingsWarning,
            "compat.torch_tensorrt: set_weight_streaming_ctx is about TensorRT's memory: leave it out",
        )

    @property
    def arg_dynamic_shapes(self) -> tuple[Any, ...] | None:
        """Ranges of positional arguments, as they were set."""
        return _shapes.ranges_of(self)[0]

    @property
    def kwarg_dynamic_shapes(self) -> dict[str, Any] | None:
        """Ranges of keyword arguments, as they were set."""
        return _shapes.ranges_of(self)[1]

    _check_inputs_shape = staticmethod(_shapes.same_shapes)

    @staticmethod
    def _process_kwarg_inputs(inputs: Any) -> Any:
        """Keyword arguments are taken as they are."""
        return inputs

    def _validate_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Sets :attr:`refit_state` to what a call with these arguments needs, where no program takes it."""
        if not _shapes.takes(self, args, kwargs):
            self.refit_state.note(RefitFlag.NEEDS_RECOMPILE)

    @property
    def trt_device(self) -> torch.device:
        """Where the engines run."""
        entries = self._regraft_state.entries
        return torch.device(entries[-1].compiled.device if entries else "cpu")

    @property
    def original_model(self) -> torch.nn.Module:
        """The module in PyTorch."""
        return self._regraft_state.module

    @property
    def refit_state(self) -> RefitState:
        """What the next call will do."""
        return _STATES.setdefault(self._regraft_state, RefitState(self._regraft_state))

    @staticmethod
    def save(module: torch.nn.Module, path: str | os.PathLike[str], *, strip: bool = False) -> None:
        """Saves settings, ranges and programs as :meth:`regraft.MutableModule.save` does, to one file;
        to a folder where there is one. The module's code is not saved; a file also holds the program that
        ran last, with the weights of now. ``strip`` leaves the weights out of engines.

        Raises:
            regraft.EngineFileError: when it cannot be written.
        """
        if Path(path).is_dir():
            regraft.MutableModule.save(module, path, strip=strip)
        else:
            program = _program_of(module) if isinstance(module, regraft.MutableModule) else None
            packed(path, lambda folder: regraft.MutableModule.save(module, folder, strip=strip), program)

    @staticmethod
    def load(
        path: str | os.PathLike[str], pytorch_model: torch.nn.Module | None = None
    ) -> MutableTorchTensorRTModule:
        """Loads what ``save`` wrote. The code of the module is not in it: without the module, the program of
        a file takes its place, with the sizes that it was compiled for.

        Raises:
            TypeError: without a module, when there is no program.
            regraft.EngineFileError: when the folder is damaged, of another version, or built for another
            machine.
        """
        if Path(path).is_file() and pytorch_model is not None:
            with unpacked(path) as folder:
                return _renamed(regraft.MutableModule.load(folder, pytorch_model))
        if pytorch_model is None and Path(path).is_file():
            program = program_of(path)
            if program is not None:
                return MutableTorchTensorRTModule.load(path, _in_pytorch(program))
        if pytorch_model is None:
            raise TypeError(
                "load(path, pytorch_model): there is no code and no program in it, so the module must be "
                "given"
            )
        return _renamed(regraft.MutableModule.load(path, pytorch_model))


class RefitFlag(Enum):
    """What a mutable module needs before it runs."""

    UNKNOWN = auto()
    NEEDS_REFIT = auto()
    NEEDS_RECOMPILE = auto()
    LIVE = auto()


class RefitState:
    """What a mutable module needs before it runs, found out when it is asked."""

    def __init__(self, state: State) -> None:
        self._state = weakref.ref(state)
        self._set: tuple[RefitFlag, int] | None = None

    def set_state(self, state: RefitFlag) -> None:
        """Says what it needs, until the next call: a refit compares all weights, a recompile makes the
        programs again.
        """
        found = self._state()
        if found is None:
            return
        self._set = state, found.history.calls
        if state == RefitFlag.NEEDS_RECOMPILE:
            found.entries = []
            found.calls.clear()
        elif state != RefitFlag.LIVE:
            found.look_closely()

    def note(self, state: RefitFlag) -> None:
        """Says what was found out, until the next call."""
        found = self._state()
        if found is not None:
            self._set = state, found.history.calls

    def get_state(self) -> RefitFlag:
        """What it needs; ``UNKNOWN`` when something changed and was not looked at."""
        state = self._state()
        if state is None or not state.entries:
            return RefitFlag.NEEDS_RECOMPILE
        if self._set is not None and self._set[1] == state.history.calls:
            return self._set[0]
        with state.lock:
            state._changed_to_pytorch()
            entry = state.entries[-1]
            same = entry.verified and not entry.pending and not entry.stale_adapters
        # What differs was not looked at.
        return RefitFlag.LIVE if same else RefitFlag.UNKNOWN


_STATES: weakref.WeakKeyDictionary[State, RefitState] = weakref.WeakKeyDictionary()


def _condition(state: State) -> RefitFlag:
    """What the weights need, every bit compared."""
    with state.lock:
        if not state.entries:
            return RefitFlag.NEEDS_RECOMPILE
        state._changed_to_pytorch()
        entry = state.entries[-1]
        if not entry.verified:
            return RefitFlag.NEEDS_RECOMPILE
        serving = entry.compiled.state_dict()
        current = {name: tensor for name, tensor in state.tree.sources.items() if name in serving}
        if entry.stale_adapters and state.tree.tuners:
            return RefitFlag.NEEDS_REFIT
        same = all(same_bits(tensor.detach(), serving[name]) for name, tensor in current.items())
        return RefitFlag.LIVE if same else RefitFlag.NEEDS_REFIT


def _program_of(mutable: regraft.MutableModule) -> ExportedProgram | None:
    """The program that ran last, with the weights of now; ``None`` where there is none, or adapters are on
    top of it.
    """
    state = mutable._regraft_state
    with state.lock:
        programs = [entry.compiled._compiled for entry in state.entries]
        found = [c.program for c in programs if c.program is not None and c.carry is None]
        if not found or state.tree.tuners:
            return None
        return with_weights(found[-1], {name: t.detach() for name, t in state.tree.sources.items()})


def _in_pytorch(program: ExportedProgram) -> torch.nn.Module:
    """The program as a module in eval mode."""
    module: torch.nn.Module = program.module()
    for part in module.modules():
        # PyTorch leaves out eval() of such modules: their mode was compiled in.
        part.training = False
    return module


_CLASSES: dict[type, type] = {}


def _renamed(mutable: regraft.MutableModule) -> MutableTorchTensorRTModule:
    """The same object, of a class that also has the methods above."""
    made = type(mutable)
    if made not in _CLASSES:
        names = {
            "__slots__": (),
            "__module__": made.__module__,
            "__doc__": made.__doc__,
            "forward": made.forward,
        }
        _CLASSES[made] = type(made.__name__, (MutableTorchTensorRTModule, made), names)
    object.__setattr__(mutable, "__class__", _CLASSES[made])
    mutable._regraft_state.keep_programs = True
    return cast(MutableTorchTensorRTModule, mutable)
