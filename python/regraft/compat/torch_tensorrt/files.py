"""Compiled modules as one file, of any name.

The file is an exported program that ``torch.export.load`` reads, with the engines beside it, without
weights: these are the program's. A module that cannot give its weights is a plain archive of what
:func:`regraft.save` writes. Nothing in either is executed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
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

__all__ = [
    "extra_files_of",
    "has_engines",
    "load_file",
    "packed",
    "program_of",
    "save_file",
    "unpacked",
    "with_weights",
]

_FOLDER = "regraft"
_MOST_MEMBERS = 10_000
# Makes PyTorch unpickle tensors and nothing else.
_SAFELY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_IS_DATA = re.compile(r"/constants/(tensor_\d+|[^/]*\.json|payload[^/]*)$")


def save_file(
    module: Module, path: str | os.PathLike[str], extra_files: dict[str, Any] | None = None
) -> None:
    """Writes a module to one file, with texts beside its program; what is there is replaced."""
    program = module._compiled.program
    if program is None or module._compiled.mode == "frozen" or not module._serving.is_bound:
        if extra_files:
            raise ValueError(
                "extra_files: there is no program that they are stored with: save them beside it"
            )
        packed(path, lambda folder: regraft.save(module, folder))
        return
    whole = with_weights(program, module.state_dict())
    packed(path, lambda folder: regraft.save(module, folder, strip=True), whole, extra_files)


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


def has_engines(path: str | os.PathLike[str]) -> bool:
    """Whether there are engines in a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(f"/{_FOLDER}/" in f"/{name}" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def extra_files_of(path: str | os.PathLike[str], names: list[str]) -> dict[str, str]:
    """Texts that are stored with the program of a file.

    Raises:
        ValueError: for one that is not there.
        EngineFileError: when the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            known = {
                name.split("/extra/", 1)[1]: name for name in archive.namelist() if "/extra/" in f"/{name}"
            }
            missing = [name for name in names if name not in known]
            if missing:
                there = ", ".join(known) or "none"
                raise ValueError(f"{path}: there is no extra file {', '.join(missing)}, there is {there}")
            return {name: archive.read(known[name]).decode() for name in names}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise EngineFileError(f"{path}: extra files cannot be read: {error}") from error


def packed(
    path: str | os.PathLike[str],
    write: Callable[[Path], None],
    program: ExportedProgram | None = None,
    extra_files: dict[str, Any] | None = None,
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
                    torch.export.save(program, out, extra_files=extra_files)
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
            raise EngineFileError(f"{path}: not a saved module, or a damaged one: {error}") from error
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
            raise EngineFileError(f"{archive.filename}: {name!r} is not a name of a file of a module")
        target = folder.joinpath(*inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, open(target, "xb") as out:
            shutil.copyfileobj(source, out)


def program_of(path: str | os.PathLike[str]) -> ExportedProgram | None:
    """The exported program in a file, as ``torch.export.load`` reads it; ``None`` where there is none.

    Raises:
        EngineFileError: when the file cannot be read, or holds objects that reading would execute.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise EngineFileError(f"{path}: not a saved module, or a damaged one: {error}") from error
    if not any(name.endswith("/archive_format") for name in names):
        return None
    # Of what is stored PyTorch unpickles any object but tensors and weights.
    objects = [name for name in names if "/constants/" in name and not _IS_DATA.search(name)]
    if objects:
        raise EngineFileError(
            f"{path}: {objects[0]} is an object that reading would execute: torch.export.load reads files "
            "that you trust"
        )
    before = os.environ.get(_SAFELY)
    os.environ[_SAFELY] = "1"
    try:
        with open(path, "rb") as file:
            return torch.export.load(file)
    except Exception as error:
        raise EngineFileError(f"{path}: PyTorch cannot read the program: {error}") from error
    finally:
        if before is None:
            del os.environ[_SAFELY]
        else:
            os.environ[_SAFELY] = before


def _a_module(loaded: Any, path: Any) -> Module:
    if not isinstance(loaded, Module):
        raise EngineFileError(f"{path}: it is an engine file, which regraft.load opens")
    return loaded


def _only_known(module: Module, weights: regraft.StateDict) -> regraft.StateDict:
    known = set(module._compiled.sources)
    return weights.only([name for name in weights.keys() if name in known])  # noqa: SIM118


def with_weights(program: ExportedProgram, weights: dict[str, torch.Tensor]) -> ExportedProgram:
    """``program`` with these weights; what it never reads is zero."""
    parameters = set(program.graph_signature.parameters)
    found = copy.copy(program)
    found._state_dict = {
        name: torch.nn.Parameter(value, requires_grad=False) if name in parameters else value
        for name, stand_in in program.state_dict.items()
        for value in [weights[name] if name in weights else torch.zeros_like(stand_in).contiguous()]
    }
    return found
