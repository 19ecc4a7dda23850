"""The table of docs/adapters.md: each cell is an adapter that its tool wrote, in one container.

What serves must be what the module computes with the adapter in its tool; and every test that the table names
must be there.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
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
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import checkpoints
import regraft
import test_adapter_namings
import test_adapters
import test_generated_adapters
import test_joined_adapters
import test_python_adapter_namings
import test_python_adapters
import unet_adapters
from adapter_checks import adapted, merged, plain
from comparing import assert_close, same
from conftest import Cli
from exporting import ROOT
from module_checks import called
from small import answers, seeded
from test_generated_adapters import trained
from unet_adapters import UNET_CONFIG, UNET_INPUTS, build_unet

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """A layer of each kind that takes adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.up = Conv1D(16, 8)
        self.down = nn.Linear(16, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.tanh(self.up(x)))
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x))


TOKENS = (torch.tensor([[3, 0, 11, 7]]),)
LINEAR = ["down", "head"]
ALL = [*LINEAR, "up", "conv", "embed"]

KINDS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=LINEAR),
    "lora-convolution": LoraConfig(r=3, lora_alpha=5, target_modules=["conv"]),
    "lora-embedding": LoraConfig(r=3, lora_alpha=5, target_modules=["embed"]),
    "lora-conv1d": LoraConfig(r=3, lora_alpha=5, target_modules=["up"]),
    "rslora": LoraConfig(r=3, lora_alpha=5, target_modules=ALL, use_rslora=True),
    "patterns": LoraConfig(
        r=3, lora_alpha=5, target_modules=ALL, rank_pattern={"up|head": 5}, alpha_pattern={"^do.n$": 2}
    ),
    "dora": LoraConfig(r=3, lora_alpha=5, target_modules=ALL, use_dora=True),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, "conv"]),
    "lokr": LoKrConfig(r=3, alpha=5, target_modules=LINEAR),
    "adalora": AdaLoraConfig(init_r=3, target_r=3, lora_alpha=5, target_modules=LINEAR, total_step=10),
    "ia3": IA3Config(target_modules=["up", "down"], feedforward_modules=["down"]),
    "oft": OFTConfig(r=0, oft_block_size=4, target_modules=LINEAR),
    "boft": BOFTConfig(boft_block_size=4, boft_block_num=0, target_modules=["down"]),
    "modules_to_save": LoraConfig(r=3, target_modules=["down"], modules_to_save=["head", "norm"]),
    "biases": LoraConfig(r=3, target_modules=["down"], bias="all"),
    "tokens": LoraConfig(r=3, target_modules=["down"], trainable_token_indices={"embed": [3, 11]}),
}


@functools.cache
def made(kind: str) -> PeftModel:
    return trained(seeded(Net, 0), KINDS[kind], seed=len(kind))


@functools.cache
def wanted(kind: str) -> list[Any]:
    return answers(made(kind), TOKENS)


# What `adapter` takes after the name.
Given = tuple[Any, ...]


def folder_of(model: PeftModel, folder: Path, *, is_pickle: bool = False) -> Path:
    model.save_pretrained(folder, save_embedding_layers=False, safe_serialization=not is_pickle)
    assert (folder / "adapter_model.bin").exists() == is_pickle
    return folder


def beside(model: PeftModel, folder: Path) -> Given:
    file = folder_of(model, folder) / "adapter_model.safetensors"
    return (file.rename(folder / "style.v2.safetensors"),)


def stated(model: PeftModel, folder: Path) -> Given:
    config = folder_of(model, folder) / "adapter_config.json"
    return beside(model, folder)[0], config.rename(folder / "of_style.json")


def header(model: PeftModel, folder: Path) -> Given:
    saved = folder_of(model, folder / "saved")
    text = (saved / "adapter_config.json").read_text()
    save_file(
        load_file(saved / "adapter_model.safetensors"), folder / "a.safetensors", {"adapter_config": text}
    )
    return (folder / "a.safetensors",)


def in_memory(model: PeftModel, folder: Path) -> Given:
    saved = folder_of(model, folder)
    config = json.loads((saved / "adapter_config.json").read_text())
    return load_file(saved / "adapter_model.safetensors"), config


def of_torch(write: str) -> Callable[[PeftModel, Path], Given]:
    def container(model: PeftModel, folder: Path) -> Given:
        saved = folder_of(model, folder)
        state = load_file(saved / "adapter_model.safetensors")
        (saved / "adapter_model.safetensors").unlink()
        return (checkpoints.CONTAINERS[write](state, saved),)

    return container


