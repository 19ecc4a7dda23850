"""Compiled modules as one file, of any name.

The file is an exported program that ``torch.export.load`` reads, with the engines beside it, without
weights: these are the program's. A module that cannot give its weights is a plain archive of what
:func:`regraft.save` writes. Nothing in either is executed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import regraft
from regraft.errors import EngineFileError
from regraft.module import Module

__all__ = ["load_file", "packed", "save_file", "unpacked"]

_FOLDER = "regraft"
_MOST_MEMBERS = 10_000


def save_file(module: Module, path: str | os.PathLike[str]) -> None:
    """Writes a module to one file; what is there is replaced."""
    program = module._compiled.program
    if program is None or module._compiled.mode == "frozen" or not module._serving.is_bound:
        packed(path, lambda folder: regraft.save(module, folder))
        return
    with_weights = _with_weights(program, module.state_dict())
    packed(path, lambda folder: regraft.save(module, folder, strip=True), with_weights)


def load_file(path: str | os.PathLike[str]) -> Module:
    """Reads what :func:`save_file` wrote, or a folder of :func:`regraft.save`."""
    if Path(path).is_dir():
        return _a_module(regraft.load(path), path)
    with unpacked(path) as folder:
        module = _a_module(regraft.load(folder), path)
        if not module._serving.is_bound:
            # The name of a file says what its reader is.
            weights = folder.parent / "weights.pt2"
            weights.symlink_to(Path(path).absolute())
            module.refit(_only_known(module, regraft.StateDict.open(weights)))
        return module


def packed(
    path: str | os.PathLike[str], write: Callable[[Path], None], program: ExportedProgram | None = None
) -> None:
    """Writes what ``write`` makes in a folder to one file, beside a program if there is one."""
    target = Path(path)
    if target.is_dir():
        raise EngineFileError(f"{target}: it is a folder: choose the name of a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as made:
            folder, file = Path(made) / _FOLDER, Path(made) / "file"
            write(folder)
            prefix = ""
            if program is not None:
                with open(file, "wb") as out:
                    torch.export.save(program, out)
                with zipfile.ZipFile(file) as archive:
                    prefix = archive.namelist()[0].split("/")[0] + "/"
            with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
                for part in sorted(folder.rglob("*")):
                    if part.is_file():
                        archive.write(part, f"{prefix}{_FOLDER}/{part.relative_to(folder).as_posix()}")
            os.replace(file, target)
    except OSError as error:
        raise EngineFileError(f"{target}: it cannot be written: {error}") from error


@contextlib.contextmanager
def unpacked(path: str | os.PathLike[str]) -> Any:
    """The folder that was packed, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="regraft-") as made:
        folder = Path(made) / _FOLDER
        folder.mkdir()
        try:
            with zipfile.ZipFile(path) as archive:
                _extract(archive, folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise EngineFileError(f"{path}: no saved module, or a damaged one: {error}") from error
        if not any(folder.iterdir()):
            raise EngineFileError(
                f"{path}: there are no engines in it\n"
                "  help: torch.export.load reads a program that was saved without them"
            )
        yield folder


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    members = [name for name in archive.namelist() if f"/{_FOLDER}/" in f"/{name}"]
    if len(members) > _MOST_MEMBERS:
        raise EngineFileError(f"{archive.filename}: {len(members)} files are more than a module has")
    for name in members:
        inside = f"/{name}".split(f"/{_FOLDER}/", 1)[1].split("/")
        if any(part in ("", ".", "..") or "\\" in part for part in inside):
            raise EngineFileError(f"{archive.filename}: {name!r} is no name of a file of a module")
        target = folder.joinpath(*inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, open(target, "xb") as out:
            shutil.copyfileobj(source, out)


def _a_module(loaded: Any, path: Any) -> Module:
    if not isinstance(loaded, Module):
        raise EngineFileError(f"{path}: it is an engine file, which regraft.load opens")
    return loaded


def _only_known(module: Module, weights: regraft.StateDict) -> regraft.StateDict:
    known = set(module._compiled.sources)
    return weights.only([name for name in weights.keys() if name in known])  # noqa: SIM118


def _with_weights(program: ExportedProgram, weights: dict[str, torch.Tensor]) -> ExportedProgram:
    """``program`` with these weights; what it never reads is zero."""
    parameters = set(program.graph_signature.parameters)
    found = copy.copy(program)
    found._state_dict = {
        name: torch.nn.Parameter(value, requires_grad=False) if name in parameters else value
        for name, stand_in in program.state_dict.items()
        for value in [weights[name] if name in weights else torch.zeros_like(stand_in).contiguous()]
    }
    return found
