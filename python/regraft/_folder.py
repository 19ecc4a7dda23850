"""Folders that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from regraft.errors import EngineFileError

__all__ = ["replaced_folder"]


@contextlib.contextmanager
def replaced_folder(path: str | os.PathLike[str], description: str, kind: str) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``path`` when all went well.

    Args:
        path: where it is to be. What is there is replaced when it is a folder of this kind.
        description: name of the file that every folder of this kind has.
        kind: what such a folder is, in words.

    Raises:
        EngineFileError: when the folder cannot be written, or is something else. What was there is kept then.

    """
    target = Path(path)
    if target.exists() and not (target / description).is_file():
        raise EngineFileError(f"{target}: it exists and is no {kind}: choose another place")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            made.mkdir()
            yield made
            if target.exists():
                target.rename(Path(folder) / "before")
            made.rename(target)
    except OSError as error:
        raise EngineFileError(f"{target}: it cannot be written: {error}") from error
