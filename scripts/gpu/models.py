"""Whole models on a GPU against PyTorch there: compiled, run, refitted, compared with a new build.

    python3 scripts/gpu/models.py REGRAFT FOLDER [bert] [resnet] [vit] [unet] [llama]

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


def vit():
    import torchvision

    net = torchvision.models.vit_l_16().eval()
    # It begins with zeros, which would hide every error.
    torch.nn.init.normal_(net.heads.head.weight, std=0.02)
    return net, (torch.randn(8, 3, 224, 224),)


def unet():
    """Stable Diffusion 1.5's UNet: 860 million parameters."""
    import diffusers

    crossing = ("CrossAttnDownBlock2D",) * 3
    net = diffusers.UNet2DConditionModel(
        sample_size=64,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=(*crossing, "DownBlock2D"),
        up_block_types=("UpBlock2D", *(name.replace("Down", "Up") for name in crossing)),
    )

    class Sample(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = net

        def forward(self, sample, step, context):
            return self.unet(sample, step, context, return_dict=False)[0]

    return Sample().eval(), (torch.randn(2, 4, 64, 64), torch.tensor(500), torch.randn(2, 77, 768))


class Llama(torch.nn.Module):
    """A decoding step of a model of the shape of Llama 3.2 1B, with its cache as buffers."""

    LAYERS, HIDDEN, HEADS, GROUPS, INNER, VOCABULARY, LENGTH = 16, 2048, 32, 8, 8192, 32000, 512

    def __init__(self):
        super().__init__()
        head = self.HIDDEN // self.HEADS
        shared = head * self.GROUPS

        def linear(inputs, outputs):
            return torch.nn.Linear(inputs, outputs, bias=False)

        def layer():
            return torch.nn.ModuleDict(
                {
                    "q": linear(self.HIDDEN, self.HIDDEN),
                    "k": linear(self.HIDDEN, shared),
                    "v": linear(self.HIDDEN, shared),
                    "o": linear(self.HIDDEN, self.HIDDEN),
                    "gate": linear(self.HIDDEN, self.INNER),
                    "up": linear(self.HIDDEN, self.INNER),
                    "down": linear(self.INNER, self.HIDDEN),
                    "norm": torch.nn.RMSNorm(self.HIDDEN, eps=1e-5),
                    "norm2": torch.nn.RMSNorm(self.HIDDEN, eps=1e-5),
                }
            )

        self.embed = torch.nn.Embedding(self.VOCABULARY, self.HIDDEN)
        self.layers = torch.nn.ModuleList(layer() for _ in range(self.LAYERS))
        self.norm = torch.nn.RMSNorm(self.HIDDEN, eps=1e-5)
        self.head = linear(self.HIDDEN, self.VOCABULARY)
        for i in range(self.LAYERS):
            for what in "kv":
                self.register_buffer(f"{what}{i}", torch.zeros(1, self.GROUPS, self.LENGTH, head))
        rates = 1.0 / 500000 ** (torch.arange(0, head, 2) / head)
        angles = torch.arange(self.LENGTH)[:, None] * rates
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotate(self, x, position):
        a, b = x.chunk(2, -1)
        return x * self.cos[position] + torch.cat([-b, a], -1) * self.sin[position]

    def forward(self, token, position):
        x = self.embed(token)
        mask = torch.arange(self.LENGTH, device=x.device)[None, None, None] <= position
        for i, layer in enumerate(self.layers):
            h = layer["norm"](x)
            q, k, v = (
                layer[name](h).view(1, 1, count, -1).transpose(1, 2)
                for name, count in (("q", self.HEADS), ("k", self.GROUPS), ("v", self.GROUPS))
            )
            keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")
            keys.index_copy_(2, position, self.rotate(k, position))
            values.index_copy_(2, position, v)
            attended = torch.nn.functional.scaled_dot_product_attention(
                self.rotate(q, position), keys, values, attn_mask=mask, enable_gqa=True
            )
            x = x + layer["o"](attended.transpose(1, 2).reshape(1, 1, -1))
            h = layer["norm2"](x)
            x = x + layer["down"](torch.nn.functional.silu(layer["gate"](h)) * layer["up"](h))
        return self.head(self.norm(x)).float()


def llama():
    return Llama().eval(), (torch.tensor([[7]]), torch.tensor([300]))


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
    dtype = dtype_of(name)

    def reference():
        floats = [x.float() if x.is_floating_point() else x for x in inputs]
        return net.float()(*floats).detach().double().numpy()

    half = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    for i, x in enumerate(half):
        np.save(folder / f"{name}_{i}.npy", x.numpy())
    given = [arg for i in range(len(half)) for arg in ("--input", folder / f"{name}_{i}.npy")]

    def run(engine):
        out = folder / "out"
        regraft(binary, "run", engine, *given, "--output-dir", out, "--device", "cuda")
        return np.load(out / "output_0.npy")

    def export(tag):
        net.to(dtype)
        path = folder / f"{name}_{tag}.pt2"
        torch.export.save(torch.export.export(net, tuple(half)), path)
        _, seconds = regraft(binary, "compile", path, "-o", folder / f"{name}_{tag}.rgf", "--device", "cuda")
        with torch.no_grad():
            own = net.cuda()(*[x.cuda() for x in half]).cpu().numpy()
        net.cpu()
        return folder / f"{name}_{tag}.rgf", own, seconds

    with torch.no_grad():
        net.to(dtype)
        engine, own, seconds = export("a")
        want = reference()
        got = run(engine)
        errors = f"error {error(got, want):.2e}, PyTorch's own {error(own, want):.2e}"
        print(f"{name}: compiled in {seconds:.1f} s; {errors}", flush=True)
        net.to(dtype)
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
    net.to(dtype).cuda()
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


MODELS = {"bert": bert, "resnet": resnet, "vit": vit, "unet": unet, "llama": llama}


def dtype_of(name):
    return torch.bfloat16 if name == "llama" else torch.float16


def on_gpu(name):
    """A model with the same weights each time, and its inputs, in its dtype on the device."""
    torch.manual_seed(0)
    net, inputs = MODELS[name]()
    dtype = dtype_of(name)
    inputs = tuple(x.to(dtype).cuda() if x.is_floating_point() else x.cuda() for x in inputs)
    return net.to(dtype).cuda(), inputs


if __name__ == "__main__":
    binary, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or MODELS:
        check(binary, folder, name, MODELS[name])
