"""Weights from a trainer on one GPU to an engine on another, next to a broadcast of as many bytes.

    python3 scripts/gpu/sync.py        # with the package regraft on PYTHONPATH, on a machine with two GPUs

The trainer is on the first GPU, the engine in a process of its own on the second; a decoder of half a billion
parameters in bf16 changes in every float. A version is timed from ``send`` until the engine serves it. The
broadcast is NCCL's, of one tensor with all bytes, until both GPUs are done. Both take turns, in an order that
changes; the figures are medians in milliseconds.
"""

import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from refits import states

import models
import regraft
from regraft.sync.group import GroupReceiver, GroupSender

ROUNDS = 30
WARM_UP = 5


class Decoder(models.Llama):
    """The prompt of a model of Llama's shape, a gigabyte in bf16."""

    LAYERS = 6

    def __init__(self):
        super().__init__()
        for i in range(self.LAYERS):
            for what in "kv":
                delattr(self, f"{what}{i}")

    def forward(self, tokens):
        x = self.embed(tokens)
        rows, length = tokens.shape
        position = torch.arange(length, device=x.device)
        for layer in self.layers:
            h = layer["norm"](x)
            q, k, v = (
                layer[name](h).view(rows, length, count, -1).transpose(1, 2)
                for name, count in (("q", self.HEADS), ("k", self.GROUPS), ("v", self.GROUPS))
            )
            attended = torch.nn.functional.scaled_dot_product_attention(
                self.rotate(q, position), self.rotate(k, position), v, is_causal=True, enable_gqa=True
            )
            x = x + layer["o"](attended.transpose(1, 2).reshape(rows, length, -1))
            h = layer["norm2"](x)
            x = x + layer["down"](torch.nn.functional.silu(layer["gate"](h)) * layer["up"](h))
        return self.head(self.norm(x))


def decoder(device):
    """The same weights in both processes."""
    torch.manual_seed(0)
    return Decoder().eval().bfloat16().to(device)


def turns():
    """What is done, one after the other."""
    for turn in range(WARM_UP + ROUNDS):
        both = ("version", "broadcast") if turn % 2 == 0 else ("broadcast", "version")
        yield from ((turn, what) for what in both)


def timed(work):
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def train(address, device):
    given = states(decoder(device))
    amount = sum(value.nbytes for value in given[0].values())
    flat = torch.empty(amount, dtype=torch.uint8, device=device)
    times = {"version": [], "broadcast": []}

    def broadcast():
        dist.broadcast(flat, 0)
        torch.cuda.synchronize()

    dist.init_process_group("nccl", init_method=address, rank=0, world_size=2)
    with GroupSender(dist.group.WORLD, device=device) as sender:
        print(f"{len(given[0])} tensors, {amount / 1e6:.0f} MB, by {sender.transport}", flush=True)
        for turn, what in turns():
            torch.cuda.synchronize()
            if what == "version":
                took = timed(lambda turn=turn: sender.send(given[turn % 2], tag=str(turn % 2)))
            else:
                took = timed(broadcast)
            times[what].append(took)
        ours, theirs = (times[what][WARM_UP:] for what in ("version", "broadcast"))
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(
            f"from send to serving {statistics.median(ours):.2f} ms (best {min(ours):.2f}), broadcast of as "
            f"many bytes {statistics.median(theirs):.2f} ms (best {min(theirs):.2f}), ratio {ratio:.2f}; "
            f"first version {times['version'][0]:.0f} ms",
            flush=True,
        )
    dist.destroy_process_group()


def serve(address, device):
    net = decoder(device)
    tokens = torch.randint(0, Decoder.VOCABULARY, (1, 64), device=device)
    with torch.no_grad():
        compiled = regraft.compile(net, (tokens,))
        amount = sum(value.nbytes for value in net.state_dict().values())
        flat = torch.empty(amount, dtype=torch.uint8, device=device)
        dist.init_process_group("nccl", init_method=address, rank=1, world_size=2)
        reports, refits = [], []
        with GroupReceiver(dist.group.WORLD, device=device) as receiver:
            for _, what in turns():
                if what == "broadcast":
                    dist.broadcast(flat, 0)
                    torch.cuda.synchronize()
                    continue
                applied = receiver.refit(compiled, timeout=60)
                reports.append(applied.report)
                refits.append(applied.seconds * 1e3)
        dist.destroy_process_group()
        inside = {
            phase: statistics.median(report.phases[phase] for report in reports[WARM_UP:])
            for phase in reports[0].phases
        }
        text = ", ".join(f"{phase} {ms:.2f}" for phase, ms in inside.items())
        print(f"of which the refit {statistics.median(refits[WARM_UP:]):.2f} ms: {text}", flush=True)
        print(f"{len(reports[-1].applied)} sources changed, {len(reports[-1].fetched)} through the host")
        net.load_state_dict(states(net)[int(applied.tag)])
        is_same = torch.equal(compiled(tokens), regraft.compile(net, (tokens,))(tokens))
        print(f"law 1 {'holds' if is_same else 'IS BROKEN'}", flush=True)


def main():
    if len(sys.argv) > 1:
        device = torch.device("cuda:1")
        torch.cuda.set_device(device)
        serve(sys.argv[1], device)
        return
    print(f"{torch.cuda.get_device_name(0)} and {torch.cuda.get_device_name(1)}", flush=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with subprocess.Popen([sys.executable, __file__, address]) as engine:
        try:
            torch.cuda.set_device(0)
            train(address, torch.device("cuda:0"))
            engine.wait(timeout=120)
        finally:
            engine.kill()
    raise SystemExit(engine.returncode)


if __name__ == "__main__":
    main()
