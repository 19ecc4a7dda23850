"""Compiled modules as Torch-TensorRT's code looks at them: with a child for each part."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.fx
from torch.export import ExportedProgram

import regraft
from regraft import _regraft
from regraft._compiled import Compiled, Serving
from regraft.compat.torch_tensorrt.files import with_weights
from regraft.compat.torch_tensorrt.graphs import WEIGHTS, Between, graph_of, parts_of, written_by
from regraft.compat.torch_tensorrt.settings import CompilationSettings
from regraft.errors import CompileError, NotBoundError
from regraft.module import Module

__all__ = ["CompiledModule", "Engine", "InPyTorch", "Weights"]


_STRIPPED = (
    "the module is stripped: it has no weights yet, and does not run with zeros in their place, as TensorRT "
    "does\n  help: refit_module_weights(module, program) gives it all of them"
)


class Engine(torch.nn.Module):
    """An engine of a compiled module. Called with the tensors that the engine takes, it gives a list of those
    that it gives.
    """

    def __init__(self, parent: CompiledModule, index: int, name: str) -> None:
        super().__init__()
        self._index = index
        self.name = name
        self.training = False
        object.__setattr__(self, "_parent", weakref.ref(parent))
        # Which weights go where is part of an engine: what is assigned here changes nothing.
        self.weight_name_map: dict[str, list[str]] | None = {
            name: list(sources) for name, _, sources in self.engine.slots
        }

    @property
    def _of(self) -> CompiledModule:
        return _parent_of(self, self.name)

    @property
    def settings(self) -> CompilationSettings:
        """What the module was compiled with."""
        return self._of.compilation_settings

    @property
    def engine(self) -> _regraft.Model:
        """The engine with the weights that serve: ``to_bytes`` gives its file, ``slots`` what it reads."""
        return self._of.models[self._index]

    @property
    def input_binding_names(self) -> list[str]:
        """Names of what it takes."""
        return [name for name, *_ in self.engine.inputs]

    @property
    def output_binding_names(self) -> list[str]:
        """Names of what it gives."""
        return [name for name, *_ in self.engine.outputs]

    @property
    def aliased_io(self) -> dict[str, tuple[str, str]]:
        """For outputs that are new values of inputs which the program writes to, and of buffers, the input,
        and what kind of writing it is.
        """
        inputs, outputs = self.input_binding_names, self.output_binding_names
        return {
            outputs[place]: (inputs[source], "kv_cache_update")
            for place, source in written_by(self._of, self._index)
        }

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Runs the engine alone."""
        try:
            return self._of._serving.run_engine(self._index, inputs)
        except NotBoundError as error:
            raise NotBoundError(_STRIPPED) from error

    def extra_repr(self) -> str:
        """The text between the parentheses of ``repr``."""
        return f"{len(self.engine.slots)} slots, {self.engine.target}"


