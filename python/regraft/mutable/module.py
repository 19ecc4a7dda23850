"""The mutable module itself."""

from __future__ import annotations

import copy
import functools
import html
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, cast

from torch import nn

from regraft.checks import CHECKED, check_names, check_settings, dtype_name
from regraft.compiling import compile
from regraft.errors import CompileError, EngineFileError
from regraft.module import Module
from regraft.mutable.explain import Explanation
from regraft.mutable.inputs import Ranges
from regraft.mutable.state import Autograd, State, WatchMode
from regraft.report import Memory, RefitReport

__all__ = ["METHODS", "MutableModule"]

# What a mutable module has besides what the wrapped one has. A name that the wrapped module has itself stays
# its own.
_OWN = (
    "compiled",
    "explain",
    "last_report",
    "load",
    "memory",
    "module",
    "recompiles",
    "refits",
    "refresh",
    "save",
    "set_expected_dynamic_shape_range",
)


class MutableModule(nn.Module):
    """A drop-in replacement for a module, which runs compiled even while the module changes.

    .. code-block:: python

        pipe.unet = regraft.MutableModule(pipe.unet)  # compiled at the first call
        pipe.load_lora_weights("style.safetensors")  # the next call refits, in milliseconds
        pipe.unet.conv_in.weight.data.mul_(0.9)  # so does this

    The object is of a subclass of the module's class and shares all its attributes: ``isinstance``,
    ``state_dict``, ``named_parameters``, assignments and the methods of PEFT, diffusers and transformers work
    as on the module itself, and changes through either are changes of both. Calls run compiled when the
    module is in eval mode and no gradients are needed. At each call:

    - changed values of weights, buffers and adapters are refitted: only what differs, bit by bit;
    - PEFT's layers are recognized: adapters that are added, activated, scaled, merged, disabled or removed
      are refitted, from the weights without adapters. Adapters that are not a change of weights run in
      PyTorch, with a warning;
    - another structure (modules, names, shapes, dtypes, plain attributes, forward hooks), or arguments that
      no program takes, is exported and compiled, through ``engine_cache`` where that is given. Programs for
      other arguments share the slots that they have in common: see :meth:`memory`.

    **What is noticed.** Always: which modules, parameters, buffers and tensors the module holds, also in
    lists and dicts, and in which memory they lie; in-place operations, which PyTorch counts; attributes that
    are assigned, and changes of lists and dicts that are attributes of modules. Writes that PyTorch does not
    count (``.data``, NumPy, raw pointers): when they change a bit of a sampled place. Tensors of up to 512
    bytes are sampled whole, of larger ones both ends and six lines of 64 bytes spread between, so that writes
    of whole tensors are noticed and those of a few elements may not be: call :meth:`refresh` after them, or
    use ``watch="full"``, which compares every weight at each call at the speed of memory. Never noticed:
    changes inside of objects in attributes (a configuration), code, and globals.

    **What compiled calls leave out.** What else ``forward`` and forward hooks do besides computing the result
    (printing, counting, keeping activations) is done once, when the module is exported. Calls under autocast,
    in a mode that intercepts PyTorch's operators, or while PyTorch compiles or exports run in PyTorch.

    **Gradients.** Engines compute none. In training mode PyTorch runs the module, and its gradients are
    PyTorch's. In eval mode ``autograd`` decides what happens when gradients are on and an input or a
    parameter requires one.

    Args:
        module: the module. Each shape of arguments is compiled when it comes first; eight programs are kept.
        autograd: when gradients are asked for: ``"pytorch"`` runs the call in PyTorch, ``"raise"`` raises
            :class:`GradientError`, ``"ignore"`` runs it compiled, without gradients.
        watch: ``"sampled"`` or ``"full"``, see above.
        methods: methods that are compiled besides ``forward``; by default those of :data:`METHODS` that
            the module has.
        fallback: whether PyTorch runs calls that cannot be compiled, with one warning, instead of
            raising. Calls with caches, and methods other than ``forward``, always fall back.
        auto_ranges: whether the module makes one program of many sizes by itself, once it was compiled
            three times for calls that differ in sizes alone; otherwise a warning says how.
        settings: what :func:`regraft.compile` takes, except for inputs and modes that take no weights.

    Raises:
        CompileError: when settings do not fit; and at a call that cannot be exported or compiled. What served
            before stays, and :attr:`module` runs in PyTorch.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval()
        >>> mutable = regraft.MutableModule(net)
        >>> with torch.inference_mode():
        ...     y = mutable(torch.ones(2, 8))
        >>> _ = net[0].weight.data.zero_()
        >>> with torch.inference_mode():
        ...     y = mutable(torch.ones(2, 8))
        >>> mutable.refits, mutable.recompiles
        (1, 0)

    """

    __slots__ = ("_regraft_state",)

    _regraft_state: State

    def __new__(  # noqa: D102
        cls,
        module: nn.Module,
        *,
        autograd: Autograd = "pytorch",
        watch: WatchMode = "sampled",
        auto_ranges: bool = True,
        methods: Sequence[str] | None = None,
        fallback: bool = False,
        **settings: Any,
    ) -> MutableModule:
        _check(module, autograd, watch, settings)
        original = _original(module)
        chosen = _methods_of(original, methods)
        return _around(State(original, autograd, watch, settings, auto_ranges, chosen, fallback))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # All is done: the attributes are those of the module.
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        state = _state_of(self)
        hooked = state.hooked
        return state.run(state.module, args, kwargs) if hooked is None else hooked(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As calling the module: wrappers such as PEFT's models call this."""
        state = _state_of(self)
        return state.run(state.method(state.module, "forward"), args, kwargs)

    @property
    def module(self) -> nn.Module:
        """The wrapped module, which runs in PyTorch and shares all attributes with this one."""
        return _state_of(self).module

    @property
    def _regraft_original(self) -> nn.Module:
        return _state_of(self).module

    @property
    def compiled(self) -> Module | None:
        """The program that ran last, with the weights of that call; ``None`` before the first."""
        entries = _state_of(self).entries
        return entries[-1].compiled if entries else None

    @property
    def refits(self) -> int:
        """How often weights or adapters were given to a program that existed."""
        return _state_of(self).refits

    @property
    def recompiles(self) -> int:
        """How often a program was made after the first, by compiling or from the cache."""
        return max(0, _state_of(self).compilations - 1)

    @property
    def last_report(self) -> RefitReport | None:
        """What the last refit did."""
        return _state_of(self).last_report

    def explain(self) -> Explanation:
        """Why each program was compiled and each refit was made, what that cost, and which calls PyTorch ran.

        Example:
            >>> mutable = regraft.MutableModule(torch.nn.Linear(8, 4).eval())
            >>> with torch.inference_mode():
            ...     y = mutable(torch.ones(2, 8))
            >>> print(mutable.explain())  # doctest: +ELLIPSIS
            1 calls, 1 compilations in ...
              call 1: compile  ...  the first call (1 engine)

        """
        return _state_of(self).history.explanation()

    def memory(self) -> Memory:
        """Bytes of all programs together: ``slots``, each counted once however many programs read it;
        ``shared``, what they would take besides if each program had its own; ``free`` ones that wait for the
        next refit; ``kept`` of parts in PyTorch. A slot with adapters is each program's own.

        Example:
            >>> mutable = regraft.MutableModule(torch.nn.Linear(8, 4).eval())
            >>> with torch.inference_mode():
            ...     y = mutable(torch.ones(2, 8)), mutable(torch.ones(3, 2, 8))
            >>> mutable.memory()["shared"] > 0
            True

        """
        return _state_of(self).memory()

    def refresh(self) -> None:
        """Compares every weight at the next call, so that every earlier write is noticed."""
        _state_of(self).look_closely()

    def set_expected_dynamic_shape_range(
        self, args_dynamic_shape: Sequence[Any] = (), kwargs_dynamic_shape: Mapping[str, Any] | None = None
    ) -> None:
        """Declares which sizes change from call to call, so that one program takes them all. The next call of
        this method replaces the declaration.

        Arguments outside of the ranges get a program of their own, in which the sizes that do not fit are
        fixed.

        Args:
            args_dynamic_shape: for each positional argument the axes whose size may change, as
                ``torch.export`` takes
                them: ``{axis: dimension}`` or a sequence of dimensions, where a dimension is a ``Dim``,
                an expression over one (``2 * half + 1``), ``Dim.AUTO``, ``Dim.DYNAMIC``, or a size or
                ``None`` for a fixed one. ``None`` or ``{}`` for none. Lists, tuples, named tuples and
                dicts of tensors: the same structure with such an entry in the place of each tensor.
            kwargs_dynamic_shape: the same for keyword arguments, by name.

        Example:
            >>> batch = torch.export.Dim("batch", min=1, max=64)
            >>> mutable = regraft.MutableModule(torch.nn.Linear(8, 4).eval())
            >>> mutable.set_expected_dynamic_shape_range(({0: batch},))

        """
        state = _state_of(self)
        with state.lock:
            state.ranges = Ranges(tuple(args_dynamic_shape), dict(kwargs_dynamic_shape or {}))

    @staticmethod
    def save(module: nn.Module, path: str | PathLike[str], *, strip: bool = False) -> None:
        """Saves a mutable module as a folder: settings and ranges as JSON, and its programs as
        :func:`regraft.save` does, without weights if ``strip``. The module's code is not saved.

        Raises:
            EngineFileError: when the folder cannot be written, or is something else.

        """
        from regraft.mutable.saving import save

        save(_state_of(module), path, strip)

    @staticmethod
    def load(path: str | PathLike[str], module: nn.Module) -> MutableModule:
        """A mutable module around ``module`` with settings, ranges and programs from a folder. Nothing in the
        folder is executed.

        The weights are those of ``module``, which are refitted at the first call. Before a program is used it
        is compared with an export of ``module``, so that other code is noticed; one that is not the same is
        compiled. Without the module's code, :func:`regraft.load` opens each program on its own (``0``, ``1``,
        ... in the folder), with the weights that it was saved with.

        Raises:
            EngineFileError: when the folder is damaged, of another version, or built for another machine.

        """
        from regraft.mutable.saving import load

        state = load(path, _original(module))
        try:
            _check(state.module, state.autograd, state.watch, state.settings)
        except CompileError as error:
            raise EngineFileError(f"{path}: {error}") from error
        return _around(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> MutableModule:
        state = _state_of(self)
        result = memo[id(self)] = _around(state.forked(copy.deepcopy(state.module, memo)))
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a mutable module cannot be pickled: pickle .module or its state_dict(), "
            "or use regraft.MutableModule.save(mutable, folder) and .load(folder, module)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{_state_of(self).history.explanation()._repr_html_()}"

    def __repr__(self) -> str:
        state = _state_of(self)
        programs = f"{len(state.entries)} program{'' if len(state.entries) == 1 else 's'}"
        done = f"{self._counted('refits')} refits, {self._counted('recompiles')} recompiles"
        runs = repr(state.entries[-1].compiled) if state.entries else "not compiled yet"
        return f"regraft.MutableModule({type(state.module).__name__}, {programs}, {done}, {runs})"

    def _counted(self, name: str) -> int:
        return cast(int, getattr(MutableModule, name).__get__(self))


_slot = MutableModule.__dict__["_regraft_state"]


def _state_of(module: nn.Module) -> State:
    if not isinstance(module, MutableModule):
        raise TypeError(f"expected a regraft.MutableModule, found {type(module).__name__}")
    return cast(State, _slot.__get__(module))


def _original(module: nn.Module) -> nn.Module:
    """The module to wrap: one that is mutable already is wrapped once."""
    return _state_of(module).module if isinstance(module, MutableModule) else module


def _around(state: State) -> MutableModule:
    """The object that shares the attributes of the state's module."""
    made: Any = _class_for(type(state.module), _own_names(state.module), state.methods)  # type: ignore[arg-type]
    mutable = cast(MutableModule, object.__new__(made))
    object.__setattr__(mutable, "__dict__", state.module.__dict__)
    _slot.__set__(mutable, state)
    return mutable


METHODS = ("encode", "decode", "get_text_features", "get_image_features", "get_audio_features")
"""Methods that libraries call instead of ``forward``."""


def _methods_of(module: nn.Module, methods: Sequence[str] | None) -> tuple[str, ...]:
    """The methods that are compiled.

    Raises:
        CompileError: for one that the module has not.

    """
    if methods is None:
        of_library = type(module).__module__.startswith(("diffusers.", "transformers."))
        return tuple(
            name for name in METHODS if of_library and inspect.isfunction(getattr(type(module), name, None))
        )
    for name in methods:
        if not inspect.isfunction(getattr(type(module), name, None)) or hasattr(nn.Module, name):
            raise CompileError(f"methods: {type(module).__name__} has no method {name} that can be compiled")
    return tuple(methods)


# Classes whose methods do not compute.
_BASES = (
    "torch.",
    "transformers.modeling_utils",
    "transformers.generation",
    "diffusers.models.modeling_utils",
)


def _others_of(wrapped: type[nn.Module]) -> set[str]:
    """Public methods of a class that may compute something."""
    known = {name for base in wrapped.__mro__ if base.__module__.startswith(_BASES) for name in vars(base)}
    return {
        name
        for base in wrapped.__mro__
        if issubclass(base, nn.Module)
        and not base.__module__.startswith(_BASES)
        and base.__module__ != "regraft.mutable.module"
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in known
    }


def _like(function: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the name and signature of another."""

    @functools.wraps(shown)
    def method(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return method


def _compiled_method(name: str, wrapped: type[nn.Module]) -> Callable[..., Any]:
    """A method that runs compiled."""
    of_diffusers = wrapped.__module__.startswith("diffusers.")

    @functools.wraps(getattr(wrapped, name))
    def method(self: MutableModule, *args: Any, **kwargs: Any) -> Any:
        state = _state_of(self)
        # As diffusers does it in such methods: offloading brings the module to where it runs.
        hook = vars(self).get("_hf_hook") if of_diffusers else None
        if hook is not None:
            hook.pre_forward(self)
        return state.run(state.method(state.module, name), args, kwargs, name)

    return method


def _watched_method(name: str, wrapped: type[nn.Module]) -> Callable[..., Any]:
    """A method that runs as it is, and says so when nothing else is ever called."""
    original = getattr(wrapped, name)

    @functools.wraps(original)
    def method(self: MutableModule, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        state = _state_of(self)
        if not state.history.calls:
            state.notices.other_method(name, ("forward", *state.methods), args, kwargs, result)
        return result

    return method


def _own_names(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in _OWN if hasattr(module, name))


@functools.lru_cache(maxsize=64)
def _class_for(
    wrapped: type[nn.Module], names_of_wrapped: tuple[str, ...], methods: tuple[str, ...]
) -> type[nn.Module]:
    """The class of mutable modules around modules of a class. It has that one's name: libraries look things
    up by it.
    """

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__slots__=(), __module__=wrapped.__module__, __qualname__=wrapped.__qualname__)
        ours, theirs = inspect.cleandoc(MutableModule.__doc__ or ""), inspect.cleandoc(wrapped.__doc__ or "")
        namespace["__doc__"] = f"{ours}\n\nThe wrapped {wrapped.__name__}:\n\n{theirs}"
        namespace.update((name, _OfWrapped(name)) for name in names_of_wrapped)
        others = _others_of(wrapped) - {*methods, *_OWN}
        namespace.update((name, _watched_method(name, wrapped)) for name in others)
        namespace.update((name, _compiled_method(name, wrapped)) for name in methods)
        # With the signature of the original, which libraries look at.
        namespace["forward"] = _like(MutableModule.forward, wrapped.forward)
        # Code that makes another module of the class, after a look at its arguments, gets one of the wrapped
        # class.
        namespace["__init__"] = _like(MutableModule.__init__, wrapped.__init__)
        namespace["__new__"] = lambda cls, *args, **kwargs: wrapped(*args, **kwargs)

    return types.new_class(
        wrapped.__name__, (MutableModule, wrapped), {"metaclass": _metaclass_of(wrapped)}, fill
    )


def _metaclass_of(wrapped: type[nn.Module]) -> type:
    """Of a class that is equal to the wrapped one: pipelines look at the class of a component, and take
    no subclass.
    """

    class Same(type(wrapped)):  # type: ignore[misc]
        def __eq__(cls, other: object) -> bool:
            return cls is other or other is wrapped

        def __hash__(cls) -> int:
            return hash(wrapped)

    return Same


class _OfWrapped:
    """An attribute that is the wrapped module's, where a mutable module has one of the same name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: nn.Module | None, owner: type[nn.Module]) -> Any:
        if instance is None:
            return self
        return getattr(_state_of(instance).module, self.name)


def _check(module: Any, autograd: str, watch: str, settings: Mapping[str, Any]) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, Module):
        raise CompileError(f"expected a torch.nn.Module that PyTorch can run, found {type(module).__name__}")
    for name, value, choices in (
        ("autograd", autograd, ("pytorch", "raise", "ignore")),
        ("watch", watch, ("sampled", "full")),
    ):
        if value not in choices:
            raise CompileError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    check_names(settings, compile)
    check_settings(**{name: settings[name] for name in CHECKED if name in settings})
    dtype_name(settings.get("dtype"))
    if settings.get("identical"):
        raise CompileError("identical=True: a mutable module follows its weights: leave it out")
    if settings.get("mode", "refittable") != "refittable":
        raise CompileError(
            f"mode={settings['mode']!r}: a mutable module has weights and follows them: leave it out; "
            "save(strip=True) leaves the weights out of the files"
        )
