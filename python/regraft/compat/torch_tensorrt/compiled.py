"""Compiled modules as Torch-TensorRT's code looks at them: with a child for each part."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, cast

import torch

import regraft
from regraft import _regraft
from regraft.compat.torch_tensorrt.files import with_weights
from regraft.compat.torch_tensorrt.settings import CompilationSettings
from regraft.errors import CompileError
from regraft.glue import run_engine
from regraft.module import Compiled, Module, Serving

__all__ = ["CompiledModule", "Engine", "InPyTorch"]


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
        parent = self.__dict__["_parent"]()
        if parent is None:
            raise CompileError(f"{self.name}: the module that it is a part of is gone: keep that")
        return cast(CompiledModule, parent)

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

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Runs the engine alone."""
        return self._of._serving.run_engine(self._index, inputs)

    def extra_repr(self) -> str:
        """What ``repr`` says."""
        return f"{len(self.engine.slots)} slots, {self.engine.target}"


class InPyTorch(torch.nn.Module):
    """A part that stays in PyTorch: names of its operators. It runs within the whole module only."""

    def __init__(self, operators: list[str]) -> None:
        super().__init__()
        self.operators = operators
        self.training = False

    def extra_repr(self) -> str:
        """What ``repr`` says."""
        return ", ".join(self.operators)


class CompiledModule(Module):
    """A :class:`regraft.Module` with a child for each of its parts, as Torch-TensorRT names them:
    ``_run_on_acc_N`` for engines, ``_run_on_gpu_N`` for what stays in PyTorch.

    PyTorch can export it: what is exported is the program in PyTorch, with the weights of now.
    """

    def __init__(self, compiled: Compiled, serving: Serving, settings: CompilationSettings) -> None:
        super().__init__(compiled, serving)
        self.compilation_settings = settings
        for number, part in enumerate(self._parts()):
            name = f"_run_on_{'gpu' if isinstance(part, list) else 'acc'}_{number}"
            self.add_module(name, InPyTorch(part) if isinstance(part, list) else Engine(self, part, name))

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
            return self._in_pytorch()(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def _in_pytorch(self) -> torch.nn.Module:
        program = self._compiled.program
        if program is None or self._compiled.mode == "frozen":
            raise CompileError(
                "a frozen module, and one that was loaded without its program, cannot be exported: "
                "export the original"
            )
        return with_weights(program, self.state_dict()).module()

    def _parts(self) -> Iterator[int | list[str]]:
        """In the order of their work: numbers of engines, and operators of what is between them."""
        glue = self._compiled.glue
        if glue is None:
            yield from range(len(self.models))
            return
        between: list[str] = []
        for node in glue.graph.nodes:
            if node.target is run_engine:
                if between:
                    yield between
                between = []
                yield cast(int, node.args[1])
            elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                between.append(str(node.target))
        if between:
            yield between

    def __repr__(self) -> str:
        return regraft.Module.__repr__(self)
