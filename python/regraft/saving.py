"""Compiled modules as folders, and engine files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import _regraft
from regraft._folder import replaced_folder
from regraft.errors import EngineFileError, RegraftError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from regraft._compiled import Compiled
    from regraft.module import Module
    from regraft.mutable import MutableModule

__all__ = ["load", "save"]

_FORMAT = 3
_DESCRIPTION = "module.json"
_KEPT = "kept.pt"


def save(module: Module | MutableModule, path: str | os.PathLike[str], *, strip: bool = False) -> None:
    """Saves a compiled module as a folder: one engine file for each engine, and a description in JSON.

    Args:
        module: what :func:`regraft.compile` made, or a :class:`MutableModule`, which is saved as
            :meth:`MutableModule.save` does.
        path: the folder. It is replaced when it is one that ``save`` made.
        strip: leave the weights out: the module that is loaded runs after a refit with all of them. Those of
            a mutable module come from the module that it is loaded around.

    Raises:
        EngineFileError: when the folder cannot be written, or is something else. What was there is kept then.

    """
    from regraft.module import Module
    from regraft.mutable import MutableModule

    if isinstance(module, MutableModule):
        MutableModule.save(module, path, strip=strip)
        return
    if not isinstance(module, Module):
        raise EngineFileError(f"expected a module that regraft.compile made, found {type(module).__name__}")
    with replaced_folder(path, _DESCRIPTION, "saved module") as folder:
        _write(module, folder, strip)


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, device: str | torch.device | None = None
) -> Any:
    """Loads what :func:`save` wrote as a :class:`Module`, or an engine file (``.rgf``) as a :class:`Model`,
    which needs no PyTorch. Nothing in the files is executed.

    Args:
        path: the folder or the file.
        threads: threads of a run; by default one per core.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: of the kind that it was compiled for. By default where
            a saved module was compiled, and the CPU for an engine file.

    Raises:
        EngineFileError: when a file is damaged, of another version, or built for another machine.

    """
    source = Path(path)
    if (source / "mutable.json").is_file():
        raise EngineFileError(
            f"{source}: a saved mutable module, whose code is not in it\n"
            f'  help: regraft.MutableModule.load("{source}", module), or regraft.load("{source}/0") for one '
            "program"
        )
    if source.is_dir():
        return _read(source, threads, device)
    return _regraft.Model.load(source, threads, "cpu" if device is None else str(device))


def _write(module: Module, folder: Path, strip: bool) -> None:
    import torch

    from regraft.kept import without_values

    compiled, serving = module._compiled, module._serving
    mode = (
        "stripped" if strip or module.mode == "stripped" else compiled.mode.replace("stripped", "refittable")
    )
    for index, model in enumerate(serving.models):
        model.save(folder / f"{index}.rgf", mode, compiled.keep_sources)
    description = {
        "format": _FORMAT,
        "version": _regraft.__version__,
        "mode": mode,
        "keep_sources": compiled.keep_sources,
        "digest": compiled.digest,
        "sources": dict(compiled.sources),
        "ties": compiled.ties,
        "written": compiled.written,
        "identical": None if compiled.identical is None else dict(compiled.identical),
        "convention": compiled.convention.to_json(),
        "takes": compiled.takes.to_json(),
        "engines": len(serving.models),
        "stateful": [session is not None for session in serving.sessions],
        "report": {
            "engines": list(compiled.report.engines),
            "in_pytorch": [list(part) for part in compiled.report.in_pytorch],
        },
        "settings": dict(compiled.settings),
        "glue": None if compiled.glue is None else compiled.glue.to_json(),
        "overwritten": compiled.overwritten,
        "carry": None if compiled.carry is None else compiled.carry.to_json(),
        "device": compiled.device,
        "home": compiled.home,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1))
    if compiled.glue is not None:
        kept = serving.at_first
        if mode == "stripped":
            kept = without_values(kept, compiled.sources)
        torch.save(kept, folder / _KEPT)


def _read(folder: Path, threads: int | None, device: Any) -> Module:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise EngineFileError(
            f"{folder}: a saved module is called with PyTorch, which cannot be imported ({error}): "
            f"install it\n"
            f'  help: regraft.load("{folder / "0.rgf"}") opens its engine without PyTorch'
        ) from error
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        return _module(folder, description, threads, device)
    except RegraftError as error:
        # Of the device, such as one that is not there.
        if isinstance(error, EngineFileError) or type(error) is RegraftError:
            raise
        raise EngineFileError(f"{folder}: not a saved module, or a damaged one: {error}") from error
    # Whatever a damaged description leads to.
    except Exception as error:
        raise EngineFileError(f"{folder}: not a saved module, or a damaged one: {error}") from error


def _module(folder: Path, description: dict[str, Any], threads: int | None, device: Any) -> Module:
    import torch

    from regraft._compiled import Compiled, Serving
    from regraft.caches import Carry
    from regraft.calling import CallingConvention
    from regraft.devices import device_name
    from regraft.errors import Unsupported
    from regraft.glue import Glue
    from regraft.inputs import InputTypes
    from regraft.module import Module
    from regraft.partition import PartitionReport

    if description["format"] != _FORMAT:
        raise EngineFileError(
            f"{folder}: format {description['format']}, this version reads {_FORMAT}: save it again"
        )
    glue = None if description["glue"] is None else Glue.from_json(description["glue"])
    home = device_name(str(description.get("home", "cpu"))) or "cpu"
    device = device_name(device or str(description.get("device", "cpu")))
    kept = {}
    if glue is not None:
        kept = torch.load(folder / _KEPT, map_location=home, weights_only=True)
    report = description["report"]
    compiled = Compiled(
        convention=CallingConvention.from_json(description["convention"]),
        takes=InputTypes.from_json(description["takes"]),
        glue=glue,
        report=PartitionReport(
            tuple(report["engines"]), tuple(Unsupported(*part) for part in report["in_pytorch"])
        ),
        sources=description["sources"],
        digest=description["digest"],
        mode=description["mode"],
        keep_sources=description["keep_sources"],
        cache=(),
        settings=description["settings"],
        ties=tuple(map(tuple, description["ties"])),
        written=tuple(description["written"]),
        identical=description["identical"],
        overwritten=tuple(description["overwritten"]),
        carry=None if description.get("carry") is None else Carry.from_json(description["carry"]),
        device=device,
        home=home,
    )
    models = [
        _regraft.Model.load(folder / f"{index}.rgf", threads, device)
        for index in range(description["engines"])
    ]
    problem = _misfit(compiled, models, kept)
    if problem is not None:
        raise EngineFileError(f"{folder}: the {problem} of the module are not what its description says")
    initial = {
        name: kept[name].clone() for name in compiled.written if name in kept and not kept[name].is_meta
    }
    return Module(compiled, Serving.of(models, kept, description["stateful"], initial, device))


def _misfit(compiled: Compiled, models: Sequence[_regraft.Model], kept: Mapping[str, Any]) -> str | None:
    """What of a description does not fit the rest of it, or the engines."""
    convention, glue = compiled.convention, compiled.glue
    tensors = sum(leaf is None for leaf in convention.inputs)
    results = sum(leaf is None for leaf in convention.outputs) + len(compiled.overwritten)
    if convention.in_spec.num_leaves != len(convention.inputs) or len(compiled.takes.inputs) != tensors:
        return "arguments"
    if any(type(place) is not int or not 0 <= place < tensors for place in compiled.overwritten):
        return "arguments that it writes to"
    if convention.out_spec.num_leaves != len(convention.outputs):
        return "results"
    named = {*kept, *(source.name for model in models for source in model.sources)}
    if not named <= set(compiled.sources) or not all(map(_is_plain, kept.values())):
        return "weights"
    if glue is not None:
        return None if glue.fits(tensors, results, models) and set(kept) == set(glue.weights) else "parts"
    if [(len(model.inputs), len(model.outputs)) for model in models] != [(tensors, results)]:
        return "engines"
    return None


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor with values, or one that a stripped module has in their place."""
    import torch

    is_somewhere = value.device.type in ("cpu", "cuda", "meta")
    return type(value) is torch.Tensor and value.layout is torch.strided and is_somewhere
