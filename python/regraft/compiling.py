"""From a module or an exported program of PyTorch to a compiled module."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from regraft import _regraft
from regraft._program import digest_of, tensors_of, ties_of
from regraft.calling import CallingConvention
from regraft.errors import CompileError
from regraft.inputs import InputTypes
from regraft.kept import digest_of_tensor, without_values
from regraft.module import Compiled, Module, Serving
from regraft.partition import Partitioned, PartitionReport, buffers_written, partition
from regraft.progress import Progress

__all__ = ["compile", "dry_run"]

KeepSources = Literal["embedded", "prepacked", "reference", "none"]
Tune = Literal["off", "fast", "full"]


def compile(
    program_or_module: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | None = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    make_refittable: bool = True,
    strip_engine_weights: bool = False,
    refit_identical_engine_weights: bool = False,
    keep_sources: KeepSources = "embedded",
    engine_cache: Any = None,
    tune: Tune = "off",
    threads: int | None = None,
    require_full_compilation: bool = False,
    min_block_size: int = 5,
    torch_executed_ops: Collection[str] = (),
) -> Module:
    """Compiles a module for the CPU of this machine.

    What Regraft has no translation for stays in PyTorch; :meth:`Module.report` says what.

    Args:
        program_or_module: an exported program, or a module, which is exported with ``inputs``. Modules are
            compiled as they
            are: call ``.eval()`` first.
        inputs: positional arguments of one call, to export a module with.
        kwarg_inputs: keyword arguments of that call.
        dynamic_shapes: which sizes may change from call to call, as ``torch.export.export`` takes it.
        make_refittable: whether the weights can be replaced; it costs no speed. Otherwise the engines hold
            less.
        strip_engine_weights: leave the weights out: the module runs after a refit with all of them.
        refit_identical_engine_weights: bind the engines to the weights of the program: they take no others.
        keep_sources: how :func:`regraft.save` stores what slots are made of: ``embedded``, ``prepacked``
            (loads by mapping alone, larger), ``reference`` (by path of the weight file), ``none`` (a refit
            must bring what shares a slot).
        engine_cache: a :class:`DiskCache`, or an object with ``get(key)``, ``put(key, entry)`` and
            ``remove(key)``; an engine of the same program, whatever its weights, is taken from there.
        tune: choose kernels by measuring them: ``fast`` about 0.3 s, ``full`` about 3 s for each problem.
            Measurements are kept with the cache.
        threads: threads of a run; by default one per core.
        require_full_compilation: raise instead of leaving parts to PyTorch.
        min_block_size: parts of fewer nodes are left to PyTorch.
        torch_executed_ops: operators to leave to PyTorch, such as ``"aten.relu.default"``.

    Raises:
        CompileError: when the module cannot be exported, or a part cannot be compiled and must be.

    Warns:
        RuntimeWarning: when the cache fails or holds a damaged entry; the engine is built then.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval()
        >>> compiled = regraft.compile(net, (torch.randn(2, 8),))
        >>> compiled(torch.randn(2, 8)).shape
        torch.Size([2, 16])

    """
    if strip_engine_weights and not make_refittable:
        raise CompileError(
            "strip_engine_weights: a stripped engine is refitted to get weights: keep make_refittable=True"
        )
    _check_cache(engine_cache)
    settings = {
        "make_refittable": make_refittable,
        "strip_engine_weights": strip_engine_weights,
        "refit_identical_engine_weights": refit_identical_engine_weights,
        "keep_sources": keep_sources,
        "tune": tune,
        "threads": threads,
        "min_block_size": min_block_size,
        "torch_executed_ops": tuple(torch_executed_ops),
        "require_full_compilation": require_full_compilation,
    }
    with Progress("compile") as progress:
        progress.step("export")
        program = exported(program_or_module, inputs, kwarg_inputs, dynamic_shapes)
        convention = CallingConvention.of(program, _argument_names(program_or_module))
        progress.step("partition")
        cut = partition(
            program,
            min_block_size=min_block_size,
            torch_executed_ops=torch_executed_ops,
            allow_torch=not require_full_compilation,
        )
        mode = "stripped" if strip_engine_weights else "refittable" if make_refittable else "frozen"
        models, cache = [], []
        weights = tensors_of(program)
        for index, region in enumerate(cut.regions):
            progress.step(f"engine {index + 1} of {len(cut.regions)}")
            model, facts = _regraft.compile(
                region.program,
                _weights_of(region.program, weights),
                mode=mode,
                identical=refit_identical_engine_weights,
                threads=threads,
                tune=tune,
                cache=engine_cache,
            )
            models.append(model)
            cache.append(facts["cache"])
            for text in facts["warnings"]:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        kept = _kept(cut, weights)
        stateful = [region.program.has_state for region in cut.regions]
        compiled = Compiled(
            convention=convention,
            takes=InputTypes.of(program),
            glue=cut.glue,
            report=cut.report,
            sources={name: name in program.state_dict for name in weights},
            digest=digest_of(program),
            mode=mode,
            keep_sources=keep_sources,
            cache=tuple(cache),
            settings=settings,
            ties=ties_of(weights),
            written=buffers_written(program) if any(stateful) else cut.glue.mutated if cut.glue else (),
            identical=(
                {name: digest_of_tensor(value) for name, value in kept.items()}
                if refit_identical_engine_weights
                else None
            ),
        )
        initial = {name: kept[name].clone() for name in compiled.written if name in kept}
        if strip_engine_weights:
            kept = without_values(kept, compiled.sources)
        return Module(compiled, Serving.of(models, kept, stateful, initial))


def dry_run(
    program_or_module: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | None = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    min_block_size: int = 5,
    torch_executed_ops: Collection[str] = (),
) -> PartitionReport:
    """What :func:`compile` would make of the nodes of a program: engines, and what stays in PyTorch, with the
    reasons.

    Raises:
        CompileError: as :func:`compile`.

    """
    program = exported(program_or_module, inputs, kwarg_inputs, dynamic_shapes)
    return partition(
        program, min_block_size=min_block_size, torch_executed_ops=torch_executed_ops, allow_torch=True
    ).report


def exported(
    program_or_module: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | None,
    kwarg_inputs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """The program itself, or the export of the module."""
    if isinstance(program_or_module, ExportedProgram):
        if dynamic_shapes is not None:
            raise CompileError(
                "dynamic_shapes: an exported program has its ranges already: export it with them"
            )
        return program_or_module
    if not isinstance(program_or_module, torch.nn.Module):
        found = type(program_or_module).__name__
        raise CompileError(f"expected an ExportedProgram or a torch.nn.Module, found {found}")
    if inputs is None and kwarg_inputs is None:
        raise CompileError(
            "a module is exported with the arguments of one call: give inputs= or kwarg_inputs="
        )
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                program_or_module,
                tuple(inputs or ()),
                dict(kwarg_inputs or {}),
                dynamic_shapes=dynamic_shapes,
                strict=False,
            )
    except Exception as error:
        raise CompileError(f"torch.export.export cannot export the module: {error}") from error


def _argument_names(program_or_module: ExportedProgram | torch.nn.Module) -> list[str]:
    """Names of the arguments that ``forward`` takes by position."""
    if not isinstance(program_or_module, torch.nn.Module):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(program_or_module.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _check_cache(cache: Any) -> None:
    if cache is None or all(callable(getattr(cache, name, None)) for name in ("get", "put", "remove")):
        return
    if not isinstance(cache, _regraft.DiskCache):
        raise CompileError(
            "engine_cache: expected a DiskCache or an object with get, put and remove, "
            f"found {type(cache).__name__}\n  help: give regraft.DiskCache(folder) for a folder"
        )


def _quiet() -> contextlib.AbstractContextManager[None]:
    """Without the notes of tracing that are about PyTorch's own code."""

    @contextlib.contextmanager
    def quiet() -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            yield

    return quiet()


def _weights_of(program: _regraft.Program, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = (name for source in program.sources for name in (source.name, *source.aliases))
    return {name: weights[name] for name in names if name in weights}


def _kept(cut: Partitioned, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if cut.glue is None:
        return {}
    return {name: weights[name].detach().clone() for name in cut.glue.weights}
