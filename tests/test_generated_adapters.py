"""Adapters (A): random modules, kinds, ranks, scales, prefixes and ties, against PEFT's own answer.

Each case is a seed: a small module, an adapter that PEFT made (its factors are random) and saved, in PEFT's
files or in the naming of another tool with that tool's formula. What `regraft refit --adapter` makes of it
must compute what the module computes with the adapter in PEFT, not merged: an adapter is of a module, and not
of the tensor that its weight is tied to.

40 cases run by default; REGRAFT_GENERATED=300 (`make test-adapters`) runs all.
"""

from __future__ import annotations

import copy
import json
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from comparing import assert_close
from conftest import Cli, CommandFailed
from small import answers, arrays, compile_model

CASES = int(os.environ.get("REGRAFT_GENERATED", "40"))
ADAPTERS_OF_A_MODULE = 5
TRAINED = ("lora_", "hada_", "lokr_", "ia3_", "oft_")
TOKENS = (torch.tensor([[3, 0, 8, 7]]),)


class Body(nn.Module):
    """An embedding, some layers of one width, and a head, perhaps tied to the embedding."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        size, words = chance.choice([8, 12]), chance.choice([8, 9, 12])
        self.embed = nn.Embedding(words + 1, size)
        self.layers = nn.ModuleList(self._layer(chance, size) for _ in range(chance.randint(2, 4)))
        self.conv = (
            nn.Conv1d(size, size, chance.choice([1, 3]), padding="same") if chance.random() < 0.5 else None
        )
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, words + 1, bias=chance.random() < 0.3)
        if chance.random() < 0.5:
            self.head.weight = self.embed.weight

    @staticmethod
    def _layer(chance: random.Random, size: int) -> nn.Module:
        wide = chance.choice([size, 2 * size])
        of = (
            Conv1D
            if chance.random() < 0.5
            else (lambda out, into: nn.Linear(into, out, bias=chance.random() < 0.7))
        )
        return nn.ModuleDict({"up": of(wide, size), "down": of(size, wide)})

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        if self.conv is not None:
            x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x))


def modules_of(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@dataclass
class Case:
    """An adapter as its tool saved it, and the module with it."""

    model: PeftModel
    kind: str
    options: list[str] = field(default_factory=list)
    scale: float = 1.0


def random_config(chance: random.Random, base: nn.Module) -> tuple[str, PeftConfig]:
    linear = modules_of(base, nn.Linear, Conv1D)
    plain = modules_of(base, nn.Linear, nn.Conv1d)
    kind = chance.choice(
        ["lora", "lora", "lora", "lora", "dora", "loha", "lokr", "ia3", "adalora", "oft", "boft"]
    )
    rank, alpha = chance.randint(1, 6), chance.choice([1, 2, 5, 16, 32])

    def some(names: list[str]) -> list[str]:
        return chance.sample(names, chance.randint(1, len(names)))

    if kind == "loha":
        return kind, LoHaConfig(r=rank, alpha=alpha, target_modules=some(plain))
    if kind == "lokr":
        return kind, LoKrConfig(r=rank, alpha=alpha, target_modules=some(modules_of(base, nn.Linear)))
    if kind == "ia3":
        targets = some(linear)
        return kind, IA3Config(
            target_modules=targets, feedforward_modules=chance.sample(targets, len(targets) // 2)
        )
    if kind == "oft":
        settings = {name: chance.random() < 0.5 for name in ("use_cayley_neumann", "block_share", "coft")}
        size = chance.choice([2, 4])
        return kind, OFTConfig(
            r=0, oft_block_size=size, eps=0.2, target_modules=some(modules_of(base, nn.Linear)), **settings
        )
    if kind == "boft":
        size = chance.choice([2, 4])
        return kind, BOFTConfig(
            boft_block_size=size, boft_block_num=0, target_modules=some(modules_of(base, nn.Linear))
        )
    if kind == "adalora":
        targets = some(modules_of(base, nn.Linear))
        return kind, AdaLoraConfig(
            init_r=rank, target_r=rank, lora_alpha=alpha, target_modules=targets, total_step=10
        )
    targets = some(linear + (["embed"] if chance.random() < 0.5 else []) + modules_of(base, nn.Conv1d))
    more: dict[str, Any] = {}
    if kind == "dora":
        more["use_dora"] = True
    elif chance.random() < 0.3:
        more["use_rslora"] = True
    if chance.random() < 0.3:
        more["rank_pattern"] = {
            chance.choice([r"layers\.[01]\.up", "up", "^layers.0.down"]): chance.randint(1, 8)
        }
    if chance.random() < 0.3:
        more["alpha_pattern"] = {chance.choice([r"layers\.\d+\.(up|down)", "head"]): chance.choice([3, 7])}
    if chance.random() < 0.2:
        more["modules_to_save"] = ["norm"]
    if chance.random() < 0.2:
        more["bias"] = "all"
    return kind, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **more)


def trained(base: nn.Module, config: PeftConfig, seed: int) -> PeftModel:
    """A copy of the model whose adapter looks trained: no factor is zero."""
    model = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_magnitude_vector", "ia3_", "boft_s")):
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif any(part in name for part in TRAINED):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def save(cli: Cli, model: PeftModel) -> Path:
    folder = cli.path("adapter")
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def as_peft(cli: Cli, case: Case, chance: random.Random) -> Path:
    return save(cli, case.model)


def renamed(cli: Cli, case: Case, chance: random.Random) -> Path:
    """Under another name, its configuration beside it."""
    folder = save(cli, case.model)
    file = folder / "adapter_model.safetensors"
    return file.rename(folder / f"style.v{chance.randint(1, 9)}.safetensors")


def config_elsewhere(cli: Cli, case: Case, chance: random.Random) -> Path:
    """Alone, its configuration given by hand."""
    folder = save(cli, case.model)
    config = folder.parent / f"{folder.name}.json"
    (folder / "adapter_config.json").rename(config)
    case.options += ["--adapter-config", str(config)]
    return (folder / "adapter_model.safetensors").rename(folder / "style.safetensors")


def config_in_header(cli: Cli, case: Case, chance: random.Random) -> Path:
    folder = save(cli, case.model)
    tensors = load_file(folder / "adapter_model.safetensors")
    text = (folder / "adapter_config.json").read_text()
    path = cli.path("header", ".safetensors")
    save_file(tensors, path, {chance.choice(["adapter_config", "lora_adapter_metadata"]): text})
    return path


def wrapped(cli: Cli, case: Case, chance: random.Random) -> Path:
    """Saved while a part was compiled."""
    folder = save(cli, case.model)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    chosen = {key for key in tensors if chance.random() < 0.5}
    save_file(
        {
            key.replace("layers.", "layers._orig_mod.") if key in chosen else key: t
            for key, t in tensors.items()
        },
        file,
    )
    return folder


def as_kohya(cli: Cli, case: Case, chance: random.Random) -> Path:
    """kohya's networks/lora.py: `W + multiplier * alpha / dim * up @ down`, an alpha for each module."""
    tensors = {}
    for name, layer in case.model.base_model.model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or "default" not in getattr(layer, "lora_A", {}):
            continue
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight.detach().clone()
        tensors[f"{key}.lora_up.weight"] = layer.lora_B["default"].weight.detach().clone()
        tensors[f"{key}.alpha"] = torch.tensor(layer.scaling["default"] * layer.r["default"])
    path = cli.path("kohya", ".safetensors")
    save_file(tensors, path)
    return path


