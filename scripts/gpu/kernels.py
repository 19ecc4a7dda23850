"""Where a run's time goes on a GPU, kernel by kernel, ours next to inductor's.

    python3 scripts/gpu/kernels.py [--ours] [bert] [resnet] [vit] [unet] [llama]

With the package regraft on PYTHONPATH. Prints for each side (with ``--ours`` for one) the time on the device,
and the kernels that take most of it: microseconds and launches in one run.
"""

import collections
import sys

import torch
from torch.profiler import ProfilerActivity, profile

import models
import regraft

RUNS = 10
LINES = 18


def kernels(work):
    """Microseconds and launches in one run, by the name of the kernel."""
    for _ in range(4):
        work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as measured:
        for _ in range(RUNS):
            work()
        torch.cuda.synchronize()
    found = collections.defaultdict(lambda: [0.0, 0])
    for event in measured.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name][0] += event.device_time / RUNS
            found[event.name][1] += 1 / RUNS
    return found


def show(name, side, found):
    total, launches = (sum(each) for each in zip(*found.values(), strict=True))
    print(f"{name}, {side}: {total:.0f} us in {launches:.0f} launches", flush=True)
    for kernel, (us, count) in sorted(found.items(), key=lambda one: -one[1][0])[:LINES]:
        print(f"  {us:9.1f} us {count:6.1f} x  {kernel[:110]}", flush=True)


def main():
    print(torch.cuda.get_device_name(), flush=True)
    names = [name for name in sys.argv[1:] if name != "--ours"]
    for name in names or models.MODELS:
        net, inputs = models.on_gpu(name)
        with torch.no_grad():
            compiled = regraft.compile(net, inputs)
            show(name, "ours", kernels(lambda compiled=compiled, inputs=inputs: compiled(*inputs)))
            if "--ours" in sys.argv:
                continue
            if name == "resnet":
                net = net.to(memory_format=torch.channels_last)
            theirs = torch.compile(net)
            show(name, "inductor", kernels(lambda theirs=theirs, inputs=inputs: theirs(*inputs)))


if __name__ == "__main__":
    main()
