"""Refits through the package: the bits of a fresh build, what is refused, and what is kept of the sources."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft
from comparing import assert_same, same
from models import randomize_
from module_checks import assert_agrees, assert_refits, called
from refit_checks import fresh, net, results_of_second
from small import numbers
from test_sources import TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def compiled() -> regraft.Module:
    return fresh()


@pytest.fixture
def wanted() -> list[np.ndarray]:
    return results_of_second()


# -------------------------------------------------------------------------------------------- R-17 and law 1


def test_r_17_a_step_far_below_any_tolerance() -> None:
    """At a rate of 1e-8 most weights change in their last bits or not at all; each change arrives."""
    model = net(0)
    module = regraft.compile(model, TOKENS)
    before = called(module, TOKENS)
    model(*TOKENS).square().mean().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    assert changed
    report = module.refit(model.state_dict())
    assert set(report.applied) == changed
    assert_same(called(module, TOKENS), called(regraft.compile(model, TOKENS), TOKENS))
    assert not same(called(module, TOKENS), before)


def test_r_17_the_last_bit_of_one_weight(compiled: regraft.Module) -> None:
    model = net(0)
    with torch.no_grad():
        model.fc.bias[3] = torch.nextafter(model.fc.bias[3], torch.tensor(9.0))
    assert compiled.refit(model.state_dict()).applied == ("fc.bias",)
    assert_same(called(compiled, TOKENS), called(regraft.compile(model, TOKENS), TOKENS))


def test_r_17_zeros_of_either_sign_and_payloads_of_nan(compiled: regraft.Module) -> None:
    """Weights are compared by their bits, not as numbers."""
    state = {name: value.clone() for name, value in net(0).state_dict().items()}
    state["fc.bias"][:] = 0.0
    compiled.refit(state)
    state["fc.bias"][:] = -0.0
    assert compiled.refit(state).applied == ("fc.bias",)
    state["fc.bias"][0] = float("nan")
    assert compiled.refit(state).applied == ("fc.bias",)
    assert compiled.refit(state).applied == ()


def resnet18(seed: int) -> nn.Module:
    import torchvision

    return randomize_(torchvision.models.resnet18(weights=None), seed)


def bert(seed: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=200,
        attn_implementation="sdpa",
    )
    return randomize_(BertModel(config), seed)


def unet(seed: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return randomize_(model, seed)


SENTENCE = torch.tensor([[5, 17, 199, 3, 0, 0], [8, 2, 44, 9, 100, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def test_r_1_resnet18_is_what_it_would_be_compiled() -> None:
    assert_refits(resnet18, (numbers(1, 3, 64, 64),))


def test_r_1_bert_is_what_it_would_be_compiled() -> None:
    """Keyword arguments in, a data class of transformers out."""
    assert_refits(bert, (), kwargs={"input_ids": SENTENCE, "attention_mask": MASK})


def test_r_1_unet_is_what_it_would_be_compiled() -> None:
    assert_refits(unet, (numbers(1, 4, 8, 8), torch.tensor([7]), numbers(1, 5, 32, seed=1)))


# ------------------------------------------------------------------------------------------- refused


def test_r_11_every_problem_at_once_and_nothing_changed(compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    state: dict[str, Any] = dict(net(1).state_dict())
    state["fc.weight"] = state["fc.weight"][:, :-1]
    state["norm.bias"] = torch.zeros(4, dtype=torch.int64)
    state["haed"] = torch.zeros(3)
    del state["conv.weight"]
    with pytest.raises(regraft.WeightsError) as caught:
        compiled.refit(state)
    text = str(caught.value)
    for name in ("fc.weight", "norm.bias", "haed", "conv.weight"):
        assert name in text
    assert "nothing was changed" in text
    assert_same(called(compiled, TOKENS), before)
    assert compiled.refit(net(0).state_dict()).applied == ()


UNFIT: dict[str, Any] = {
    "of_a_wrong_class": torch.zeros(5, dtype=torch.int32),
    "complex": torch.zeros(5, dtype=torch.complex64),
    "boolean": torch.zeros(5, dtype=torch.bool),
    "sparse": torch.zeros(5).to_sparse(),
    "meta": torch.zeros(5, device="meta"),
    "without_memory": torch._efficientzerotensor(5),
    "in_four_bits": torch.empty(5, dtype=torch.uint4),
    "without_axes": torch.tensor(1.0),
    "with_an_axis_more": torch.zeros(1, 5),
    "a_text": "five",
    "none": None,
    "a_list": [0.0] * 5,
    "strings": np.array(["a"] * 5),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_r_11_values_that_do_not_fit(unfit: str, compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
        compiled.refit({**net(1).state_dict(), "fc.bias": UNFIT[unfit]})
    assert_same(called(compiled, TOKENS), before)


def test_r_11_a_fake_tensor_has_no_values(compiled: regraft.Module) -> None:
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(5)
    with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
        compiled.refit({**net(1).state_dict(), "fc.bias": fake})


def test_r_11_not_finite(compiled: regraft.Module) -> None:
    before = called(compiled, TOKENS)
    for value in (float("nan"), float("inf")):
        state = {name: tensor.clone() for name, tensor in net(1).state_dict().items()}
        state["fc.bias"][2] = value
        with pytest.raises(regraft.WeightsError, match=r"fc\.bias"):
            compiled.refit(state, reject_non_finite=True)
        assert_same(called(compiled, TOKENS), before)
        compiled.fork().refit(state)


def test_r_11_frozen() -> None:
    module = regraft.compile(net(0), TOKENS, mode="frozen")
    assert_agrees(module, net(0), TOKENS)
    assert module.mode == "frozen"
    for refit in (
        lambda: module.refit(net(1).state_dict()),
        lambda: regraft.refit_module_weights(module, net(1)),
        lambda: module.fork().refit(net(1).state_dict(), partial=True),
    ):
        with pytest.raises(regraft.FrozenError):
            refit()
    assert_agrees(module, net(0), TOKENS)


def test_s_1_stripped_needs_all_weights_first(wanted: list[np.ndarray]) -> None:
    module = regraft.compile(net(0), TOKENS, mode="stripped")
    assert module.mode == "stripped"
    with pytest.raises(regraft.NotBoundError):
        module(*TOKENS)
    with pytest.raises(regraft.WeightsError):
        module.refit({"fc.bias": torch.zeros(5)}, partial=True)
    with pytest.raises(regraft.NotBoundError):
        module(*TOKENS)
    module.refit(net(1).state_dict())
    assert module.mode == "refittable"
    assert_same(called(module, TOKENS), wanted)


def test_s_3_identical_takes_no_other_weights() -> None:
    module = regraft.compile(net(0), TOKENS, identical=True)
    before = called(module, TOKENS)
    assert module.refit(net(0).state_dict()).applied == ()
    state = dict(net(0).state_dict())
    state["norm.bias"] = torch.nextafter(state["norm.bias"], torch.tensor(9.0))
    with pytest.raises(regraft.WeightsError, match=r"norm\.bias"):
        module.refit(state)
    assert_same(called(module, TOKENS), before)


# ------------------------------------------------------------------------------------------ reports


def test_names_of_a_report_are_made_when_they_are_looked_at(compiled: regraft.Module) -> None:
    state = net(1).state_dict()
    report = compiled.refit(state)
    assert "applied" not in vars(report)
    copies = [pickle.loads(pickle.dumps(report)), copy.deepcopy(report), dataclasses.replace(report)]
    assert all(one == report and repr(one) == repr(report) for one in copies)
    assert report.applied is report.applied
    assert set(report.applied) <= set(state)
    assert report.recomputed_slots
    assert report.shared_slots == report.kept == report.fetched == ()
    assert report == regraft.RefitReport(
        **{one.name: getattr(report, one.name) for one in dataclasses.fields(report)}
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.applied = ()  # type: ignore[misc]
    assert set(compiled.refit(state).unchanged) == {*report.applied, *report.unchanged}


# ----------------------------------------------------------------------------------- saved with their sources


@pytest.mark.parametrize("keep", ["embedded", "prepacked", "none"])
def test_r_15_sources_of_saved_modules(keep: str, tmp_path: Path) -> None:
    """Saved, loaded, refitted by parts and saved again."""
    module = regraft.compile(net(0), TOKENS, keep_sources=keep)
    before = called(module, TOKENS)
    for turn in range(2):
        regraft.save(module, tmp_path / f"net{turn}")
        module = regraft.load(tmp_path / f"net{turn}")
        assert_same(called(module, TOKENS), before)
    assert module.refit(net(0).state_dict()).recomputed_slots == ()
    module = regraft.load(tmp_path / "net1")
    assert_same(called(module.fork(), TOKENS), before)

    changed = net(0)
    changed.load_state_dict({**net(0).state_dict(), "norm.bias": net(1).norm.bias.detach()})
    if keep == "none":
        with pytest.raises(regraft.WeightsError, match="norm"):
            module.refit({"norm.bias": net(1).norm.bias}, partial=True)
        assert_same(called(module, TOKENS), before)
        module.refit(changed.state_dict(), changed="all")
    else:
        module.refit({"norm.bias": net(1).norm.bias}, partial=True)
    assert_same(called(module, TOKENS), called(regraft.compile(changed, TOKENS), TOKENS))


def test_r_15_all_weights_are_enough_without_sources(tmp_path: Path) -> None:
    regraft.save(regraft.compile(net(0), TOKENS, keep_sources="none"), tmp_path / "net")
    module = regraft.load(tmp_path / "net")
    changed = net(0)
    changed.load_state_dict({**net(0).state_dict(), "norm.bias": net(1).norm.bias.detach()})
    module.refit(changed.state_dict())
    assert_agrees(module, changed, TOKENS)
