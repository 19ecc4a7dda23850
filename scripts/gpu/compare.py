"""Latencies on a GPU next to PyTorch's best, from tensors of the device to tensors there, in one run.

    python3 scripts/gpu/compare.py [bert] [resnet] [vit] [unet] [llama]

With the package regraft on PYTHONPATH. PyTorch runs in a CUDA graph, eager and compiled by inductor; ours is
called as a module. The sides take turns in blocks of runs. Prints the median of the blocks of each side, in
milliseconds of a run, the error of ours against eager PyTorch, and how often PyTorch's better side takes our
time.
"""

import copy
import statistics
import sys
import time

import torch

import models
import regraft

BLOCKS = 7
RUNS = 60


def graphed(net, inputs):
    """A replay of a module in a CUDA graph, and its result."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            net(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = net(*inputs)
    return graph.replay, result


def block(run):
    """Milliseconds of a run, of many one after the other."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(RUNS):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / RUNS


def compare(name):
    net, inputs = models.on_gpu(name)
    start = time.perf_counter()
    compiled = regraft.compile(net, inputs)
    seconds = time.perf_counter() - start
    if name == "resnet":
        net = net.to(memory_format=torch.channels_last)
    eager, wanted = graphed(net, inputs)
    inductor, _ = graphed(torch.compile(copy.deepcopy(net)), inputs)
    sides = {"ours": lambda: compiled(*inputs), "eager": eager, "inductor": inductor}
    for run in sides.values():
        block(run)
    times = {side: [] for side in sides}
    for _ in range(BLOCKS):
        for side, run in sides.items():
            times[side].append(block(run))
    took = {side: statistics.median(all_of_it) for side, all_of_it in times.items()}
    eager()
    found, wanted = compiled(*inputs).float(), wanted.float()
    error = float((found - wanted).norm() / wanted.norm())
    best = min(took["eager"], took["inductor"])
    print(
        f"{name}: "
        + ", ".join(f"{side} {ms:.3f} ms" for side, ms in took.items())
        + f"; best of theirs / ours {best / took['ours']:.3f}; differs from eager by {error:.1e}; "
        f"exported and compiled in {seconds:.1f} s",
        flush=True,
    )
    return best / took["ours"]


def main():
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    with torch.no_grad():
        ratios = [compare(name) for name in sys.argv[1:] or models.MODELS]
    print(f"geometric mean {statistics.geometric_mean(ratios):.3f}, least {min(ratios):.3f}")


if __name__ == "__main__":
    main()
