"""Writes the adapters of this folder with PEFT, and what it merges them to: run it with `peft`,
`transformers` and `safetensors` at hand to renew them. Each folder is one that `save_pretrained` wrote, with
`merged.safetensors` beside."""

import json
import pathlib

import numpy
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.lokr import layer as lokr
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

HERE = pathlib.Path(__file__).parent


class Net(nn.Module):
    """A module of each kind; `Conv1D` stores its weight as `[in, out]`."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.square = nn.Linear(5, 5)
        self.conv = nn.Conv2d(4, 6, (3, 2))
        self.point = nn.Conv2d(4, 6, 1)
        self.line = nn.Conv1d(4, 6, 3)
        self.volume = nn.Conv3d(2, 3, 2)
        self.emb = nn.Embedding(7, 4)
        self.gpt = Conv1D(6, 4)
        self.gpt_square = Conv1D(5, 5)

    def forward(self, x):
        return x


def values(shape, generator):
    """Small numbers that f32 holds."""
    return torch.randn(shape, generator=generator, dtype=torch.float32) * 0.5


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.copy_(values(tensor.shape, generator))


LINEAR = ["wide", "square"]
CONVS = ["conv", "point", "line"]
GPT = ["gpt", "gpt_square"]

CASES = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=[*LINEAR, *CONVS, "volume", "emb"]),
    "lora_patterns": LoraConfig(
        r=2,
        lora_alpha=3,
        use_rslora=True,
        rank_pattern={"wide": 4, "^conv": 1},
        alpha_pattern={"square": 7, "conv$": 5},
        target_modules=[*LINEAR, "conv", "emb"],
    ),
    "lora_bias": LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=[*LINEAR, "conv"]),
    "lora_transposed": LoraConfig(r=2, lora_alpha=3, fan_in_fan_out=True, target_modules=GPT),
    "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=[*LINEAR, *CONVS, "volume"]),
    "dora_embedding": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["emb"]),
    "dora_transposed": LoraConfig(r=2, lora_alpha=3, use_dora=True, fan_in_fan_out=True, target_modules=GPT),
    "loha": LoHaConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONVS]),
    "loha_effective": LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=CONVS),
    "lokr": LoKrConfig(r=1, alpha=3, target_modules=[*LINEAR, *CONVS]),
    "lokr_effective": LoKrConfig(
        r=1, alpha=3, use_effective_conv2d=True, decompose_both=True, target_modules=[*LINEAR, *CONVS]
    ),
    # Without `line`: PEFT pads the factors of a Conv1d on the wrong side.
    "lokr_whole": LoKrConfig(
        r=8, alpha=3, rank_pattern={"wide": 6}, target_modules=[*LINEAR, "conv", "point"]
    ),
}


def kron(a, b):
    """`torch.kron`, which refuses some products for their strides."""
    return torch.from_numpy(numpy.kron(a.detach().numpy(), b.detach().numpy()))


lokr.torch.kron = kron


def merged(name, config):
    model = Net()
    fill(model, 0)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(list(CASES).index(name) + 1)
    with torch.no_grad():
        for key, tensor in sorted(model.named_parameters()):
            if any(word in key for word in ("lora_", "hada_", "lokr_")):
                tensor.copy_(values(tensor.shape, generator))
    model.save_pretrained(HERE / name)
    settings = json.loads((HERE / name / "adapter_config.json").read_text())
    settings["target_modules"].sort()
    (HERE / name / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (HERE / name / "README.md").unlink(missing_ok=True)
    before = {key: tensor.clone() for key, tensor in base.items()}
    after = model.double().merge_and_unload().state_dict()
    changed = {k: v.float().contiguous() for k, v in after.items() if not torch.equal(v, before[k].double())}
    save_file(changed, HERE / name / "merged.safetensors")
    print(name, len(changed))


net = Net()
fill(net, 0)
base = net.state_dict()
save_file(base, HERE / "base.safetensors")
for case in CASES.items():
    merged(*case)
