"""Whole models on a GPU against PyTorch there: compiled, run, refitted, compared with a new build.

    python3 scripts/gpu/models.py REGRAFT FOLDER [bert] [resnet]

Prints for each model the error against PyTorch in f32, PyTorch's own in f16, whether law 1 holds bit for bit,
and times.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def bert():
    import transformers

    config = transformers.BertConfig(vocab_size=8000, attn_implementation="sdpa")
    net = transformers.BertModel(config, add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = net

        def forward(self, ids):
            return self.bert(ids)[0]

    return Hidden().eval(), (torch.randint(0, 8000, (8, 128)),)


def resnet():
    import torchvision

    net = torchvision.models.resnet50().eval()
    return net, (torch.randn(8, 3, 224, 224),)


def change(net, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in net.state_dict().items():
            if p.is_floating_point() and "running_var" not in name and p.dim() > 1:
                p.add_(torch.randn_like(p) * 0.02 * p.std())


def regraft(binary, *args):
    start = time.perf_counter()
    done = subprocess.run([binary, *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"regraft {args}: {done.stderr[-2000:]}{done.stdout[-500:]}")
    return json.loads(done.stdout), time.perf_counter() - start


def error(got, want):
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def check(binary, folder, name, make):
    torch.manual_seed(0)
    net, inputs = make()

    def reference():
        floats = [x.float() if x.is_floating_point() else x for x in inputs]
        return net.float()(*floats).detach().double().numpy()

    half = [x.half() if x.is_floating_point() else x for x in inputs]
    for i, x in enumerate(half):
        np.save(folder / f"{name}_{i}.npy", x.numpy())
    given = [arg for i in range(len(half)) for arg in ("--input", folder / f"{name}_{i}.npy")]

    def run(engine):
        out = folder / "out"
        regraft(binary, "run", engine, *given, "--output-dir", out, "--device", "cuda")
        return np.load(out / "output_0.npy")

    def export(tag):
        net.half()
        path = folder / f"{name}_{tag}.pt2"
        torch.export.save(torch.export.export(net, tuple(half)), path)
        _, seconds = regraft(binary, "compile", path, "-o", folder / f"{name}_{tag}.rgf", "--device", "cuda")
        with torch.no_grad():
            own = net.cuda()(*[x.cuda() for x in half]).cpu().numpy()
        net.cpu()
        return folder / f"{name}_{tag}.rgf", own, seconds

    with torch.no_grad():
        net.half()
        engine, own, seconds = export("a")
        want = reference()
        got = run(engine)
        errors = f"error {error(got, want):.2e}, PyTorch's own {error(own, want):.2e}"
        print(f"{name}: compiled in {seconds:.1f} s; {errors}", flush=True)
        net.half()
        change(net, 1)
        state = {k: v.contiguous().clone() for k, v in net.state_dict().items()}
        save_file(state, folder / f"{name}_b.safetensors")
        _, seconds = regraft(
            binary,
            "refit",
            engine,
            "--weights",
            folder / f"{name}_b.safetensors",
            "-o",
            folder / f"{name}_r.rgf",
            "--device",
            "cuda",
        )
        refitted = run(folder / f"{name}_r.rgf")
        built, own, _ = export("b")
        same = np.array_equal(refitted.view(np.uint16), run(built).view(np.uint16))
        print(
            f"{name}: refit {seconds:.1f} s with its file; error {error(refitted, reference()):.2e}; "
            f"law 1 {'holds' if same else 'IS BROKEN'}",
            flush=True,
        )
    facts, _ = regraft(binary, "bench", engine, "--device", "cuda", "--runs", 60)
    print(f"{name}: bench {json.dumps(facts)[:900]}", flush=True)
    net.half().cuda()
    net = net.to(memory_format=torch.channels_last) if name == "resnet" else net
    args = [x.cuda() for x in half]
    with torch.no_grad():
        for _ in range(5):
            net(*args)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(30):
            net(*args)
        torch.cuda.synchronize()
    print(
        f"{name}: PyTorch eager without a graph {(time.perf_counter() - start) / 30 * 1e3:.3f} ms", flush=True
    )


MODELS = {"bert": bert, "resnet": resnet}

if __name__ == "__main__":
    binary, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or MODELS:
        check(binary, folder, name, MODELS[name])
