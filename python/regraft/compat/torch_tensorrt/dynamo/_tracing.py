"""Export of modules with specifications of inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import Dim, ExportedProgram

from regraft.compat.torch_tensorrt.input import Input, example_of
from regraft.compat.torch_tensorrt.settings import gathered

__all__ = ["build_dim_registry", "one_of", "trace"]


def trace(
    mod: torch.nn.Module,
    inputs: Sequence[Any] | None = None,
    *,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    strict: bool = False,
    **settings: Any,
) -> ExportedProgram:
    """Exports a module with an example or an :class:`Input` for each argument; ranges of shapes stay open.

    Sizes that the module needs to be equal are one size, whether or not ``shared_dims`` says so.

    Raises:
        ValueError: when no arguments are given, or the same ones twice; when sizes of one name have different
            ranges, sizes that must be equal no common one, or the module fixes a size that has a range.
    """
    # Those of compiling change nothing about an export; there may be no others.
    gathered(None, settings)
    given = one_of(inputs, arg_inputs)
    if given is None and kwarg_inputs is None:
        raise ValueError("a module is exported with the arguments of one call: give inputs= or kwarg_inputs=")
    call = _Call(mod, tuple(given or ()), dict(kwarg_inputs or {}), strict)
    axes = _dynamic_axes(call.flat()[0])
    _check_shared(axes)
    if not axes:
        return call.export({})
    if len(axes) > 1:
        _name_equal_sizes(call.export({axis.place: Dim.AUTO for axis in axes}), axes)
    return call.export(_dims(axes))


def one_of(inputs: Any, arg_inputs: Any) -> Sequence[Any] | None:
    """The positional arguments, which come under either of two names; one alone need not be in a list.

    Raises:
        ValueError: when they come under both.
    """
    if inputs is not None and arg_inputs is not None:
        raise ValueError("inputs and arg_inputs are two names of the same: give one of them")
    given = inputs if arg_inputs is None else arg_inputs
    return given if given is None or isinstance(given, (list, tuple)) else (given,)


@dataclass
class _Axis:
    """An axis whose size may change."""

    place: tuple[int, int]
    """Index of the leaf among the arguments, and of the axis."""
    low: int
    high: int
    where: str
    """For messages."""
    name: str
    """The same for sizes that are equal."""
    is_shared: bool
    """Whether the name comes from ``shared_dims``."""


@dataclass(frozen=True)
class _Call:
    """A module, and specifications of its arguments."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    strict: bool

    def flat(self) -> tuple[list[Any], Any]:
        """The leaves of the arguments, and their structure."""
        return pytree.tree_flatten((self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Input))

    def export(self, dims: Mapping[tuple[int, int], Any]) -> ExportedProgram:
        """Exports the module with examples; ``dims`` are the dimensions that may change."""
        leaves, structure = self.flat()
        shapes: list[dict[int, Any] | None] = [None] * len(leaves)
        for (index, axis), dim in dims.items():
            shapes[index] = {**(shapes[index] or {}), axis: dim}
        args, kwargs = pytree.tree_unflatten(shapes, structure)
        by_name = dict(inspect.signature(self.module.forward).bind(*args, **kwargs).arguments)
        with torch.no_grad():
            return torch.export.export(
                self.module,
                example_of(self.args),
                example_of(self.kwargs),
                dynamic_shapes=by_name if dims else None,
                strict=self.strict,
            )


def build_dim_registry(arg_inputs: Any, kwarg_inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A dimension for each name that ``shared_dims`` or named tuples give to sizes.

    Raises:
        ValueError: when sizes of one name have different ranges.
    """
    leaves = pytree.tree_leaves(
        (arg_inputs, dict(kwarg_inputs or {})), is_leaf=lambda leaf: isinstance(leaf, Input)
    )
    axes = [axis for axis in _dynamic_axes(leaves) if axis.is_shared]
    _check_shared(axes)
    return {axis.name: Dim(axis.name, min=axis.low, max=axis.high) for axis in axes}


def _dynamic_axes(leaves: Sequence[Any]) -> list[_Axis]:
    """All axes whose size may change, in order."""
    return [
        _Axis(
            place=(index, axis),
            low=leaf.min_shape[axis],
            high=leaf.max_shape[axis],
            where=f"axis {axis} of input {leaf.name or index}",
            name=leaf.shared_dims.get(axis, f"size_{index}_{axis}"),
            is_shared=axis in leaf.shared_dims,
        )
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, Input)
        for axis in leaf.dynamic_axes
    ]


def _check_shared(axes: Sequence[_Axis]) -> None:
    """Checks that sizes that were given one name have one range."""
    first: dict[str, _Axis] = {}
    for axis in axes:
        other = first.setdefault(axis.name, axis)
        if axis.is_shared and (other.low, other.high) != (axis.low, axis.high):
            raise ValueError(
                f"{axis.name} has several ranges: {other.low} to {other.high} ({other.where}), "
                f"{axis.low} to {axis.high} ({axis.where})"
            )


def _name_equal_sizes(program: ExportedProgram, axes: Sequence[_Axis]) -> None:
    """Gives the axes that are one symbol of the program one name: one from ``shared_dims`` if there is
    any.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for axis in sorted(axes, key=lambda axis: not axis.is_shared):
        leaf, number = axis.place
        size = values[str(program.graph_signature.user_inputs[leaf])].shape[number]
        if isinstance(size, int):
            raise ValueError(f"{axis.where}: the module takes {size} only, so it has no range")
        axis.name = names.setdefault(str(size), axis.name)


def _dims(axes: Sequence[_Axis]) -> dict[tuple[int, int], Any]:
    """A dimension for each name, with the range that its axes have in common."""
    dims: dict[tuple[int, int], Any] = {}
    for name in dict.fromkeys(axis.name for axis in axes):
        same = [axis for axis in axes if axis.name == name]
        low, high = max(axis.low for axis in same), min(axis.high for axis in same)
        if low > high:
            places = ", ".join(f"{axis.where} ({axis.low} to {axis.high})" for axis in same)
            raise ValueError(f"sizes that must be equal have no common range: {places}")
        dims.update({axis.place: Dim(name, min=low, max=high) for axis in same})
    return dims
