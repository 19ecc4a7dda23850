"""Latencies on a GPU next to PyTorch's best, from host memory to host memory, block by block in one run.

    python3 scripts/gpu/compare.py REGRAFT FOLDER [bert] [resnet] [vit] [unet] [llama]

`scripts/gpu/models.py` must have left its engines in FOLDER. Both sides take inputs from the host and bring
results back there, as the command does: PyTorch copies into the inputs of a CUDA graph of the module (eager,
and compiled by inductor), replays it, and copies the result out. Prints medians of each round and their
ratios.
"""

import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models import MODELS, dtype_of

ROUNDS = 2
RUNS = 200


def ours(binary, engine):
    command = [binary, "bench", engine, "--device", "cuda", "--runs", str(RUNS), "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return facts["latency_ms"]["median"], facts.get("refit")


def refit_text(refit):
    if not refit:
        return "none"
    ms, copy = refit["ms"]["median"], refit["copy_ms"]["median"]
    phases = refit["best_phases_ms"]
    return f"{refit['bytes'] / 1e6:.0f} MB in {ms:.2f} ms, copy on the device {copy:.2f} ms, {phases}"


class Graphed:
    """A module in a CUDA graph, with inputs and results on the host."""

    def __init__(self, net, inputs):
        self.inputs = [x.cuda() for x in inputs]
        stream = torch.cuda.Stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(5):
                net(*self.inputs)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.result = net(*self.inputs)

    def device_ms(self):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(RUNS):
            begin.record()
            self.graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)

    def host_ms(self, inputs):
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            for to, x in zip(self.inputs, inputs, strict=True):
                to.copy_(x)
            self.graph.replay()
            self.result.cpu()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)


def compare(binary, folder, name):
    torch.manual_seed(0)
    net, inputs = MODELS[name]()
    dtype = dtype_of(name)
    half = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    net = net.to(dtype).cuda()
    if name == "resnet":
        net = net.to(memory_format=torch.channels_last)
        half = [x.to(memory_format=torch.channels_last) for x in half]
    sides = {"eager": Graphed(net, half), "inductor": Graphed(torch.compile(copy.deepcopy(net)), half)}
    for round in range(ROUNDS):
        mine, refit = ours(binary, folder / f"{name}_a.rgf")
        theirs = {side: graphed.host_ms(half) for side, graphed in sides.items()}
        device = {side: graphed.device_ms() for side, graphed in sides.items()}
        best = min(theirs.values())
        print(
            f"{name} round {round}: ours {mine:.3f} ms; PyTorch in a graph, host to host: "
            + ", ".join(f"{side} {ms:.3f}" for side, ms in theirs.items())
            + "; on the device alone: "
            + ", ".join(f"{side} {ms:.3f}" for side, ms in device.items())
            + f"; best of theirs / ours {best / mine:.2f}; refit {refit_text(refit)}",
            flush=True,
        )


if __name__ == "__main__":
    binary, folder, *names = sys.argv[1:]
    print(torch.cuda.get_device_name(), torch.__version__, np.__version__)
    for name in names or MODELS:
        compare(binary, Path(folder), name)
