"""Adapters of small networks as their tools make and save them, and what `regraft refit` makes of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regraft
from conftest import Cli, CommandFailed
from models import randomize_
from small import Inputs

ADAPTER_PARTS = ("lora_", "hada_", "lokr_")


def refit(
    cli: Cli, engine: Path, *adapters: str | Path, weights: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Gives the engine with the adapters merged in, and the report."""
    refitted, report = cli.path("adapted", ".rgf"), cli.path("report", ".json")
    given = [word for adapter in adapters for word in ("--adapter", str(adapter))]
    given += ["--weights", str(weights)] if weights else []
    cli.call("refit", engine, *given, "-o", refitted, "--report", report)
    return refitted, json.loads(report.read_text())


def assert_same_engine(cli: Cli, one: Path, other: Path) -> None:
    """Bit for bit, but for what the adapters that are part of it were called."""
    assert json.loads(cli.call("diff", one, other, "--json"))["same"]


def assert_refused(cli: Cli, engine: Path, adapter: str | Path, match: str) -> None:
    """With exit status 1, and nothing is written."""
    output = cli.path("refused", ".rgf")
    with pytest.raises(CommandFailed, match=f"exit status 1\n(.|\n)*{match}"):
        cli.call("refit", engine, "--adapter", adapter, "-o", output)
    assert not output.exists()


def adapted(base: nn.Module, config: PeftConfig, seed: int = 5) -> PeftModel:
    """A copy of the model with an adapter that looks trained: no factor is zero."""
    model = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif any(part in name for part in ADAPTER_PARTS):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def merged(model: PeftModel, scale: float = 1.0) -> nn.Module:
    """The plain model that PyTorch makes of it, the adapter scaled."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_scale("default", scale)  # scale_layer leaves embeddings as they are
    return model.merge_and_unload().eval()


def saved(cli: Cli, model: PeftModel, stem: str = "adapter") -> Path:
    folder = cli.path(stem)
    # An embedding would be saved whole beside its adapter where it could have been resized.
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def sum_of(base: nn.Module, *parts: tuple[PeftModel, float]) -> nn.Module:
    """The base with the differences that each adapter makes, scaled; computed in float64."""
    total = copy.deepcopy(base)
    state = {name: value.double() for name, value in base.state_dict().items()}
    for model, scale in parts:
        for name, value in merged(model).state_dict().items():
            state[name] += scale * (value.double() - base.state_dict()[name].double())
    total.load_state_dict({name: value.float() for name, value in state.items()})
    return total


def plain(config: PeftConfig) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, set) else v for name, v in config.to_dict().items()}


def config_of(model: PeftModel) -> str:
    """The text of `adapter_config.json`."""
    return json.dumps(plain(model.peft_config["default"]), default=str)


def in_memory(module: regraft.Module, model: PeftModel, name: str = "one") -> Any:
    return module.adapter(name, get_peft_model_state_dict(model), config_of(model))


def with_key(source: Path, target: Path, key: str, value: Tensor) -> Path:
    save_file({**load_file(source), key: value}, target)
    return target


class Net(nn.Module):
    """One layer of each kind that takes adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 36)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.fc = nn.Linear(144, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        image = self.embedding(tokens).view(-1, 1, 6, 6)
        image = torch.relu(self.point(torch.relu(self.conv(image))))
        return self.head(torch.relu(self.fc(image.flatten(1))))


TOKENS: Inputs = (torch.tensor([3, 0, 19, 7]),)
LINEAR = ["fc", "head"]
CONV = ["conv", "point"]


KINDS: dict[str, PeftConfig] = {
    "lora_linear": LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR),
    "lora_conv": LoraConfig(r=3, lora_alpha=5, target_modules=CONV),
    "lora_embedding": LoraConfig(r=2, lora_alpha=3, target_modules=["embedding"]),
    "lora_all": LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=[*LINEAR, *CONV, "embedding"],
        rank_pattern={"fc": 7},
        alpha_pattern={"conv": 2},
    ),
    "lora_bias": LoraConfig(r=3, lora_alpha=5, target_modules=["fc", "conv"], lora_bias=True),
    "rslora": LoraConfig(r=5, lora_alpha=3, target_modules=[*LINEAR, *CONV], use_rslora=True),
    "dora": LoraConfig(r=4, lora_alpha=6, target_modules=[*LINEAR, *CONV, "embedding"], use_dora=True),
    "loha": LoHaConfig(r=3, alpha=4, target_modules=[*LINEAR, *CONV]),
    "loha_tucker": LoHaConfig(r=3, alpha=4, target_modules=["conv"], use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONV]),
    "lokr_both": LoKrConfig(r=1, alpha=3, target_modules=LINEAR, decompose_both=True, decompose_factor=4),
}


class Folded(nn.Module):
    """Convolutions into which their batch norms are folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        randomize_(self, torch.initial_seed())
        with torch.no_grad():
            for norm in (self.bn1, self.bn2):
                norm.running_mean.copy_(torch.randn(norm.num_features) * 0.2)
                norm.running_var.copy_(torch.rand(norm.num_features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))
