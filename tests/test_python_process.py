"""The package in its process: memory, ends, forks, pickles, errors, hostile files."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from python_checks import ROOT, Function, bits, python, succeeds
from small import numbers, seeded, uncompiled

X = numbers(4, 6)

# What the programs of other interpreters begin with.
MODULE = """
import gc, os, sys, threading, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
import regraft

torch.set_num_threads(1)
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.fc(x))

def cut(module, x):
    return torch.ops.aten._add_relu.Scalar(module.fc(x), 0)

net = Net().eval()
x = torch.randn(4, 6)
"""


def whole(layer: Function, x: Tensor) -> Tensor:
    return torch.relu(layer.fc(x)) * layer.w


def cut(layer: Function, x: Tensor) -> Tensor:
    return layer.fc(uncompiled(layer.fc(x))) * layer.w


def compiled(compute: Callable[..., Any] = whole, **settings: Any) -> regraft.Module:
    return regraft.compile(seeded(lambda: Function(compute)), (X,), min_block_size=1, **settings)


# ---------------------------------------------------------------------------------------- memory and ends


def test_r_13_a_thousand_modules_in_flat_memory() -> None:
    """Compiled, called, refitted, forked and deleted."""
    said = succeeds(
        MODULE
        + """
program = torch.export.export(net, (x,))
from regraft import _regraft
from regraft._program import import_program, tensors_of

state = {name: value + 1 for name, value in net.state_dict().items()}
imported, weights = import_program(program), tensors_of(program)

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

whole = regraft.compile(program, threads=1)
for cycle in range(1000):
    model, _ = _regraft.compile(imported, weights, threads=1)
    model.run([x], torch._C._from_dlpack)
    model.refit(state)
    fork = model.fork()
    fork.refit(dict(net.state_dict()))
    whole.fork().refit(state)
    try:
        model.refit({"nonsense": x})
    except regraft.WeightsError:
        pass
    if cycle == 200:
        before = resident()
print(resident() - before)
"""
    )
    assert float(said) < 8, f"{said} MB more after 800 modules"


def test_compiling_modules_leaves_nothing() -> None:
    """With all that Python does around it; exports by PyTorch leave something themselves."""
    said = succeeds(
        MODULE
        + """
import weakref
program = torch.export.export(net, (x,))
seen = []
for cycle in range(60):
    module = regraft.compile(program, threads=1)
    y = module(x)
    module.refit(net.state_dict())
    seen += [weakref.ref(module), weakref.ref(y)]
    del module, y
gc.collect()
print(sum(ref() is not None for ref in seen))
"""
    )
    assert said.strip() == "0"


def test_interpreter_ends_cleanly_with_modules_and_threads() -> None:
    succeeds(
        MODULE
        + """
modules = [regraft.compile(net, (x,)), regraft.MutableModule(net)]
net.forward = cut.__get__(net)
modules.append(regraft.compile(net, (x,), min_block_size=1))
with torch.no_grad():
    held = [module(x) for module in modules]

# Threads that Python abandons while they compute; PyTorch itself aborts in such ones.
model, array = modules[0].models[0], x.numpy()
state = {name: value.numpy() for name, value in net.state_dict().items()}

def forever():
    while True:
        model.run([array])
        model.refit(state)

for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
import time
time.sleep(0.5)
class Late:
    def __del__(self, modules=modules, x=x):
        modules[0](x)
late = Late()
"""
    )


# -------------------------------------------------------------------------------------- other processes


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loaders_beside_a_module(method: str, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import torch\n\n\nclass Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n        return 12\n\n"
        "    def __getitem__(self, index):\n        return torch.full((6,), float(index))\n"
    )
    succeeds(
        MODULE.replace("import gc", "import sys; sys.path.insert(0, sys.argv[1])\nimport gc")
        + """
from data import Rows
if __name__ == "__main__":
    module = regraft.compile(net, (x,))
    module(x)
    loader = torch.utils.data.DataLoader(
        Rows(), batch_size=4, num_workers=1, multiprocessing_context=sys.argv[2]
    )
    for batch in loader:
        y = module(batch)
        assert torch.allclose(y, net(batch).detach(), atol=1e-5)
        module.refit(net.state_dict())
""",
        tmp_path,
        method,
    )


def test_modules_work_in_a_forked_child() -> None:
    """Also when the parent was computing in several threads at that moment."""
    succeeds(
        MODULE
        + """
big = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
x = torch.randn(64, 256)
module = regraft.compile(big, (x,), threads=2)
wanted = module(x)
stop = threading.Event()

