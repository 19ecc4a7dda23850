"""From a module or an exported program of PyTorch to a compiled module."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, overload

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from regraft import _regraft, caches
from regraft._compiled import Compiled, Serving
from regraft._loss import loss_on_examples
from regraft._program import digest_of, tensors_of, ties_of, writes_as_results
from regraft.calling import CallingConvention
from regraft.checks import Evaluated, check_module, check_settings, dtype_name, listed, warn, warn_of
from regraft.devices import device_name, device_of_program
from regraft.errors import CompileError, SettingsWarning
from regraft.files import compile_file, engine_options, is_onnx
from regraft.inputs import InputTypes
from regraft.kept import digest_of_tensor, without_values
from regraft.module import Module
from regraft.partition import Partitioned, PartitionReport, buffers_written, partition, unused_operators
from regraft.progress import Progress

__all__ = ["compile", "dry_run"]

# Smaller sizes PyTorch takes for fixed.
_LEAST = 2

Mode = Literal["refittable", "stripped", "frozen"]
KeepSources = Literal["embedded", "prepacked", "reference", "none"]
Tune = Literal["off", "fast", "full"]
WeightFormat = Literal["int8", "int4"]


@overload
def compile(
    program_or_module: str | os.PathLike[str],
    inputs: None = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = ...,
    dynamic_shapes: Any = ...,
    mode: Mode = ...,
    identical: bool = ...,
    keep_sources: KeepSources = ...,
    engine_cache: Any = ...,
    tune: Tune = ...,
    dtype: torch.dtype | str | None = ...,
    weights: WeightFormat | None = ...,
    threads: int | None = ...,
    device: str | torch.device | None = ...,
    require_full_compilation: bool = ...,
    min_block_size: int = ...,
    torch_executed_ops: Collection[str] = ...,
) -> _regraft.Model: ...
@overload
def compile(
    program_or_module: ExportedProgram | torch.nn.Module | Traced,
    inputs: Sequence[Any] | torch.Tensor | None = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = ...,
    dynamic_shapes: Any = ...,
    mode: Mode = ...,
    identical: bool = ...,
    keep_sources: KeepSources = ...,
    engine_cache: Any = ...,
    tune: Tune = ...,
    dtype: torch.dtype | str | None = ...,
    weights: WeightFormat | None = ...,
    threads: int | None = ...,
    device: str | torch.device | None = ...,
    require_full_compilation: bool = ...,
    min_block_size: int = ...,
    torch_executed_ops: Collection[str] = ...,
) -> Module: ...
def compile(
    program_or_module: ExportedProgram | torch.nn.Module | Traced | str | os.PathLike[str],
    inputs: Sequence[Any] | torch.Tensor | None = None,
    *,
    kwarg_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    mode: Mode = "refittable",
    identical: bool = False,
    keep_sources: KeepSources = "embedded",
    engine_cache: Any = None,
    tune: Tune = "off",
    dtype: torch.dtype | str | None = None,
    weights: WeightFormat | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    require_full_compilation: bool = False,
    min_block_size: int = 5,
    torch_executed_ops: Collection[str] = (),
) -> Module | _regraft.Model:
    """Compiles a module for a device of this machine.

    Operators that Regraft does not support stay in PyTorch; :meth:`Module.report` lists them.

    Args:
        program_or_module: an exported program; or a module, which is exported with ``inputs`` in its
            current mode: call ``.eval()`` first; or the path of an ONNX model (``.onnx``), which returns
            the :class:`Model` of one engine, as :func:`load` does for an engine file.
        inputs: positional arguments of one call, to export a module with; one tensor alone need not be
            in a sequence.
        kwarg_inputs: keyword arguments of that call.
        dynamic_shapes: which sizes may change from call to call, as ``torch.export.export`` takes it.
        mode: ``"refittable"``: the weights can be replaced, at no cost in speed. ``"stripped"``: the same,
            without weights: the module runs after a refit with all of them. ``"frozen"``: the weights cannot
            be replaced, and the engines are smaller.
        identical: bind the engines to the weights of the program: a refit with other weights is an error.
        keep_sources: how :func:`regraft.save` stores the original weights: ``embedded``; ``prepacked``
            (larger, loads by mapping only); ``reference`` (by path of the weight file); ``none`` (a refit
            must bring all weights that share a slot).
        engine_cache: a :class:`DiskCache`, or an object with ``get(key)``, ``put(key, entry)`` and
            ``remove(key)``; an engine of the same program, with any weights, is reused from there.
        tune: choose kernels by measuring them: ``fast`` about 0.1 s, ``full`` about 3 s for each problem.
            Measurements are kept with the cache.
        dtype: ``torch.bfloat16`` or ``torch.float16`` computes a program of float32 in that type, as under
            ``torch.autocast``. Weights, inputs and outputs stay float32, as do functions that need it.
        weights: store the weights of linear layers as ``int8`` (one scale for each row; activations are
            rounded to 8 bits, too) or ``int4`` (one scale for each 32 values, for products with single
            rows). Rounding comes last, so refits and adapters still work from full precision;
            :attr:`Module.loss` is the resulting error on the inputs of the export.
        threads: threads of a run; by default one per core.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default where the weights of the module are. A
            module for a GPU returns GPU tensors for GPU tensors, and CPU tensors for CPU tensors and NumPy
            arrays.
        require_full_compilation: raise instead of leaving parts to PyTorch.
        min_block_size: parts of fewer nodes are left to PyTorch.
        torch_executed_ops: operators to leave to PyTorch, such as ``"aten.relu.default"``.

    Raises:
        CompileError: when the module cannot be exported, or a part cannot be compiled and must be.

    Warns:
        TrainingWarning: when the module is in training mode where that may change what it computes.
        NothingCompiledWarning: when everything stays in PyTorch.
        SlowWarning: when an operator or a data type has no kernel.
        SettingsWarning: when the program does not use an operator that ``torch_executed_ops`` names.
        CacheWarning: when the cache fails or holds a damaged entry; the engine is built then.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()).eval()
        >>> compiled = regraft.compile(net, (torch.randn(2, 8),))
        >>> compiled(torch.randn(2, 8)).shape
        torch.Size([2, 16])

    """
    _check_cache(engine_cache)
    check_settings(
        mode=mode,
        tune=tune,
        keep_sources=keep_sources,
        weights=weights,
        threads=threads,
        min_block_size=min_block_size,
    )
    settings = {
        "mode": mode,
        "identical": identical,
        "keep_sources": keep_sources,
        "tune": tune,
        "dtype": dtype_name(dtype),
        "weights": weights,
        "threads": threads,
        "device": device_name(device),
        "min_block_size": min_block_size,
        "torch_executed_ops": tuple(torch_executed_ops),
        "require_full_compilation": require_full_compilation,
    }
    with Progress("compile") as progress:
        if is_onnx(program_or_module):
            if inputs is not None or kwarg_inputs is not None or dynamic_shapes is not None:
                raise CompileError(
                    f"{program_or_module}: an ONNX model says itself what its inputs are: leave inputs, "
                    "kwarg_inputs and dynamic_shapes out"
                )
            return compile_file(cast("str", program_or_module), settings, engine_cache, progress)
        progress.step("export")
        if isinstance(program_or_module, torch.nn.Module):
            check_module(program_or_module)
        found = traced(program_or_module, inputs, kwarg_inputs, dynamic_shapes)
        return _compiled(found, settings, engine_cache, progress)


class Traced(NamedTuple):
    """An exported program, and what it does not say itself."""

    program: ExportedProgram
    arguments: Sequence[str] = ()
    """Names of the arguments that ``forward`` takes by position."""
    carry: caches.Carry | None = None
    """What becomes of caches among the arguments."""
    is_part: bool = False
    """Whether it is one of many graphs of a module, some of which have nothing to compile."""
    siblings: Sequence[_regraft.Model] = ()
    """Engines of other programs of the module, which slots are shared with."""
    state_outside: bool = False
    """Whether buffers that it writes to are tensors of PyTorch, which can be looked at and written to."""


def _compiled(traced: Traced, settings: Mapping[str, Any], engine_cache: Any, progress: Progress) -> Module:
    # How it is called, and what it is, says the program as it was exported.
    program, overwritten = writes_as_results(traced.program)
    program = program if overwritten else traced.program
    options, is_stripped = engine_options(settings, engine_cache), settings["mode"] == "stripped"
    convention = CallingConvention.of(traced.program, traced.arguments)
    progress.step("partition")
    cut = partition(
        program,
        min_block_size=settings["min_block_size"],
        torch_executed_ops=settings["torch_executed_ops"],
        allow_torch=not settings["require_full_compilation"],
        state_outside=traced.state_outside,
    )
    models, cache = [], []
    evaluated: list[Evaluated] = []
    failures: list[str] = []
    weights = tensors_of(program)
    home = device_of_program(program, weights.values()) if settings["device"] is None or cut.glue else "cpu"
    device = settings["device"] or home
    for index, region in enumerate(cut.regions):
        step = f"engine {index + 1} of {len(cut.regions)}"
        progress.step(step)
        model, facts = _regraft.compile(
            region.program,
            _weights_of(region.program, weights),
            **options,
            observer=progress.tuning(step),
            device=device,
            siblings=list(traced.siblings),
        )
        models.append(model)
        cache.append(facts["cache"])
        evaluated += facts["evaluated"]
        failures += facts["warnings"]
    warn_of(cut.report, evaluated, failures, is_part=traced.is_part)
    unused = unused_operators(program, settings["torch_executed_ops"], cut.report)
    if unused and not traced.is_part:
        warn(
            SettingsWarning,
            f"torch_executed_ops: the program has no {listed(unused)}: leave it out; report() and dry_run() "
            "name the operators that it has",
        )
    kept = _kept(cut, weights)
    stateful = [region.program.has_state for region in cut.regions]
    compiled = Compiled(
        convention=convention,
        takes=InputTypes.of(program),
        glue=cut.glue,
        report=cut.report,
        sources={name: name in program.state_dict for name in weights},
        digest=digest_of(traced.program),
        mode=settings["mode"],
        keep_sources=settings["keep_sources"],
        cache=tuple(cache),
        settings=settings,
        ties=ties_of(weights),
        written=buffers_written(program) if any(stateful) else cut.glue.mutated if cut.glue else (),
        identical={name: digest_of_tensor(value) for name, value in kept.items()}
        if settings["identical"]
        else None,
        carry=traced.carry,
        device=device,
        home=home,
        overwritten=overwritten,
    )
    initial = {name: kept[name].clone() for name in compiled.written if name in kept}
    if is_stripped:
        kept = without_values(kept, compiled.sources)
    module = Module(compiled, Serving.of(models, kept, stateful, initial, device))
    if settings["weights"] is not None and not is_stripped:
        module._loss = loss_on_examples(module, program)
    return module


def dry_run(
    program_or_module: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | torch.Tensor | None = None,
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
    program, _ = writes_as_results(exported(program_or_module, inputs, kwarg_inputs, dynamic_shapes))
    return partition(
        program, min_block_size=min_block_size, torch_executed_ops=torch_executed_ops, allow_torch=True
    ).report


def exported(
    program_or_module: ExportedProgram | torch.nn.Module,
    inputs: Sequence[Any] | torch.Tensor | None,
    kwarg_inputs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """The program itself, or the export of the module."""
    return traced(program_or_module, inputs, kwarg_inputs, dynamic_shapes).program


def traced(
    program_or_module: ExportedProgram | torch.nn.Module | Traced | str | os.PathLike[str],
    inputs: Sequence[Any] | torch.Tensor | None,
    kwarg_inputs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> Traced:
    """The program itself, or the export of the module, and what becomes of caches among its arguments."""
    if isinstance(program_or_module, Traced):
        return program_or_module
    if isinstance(program_or_module, ExportedProgram):
        if dynamic_shapes is not None:
            raise CompileError(
                "dynamic_shapes: an exported program has its ranges already: export it with them"
            )
        return Traced(program_or_module)
    if isinstance(program_or_module, (str, os.PathLike)):
        path = os.fspath(program_or_module)
        raise CompileError(
            f"{path}: compile takes programs and modules, found a path\n"
            f'  help: regraft.compile(torch.export.load("{path}")) for a .pt2 file, '
            f'regraft.load("{path}") for what regraft.save wrote, '
            f'regraft.from_pretrained("{path}") for a model of transformers or diffusers'
        )
    if not isinstance(program_or_module, torch.nn.Module):
        found = type(program_or_module).__name__
        raise CompileError(f"expected an ExportedProgram or a torch.nn.Module, found {found}")
    if isinstance(program_or_module, Module):
        raise CompileError(
            "the module is compiled already\n"
            "  help: module.fork() is another one with the same weights; other settings need the original"
        )
    # A mutable module is the one that it is around.
    program_or_module = getattr(program_or_module, "_regraft_original", program_or_module)
    if inputs is None and kwarg_inputs is None:
        raise CompileError(
            "a module is exported with the arguments of one call: give inputs= or kwarg_inputs="
        )
    if isinstance(inputs, Mapping):
        raise CompileError(
            f"inputs: expected arguments in their order, found a {type(inputs).__name__}\n"
            "  help: give arguments by name as kwarg_inputs=; one that is a dict is inputs=(that,)"
        )
    # One tensor alone need not be in a sequence.
    args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs or ())
    try:
        args, kwargs, found = caches.taken_apart(args, kwarg_inputs or {})
    except caches.CannotTake as error:
        raise CompileError(str(error)) from error
    if found:
        dynamic_shapes = _with_caches(program_or_module, args, kwargs, dynamic_shapes)
    return exported_with(program_or_module, program_or_module.forward, args, kwargs, dynamic_shapes)


def exported_with(
    root: torch.nn.Module,
    method: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
) -> Traced:
    """The export of a method of a module with arguments whose caches are taken apart."""
    tracer = caches.Tracer(root, method)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                tracer.module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        raise CompileError(
            f"torch.export.export cannot export the module: {error}{_help_with(error)}"
        ) from error
    _lower_ranges(program)
    return Traced(program, _argument_names(method), tracer.carry(program))


def _lower_ranges(program: ExportedProgram) -> None:
    """Gives symbols the ranges that sizes which are expressions over them were declared with. PyTorch
    does so for sizes that are a symbol, and leaves others at 2 and more, where it tells apart what is no
    different to an engine.
    """
    constraints: dict[Any, Any] = program.range_constraints
    for expression, found in list(constraints.items()):
        symbols = list(expression.free_symbols)
        if len(symbols) != 1 or expression == symbols[0] or symbols[0] not in constraints:
            continue
        factor = expression.coeff(symbols[0])
        least, rest = divmod(found.lower - (expression - factor * symbols[0]), factor)
        own = constraints[symbols[0]]
        if rest == 0 and own.lower == _LEAST and 0 <= least < _LEAST:
            constraints[symbols[0]] = ValueRanges(least, own.upper)


def _help_with(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    if (
        "data-dependent" in text.lower()
        or "GuardOnDataDependentSymNode" in text
        or "dynamic control flow" in text
    ):
        return (
            "\n  help: what the module does depends on the values of tensors, which no one program does: "
            'torch.compile(module, backend="regraft") compiles the parts between'
        )
    if "fake tensor in the exported program constant" in text:
        return (
            "\n  help: forward() makes a tensor and writes to it past PyTorch's tracing, mostly by .data: "
            "call it in a way that does not need that, such as with the sizes that it is configured for"
        )
    return ""


def _with_caches(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> dict[str, Any]:
    """``dynamic_shapes`` in which lengths of caches may change, and of what goes with them where nothing
    else is said.
    """
    bound = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    given = dynamic_shapes if isinstance(dynamic_shapes, Mapping) else {}

    def shapes_of(value: Any) -> Any:
        if isinstance(value, (dict, list, tuple)) and type(value) in pytree.BUILTIN_TYPES:
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            made = {key: shapes_of(part) for key, part in parts}
            return made if isinstance(value, dict) else type(value)(made.values())
        if isinstance(value, torch.Tensor):
            return caches.open_axes([value])[0] or None
        if type(value) in pytree.SUPPORTED_NODES:
            return [shapes_of(part) for part in pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]]
        return None

    return {
        name: given[name] if name in given and not isinstance(value, caches.Parts) else shapes_of(value)
        for name, value in bound.items()
    }


def _argument_names(method: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a method takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()
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