TORCH = ("torch", "torch-before-1.6", "torch-0.1-tar", "torch-big-endian", "torch-protocol-5", "lightning")
CONTAINERS: dict[str, Callable[[PeftModel, Path], Given]] = {
    "folder": lambda model, folder: (folder_of(model, folder),),
    "folder-bin": lambda model, folder: (folder_of(model, folder, is_pickle=True),),
    "beside": beside,
    "stated": stated,
    "header": header,
    "memory": in_memory,
} | {name: of_torch(name) for name in TORCH}


@pytest.fixture(scope="module")
def engine() -> regraft.Module:
    return regraft.compile(seeded(Net, 0), TOKENS)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_cell(engine: regraft.Module, kind: str, container: str, tmp_path: Path) -> None:
    module = engine.fork()
    before = called(module, TOKENS)
    given = CONTAINERS[container](made(kind), tmp_path)
    module.refit(adapters=[(module.adapter("style", *given), 1.0)])
    assert_close(called(module, TOKENS), wanted(kind))
    assert not same(wanted(kind), before)


# The files of a pipeline, which bring their scales themselves.
NAMINGS: dict[str, Callable[[Cli, PeftModel], Path]] = {
    "save_lora_weights": unet_adapters.diffusers_file,
    "save_lora_adapter": unet_adapters.unet_adapter_file,
    "kohya": unet_adapters.kohya_file,
}


@pytest.fixture(scope="module")
def pipeline() -> tuple[PeftModel, regraft.Module, list[Any]]:
    unet = build_unet()
    model = adapted(unet, UNET_CONFIG)
    return model, regraft.compile(unet, UNET_INPUTS), answers(merged(model), UNET_INPUTS)


@pytest.mark.parametrize("container", ["file", "memory", *TORCH])
@pytest.mark.parametrize("naming", NAMINGS)
def test_pipeline_cell(
    pipeline: tuple[PeftModel, regraft.Module, list[Any]], naming: str, container: str, tmp_path: Path
) -> None:
    model, engine, expected = pipeline
    given: Any = NAMINGS[naming](Cli(Path("unused"), tmp_path), model)
    config = None
    if container != "file":
        # Only safetensors has a header for what diffusers says of the scale.
        config = None if naming == "kohya" else plain(UNET_CONFIG)
        state = load_file(given)
        given = state if container == "memory" else checkpoints.CONTAINERS[container](state, tmp_path)
    module = engine.fork()
    module.refit(adapters=[(module.adapter("style", given, config), 1.0)])
    assert_close(called(module, UNET_INPUTS), expected)


def lines_of_the_table(heading: str) -> list[list[str]]:
    """The cells of the table of docs/adapters.md whose heading begins so; the heading comes first."""
    lines = (ROOT / "docs/adapters.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_the_tables_of_containers_are_complete() -> None:
    heading, *rows = lines_of_the_table("kind of PEFT")
    assert [cell.strip("`") for cell in heading[1:]] == list(CONTAINERS)
    assert [row[0].strip("`") for row in rows] == list(KINDS)
    assert all(cell == "✓" for row in rows for cell in row[1:])
    heading, *rows = lines_of_the_table("file of a pipeline")
    assert [cell.strip("`") for cell in heading[1:]] == ["file", "memory", *TORCH]
    assert [row[0].strip("`") for row in rows] == list(NAMINGS)
    assert all(cell == "✓" for row in rows for cell in row[1:])


# Where the tests of each letter are.
MODULES: dict[str, list[Any]] = {
    "T": [test_adapters, test_adapter_namings],
    "Y": [test_python_adapters, test_python_adapter_namings],
    "J": [test_joined_adapters],
    "G": [test_generated_adapters],
}
FIXTURES = ROOT / "crates/adapter/tests/adapters"


def names_of(letter: str) -> set[str]:
    """What a letter of the table may stand before."""
    if letter in MODULES:
        return {name for module in MODULES[letter] for name, value in vars(module).items() if callable(value)}
    tool = {"P": "peft", "L": "lycoris"}[letter]
    source = (FIXTURES / f"{tool}.rs").read_text()
    listed = set(re.findall(r"\w+", source.split("cases!(")[1].split(")")[0]))
    # Each is also made by the tool.
    assert listed == {path.name for path in (FIXTURES / tool).iterdir() if path.is_dir()}
    return listed


def test_every_test_that_the_table_names_is_there() -> None:
    _, *rows = lines_of_the_table("kind")
    names = {letter: names_of(letter) for letter in "TYJGPL"}
    spellings = set(test_joined_adapters.SPELLINGS)
    found = 0
    for row in rows:
        for cell in row[1:]:
            for letter, listed in re.findall(r"\b([TYJGPL]) ((?:`[^`]+`(?:, )?)+)", cell):
                for name in re.findall(r"`([^`\[]+?)(?:\.\.\.)?(?:\[[^`]*)?`", listed):
                    known = names[letter] | (spellings if letter == "J" else set())
                    assert any(other.startswith(name) for other in known), f"{letter} {name}"
                    found += 1
    assert found > 50
