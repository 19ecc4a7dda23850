"""Saved modules that somebody else wrote: refused, and nothing that they name is imported or called."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_same
from module_checks import called
from small import numbers, seeded, uncompiled, uncompiled_pair

pytestmark = pytest.mark.usefixtures("one_thread")

X = (numbers(5, 8),)


class Cut(nn.Module):
    """Two engines with an operator between that stays in PyTorch, and a weight there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor, *, flag: bool = True) -> dict[str, Tensor]:
        y = uncompiled(torch.relu(self.first(x))) * uncompiled_pair(self.scale)
        return {"y": self.last(torch.tanh(y))}


@pytest.fixture(scope="module")
def cut() -> regraft.Module:
    return regraft.compile(seeded(Cut, 0), X, kwarg_inputs={"flag": True}, min_block_size=1)


# ----------------------------------------------------------------------------------- hostile folders


@pytest.fixture(scope="module")
def saved(cut: regraft.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "net"
    regraft.save(cut, folder)
    return folder


def hostile(saved: Path, folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a saved module with another description."""
    target = folder / "net"
    shutil.copytree(saved, target)
    description = json.loads((target / "module.json").read_text())
    edit(description)
    (target / "module.json").write_text(json.dumps(description))
    return target


def first_call(description: dict[str, Any]) -> dict[str, Any]:
    nodes = description["glue"]["nodes"]
    return next(n for n in nodes if n["op"] == "call_function" and n["target"].startswith("aten"))


def with_target(target: str) -> Callable[[dict[str, Any]], Any]:
    return lambda d: first_call(d).update(target=target)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d.pop(key)


def with_spec(kind: str, context: str) -> Callable[[dict[str, Any]], Any]:
    """Results in a container of another type."""

    def edit(description: dict[str, Any]) -> None:
        version, spec = json.loads(description["convention"]["out_spec"])
        spec["type"], spec["context"] = kind, context
        description["convention"]["out_spec"] = json.dumps([version, spec])

    return edit


FACTORY = json.dumps(
    {
        "default_factory_module": "hostile_module",
        "default_factory_name": "run",
        "dict_context": '["y"]',
    }
)

EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other_format": lambda d: d.update(format=99),
    "format_of_another_type": lambda d: d.update(format=[1]),
    **{f"without_{key}": without(key) for key in ("glue", "convention", "engines", "sources", "report")},
    "function_of_python": with_target("os.system"),
    "builtin": with_target("eval"),
    "attribute_path": with_target("aten.__class__.__init__"),
    "dunder": with_target("aten.relu.__call__"),
    "other_namespace": with_target("inductor.accumulate_grad_.default"),
    "operator_of_files": with_target("aten.from_file.default"),
    "operator_that_writes": with_target("aten.add_.Tensor"),
    "operator_that_resizes": with_target("aten.resize_.default"),
    "no_operator": with_target("aten.no_such_thing.default"),
    "attribute_of_the_module": lambda d: first_call(d).update(op="get_attr", target="__class__"),
    "call_of_a_method": lambda d: first_call(d).update(op="call_method", target="__reduce__"),
    "call_of_a_module": lambda d: first_call(d).update(op="call_module", target="x"),
    "nodes_that_are_not_there": lambda d: first_call(d).update(args=[[{"node": 9999}], {"map": {}}]),
    "nodes_from_behind": lambda d: first_call(d).update(args=[[{"node": -1}], {"map": {}}]),
    "operands_of_other_kinds": lambda d: first_call(d).update(args=[[{"pickle": "gASV"}], {"map": {}}]),
    "dtypes_that_are_none": lambda d: first_call(d).update(args=[[{"dtype": "load"}], {"map": {}}]),
    "an_engine_too_many": lambda d: d.update(engines=3, stateful=[False] * 3),
    "an_engine_too_few": lambda d: d.update(engines=1, stateful=[False]),
    "engines_by_the_million": lambda d: d.update(engines=10**12),
    "negative_engines": lambda d: d.update(engines=-1),
    "engines_elsewhere": lambda d: d.update(engines="../../etc"),
    "no_container": lambda d: d.update(convention=7),
    "unknown_class": with_spec("os.system", '"echo"'),
    "factory_of_a_module": with_spec("collections.defaultdict", FACTORY),
    "other_weights": lambda d: d["glue"].update(weights=["first.weight"]),
    "other_mutations": lambda d: d["glue"].update(mutated=["scale"]),
    "inputs_of_another_number": lambda d: d["convention"].update(inputs=[None] * 5),
    "outputs_of_another_number": lambda d: d["convention"].update(outputs=[None] * 5),
    "state_of_another_number": lambda d: d.update(stateful=[]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_hostile_descriptions(
    edit: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused when they are read, and nothing that they name is imported or called."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    executed = tmp_path / "executed"
    (tmp_path / "hostile_module.py").write_text(
        f"open({str(executed)!r}, 'w')\ndef run(*args):\n    raise SystemExit\n"
    )
    folder = hostile(saved, tmp_path, EDITS[edit])
    try:
        with pytest.raises(regraft.EngineFileError):
            regraft.load(folder)
    finally:
        assert not executed.exists(), "it was executed"
        sys.modules.pop("hostile_module", None)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", "[" * 100_000])
def test_descriptions_that_are_none(text: str, saved: Path, tmp_path: Path) -> None:
    folder = hostile(saved, tmp_path, lambda d: None)
    (folder / "module.json").write_text(text)
    with pytest.raises(regraft.EngineFileError):
        regraft.load(folder)


def test_a_description_in_other_bytes(saved: Path, tmp_path: Path) -> None:
    folder = hostile(saved, tmp_path, lambda d: None)
    (folder / "module.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(regraft.EngineFileError):
        regraft.load(folder)


def test_engines_and_weights_that_are_damaged(saved: Path, tmp_path: Path, cut: regraft.Module) -> None:
    folder = hostile(saved, tmp_path, lambda d: None)
    assert_same(called(regraft.load(folder), X, {"flag": True}), called(cut, X, {"flag": True}))
    for name in ("0.rgf", "1.rgf", "kept.pt"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], b"\x00" * len(whole)):
            (folder / name).write_bytes(damaged)
            with pytest.raises(regraft.EngineFileError):
                regraft.load(folder)
        (folder / name).unlink()
        with pytest.raises(regraft.EngineFileError):
            regraft.load(folder)
        (folder / name).write_bytes(whole)
    # Each of the other's place.
    (folder / "0.rgf").rename(folder / "x")
    (folder / "1.rgf").rename(folder / "0.rgf")
    (folder / "x").rename(folder / "1.rgf")
    try:
        swapped = regraft.load(folder)
    except regraft.EngineFileError:
        return
    with pytest.raises(regraft.RegraftError):
        swapped(*X, flag=True)


class Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "content",
    [
        lambda path: {"scale": Opens(path)},
        lambda path: {"scale": torch.ones(7)},
        lambda path: {"scale": "text"},
        lambda path: {},
        lambda path: {"scale": torch.ones(6), "more": torch.ones(1)},
        lambda path: [torch.ones(6)],
        lambda path: {"scale": torch.ones(6).to_sparse()},
        lambda path: {"scale": torch.ones(6, device="meta")},
    ],
    ids=["code", "shape", "text", "empty", "more", "list", "sparse", "meta"],
)
def test_hostile_weights_of_parts_in_pytorch(
    content: Callable[[Path], Any], saved: Path, tmp_path: Path
) -> None:
    folder = hostile(saved, tmp_path, lambda d: None)
    torch.save(content(tmp_path / "executed"), folder / "kept.pt")
    with pytest.raises(regraft.RegraftError):
        regraft.load(folder)(*X, flag=True)
    assert not (tmp_path / "executed").exists()