def as_diffusers(cli: Cli, case: Case, chance: random.Random) -> Path:
    """diffusers' save_lora_weights: the component in front, PEFT's configuration in the header."""
    folder = save(cli, case.model)
    tensors = load_file(folder / "adapter_model.safetensors")
    named = {
        f"transformer.{key.removeprefix('base_model.model.')}": tensor for key, tensor in tensors.items()
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
    metadata = {f"transformer.{name}": config[name] for name in fields}
    path = cli.path("diffusers", ".safetensors")
    save_file(named, path, {"lora_adapter_metadata": json.dumps(metadata)})
    return path


FILES: list[Callable[[Cli, Case, random.Random], Path]] = [
    as_peft,
    renamed,
    config_elsewhere,
    config_in_header,
    wrapped,
]
# Their files have no place for embeddings, whole tensors and magnitudes.
LORA_FILES = [as_kohya, as_diffusers]


def is_plain_lora(config: PeftConfig) -> bool:
    is_lora = type(config) is LoraConfig and not config.use_dora and not config.modules_to_save
    return is_lora and config.bias == "none" and "embed" not in config.target_modules


@pytest.mark.parametrize("number", range((CASES + ADAPTERS_OF_A_MODULE - 1) // ADAPTERS_OF_A_MODULE))
def test_a_1_generated_adapters_give_what_their_tools_give(cli: Cli, number: int) -> None:
    warnings.simplefilter("ignore")
    chance = random.Random(1000 + number)
    torch.manual_seed(number)
    base = Body(chance).eval()
    engine = compile_model(cli, base, TOKENS)
    wrong = []
    for seed in range(number * ADAPTERS_OF_A_MODULE, min(CASES, (number + 1) * ADAPTERS_OF_A_MODULE)):
        kind, config = random_config(chance, base)
        case = Case(trained(base, config, seed), kind)
        tool = chance.choice(FILES + (2 * LORA_FILES if is_plain_lora(config) else []))
        if kind == "lora" and chance.random() < 0.5:
            case.scale = chance.choice([0.25, 0.7, 2.0, -1.0])
            for module in case.model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.set_scale("default", case.scale)
        wanted = answers(case.model, TOKENS)
        for module in case.model.modules():
            if isinstance(module, BaseTunerLayer) and kind == "lora":
                module.set_scale("default", 1.0)
        what = f"seed {seed}: {kind} as {tool.__name__}, scale {case.scale}, {config.target_modules}"
        try:
            path, adapted = tool(cli, case, chance), cli.path("adapted", ".rgf")
            cli.call("refit", engine, "--adapter", f"{path}:{case.scale}", *case.options, "-o", adapted)
            assert_close(cli.run(adapted, arrays(TOKENS)), wanted)
        except (AssertionError, CommandFailed) as error:
            wrong.append(f"{what}\n{error}")
    assert not wrong, "\n\n".join(wrong)
