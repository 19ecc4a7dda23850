"""Adapters through the Python package: A-2, A-3, A-5."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regraft
from python_checks import Function, agrees, bits, numbers, seeded, uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:No complete tensor found")

TARGETS = ["to_q", "to_k", "out"]
X = numbers(3, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.to_q(x)) * self.to_k(x))


class Net(nn.Module):
    """Named as the attention of a diffusers UNet is, so that all three formats can name its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.ModuleDict({"attn1": Block(), "attn2": Block()})
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block["attn1"](x) + x
        return self.mid_block["attn2"](self.conv(x[:, None])[:, 0])


def lora(base: nn.Module, seed: int, rank: int = 3, alpha: int = 5, targets: Any = TARGETS) -> PeftModel:
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def merged(model: PeftModel) -> nn.Module:
    return copy.deepcopy(model).merge_and_unload().eval()


@pytest.fixture(scope="module")
def compiled() -> regraft.Module:
    return regraft.compile(seeded(Net), (X,))


def diffusers_file(model: PeftModel, folder: Path, alpha: int) -> Path:
    state = {
        f"unet.{name.removeprefix('base_model.model.')}": value.contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    config = {"unet.r": 3, "unet.lora_alpha": alpha, "unet.target_modules": TARGETS, "unet.peft_type": "LORA"}
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(state, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    return path


def kohya_file(model: PeftModel, folder: Path, alpha: int) -> Path:
    state = {}
    for name, value in get_peft_model_state_dict(model).items():
        layer, part = name.removeprefix("base_model.model.").rsplit(".lora_", 1)
        key = "lora_unet_" + layer.replace(".", "_")
        state[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value.contiguous()
        state[f"{key}.alpha"] = torch.tensor(float(alpha))
    save_file(state, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def test_a_5_formats_give_the_same(compiled: regraft.Module, tmp_path: Path) -> None:
    model = lora(seeded(Net), 1)
    model.save_pretrained(tmp_path / "peft")
    config = (tmp_path / "peft" / "adapter_config.json").read_text()
    state = get_peft_model_state_dict(model)
    before = bits(compiled(X))
    adapters = {
        "peft": compiled.adapter("peft", tmp_path / "peft"),
        "peft as text": compiled.adapter("peft as text", str(tmp_path / "peft")),
        "diffusers": compiled.adapter("diffusers", diffusers_file(model, tmp_path, 5)),
        "kohya": compiled.adapter("kohya", kohya_file(model, tmp_path, 5)),
        "memory": compiled.adapter("memory", state, config),
        "numpy": compiled.adapter("numpy", {name: value.numpy() for name, value in state.items()}, config),
    }
    # An adapter keeps its factors: those of the caller may change.
    for value in state.values():
        value.zero_()
    results = {}
    for name, adapter in adapters.items():
        assert adapter.name == name and adapter.layers == 6 and not adapter.elsewhere
        fork = compiled.fork()
        report = fork.refit(adapters=[(adapter, 1.0)])
        assert report.adapters == ((name, 1.0),) and len(report.adapted) == 6
        results[name] = bits(fork(X))
        fork.refit(adapters=[])
        assert bits(fork(X)) == before
    assert all(result == results["peft"] for result in results.values()) and results["peft"] != before
    fork.refit(adapters=[(adapters["kohya"], 1.0)])
    agrees(fork, merged(lora(seeded(Net), 1)), X)
    assert bits(compiled(X)) == before


def test_a_5_unmatched_keys_are_listed_and_nothing_is_applied(
    compiled: regraft.Module, tmp_path: Path
) -> None:
    model = lora(seeded(Net), 1)
    before = bits(compiled(X))
    peft = tmp_path / "peft"
    model.save_pretrained(peft)
    files = {
        peft / "adapter_model.safetensors": "base_model.model.mid_block.attn3.to_q.lora_A.weight",
        diffusers_file(model, tmp_path, 5): "unet.mid_block.attn3.to_q.lora_A.weight",
        kohya_file(model, tmp_path, 5): "lora_unet_mid_block_attn3_to_q.lora_down.weight",
    }
    for file, extra in files.items():
        state = load_file(file)
        strange = {extra: torch.ones(3, 8), extra.replace("to_q", "to_v"): torch.ones(3, 8)}
        save_file(state | strange, file)
        with pytest.raises(regraft.WeightsError) as caught:
            compiled.adapter("a", peft if file.parent == peft else file)
        assert "to_q" in str(caught.value) and "to_v" in str(caught.value) and "attn3" in str(caught.value)
    state = get_peft_model_state_dict(model)
    first = next(iter(state))
    for wrong in (
        {first: torch.ones(3, 9)},
        {first: torch.ones(8)},
        {first.replace("to_q", "nonsense"): state[first]},
    ):
        with pytest.raises(regraft.WeightsError):
            compiled.adapter("a", dict(state) | wrong)
    without = {name: value for name, value in state.items() if name != first}
    with pytest.raises(regraft.WeightsError):
        compiled.adapter("a", without)
    for nothing in (tmp_path / "none", tmp_path / "none.safetensors", {}, {"x": torch.ones(1)}):
        with pytest.raises(regraft.WeightsError):
            compiled.adapter("a", nothing)
    with pytest.raises(regraft.WeightsError):
        compiled.adapter("a", state, "{")
    assert bits(compiled(X)) == before


def test_a_2_one_after_another_and_none(compiled: regraft.Module) -> None:
    """A, B, A, none: the same bits each time, with refits of weights in between."""
    fork, base = compiled.fork(), seeded(Net)
    models = [lora(base, 1), lora(base, 2, rank=5, alpha=2, targets=["to_k"])]
    configs = [json.dumps({"r": 3, "lora_alpha": 5}), json.dumps({"r": 5, "lora_alpha": 2})]
    a, b = (
        fork.adapter(name, get_peft_model_state_dict(model), config)
        for name, model, config in zip("ab", models, configs, strict=True)
    )
    wanted: dict[str, Any] = {"none": bits(fork(X))}
    for name, order, model in (("a", [(a, 1.0)], models[0]), ("b", [(b, 1.0)], models[1])):
        fork.refit(adapters=order)
        agrees(fork, merged(model), X)
        wanted[name] = bits(fork(X))
    assert len({str(value) for value in wanted.values()}) == 3
    orders: dict[str, Any] = {"none": [], "a": [(a, 1.0)], "b": [(b, 1.0)]}
    for _ in range(30):
        for name in ("a", "b", "a", "none"):
            fork.refit(adapters=orders[name])
            assert bits(fork(X)) == wanted[name]
    # A refit of weights keeps what is applied, and the base under it.
    other = seeded(Net, 1)
    fork.refit(other.state_dict(), adapters=orders["a"])
    with_a = bits(fork(X))
    fork.refit(base.state_dict())
    assert bits(fork(X)) == wanted["a"]
    fork.refit(other.state_dict())
    assert bits(fork(X)) == with_a
    fork.refit(base.state_dict(), adapters=[])
    assert bits(fork(X)) == wanted["none"]


def test_a_3_scales_and_order(compiled: regraft.Module) -> None:
    fork, base = compiled.fork(), seeded(Net)
    config = json.dumps({"r": 3, "lora_alpha": 3})
    first, second = lora(base, 1, alpha=3), lora(base, 2, alpha=3)
    a = fork.adapter("a", get_peft_model_state_dict(first), config)
    b = fork.adapter("b", get_peft_model_state_dict(second), config)
    results = []
    for order in ([(a, 0.3), (b, 0.7)], [(b, 0.7), (a, 0.3)]):
        fork.refit(adapters=order)
        results.append(bits(fork(X)))
    assert results[0] == results[1]
    both = copy.deepcopy(base)
    with torch.no_grad():
        for scale, model in ((0.3, first), (0.7, second)):
            for name, parameter in merged(model).named_parameters():
                both.get_parameter(name).add_(scale * (parameter - base.get_parameter(name)))
    agrees(fork, both, X)
    fork.refit(adapters=[(a, 0.0)])
    agrees(fork, base, X)
    with pytest.raises(regraft.RegraftError):
        fork.refit(adapters=[(a, 1.0), (a, 0.5)])
    agrees(fork, base, X)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(regraft.RegraftError):
            fork.refit(adapters=[(a, wrong)])
        agrees(fork, base, X)


@pytest.mark.xfail(
    strict=True, reason="an adapter is applied by numbers of sources, whatever module it is for"
)
def test_a_5_adapters_of_another_module(compiled: regraft.Module) -> None:
    """An adapter belongs to the module that it was read for."""
    adapter = compiled.adapter("a", get_peft_model_state_dict(lora(seeded(Net), 1)), json.dumps({"r": 3}))
    other = regraft.compile(seeded(lambda: Function(lambda layer, x: layer.fc(x))), (numbers(2, 6),))
    before = bits(other(numbers(2, 6)))
    with pytest.raises(regraft.WeightsError):
        other.refit(adapters=[(adapter, 1.0)])
    assert bits(other(numbers(2, 6))) == before
    cut = regraft.compile(
        seeded(lambda: Function(lambda layer, x: uncompiled(layer.fc(x)))), (numbers(2, 6),), min_block_size=1
    )
    with pytest.raises(regraft.WeightsError, match="one engine"):
        cut.refit(adapters=[(adapter, 1.0)])


def test_a_5_frozen_modules_and_saved_adapters(compiled: regraft.Module, tmp_path: Path) -> None:
    fork = compiled.fork()
    adapter = fork.adapter("a", get_peft_model_state_dict(lora(seeded(Net), 1)), json.dumps({"r": 3}))
    fork.refit(adapters=[(adapter, 1.0)])
    wanted = bits(fork(X))
    regraft.save(fork, tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved")
    assert bits(loaded(X)) == wanted
    frozen = regraft.compile(seeded(Net), (X,), make_refittable=False)
    with pytest.raises(regraft.FrozenError):
        frozen.refit(adapters=[(adapter, 1.0)])
