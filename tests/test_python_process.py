"""Compiled modules and their process: memory, exit, children, and folders that somebody else wrote."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
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
from small import numbers, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

X = (numbers(5, 8),)

# What every script begins with: a module large enough that its runs take more than one thread.
PRELUDE = """
import gc, os, signal, sys, threading, time
import torch
import regraft
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
x = torch.randn(256, 256)
compiled = regraft.compile(net, (x,), threads=2)
wanted = compiled(x)
"""


def run(script: str, folder: Path, *, prelude: str = PRELUDE, seconds: float = 60) -> str:
    """Runs a script in a process of its own, which must end well; gives what it printed."""
    path = folder / "script.py"
    path.write_text(prelude + script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    for word in ("panicked", "Fatal Python error", "Traceback", "terminate called"):
        assert word not in done.stderr, done.stderr
    return done.stdout


# --------------------------------------------------------------------------------------------- memory


def test_r_13_a_thousand_lives_in_flat_memory(tmp_path: Path) -> None:
    """Compiled, called, forked, refitted, given an adapter, and deleted; with an engine and with a cut."""
    script = """
class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x):
        return self.last(torch.special.bessel_j0(self.first(x)))

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

x = torch.randn(4, 64)
whole = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
factors = {"2.lora_A.weight": torch.randn(2, 256), "2.lora_B.weight": torch.randn(64, 2)}
programs = [(torch.export.export(model, (x,)), model.state_dict()) for model in (whole, Cut().eval())]
sizes = {}
for turn in range(1, 1001):
    program, state = programs[turn % 50 == 0]
    module = regraft.compile(program, min_block_size=1, threads=1)
    module(x)
    module.refit({name: value + 1 for name, value in state.items()})
    if len(module.models) == 1 and not module.report().in_pytorch:
        adapter = module.adapter("one", factors)
        module.refit(adapters=[(adapter, 0.5)])
    module.fork()(x)
    try:
        module.refit({"nowhere": x})
    except regraft.WeightsError:
        pass
    try:
        module(x[:, 1:])
    except regraft.InputError:
        pass
    del module
    if turn in (200, 600, 1000):
        sizes[turn] = resident()
print((sizes[600] - sizes[200]) >> 10, (sizes[1000] - sizes[600]) >> 10)
"""
    early, late = map(int, run(script, tmp_path, seconds=120).split())
    # 100 KB of weights in each life: 400 that leaked would be 40 MB.
    assert late < 4096, f"grew by {early} KB, then by {late} KB"


# ----------------------------------------------------------------------------------------------- exit


# Compiling in such a thread is left out: PyTorch itself ends the process when one is in torch.export.save.
ENDINGS = {
    "threads_in_calls_and_refits": """
states = [{name: value + turn for name, value in net.state_dict().items()} for turn in range(2)]

def calls():
    while True:
        compiled(x)

def refits():
    while True:
        for state in states:
            compiled.refit(state, observer=lambda *facts: None)

for work in (calls, calls, refits):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "a_thread_that_is_waited_for_and_a_cycle": """
import atexit

def calls(module):
    for _ in range(50):
        assert torch.equal(module(x), wanted)

class Holder:
    pass

holder = Holder()
holder.me, holder.module, holder.output = holder, compiled.fork(), compiled(x)
del holder
atexit.register(lambda: compiled(x))
threading.Thread(target=calls, args=(compiled,)).start()
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_interpreter_exits_cleanly_with(ending: str, tmp_path: Path) -> None:
    run(ENDINGS[ending], tmp_path)


# ------------------------------------------------------------------------------------------- children


def test_a_forked_child_uses_the_module(tmp_path: Path) -> None:
    """Threads do not come along: the child must not wait for them. The parent's go on."""
    script = """
def child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

def calls():
    assert torch.equal(compiled(x), wanted)
    compiled.refit({name: value + 1 for name, value in net.state_dict().items()})
    assert not torch.equal(compiled(x), wanted)
    assert not torch.equal(compiled.fork()(x), wanted)

def compiles():
    again = regraft.compile(torch.export.export(net, (x,)), threads=2)
    assert torch.equal(again(x), wanted)

def loads():
    regraft.save(compiled, "child")
    assert torch.equal(regraft.load("child")(x), wanted)

for work in (calls, compiles, loads, lambda: child(calls)):
    child(work)
    assert torch.equal(compiled(x), wanted)

# While other threads of the parent are in the middle of calls.
done = threading.Event()
def busy():
    while not done.is_set():
        assert torch.equal(compiled(x), wanted)
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(4):
    child(calls)
done.set()
for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
print("well")
"""
    assert run(script, tmp_path).split() == ["well"]


