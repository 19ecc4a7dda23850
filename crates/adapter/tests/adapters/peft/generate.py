"""Writes the adapters of this folder with PEFT, and what it merges them to: run it with `peft`,
`transformers` and `safetensors` installed to rewrite them. Each folder is as `save_pretrained` wrote it, with
`merged.safetensors` beside."""

import json
import pathlib
import sys

import numpy
import torch
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from peft.tuners.boft import layer as boft
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


class Experts(nn.Module):
    """Parameters with an axis of experts."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 6, 4))
        self.down = nn.Parameter(torch.zeros(3, 4, 5))


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.conv_square = nn.Conv2d(4, 6, 3)
        self.router = nn.Linear(4, 3, bias=False)
        self.experts = Experts()

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
    "oft": OFTConfig(r=0, oft_block_size=2, target_modules=["wide", "point"], use_cayley_neumann=True),
    "oft_exact": OFTConfig(r=1, oft_block_size=0, target_modules=LINEAR, use_cayley_neumann=False),
    "oft_shared": OFTConfig(
        r=0,
        oft_block_size=2,
        target_modules=["wide"],
        use_cayley_neumann=False,
        block_share=True,
        coft=True,
        eps=0.3,
    ),
    "boft": BOFTConfig(boft_block_num=1, boft_block_size=0, target_modules=[*LINEAR, "point"]),
    "boft_blocks": BOFTConfig(boft_block_size=2, boft_block_num=0, target_modules=["wide", "conv_square"]),
    "boft_butterflies": BOFTConfig(
        boft_block_size=2, boft_block_num=0, boft_n_butterfly_factor=2, target_modules=["wide"]
    ),
    "experts": LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=[],
        rank_pattern={"experts.down": 3},
        target_parameters=["experts.up", "experts.down", "router.weight"],
    ),
}
# Cases for modules of their own, whose weights are in the folder of the case.
OWN = {"boft_blocks", "experts"}


def kron(a, b):
    """`torch.kron`, which refuses some products for their strides."""
    return torch.from_numpy(numpy.kron(a.detach().numpy(), b.detach().numpy()))


lokr.torch.kron = kron


class BlockDiagonal:
    """What PEFT's extension for GPUs computes, without which it makes no butterflies."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*factor.unbind()) for factor in blocks])


boft.get_fbd_cuda = lambda: True
boft.FastBlockDiag = BlockDiagonal


def merged(name, config):
    model = Mixture() if name in OWN else Net()
    fill(model, 0)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if name in OWN:
        (HERE / name).mkdir(exist_ok=True)
        save_file(base, HERE / name / "base.safetensors")
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(list(CASES).index(name) + 1)
    with torch.no_grad():
        for key, tensor in sorted(model.named_parameters()):
            if any(word in key for word in ("lora_", "hada_", "lokr_", "oft_")):
                tensor.copy_(values(tensor.shape, generator))
    model.save_pretrained(HERE / name)
    settings = json.loads((HERE / name / "adapter_config.json").read_text())
    settings["target_modules"].sort()
    (settings.get("target_parameters") or []).sort()
    (HERE / name / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (HERE / name / "README.md").unlink(missing_ok=True)
    after = model.double().merge_and_unload().state_dict()
    changed = {k: v.float().contiguous() for k, v in after.items() if not torch.equal(v, base[k].double())}
    save_file(changed, HERE / name / "merged.safetensors")
    print(name, len(changed))


if __name__ == "__main__":
    net = Net()
    fill(net, 0)
    save_file(net.state_dict(), HERE / "base.safetensors")
    for case in CASES.items():
        if case[0] in (sys.argv[1:] or CASES):
            merged(*case)
