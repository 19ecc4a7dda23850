"""How a module is called: the structure of its arguments and results."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.autograd import forward_ad
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)

from regraft.errors import CompileError, GradientError, InputError, Unsupported

__all__ = ["CallingConvention", "Constant"]

# Packages whose modules return data classes that they register themselves when they are imported.
_REGISTERING = ("transformers", "diffusers")


@dataclass(frozen=True)
class Constant:
    """An argument or result that is not a tensor: it is the same at each call."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class CallingConvention:
    """The structure of arguments and results, and which of their leaves are tensors.

    A leaf that is not a tensor was compiled in: a call must bring the same value.
    """

    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    inputs: tuple[Constant | None, ...]
    """For each leaf of the arguments its constant, ``None`` for a tensor."""
    outputs: tuple[Constant | None, ...]
    """For each leaf of the results its constant, ``None`` for a tensor."""
    names: tuple[str, ...]
    """A name for each leaf of the arguments, for messages."""
    arguments: tuple[str, ...] = ()
    """Names of the arguments that may be positional, in their order, as far as they are known."""

    @classmethod
    def of(cls, program: ExportedProgram, arguments: Sequence[str] = ()) -> CallingConvention:
        """The convention of ``program``, whose module has the ``arguments`` where they are known.

        Raises:
            CompileError: when an argument or a result is neither a tensor nor a constant.

        """
        signature = program.graph_signature
        in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
        if in_spec is None or out_spec is None:
            raise CompileError(
                "the program does not say how it is called: export it with torch.export.export"
            )
        user_inputs = [spec.arg for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
        user_outputs = [spec.arg for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
        inputs = tuple(_leaf(arg, "input") for arg in user_inputs)
        return cls(
            in_spec=in_spec,
            out_spec=out_spec,
            inputs=inputs,
            outputs=tuple(_leaf(arg, "output") for arg in user_outputs),
            names=tuple(arg.name for arg in user_inputs),
            arguments=tuple(arguments) or _argument_names(program),
        )

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors of a call, in order.

        Raises:
            InputError: when the call has another structure or another constant than the program was compiled
            for.
            GradientError: when gradients are asked for.

        """
        if not kwargs and len(args) == len(self.inputs) and self._is_plain:
            leaves: Sequence[Any] = args
        else:
            leaves = self._leaves(args, kwargs)
        grad = torch.is_grad_enabled()
        if forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None:
            _refuse_transforms(leaves)
        tensors = []
        for leaf, constant, name in zip(leaves, self.inputs, self.names, strict=True):
            if constant is None:
                if grad and getattr(leaf, "requires_grad", False):
                    raise GradientError(
                        f"input {name} requires a gradient, and engines compute none: call under "
                        "torch.no_grad(), give it detached, or let regraft.MutableModule go through PyTorch"
                    )
                tensors.append(leaf)
            elif not _same(leaf, constant.value):
                raise InputError(
                    f"input {name}: the program was compiled for {constant.value!r}, found {_short(leaf)}: "
                    "compile it for this value"
                )
        return tensors

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """The results of a call from its tensors."""
        if self._returns_one:
            return tensors[0]
        values = iter(tensors)
        leaves = [next(values) if constant is None else constant.value for constant in self.outputs]
        return pytree.tree_unflatten(leaves, self.out_spec)

    @property
    def _is_plain(self) -> bool:
        """Whether all arguments are positional tensors."""
        cached = self.__dict__.get("_plain")
        if cached is None:
            count = len(self.inputs)
            plain = pytree.tree_flatten((tuple(range(count)), {}))[1]
            cached = plain == self.in_spec and all(constant is None for constant in self.inputs)
            self.__dict__["_plain"] = cached
        return bool(cached)

    @property
    def _returns_one(self) -> bool:
        cached = self.__dict__.get("_one")
        if cached is None:
            cached = self.out_spec.is_leaf() and self.outputs == (None,)
            self.__dict__["_one"] = cached
        return bool(cached)

    def _leaves(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        args_spec, kwargs_spec = self.in_spec.children()
        names = list(kwargs_spec.context)
        positional, keywords = self._as_compiled(args, kwargs, args_spec.num_children, names)
        ordered = {name: keywords[name] for name in names if name in keywords}
        ordered.update(keywords)
        leaves, spec = pytree.tree_flatten((tuple(positional), ordered))
        if spec == self.in_spec:
            return leaves
        expected, found = _call(args_spec.num_children, names), _call(len(args), list(kwargs))
        if len(positional) != args_spec.num_children or list(ordered) != names:
            raise InputError(
                "the call has another structure than the program was compiled for\n"
                f"  expected {expected}, found {found}\n  help: compile the module with such a call"
            )
        try:
            return _in_order_of(self.in_spec, (tuple(positional), ordered))
        except _OtherStructure:
            raise InputError(
                "an argument has another structure than the program was compiled for\n"
                f"  expected {self.in_spec}\n  found    {spec}\n  help: compile the module with such a call"
            ) from None

    def _as_compiled(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int, names: Sequence[str]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The call with as many positional arguments as it was compiled with, where names tell which is
        which; otherwise as it is.
        """
        if (len(args) == count and kwargs.keys() == set(names)) or len(args) > len(self.arguments):
            return args, kwargs
        by_name = dict(zip(self.arguments, args, strict=False))
        wanted = [*self.arguments[:count], *names]
        if by_name.keys() & kwargs.keys() or len(wanted) != count + len(names):
            return args, kwargs
        by_name.update(kwargs)
        if by_name.keys() != set(wanted):
            return args, kwargs
        return tuple(by_name[name] for name in wanted[:count]), {name: by_name[name] for name in names}

    def to_json(self) -> dict[str, Any]:
        """The convention as JSON holds it.

        Raises:
            CompileError: when a class among the arguments or results is not registered under a name.

        """
        try:
            specs = {
                "in_spec": pytree.treespec_dumps(self.in_spec),
                "out_spec": pytree.treespec_dumps(self.out_spec),
            }
        except Exception as error:
            raise CompileError(
                f"the structure of arguments and results cannot be saved: {error}\n"
                "  help: register the class with torch.utils._pytree under a serialized_type_name"
            ) from error

        def plain(leaves: tuple[Constant | None, ...]) -> list[Any]:
            return [None if leaf is None else {"value": leaf.value} for leaf in leaves]

        return {
            **specs,
            "inputs": plain(self.inputs),
            "outputs": plain(self.outputs),
            "names": list(self.names),
            "arguments": list(self.arguments),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CallingConvention:
        """The inverse of :meth:`to_json`. Classes are looked up among those that are registered, nothing is
        executed.
        """
        for package in _REGISTERING:
            if any(f'"{package}.' in data[key] for key in ("in_spec", "out_spec")):
                _register_outputs(package, data)

        def leaves(items: Sequence[Any]) -> tuple[Constant | None, ...]:
            return tuple(None if item is None else Constant(item["value"]) for item in items)

        return cls(
            in_spec=pytree.treespec_loads(data["in_spec"]),
            out_spec=pytree.treespec_loads(data["out_spec"]),
            inputs=leaves(data["inputs"]),
            outputs=leaves(data["outputs"]),
            names=tuple(data["names"]),
            arguments=tuple(data["arguments"]),
        )


def _refuse_transforms(leaves: Sequence[Any]) -> None:
    """Inputs of ``torch.func`` and of forward-mode differentiation are more than their values."""
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if torch._C._functorch.is_functorch_wrapped_tensor(leaf):
                raise GradientError(
                    "transforms of torch.func do not reach into engines: use them on the original module, "
                    "or compile what they return"
                )
            unpack: Any = forward_ad.unpack_dual
            if forward_ad._current_level >= 0 and unpack(leaf).tangent is not None:
                raise GradientError(
                    "an input has a tangent, and engines compute none: use the original module"
                )


def _register_outputs(package: str, data: Mapping[str, Any]) -> None:
    """Imports the modules of an installed, known package that register the classes named in ``data``."""
    import re

    for module in set(re.findall(rf'"({package}(?:\.\w+)+)\.\w+"', data["in_spec"] + data["out_spec"])):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CompileError(
                f"results are classes of {module}, which cannot be imported: {error}"
            ) from error


def _argument_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names of the positional arguments. The order of keywords in a program is that of its example."""
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    names = tuple(getattr(signature, "forward_arg_names", None) or ())
    return names[: program.call_spec.in_spec.children()[0].num_children] if program.call_spec.in_spec else ()


class _OtherStructure(Exception):
    pass


def _in_order_of(spec: pytree.TreeSpec, value: Any) -> list[Any]:
    """Leaves of ``value`` in the order of ``spec``, whose dicts may have another order of keys."""
    if spec.is_leaf():
        if not pytree.tree_structure(value).is_leaf():
            raise _OtherStructure
        return [value]
    if spec.type is dict and type(value) is dict and set(spec.context) == value.keys():
        items = [value[key] for key in spec.context]
    else:
        flatten = pytree.SUPPORTED_NODES.get(type(value))
        if flatten is None or type(value) is not spec.type:
            raise _OtherStructure
        items, context = flatten.flatten_fn(value)
        if context != spec.context or len(items) != spec.num_children:
            raise _OtherStructure
    children = zip(spec.children(), items, strict=True)
    return [leaf for child, item in children for leaf in _in_order_of(child, item)]


def _leaf(arg: Any, what: str) -> Constant | None:
    if isinstance(arg, TensorArgument):
        return None
    if isinstance(arg, ConstantArgument):
        return Constant(arg.value)
    if isinstance(arg, (SymIntArgument, SymFloatArgument, SymBoolArgument)):
        reason = f"{what} {arg.name} is a number that may change from call to call"
        help = "make it a tensor, or give it as a constant (without a dynamic shape)"
        raise CompileError(
            f"{reason}, which is not supported\n  help: {help}", (Unsupported(arg.name, "", reason),)
        )
    raise CompileError(f"{what} {arg} is neither a tensor nor a constant, which is not supported")


def _same(given: Any, compiled: Any) -> bool:
    # 1, 1.0 and True are equal, and not the same to a program.
    if type(given) is not type(compiled):
        return False
    # Neither are the zeros of either sign; and NaN is what it is.
    return given.hex() == compiled.hex() if isinstance(given, float) else bool(given == compiled)


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _call(positional: int, keywords: Sequence[str]) -> str:
    parts = [f"{positional} positional argument{'' if positional == 1 else 's'}"]
    if keywords:
        parts.append("keywords " + ", ".join(sorted(keywords)))
    return " and ".join(parts)
