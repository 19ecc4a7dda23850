"""Writes the adapters of this folder with LyCORIS, and what it merges them to: run it with `lycoris-lora`
(4.1.3) and `safetensors` installed to rewrite them. Each folder has the network's state dict, and beside it
`merged.safetensors` and, for some, `half.safetensors`: what the tool makes of it scaled by 0.5."""

import pathlib

import torch
from lycoris import create_lycoris
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent


class Net(nn.Module):
    """A module of each kind."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.square = nn.Linear(8, 8)
        self.conv = nn.Conv2d(4, 6, 3)
        self.point = nn.Conv2d(4, 6, 1)
        self.line = nn.Conv1d(4, 6, 3)
        self.norm = nn.LayerNorm(6)


def values(shape, generator):
    """Small numbers that f32 holds."""
    return torch.randn(shape, generator=generator, dtype=torch.float32) * 0.5


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.copy_(values(tensor.shape, generator))


LORA = {"linear_dim": 2, "linear_alpha": 3}
ALL = ["wide", "square", "conv", "point", "line"]
LINEAR = ["wide", "square"]

# What is trained, and the options.
CASES = {
    "locon": (ALL, {"algo": "locon", **LORA}),
    "locon_tucker": (ALL, {"algo": "locon", "use_tucker": True, **LORA}),
    "locon_root": (ALL, {"algo": "locon", "rs_lora": True, **LORA}),
    "dora_outputs": (ALL, {"algo": "locon", "dora_wd": True, "wd_on_output": True, **LORA}),
    "dora_inputs": (ALL, {"algo": "locon", "dora_wd": True, "wd_on_output": False, **LORA}),
    "loha": (ALL, {"algo": "loha", **LORA}),
    "loha_tucker": (ALL, {"algo": "loha", "use_tucker": True, **LORA}),
    "loha_dora_inputs": (ALL, {"algo": "loha", "dora_wd": True, "wd_on_output": False, **LORA}),
    "lokr": (ALL, {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3}),
    "lokr_tucker": (ALL, {"algo": "lokr", "use_tucker": True, "linear_dim": 1, "linear_alpha": 3}),
    "lokr_both": (ALL, {"algo": "lokr", "decompose_both": True, "linear_dim": 1, "linear_alpha": 3}),
    "lokr_whole": (ALL, {"algo": "lokr", "full_matrix": True, "linear_dim": 9, "linear_alpha": 3}),
    "full": (ALL, {"algo": "full"}),
    "norms": ([*LINEAR, "norm"], {"algo": "locon", "train_norm": True, **LORA}),
    "ia3_outputs": (ALL, {"algo": "ia3"}),
    "ia3_inputs": (ALL, {"algo": "ia3", "train_on_input": True}),
    "oft": (ALL, {"algo": "diag-oft", "linear_dim": 2}),
    "oft_limited": (ALL, {"algo": "diag-oft", "linear_dim": 4, "constraint": 0.1, "rescaled": True}),
    "boft": (["square"], {"algo": "boft", "linear_dim": 2}),
    "boft_limited": (["square"], {"algo": "boft", "linear_dim": 4, "constraint": 0.05, "rescaled": True}),
}
# Of other kinds the tools differ in what half an adapter is.
HALVED = ["locon", "loha", "lokr", "ia3_outputs", "oft", "boft"]


def changed(model, base):
    return {k: v.contiguous() for k, v in model.state_dict().items() if not torch.equal(v, base[k])}


def merge(network, by):
    """What the network computes with. `merge_to` of LoHa and LoKr applies alpha / rank twice (4.1.3), and
    `forward`, which trains and serves them, once."""
    for module in network.loras:
        if module.name not in ("loha", "lokr", "kron"):
            module.merge_to(by)
            continue
        weight = module.org_module[0].weight
        diff = module.get_weight(module.shape) * module.scalar
        new = module.apply_weight_decompose(weight + diff, by) if module.wd else weight + diff * by
        weight.data.copy_(new.detach())


def merged(number, name, names, options):
    model = Net()
    fill(model, 0)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    options = {"preset": str(HERE / "preset.toml"), **options}
    (HERE / "preset.toml").write_text(f"enable_conv = true\ntarget_module = []\ntarget_name = {names}\n")
    network = create_lycoris(model, 1.0, **options)
    (HERE / "preset.toml").unlink()
    # Its modules are the network's from here on.
    network.apply_to()
    network.restore()
    generator = torch.Generator().manual_seed(number + 1)
    with torch.no_grad():
        for key, tensor in sorted(network.named_parameters()):
            if "dora_scale" in key or "rescale" in key:
                tensor.mul_(1 + values(tensor.shape, generator).abs())
            else:
                tensor.copy_(values(tensor.shape, generator))
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    state = {key: tensor.detach().clone().contiguous() for key, tensor in network.state_dict().items()}
    save_file(state, folder / "lycoris.safetensors")
    merge(network, 1.0)
    save_file(changed(model, base), folder / "merged.safetensors")
    if name in HALVED:
        fill(model, 0)
        merge(network, 0.5)
        save_file(changed(model, base), folder / "half.safetensors")
    print(name, sorted(state))


if __name__ == "__main__":
    net = Net()
    fill(net, 0)
    save_file(net.state_dict(), HERE / "base.safetensors")
    for number, (name, (names, options)) in enumerate(CASES.items()):
        merged(number, name, names, options)