LOADERS = """
import sys
import torch
import regraft
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
x = torch.ones(256, 256)

class Scored(Dataset):
    # Each item goes through a module: the parent's after a fork, or one that the worker loads.
    def __init__(self, folder=None):
        self.folder, self.module = folder, None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.folder is None:
            return compiled(x + index)
        self.module = self.module or regraft.load(self.folder)
        return self.module(torch.full((256, 256), float(index)))

def main():
    global compiled
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 8)).eval()
    compiled = regraft.compile(net, (x,), threads=2)
    wanted = compiled(x)
    expected = torch.stack([compiled(x + index) for index in range(4)])
    found = torch.cat(list(DataLoader(Scored(), batch_size=1, num_workers=2, multiprocessing_context="fork")))
    assert torch.equal(found, expected)
    regraft.save(compiled, "net")
    expected = torch.stack([compiled(torch.full((256, 256), float(index))) for index in range(4)])
    loader = DataLoader(Scored("net"), batch_size=1, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(compiled(x), wanted)
    print("well")

if __name__ == "__main__":
    main()
"""


def test_data_loaders_by_fork_and_spawn(tmp_path: Path) -> None:
    assert run(LOADERS, tmp_path, prelude="", seconds=120).split() == ["well"]


# ------------------------------------------------------------------------------------------- pickles


class Cut(nn.Module):
    """Two engines with an operator between that stays in PyTorch, and a weight there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor, *, flag: bool = True) -> dict[str, Tensor]:
        y = torch.special.bessel_j0(torch.relu(self.first(x))) * torch.special.bessel_j1(self.scale)
        return {"y": self.last(torch.tanh(y))}


@pytest.fixture(scope="module")
def cut() -> regraft.Module:
    return regraft.compile(seeded(Cut, 0), X, kwarg_inputs={"flag": True}, min_block_size=1)


def test_pickling_is_refused_with_advice(cut: regraft.Module) -> None:
    whole = regraft.compile(seeded(lambda: nn.Sequential(nn.Linear(8, 3)), 0), X)
    for module in (cut, whole):
        for attempt in (
            lambda m: pickle.dumps(m),
            lambda m: torch.save(m, io.BytesIO()),
            lambda m: pickle.dumps({"deep": [m]}),
            lambda m: pickle.dumps(m, protocol=2),
            copy.copy,
        ):
            with pytest.raises(TypeError, match=r"regraft\.save"):
                attempt(module)
        for part in module.models:
            with pytest.raises(TypeError):
                pickle.dumps(part)


# ----------------------------------------------------------------------------------- hostile folders


@pytest.fixture(scope="module")
def saved(cut: regraft.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "net"
    regraft.save(cut, folder)
    return folder


def hostile(saved: Path, folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a saved module with another description."""
    import shutil

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


def test_folders_that_are_no_modules(tmp_path: Path, cut: regraft.Module) -> None:
    (tmp_path / "text.rgf").write_text("no engine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for name in ("text.rgf", "folder", "nowhere", "nowhere.rgf"):
        with pytest.raises(regraft.EngineFileError):
            regraft.load(tmp_path / name)
    for name in ("text.rgf", "folder"):
        with pytest.raises(regraft.EngineFileError, match="choose another place"):
            regraft.save(cut, tmp_path / name)
    assert (tmp_path / "folder" / "mine.txt").read_text() == "mine"
    with pytest.raises(regraft.EngineFileError):
        regraft.save(seeded(Cut, 0), tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text.rgf"]