class InPyTorch(torch.nn.Module):
    """A part that stays in PyTorch. Called with the tensors that it takes, it gives a tuple of those that it
    gives.
    """

    def __init__(self, parent: CompiledModule, part: Between) -> None:
        super().__init__()
        self.operators = part.operators
        self.graph = part.graph
        self.weights = part.weights
        """Names of the weights that it reads."""
        self.training = False
        object.__setattr__(self, "_parent", weakref.ref(parent))
        object.__setattr__(self, "_call", torch.fx.GraphModule(torch.nn.Module(), part.graph))

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Runs the part alone, with the weights of now."""
        kept = _parent_of(self, "a part in PyTorch")._serving.kept
        return self.__dict__["_call"](*(kept[name] for name in self.weights), *inputs)

    def extra_repr(self) -> str:
        """The text between the parentheses of ``repr``."""
        return ", ".join(self.operators)


class Weights(torch.nn.Module):
    """Weights that engines take as inputs, by their names."""

    def __init__(self, parent: CompiledModule) -> None:
        super().__init__()
        self.training = False
        object.__setattr__(self, "_parent", weakref.ref(parent))

    def forward(self, name: str) -> torch.Tensor:
        """The weight as it is now."""
        return _parent_of(self, "the weights")._serving.kept[name]


def _parent_of(part: torch.nn.Module, what: str) -> CompiledModule:
    parent = part.__dict__["_parent"]()
    if parent is None:
        raise CompileError(f"{what}: the module that it is a part of is gone: keep that")
    return cast(CompiledModule, parent)


def _with_names(module: CompiledModule, names: list[str], positional: int) -> Callable[..., Any]:
    """``forward`` of a compiled module with the signature of the original, which an export asks for."""
    of = weakref.ref(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        module = of()
        assert module is not None, "an attribute of the module"
        return CompiledModule.forward(module, *args, **kwargs)

    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kinds[index >= positional]) for index, name in enumerate(names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _names_of(program: ExportedProgram | None) -> tuple[list[str], int] | None:
    """Names of the arguments that a program takes, and how many of them by position, where it says so."""
    signature = program.module_call_graph[0].signature if program and program.module_call_graph else None
    names = getattr(signature, "forward_arg_names", None)
    if signature is None or names is None:
        return None
    args, kwargs = signature.in_spec.children()
    return (list(names), args.num_children) if len(names) == args.num_children + kwargs.num_children else None


def _class_of(module: Any) -> type:
    """A graph module for who asks, but for an export, which would run the graph instead of calling."""
    return type(module) if torch.compiler.is_exporting() else _AsGraph


class CompiledModule(Module):
    """A :class:`regraft.Module` with a child for each of its parts, as Torch-TensorRT names them:
    ``_run_on_acc_N`` for engines, ``_run_on_gpu_N`` for what stays in PyTorch. Buffers that the program
    writes to are its buffers, with the values of now, and may be written to between calls.

    It passes for a ``torch.fx.GraphModule``: ``graph`` has the calls of the parts, over the tensors of a
    call, and gives the tensors of the result. Calls of the module do not go through it, so that it cannot be
    changed.

    PyTorch can export it: what is exported is the program in PyTorch, with the weights of now.
    """

    __class__ = property(_class_of)

    def __init__(self, compiled: Compiled, serving: Serving, settings: CompilationSettings) -> None:
        super().__init__(compiled, serving)
        self.compilation_settings = settings
        parts, names = parts_of(self), []
        for number, part in enumerate(parts):
            names.append(f"_run_on_{'acc' if isinstance(part, int) else 'gpu'}_{number}")
            made = Engine(self, part, names[-1]) if isinstance(part, int) else InPyTorch(self, part)
            self.add_module(names[-1], made)
        self._graph = graph_of(self, parts, names)
        if any(node.target == WEIGHTS for node in self._graph.nodes):
            self.add_module(WEIGHTS, Weights(self))
        self._code = self._graph.python_code("self").src
        self.meta: dict[str, Any] = {}
        names_of_arguments = _names_of(compiled.program)
        if names_of_arguments is not None:
            self.__dict__["forward"] = _with_names(self, *names_of_arguments)

    @property
    def graph(self) -> torch.fx.Graph:
        """Calls of the parts."""
        return self._graph

    @graph.setter
    def graph(self, graph: torch.fx.Graph) -> None:
        raise CompileError("the graph of a compiled module cannot be replaced: change the original")

    @property
    def code(self) -> str:
        """The same as Python."""
        return self._code

    def recompile(self) -> Any:
        """What PyTorch calls after changes of a graph, of which there may be none.

        Raises:
            regraft.CompileError: when there are some.
        """
        code = self._graph.python_code("self")
        if code.src != self._code:
            raise CompileError(
                "the graph of a compiled module was changed, and calls do not go through it: change the "
                "original, or torch.fx.Interpreter(module) runs the graph as it is"
            )
        return code

    def exported_program(self) -> ExportedProgram:
        """The program in PyTorch, with the weights of now.

        Raises:
            regraft.CompileError: for a frozen module, and one that was loaded without its program.
        """
        program = self._compiled.program
        if program is None or self._compiled.mode == "frozen":
            raise CompileError(
                "a frozen module, and one that was loaded without its program, cannot be exported: "
                "export the original"
            )
        return with_weights(program, self.state_dict())

    print_readable = torch.fx.GraphModule.print_readable

    def __copy__(self) -> CompiledModule:
        return self.fork()

    @classmethod
    def of(cls, module: Module, settings: CompilationSettings) -> CompiledModule:
        """The same engines and weights, with children."""
        return cls(module._compiled, module._serving, settings)

    def fork(self) -> CompiledModule:
        """Another module that starts with the same weights and shares all memory that neither changes."""
        return CompiledModule(self._compiled, self._serving.fork(), self.compilation_settings)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program, in PyTorch while that exports it."""
        if torch.compiler.is_exporting():
            return self.exported_program().module()(*args, **kwargs)
        try:
            return super().forward(*args, **kwargs)
        except NotBoundError as error:
            raise NotBoundError(_STRIPPED) from error

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Buffers that the program writes to, by the names of the original."""
        kept = self._serving.kept
        front = f"{prefix}." if prefix else ""
        return ((front + name, kept[name]) for name in self._compiled.written if name in kept)

    def __getattr__(self, name: str) -> Any:
        """What PyTorch keeps elsewhere: the parts, and buffers that the program writes to."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            serving = self.__dict__.get("_serving")
            if serving is not None and name in self._compiled.written and name in serving.kept:
                return serving.kept[name]
            raise AttributeError(
                f"a compiled module has no {name!r}: its weights are in state_dict(), its program is "
                "exported_program(), and everything else is the original module's"
            ) from None

    def __repr__(self) -> str:
        return regraft.Module.__repr__(self)


# What a compiled module passes for. There are no objects of it.
_AsGraph = type("CompiledModule", (CompiledModule, torch.fx.GraphModule), {"__module__": __name__})
