"""Counts which of Torch-TensorRT's own tests pass on regraft.compat.torch_tensorrt, with nothing changed but
the import and the device.

    PYTHONPATH=target/python PYTHON scripts/torch-tensorrt-tests.py CHECKOUT [-k EXPRESSION] [FILE ...]

With the environment of scripts/python-env.sh, and timm, parameterized and expecttest in a folder of
PYTHONPATH. CHECKOUT is a clone of github.com/pytorch/TensorRT, or a folder with those of its files. Without
files, those about refit, stripping, caching, mutable modules, saving and settings are run, each in a process
of its own. The tests are copied, and in the copies ``cuda`` becomes ``cpu``, a GPU is said to be there, and
weights from the internet are random ones. Tests that look into TensorRT itself fail; which they are, the
names that they fail on say.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FILES = (
    "models/test_model_refit.py",
    "models/test_engine_cache.py",
    "models/test_weight_stripped_engine.py",
    "models/test_export_serde.py",
    "models/test_export_kwargs_serde.py",
    "models/test_reexport.py",
    "models/test_output_format.py",
    "runtime/test_mutable_torchtrt_module.py",
    "runtime/test_000_compilation_settings.py",
    "runtime/test_000_compiler_utils.py",
    "runtime/test_000_convert_module_to_trt_engine.py",
    "runtime/test_000_python_runtime.py",
    "runtime/test_004_weight_streaming.py",
    "runtime/test_aliased_io.py",
    "runtime/test_aliased_io_serialization.py",
    "runtime/test_index_copy_kv.py",
    "runtime/test_dryrun_stats_observable.py",
    "runtime/test_lift_mutable_buffers_api.py",
)
# What the tests are not about: where tensors are, and weights that they would download.
CHANGES = (
    (r"""(["'])cuda(:\d)?\1""", '"cpu"'),
    (r"\.cuda\(\)", ".cpu()"),
    (r"torch\.cuda\.is_available\(\)", "True"),
    (r"pretrained=True", "pretrained=False"),
)
CONFTEST = '''
import importlib, importlib.abc, importlib.machinery, sys, time, types
import pytest, torch

REAL, ALIAS = "regraft.compat.torch_tensorrt", "torch_tensorrt"


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == ALIAS or name.startswith(ALIAS + "."):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return importlib.import_module(REAL + spec.name[len(ALIAS):])

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Alias())


class Nothing:
    """A name of TensorRT: it has nothing, and cannot be called."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args, **kwargs):
        raise NotImplementedError(f"tensorrt.{self.name}: there is no TensorRT")


class TensorRT(types.ModuleType):
    """Can be imported, and has nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name)


stand_in = TensorRT("tensorrt")
stand_in.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
sys.modules.setdefault("tensorrt", stand_in)


class Event:
    def __init__(self, **options):
        pass

    def record(self, stream=None):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


torch.cuda.Event = Event
torch.cuda.synchronize = torch.cuda.empty_cache = lambda *args: None
try:
    import transformers

    transformers.PreTrainedModel.from_pretrained = classmethod(lambda cls, *a, **k: cls(cls.config_class()))
except ImportError:
    pass


@pytest.fixture
def ir():
    return "dynamo"


def pytest_configure(config):
    for name in ("unit", "critical", "trt_api"):
        config.addinivalue_line("markers", name)
'''


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("files", nargs="*", default=FILES, help="below tests/py/dynamo")
    parser.add_argument("-k", dest="expression", default="", help="tests by name, as pytest takes it")
    parser.add_argument("--seconds", type=int, default=900, help="the most that a file may take")
    return parser.parse_args()


def changed(text: str) -> str:
    """A test as it is run."""
    for pattern, replacement in CHANGES:
        text = re.sub(pattern, replacement, text)
    return text


def run(source: Path, expression: str, seconds: int) -> list[tuple[str, str]]:
    """Each test of a file with its outcome."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "conftest.py").write_text(CONFTEST)
        # In packages as there: some import what is beside their folder.
        package = Path(folder) / "dynamo" / source.parent.name
        package.mkdir(parents=True)
        beside = source.parents[1] / "testing_utilities.py"
        for file, target in ((source, package), (beside, package.parent)):
            (target / "__init__.py").touch()
            if file.is_file():
                (target / file.name).write_text(changed(file.read_text()))
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "--no-header", "--tb=line", str(package)]
        command += ["-p", "no:cacheprovider", *(["-k", expression] if expression else [])]
        environment = {**os.environ, "TMPDIR": folder, "COLUMNS": "240"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return [("FAILED", f"{source.name}: not done in {seconds} s")]
    found = re.findall(r"^(PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS) (.+)$", done.stdout, re.MULTILINE)
    return found or [("ERROR", f"{source.name}: {(done.stdout + done.stderr).strip()[-200:]}")]


def main() -> None:
    options = arguments()
    total: Counter[str] = Counter()
    for name in options.files:
        source = options.checkout / "tests/py/dynamo" / name
        if not source.is_file():
            print(f"absent    {name}")
            continue
        results = run(source, options.expression, options.seconds)
        for outcome, test in results:
            if outcome not in ("PASSED", "XPASS", "XFAIL"):
                print(f"{outcome.lower():9} {test[:220]}")
        counted = Counter(outcome for outcome, _ in results)
        total += counted
        print(f"          {name}: {counted['PASSED'] + counted['XPASS']} of {len(results)} pass", flush=True)
    passed = total["PASSED"] + total["XPASS"]
    print(f"{passed} of {total.total()} pass; {total['SKIPPED']} are skipped by themselves")


if __name__ == "__main__":
    main()
