"""Refits on a GPU next to copies of the same bytes: from page-locked memory, from the device, and LoRAs.

    python3 scripts/gpu/refits.py [bert] [unet]       # with the package regraft and diffusers on PYTHONPATH

Each refit changes every float of an f16 model, and is followed by a copy of the same tensors; the figures
are medians in milliseconds. Below them is where the time goes: outside of the engine (tensors are taken, the
report is made), in the phases, and on the device, which is a part of ``stage`` and ``compare``. A LoRA is of
rank 16 and on all attention projections; PyTorch's merge of it is a product and a sum for each of them in a
CUDA graph, in one direction. Latencies are of single runs that are waited for, without and with a swap of
LoRAs every 100 ms in another thread.
"""

import itertools
import statistics
import sys
import threading
import time

import kernels
import torch

import models
import regraft

ROUNDS = 12
WARM_UP = 3
RANK = 16
PROJECTIONS = ("query", "key", "value", "attention.output.dense", "to_q", "to_k", "to_v", "to_out.0")


def timed(work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def by_turns(ours, theirs):
    """Medians of both, which take turns; what is given is called with the number of the round."""
    times = ([], [])
    for turn in range(WARM_UP + ROUNDS):
        for side, work in zip(times, (ours, theirs), strict=True):
            side.append(timed(lambda work=work, turn=turn: work(turn)))
    return [statistics.median(side[WARM_UP:]) for side in times]


def line(name, what, ours, theirs, of):
    print(f"{name}: {what} {ours:.2f} ms, {of} {theirs:.2f} ms, ratio {ours / theirs:.2f}", flush=True)


def where(name, refit):
    """Where the time of refits goes; ``refit`` is given the number of the round."""
    turns, whole, phases = itertools.count(), [], []
    for _ in range(WARM_UP + ROUNDS):
        start = time.perf_counter()
        report = refit(next(turns))
        whole.append((time.perf_counter() - start) * 1e3)
        phases.append(report.phases)
    rest = [time - sum(each.values()) for time, each in zip(whole, phases, strict=True)]
    inside = {phase: statistics.median(each[phase] for each in phases[WARM_UP:]) for phase in phases[0]}
    text = ", ".join(f"{phase} {ms:.2f}" for phase, ms in inside.items())
    print(f"{name}: outside of the engine {statistics.median(rest[WARM_UP:]):.2f} ms, {text}", flush=True)
    kernels.show(name, "on the device", kernels.kernels(lambda: refit(next(turns))))


def states(net):
    """Two state dicts of a network on the device, which differ in every float."""
    first = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return [
        first,
        {name: value * 0.99 if value.is_floating_point() else value for name, value in first.items()},
    ]


def full_refits(name, compiled, given):
    room = [torch.empty_like(value) for value in given[0].values()]
    amount = sum(value.nbytes for value in room) / 1e6

    def refit(of):
        return lambda turn: compiled.refit(of[turn % 2])

    def copied(turn):
        torch._foreach_copy_(room, list(given[turn % 2].values()))

    times = by_turns(refit(given), copied)
    line(name, f"{amount:.0f} MB of tensors of the device", *times, "their copy")
    where(name, refit(given))
    pinned = [{key: value.cpu().pin_memory() for key, value in state.items()} for state in given]

    def uploaded(turn):
        for to, value in zip(room, pinned[turn % 2].values(), strict=True):
            to.copy_(value, non_blocking=True)

    times = by_turns(refit(pinned), uploaded)
    line(name, f"{amount:.0f} MB of page-locked memory", *times, "their upload")
    where(name, refit(pinned))
    flat = torch.empty(int(amount * 1e6), dtype=torch.uint8).pin_memory()
    there = torch.empty_like(flat, device="cuda")
    upload = statistics.median(timed(lambda: there.copy_(flat, non_blocking=True)) for _ in range(ROUNDS))
    print(f"{name}: one upload of as many bytes {upload:.2f} ms", flush=True)


def lora(weights, seed):
    torch.manual_seed(seed)
    factors = {}
    for key, weight in weights.items():
        module = f"base_model.model.{key.removesuffix('.weight')}"
        rows, columns = weight.shape
        factors[f"{module}.lora_A.weight"] = torch.randn(RANK, columns, dtype=torch.float16) * 0.01
        factors[f"{module}.lora_B.weight"] = torch.randn(rows, RANK, dtype=torch.float16) * 0.01
    return factors


def merges(weights, factors):
    """PyTorch's merge of a LoRA under a graph."""
    room = [value.clone() for value in weights.values()]
    values = iter(factors.values())
    pairs = [(down.cuda(), up.cuda()) for down, up in zip(values, values, strict=True)]

    def merge():
        for to, weight, (down, up) in zip(room, weights.values(), pairs, strict=True):
            torch.addmm(weight, up, down, out=to)

    merge()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        merge()
    return graph


def latencies(run, seconds=4.0):
    """Half of the runs take at most the first, 99 % at most the second."""
    times, start = [], time.perf_counter()
    while start + seconds > (begin := time.perf_counter()):
        run()
        # Not the whole device, which may not be waited for while another thread records.
        torch.cuda.current_stream().synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return [statistics.quantiles(times, n=100)[percent - 1] for percent in (50, 99)]


def under_swaps(name, run, swap):
    """Latencies next to swaps."""
    quiet, is_over = latencies(run), threading.Event()

    def swapping():
        turn = 0
        while not is_over.wait(0.1):
            swap(turn)
            turn += 1

    thread = threading.Thread(target=swapping)
    thread.start()
    loaded = latencies(run)
    is_over.set()
    thread.join()
    print(
        f"{name}: runs take {quiet[0]:.2f} ms, 99 % at most {quiet[1]:.2f}; next to swaps {loaded[0]:.2f} "
        f"and {loaded[1]:.2f}, ratio {loaded[1] / quiet[1]:.2f}",
        flush=True,
    )


def swaps(name, compiled, state, run):
    attention = {
        key: value
        for key, value in state.items()
        if value.dim() == 2 and key.removesuffix(".weight").endswith(PROJECTIONS)
    }
    both = [lora(attention, seed) for seed in (1, 2)]
    graph = merges(attention, both[0])
    for place in ("host", "device"):
        given = [
            {key: value.cuda() if place == "device" else value for key, value in one.items()} for one in both
        ]
        adapters = [compiled.adapter(f"{place}{i}", one, alpha=RANK) for i, one in enumerate(given)]

        def swap(turn, adapters=adapters):
            return compiled.refit(adapters=[(adapters[turn % 2], 1.0)])

        times = by_turns(swap, lambda turn: graph.replay())
        line(name, f"LoRA on {len(attention)} layers, factors on the {place},", *times, "PyTorch's merge")
    where(name, swap)
    under_swaps(name, run, swap)
    compiled.refit(adapters=[])


def main():
    print(torch.cuda.get_device_name(), flush=True)
    for name in sys.argv[1:] or ("bert", "unet"):
        net, inputs = models.on_gpu(name)
        start = time.perf_counter()
        with torch.no_grad():
            compiled = regraft.compile(net, inputs)
            before = compiled(*inputs)
            print(f"{name}: exported and compiled in {time.perf_counter() - start:.1f} s", flush=True)
            given = states(net)
            full_refits(name, compiled, given)
            compiled.refit(given[0])
            swaps(name, compiled, given[0], lambda compiled=compiled, inputs=inputs: compiled(*inputs))
            after = compiled(*inputs)
        print(f"{name}: the first bits are back: {torch.equal(before, after)}", flush=True)


if __name__ == "__main__":
    main()
