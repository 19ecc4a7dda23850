"""The engines, each with the same few methods.

Their libraries are imported where they are used: a process has one engine, and what it imports is in its
memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """What an engine is to run: the folder that prepare.py wrote, and how."""

    model: str
    folder: Path
    threads: int
    dtype: str
    """`f32` or `bf16`."""
    tune: str = "off"

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "inputs.npz") as inputs:
            return dict(inputs)

    def artifact(self, name: str) -> Path:
        """A file or folder of one engine with these threads and this type."""
        return self.folder / f"{name}-{self.threads}-{self.dtype}"


class Engine:
    """One engine and one model."""

    dtypes: tuple[str, ...] = ("f32", "bf16")
    builds = True
    """Whether `build` makes something that `load` reads."""
    refits = True
    """Whether `renew` changes the weights of what is loaded, or makes another one."""
    renews = True
    """Whether there is a `renew`."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def build(self) -> float:
        """Compiles the model and stores the result; the seconds of compiling."""
        raise NotImplementedError

    def load(self) -> float | None:
        """Makes it ready to run. The seconds of compiling, where that is a part of it."""
        raise NotImplementedError

    def run(self) -> Any:
        """One run with the inputs of the job; what it gives is left as the engine gives it."""
        raise NotImplementedError

    def outputs(self) -> list[np.ndarray]:
        """The results of one run."""
        return [np.asarray(output, np.float32) for output in self.run()]

    def renew(self, which: str) -> float:
        """Gives it the weights of a file; the seconds from the file to being ready."""
        raise NotImplementedError


def seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def forget_peak() -> None:
    """The most memory is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")


# ------------------------------------------------------------------------------------------- PyTorch


class Eager(Engine):
    """PyTorch as it is; narrow types under autocast."""

    builds = False

    def load(self) -> float | None:
        import torch

        torch.set_num_threads(self.job.threads)
        torch.set_grad_enabled(False)
        from networks import NETWORKS

        torch.manual_seed(0)
        self.module = NETWORKS[self.job.model].build(0).eval()
        self.renew("a")
        self.inputs = tuple(torch.from_numpy(array) for array in self.job.arrays().values())
        self.call: Callable[..., Any] = self.module
        forget_peak()
        return None

    def cast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.job.dtype == "bf16")

    def run(self) -> Any:
        with self.cast():
            return self.call(*self.inputs)

    def outputs(self) -> list[np.ndarray]:
        found = self.run()
        return [value.float().numpy() for value in (found if isinstance(found, tuple) else (found,))]

    def renew(self, which: str) -> float:
        from safetensors.torch import load_file

        file = self.job.folder / f"{which}.safetensors"
        return seconds(lambda: self.module.load_state_dict(load_file(file)))


class Inductor(Eager):
    """torch.compile, with weights frozen, which is the faster way: new weights mean compiling again."""

    renews = False

    def load(self) -> float | None:
        import torch
        import torch._inductor.config

        torch._inductor.config.freezing = True
        super().load()
        self.call = torch.compile(self.module)
        took = seconds(self.run)
        forget_peak()
        return took


class AotInductor(Eager):
    """AOTInductor."""

    dtypes = ("f32",)
    builds = True
    renews = False

    def package(self) -> Path:
        return self.job.artifact("aoti").with_suffix(".pt2")

    def build(self) -> float:
        import torch
        import torch._inductor

        torch.set_num_threads(self.job.threads)
        with torch.no_grad():
            program = torch.export.load(self.job.folder / "program.pt2")
            return seconds(
                lambda: torch._inductor.aoti_compile_and_package(
                    program, package_path=str(self.package()), inductor_configs={"freezing": True}
                )
            )

    def load(self) -> float | None:
        import torch
        import torch._inductor

        torch.set_num_threads(self.job.threads)
        torch.set_grad_enabled(False)
        self.inputs = tuple(torch.from_numpy(array) for array in self.job.arrays().values())
        self.call = torch._inductor.aoti_load_package(str(self.package()))
        return None

    def outputs(self) -> list[np.ndarray]:
        found = self.run()
        return [value.numpy() for value in (found if isinstance(found, (tuple, list)) else (found,))]


# --------------------------------------------------------------------------------------------- peers


class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU, which has no kernels for bf16."""

    dtypes = ("f32",)
    refits = False

    def session(self, path: Path, *, optimized: bool, store: Path | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimized else levels.ORT_ENABLE_ALL
        options.log_severity_level = 3
        if store:
            options.optimized_model_filepath = str(store)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def original(self) -> Path:
        return self.job.folder / "model.onnx"

    def optimized(self) -> Path:
        return self.job.artifact("onnxruntime").with_suffix(".onnx")

    def build(self) -> float:
        took = seconds(lambda: self.session(self.original(), optimized=False))
        self.session(self.original(), optimized=False, store=self.optimized())
        return took

    def load(self) -> float | None:
        self.ready = self.session(self.optimized(), optimized=True)
        arrays = self.job.arrays()
        self.feeds = {wanted.name: arrays[wanted.name] for wanted in self.ready.get_inputs()}
        return None

    def run(self) -> Any:
        return self.ready.run(None, self.feeds)

    def renew(self, which: str) -> float:
        """A session from another ONNX model. That another program must write it first is not counted."""
        return seconds(lambda: self.session(self.original(), optimized=False))


class OpenVino(Engine):
    """OpenVINO on the CPU, in the mode for latency."""

    refits = False

    def compiled(self, *, cache: bool) -> Any:
        import openvino

        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.job.threads,
            # Its default is the narrow type where the processor has it.
            "INFERENCE_PRECISION_HINT": self.job.dtype,
            # A virtual machine may show its processors as threads of one core.
            "ENABLE_HYPER_THREADING": True,
        }
        if cache:
            settings["CACHE_DIR"] = str(self.job.artifact("openvino"))
        self.core = openvino.Core()
        return self.core.compile_model(str(self.job.folder / "model.onnx"), "CPU", settings)

    def build(self) -> float:
        took = seconds(lambda: self.compiled(cache=False))
        self.compiled(cache=True)
        return took

    def load(self) -> float | None:
        self.model = self.compiled(cache=True)
        self.request = self.model.create_infer_request()
        arrays = self.job.arrays()
        # By number: names are looked up at each call. An input may have the names of its first views, too.
        self.feeds = {
            index: arrays[next(name for name in wanted.get_names() if name in arrays)]
            for index, wanted in enumerate(self.model.inputs)
        }
        return None

    def run(self) -> Any:
        return self.request.infer(self.feeds, share_inputs=True, share_outputs=True)

    def outputs(self) -> list[np.ndarray]:
        found = self.run()
        return [np.array(found[output], np.float32) for output in self.model.outputs]

    def renew(self, which: str) -> float:
        """Compiled from another ONNX model. That another program must write it first is not counted."""
        return seconds(lambda: self.compiled(cache=False))


# ---------------------------------------------------------------------------------------------- ours


class Regraft(Engine):
    """Regraft from the exported program; it is run as an engine file, without PyTorch."""

    def file(self) -> Path:
        return self.job.artifact("regraft") / "0.rgf"

    def build(self) -> float:
        import torch

        import regraft

        program = torch.export.load(self.job.folder / "program.pt2")
        dtype = torch.bfloat16 if self.job.dtype == "bf16" else None
        start = time.perf_counter()
        module = regraft.compile(
            program, threads=self.job.threads, dtype=dtype, tune=self.job.tune, require_full_compilation=True
        )
        took = time.perf_counter() - start
        regraft.save(module, self.file().parent)
        if self.file().with_name("1.rgf").exists():
            raise RuntimeError(f"it became several engines:\n{module.report()}")
        return took

    def load(self) -> float | None:
        import regraft

        self.model = regraft.load(self.file(), threads=self.job.threads)
        self.inputs = list(self.job.arrays().values())
        return None

    def run(self) -> Any:
        return self.model.run(self.inputs)

    def outputs(self) -> list[np.ndarray]:
        # Copied: their memory is used again.
        return [np.array(np.from_dlpack(output), np.float32) for output in self.run()]

    def renew(self, which: str) -> float:
        file = self.job.folder / f"{which}.safetensors"
        return seconds(lambda: self.model.refit(file))


ENGINES: dict[str, type[Engine]] = {
    "regraft": Regraft,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "eager": Eager,
    "inductor": Inductor,
    "aoti": AotInductor,
}