def busy():
    while not stop.is_set():
        module(x)

thread = threading.Thread(target=busy)
thread.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(10)
        same = torch.equal(module(x), wanted)
        module.refit({name: value * 0 for name, value in big.state_dict().items()})
        os._exit(0 if same and not module(x).any() else 3)
    status = os.waitpid(child, 0)[1]
    if status:
        break
stop.set()
thread.join()
assert status == 0, f"the child ended with {status}"
assert torch.equal(module(x), wanted)
"""
    )


def test_pickles_are_refused_with_advice() -> None:
    module = compiled()
    for what in (module, [module], nn.Sequential(module)):
        with pytest.raises(TypeError, match=r"regraft\.save"):
            pickle.dumps(what)
    with pytest.raises(TypeError, match=r"regraft\.save"):
        torch.save(module, "/dev/null")
    for native in (*module.models, regraft.DiskCache, module.models[0].run([X])[0]):
        if not isinstance(native, type):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(native)
    assert bits(copy.deepcopy(module)(X)) == bits(module(X))
    with pytest.raises(regraft.FrozenError):
        module.train()


# ------------------------------------------------------------------------------------------------ errors


def test_every_error_is_documented_and_one_of_regraft() -> None:
    errors = [
        value
        for name in regraft.__all__
        if inspect.isclass(value := getattr(regraft, name)) and issubclass(value, BaseException)
    ]
    assert len(errors) >= 10 and regraft.RegraftError in errors
    for error in errors:
        base = regraft.RegraftWarning if issubclass(error, Warning) else regraft.RegraftError
        assert issubclass(error, base) and issubclass(error, Exception), error
        assert inspect.getdoc(error) and error.__module__.startswith("regraft"), error
        assert error.__doc__ is not None, error
    guide = (ROOT / "docs" / "python.md").read_text()
    missing = [error.__name__ for error in errors if error.__name__ not in guide]
    assert not missing, f"docs/python.md does not say what {', '.join(missing)} is"


def test_no_error_is_a_panic() -> None:
    """Nothing that is given leads to more than an exception of a documented class."""
    code = (
        MODULE
        + """
module = regraft.compile(net, (x,))
[model] = module.models
bad = [None, 0, -1, 1.5, "", "x", b"x", [], {}, (), object(), x, x[:0], x.to("meta"), [x] * 3, {"x": x}]
expected = (regraft.RegraftError, TypeError, ValueError, OverflowError, LookupError, OSError, AttributeError)
calls = [
    module, model.run, model.refit, model.stage, model.adapter, model.save, model.to_bytes,
    model.set_memory_limit, model.keep_previous, model.slot_bytes, model.source,
    regraft.Model.load, regraft.Model.from_bytes, regraft.StateDict.open, regraft.load,
    module.refit, module.adapter, model.session().run,
    regraft._regraft.Program.from_bytes, regraft._regraft.publish_together, regraft._regraft.is_known,
    lambda value: module.refit(net.state_dict(), changed=value),
    lambda value: module.refit(net.state_dict(), adapters=value),
    lambda value: module.refit(net.state_dict(), verify=value),
    lambda value: module.refit({"fc.bias": value}, partial=True),
    lambda value: module.refit({value: x} if isinstance(value, (str, bytes, int)) else value, partial=True),
    lambda value: regraft.compile(net, (x,), threads=value) if not isinstance(value, (int, list)) else None,
    lambda value: model.adapter("a", value, "{}"),
    lambda value: model.adapter("a", {"fc.lora_A.weight": value, "fc.lora_B.weight": value}, '{"r": 2}'),
]
for call in calls:
    for value in bad:
        try:
            call(value)
        except expected:
            pass
