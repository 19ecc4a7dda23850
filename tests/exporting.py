"""Turns entries of the model zoo into files, once, and keeps them in the cache directory.

Cached per model are its graphs without weights, two sets of weights A and B, and PyTorch's answers with
each. Archives with weights are put together from these when a test asks (a copy of the bytes), which
keeps the cache at a third of the size.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "crates/conformance/fixtures"))

from pt2_archive import drop_weights, with_weights  # noqa: E402

SEEDS = {"a": 0, "b": 2}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exported:
    """One exported model: `a` and `b` name its two sets of weights."""

    name: str
    folder: Path

    def archive(self, target: Path, weights: str | Arrays, *, decomposed: bool = False) -> Path:
        """Writes a complete `.pt2` with these weights."""
        values = self.weights(weights) if isinstance(weights, str) else weights
        graph = self.folder / ("decomposed.pt2" if decomposed else "program.pt2")
        with_weights(graph, target, {name: array.tobytes() for name, array in values.items()})
        return target

    def weights_file(self, which: str) -> Path:
        return self.folder / f"{which}.safetensors"

    def weights(self, which: str) -> Arrays:
        return load_arrays(self.weights_file(which))

    @cached_property
    def input_sets(self) -> list[Arrays]:
        return split_sets(self.folder / "inputs.safetensors")

    def expected(self, which: str) -> list[list[np.ndarray]]:
        """PyTorch's outputs for each input set."""
        sets = split_sets(self.folder / f"expected_{which}.safetensors")
        return [[outputs[str(index)] for index in range(len(outputs))] for outputs in sets]


def load_arrays(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def save_arrays(path: Path, arrays: Arrays) -> Path:
    from safetensors.numpy import save_file

    save_file(arrays, path)
    return path


def split_sets(path: Path) -> list[Arrays]:
    """Undoes the naming `SET.NAME` of the cached files."""
    sets: dict[int, Arrays] = {}
    for name, array in load_arrays(path).items():
        number, _, rest = name.partition(".")
        sets.setdefault(int(number), {})[rest] = array
    return [sets[number] for number in sorted(sets)]


def cache_directory() -> Path:
    base = os.environ.get("REGRAFT_CACHE_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regraft"


def exported(name: str) -> Exported:
    """The cached export of a model, made now if it is not there."""
    folder = exports_directory() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
        try:
            export_into(unfinished, name)
            unfinished.rename(folder)  # only whole exports get the final name
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(name, folder)


def exports_directory() -> Path:
    """Exports of this torch and of these very sources: others are deleted, for they are large."""
    from importlib.metadata import version

    here = Path(__file__).parent
    sources = b"".join((here / file).read_bytes() for file in ("models.py", "exporting.py"))
    current = f"torch-{version('torch')}-{hashlib.sha256(sources).hexdigest()[:12]}"
    exports = cache_directory() / "exports"
    for other in exports.glob("torch-*"):
        if other.name != current:
            shutil.rmtree(other, ignore_errors=True)
    return exports / current


def export_into(folder: Path, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    from models import ZOO

    entry = ZOO[name]
    numbered = enumerate(entry.input_sets)
    save_file(
        {f"{k}.{n}": t for k, inputs in numbered for n, t in inputs.items()}, folder / "inputs.safetensors"
    )

    for which, seed in SEEDS.items():
        torch.manual_seed(seed)
        model = entry.build(seed)
        state = {n: t.detach().clone().contiguous() for n, t in model.state_dict().items()}
        save_file(state, folder / f"{which}.safetensors")
        del state
        save_file(answers(model, entry.input_sets), folder / f"expected_{which}.safetensors")
        if which == "a":
            save_graphs(folder, model, entry)
        del model


def answers(model: object, input_sets: list[dict]) -> dict:
    import torch

    recorded = {}
    with torch.no_grad():
        for number, inputs in enumerate(input_sets):
            outputs = model(**inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            recorded |= {f"{number}.{index}": output.contiguous() for index, output in enumerate(outputs)}
    return recorded


def save_graphs(folder: Path, model: object, entry: object) -> None:
    import torch

    program = torch.export.export(
        model, (), entry.input_sets[0], dynamic_shapes=entry.dynamic_shapes, strict=False
    )
    forms = {"program": program}
    if entry.decomposes:
        forms["decomposed"] = program.run_decompositions()
    for form, exported_program in forms.items():
        full = folder / f"{form}-full.pt2"
        torch.export.save(exported_program, full)
        drop_weights(full, folder / f"{form}.pt2")
        full.unlink()