model.set_memory_limit(None)
module.refit(net.state_dict())
assert torch.allclose(module(x), net(x).detach(), atol=1e-5)
"""
    )
    done = python("import os, tempfile; os.chdir(tempfile.mkdtemp())\n" + code)
    assert "panicked" not in done.stderr and "PanicException" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------- hostile folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    found = {}
    for name, compute in (("whole", whole), ("cut", cut)):
        found[name] = folder / name
        regraft.save(compiled(compute), found[name])
    return found


def load_changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> regraft.Module:
    """Loads the module after its description was changed."""
    target = tmp_path / "changed"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    description = json.loads((target / "module.json").read_text())
    description = change(description) or description
    (target / "module.json").write_text(json.dumps(description))
    return regraft.load(target)


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in leaves_of(item, (*path, key)))]


@pytest.mark.parametrize("form", ["whole", "cut"])
def test_m_7_every_field_of_a_description(form: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Whatever stands in a field: an error of a documented class, or a module that works as it should."""
    folder = saved[form]
    wanted = bits(regraft.load(folder)(X))
    paths = leaves_of(json.loads((folder / "module.json").read_text()))
    values = [None, -1, 10**9, "../../x", ["x"], {"node": 0}]
    tried = 0
    for number, path in enumerate(paths):
        # All fields, and of the many values another one for each.
        value = values[number % len(values)]

        def change(description: dict[str, Any], path: Any = path, value: Any = value) -> Any:
            if not path:
                return value
            at: Any = description
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            return None

        tried += 1
        try:
            module = load_changed(folder, tmp_path, change)
        except regraft.RegraftError:
            continue
        try:
            found = module(X)
        except regraft.RegraftError:
            continue
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
            # What operators of PyTorch say of operands that fit none of them.
            assert path[0] == "glue", path
            continue
        # A field that says nothing about results, or where another value means the same.
        if path and path[0] not in ("glue", "convention"):
            assert bits(found) == wanted, path
    assert tried > 50


HOSTILE: dict[str, Any] = {
    "no operator": "os.system",
    "function of Python": "builtins.eval",
    "namespace": "c10d.allreduce_.default",
    "private": "aten.__class__.default",
    "reads files": "aten.from_file.default",
    "writes": "aten.add_.Tensor",
    "writes out": "aten.add.out",
    "memory": "aten.set_.source_Tensor",
    "resizes": "aten.resize_.default",
    "nothing": "",
    "number": 3,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_m_7_operators_of_a_description(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    def change(description: dict[str, Any]) -> None:
        [node] = [n for n in description["glue"]["nodes"] if "_add_relu" in n["target"]]
        node["target"] = HOSTILE[name]

    with pytest.raises(regraft.EngineFileError):
        load_changed(saved["cut"], tmp_path, change)


def test_m_7_damaged_folders(saved: dict[str, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "damaged"

    def refused(damage: Callable[[], Any], form: str = "cut") -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved[form], folder)
        damage()
        with pytest.raises(regraft.EngineFileError):
            regraft.load(folder)

    engine = (saved["cut"] / "0.rgf").read_bytes()
    for file in ("module.json", "0.rgf", "1.rgf", "kept.pt"):
        refused(
            (folder / file).unlink if (saved["cut"] / file).exists() else lambda: shutil.rmtree(folder / "x")
        )
        refused(lambda file=file: (folder / file).write_bytes(b""))
        refused(lambda file=file: (folder / file).write_bytes(b"\x80\x04." * 9))
    for size in (1, 8, 64, len(engine) // 2, len(engine) - 1):
        refused(lambda size=size: (folder / "0.rgf").write_bytes(engine[:size]))
    refused(lambda: (folder / "module.json").write_text("[" * 100_000))
    refused(lambda: shutil.copy(saved["cut"] / "module.json", folder / "module.json"), "whole")
    refused(lambda: torch.save(Evil(), folder / "kept.pt"))
    refused(lambda: torch.save({"w": Evil()}, folder / "kept.pt"))
    refused(lambda: torch.save({"other": torch.ones(6)}, folder / "kept.pt"))
    assert not (tmp_path / "executed").exists()
    for other in (tmp_path / "none", tmp_path / "none.rgf", tmp_path, Path("/dev/null")):
        with pytest.raises(regraft.EngineFileError):
            regraft.load(other)
    state = tmp_path / "state.pt"
    torch.save({"w": torch.ones(1)}, state)
    with pytest.raises(regraft.EngineFileError):
        regraft.load(state)


def test_m_7_places_that_are_something_else(saved: dict[str, Path], tmp_path: Path) -> None:
    """Saving replaces saved modules, and nothing else."""
    module = regraft.load(saved["cut"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for place in ("folder", "file", "file/below"):
        with pytest.raises(regraft.EngineFileError):
            regraft.save(module, tmp_path / place)
    assert (tmp_path / "folder" / "precious.txt").read_text() == "x"
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(regraft.EngineFileError):
        regraft.save(nn.Linear(2, 2), tmp_path / "new")  # type: ignore[arg-type]
    for _ in range(2):
        regraft.save(module, tmp_path / "new" / "deep")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["deep"]
    assert bits(regraft.load(tmp_path / "new" / "deep")(X)) == bits(module(X))
