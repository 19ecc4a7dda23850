"""Adapters of PEFT on a module that stays compiled: scenario M-8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from mutable_checks import (
    Counted,
    assert_agrees,
    compiled_once,
    compiled_result,
    never_compiles,
    pytorch_result,
)
from regraft import MutableModule

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Net(nn.Module):
    """One of each layer that adapters are for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.norm = nn.LayerNorm(24)
        self.first = nn.Linear(24, 24)
        self.last = nn.Linear(24, 8, bias=False)
        self.config: dict[str, Any] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.words(ids).transpose(1, 2)).transpose(1, 2)
        return self.last(torch.relu(self.first(self.norm(y))))


class Square(nn.Module):
    """Layers that keep their width, in a sequence of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def lora(**settings: Any) -> Any:
    targets = settings.pop("target_modules", ["first", "last", "conv", "words"])
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False}
    return peft.LoraConfig(**{**defaults, **settings})


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def mutable(net: Net, ids: torch.Tensor) -> MutableModule:
    return compiled_once(net, ids)


def layers_of(module: nn.Module) -> Iterator[Any]:
    return (m for m in module.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer))


def test_m_8_adapters_come_and_go_without_a_compilation(mutable: MutableModule, ids: torch.Tensor) -> None:
    plain = compiled_result(mutable, ids)[0]
    model: Any = None

    def wrap() -> None:
        nonlocal model
        model = peft.get_peft_model(mutable, lora(), adapter_name="a").eval()

    never_compiles(mutable, wrap, ids)
    with_a = compiled_result(mutable, ids)[0]
    assert not torch.allclose(with_a, plain)
    assert torch.equal(compiled_result(model, ids)[0], with_a), "PEFT calls the compiled module"
    model.add_adapter("b", lora(r=2, use_rslora=True, target_modules=["first", "conv"]))
    model.eval()
    never_compiles(mutable, lambda: model.set_adapter("b"), ids)

    def scale(adapter: str, factor: float) -> Callable[[], None]:
        return lambda: [layer.set_scale(adapter, factor) for layer in layers_of(mutable)]

    never_compiles(mutable, scale("b", 0.3), ids)
    never_compiles(mutable, lambda: model.base_model.set_adapter(["a", "b"]), ids)
    never_compiles(mutable, scale("a", 0.7), ids)
    with model.disable_adapter():
        never_compiles(mutable, lambda: None, ids)
        assert torch.equal(compiled_result(mutable, ids)[0], plain), "the bits of the first day"
    never_compiles(mutable, lambda: None, ids)
    model.base_model.set_adapter(["b", "a"])
    counted = Counted(mutable)
    assert_agrees(mutable, ids)
    assert counted() == (0, 0), "the order does not matter"
    never_compiles(mutable, lambda: model.delete_adapter("b"), ids)
    never_compiles(mutable, scale("a", 1.0), ids)
    assert torch.equal(compiled_result(mutable, ids)[0], with_a)
    # PyTorch's merging and unmerging is not exact.
    never_compiles(mutable, lambda: model.merge_adapter(), ids)
    never_compiles(mutable, lambda: model.unmerge_adapter(), ids)
    counted = Counted(mutable)
    merged = model.merge_and_unload()
    assert merged is mutable and not list(layers_of(mutable))
    assert_agrees(mutable, ids)
    assert counted() == (1, 0)


def test_m_8_unloading_leaves_the_bits_of_the_first_day(mutable: MutableModule, ids: torch.Tensor) -> None:
    plain = compiled_result(mutable, ids)[0]
    for _ in range(3):
        model = peft.get_peft_model(mutable, lora())
        assert_agrees(mutable, ids)
        assert model.unload() is mutable
        assert torch.equal(compiled_result(mutable, ids)[0], plain)
    assert mutable.recompiles == 0


def test_m_8_the_first_call_may_have_adapters(net: Net, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(net, lora()).eval()
    mutable = MutableModule(model)
    assert isinstance(mutable, peft.PeftModel)
    assert_agrees(mutable, ids)
    assert mutable.compiled is not None
    assert not [name for name in mutable.compiled.sources if "lora" in name or "base_layer" in name]
    with mutable.disable_adapter():
        never_compiles(mutable, lambda: None, ids)
    never_compiles(mutable, lambda: mutable.merge_adapter(), ids)
    inner = MutableModule(net)
    assert_agrees(inner, ids)
    assert_agrees(MutableModule(peft.get_peft_model(inner, lora(), adapter_name="other").eval()), ids)


def test_m_8_training_an_adapter_arrives_at_each_step(net: Net, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(net, lora(lora_dropout=0.1, init_lora_weights=True))
    mutable = MutableModule(model)
    optimizer = torch.optim.AdamW([p for p in mutable.parameters() if p.requires_grad], lr=1e-2)
    mutable.eval()
    assert_agrees(mutable, ids)
    counted = Counted(mutable)
    for _ in range(4):
        mutable.train()
        optimizer.zero_grad()
        mutable(ids).square().sum().backward()
        optimizer.step()
        mutable.eval()
        assert_agrees(mutable, ids)
        assert counted() == (1, 0)
    assert_agrees(mutable, ids)
    mutable.requires_grad_(False)
    assert_agrees(mutable, ids)
    assert counted() == (0, 0)


def test_m_8_dora_alone_and_with_others(mutable: MutableModule, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(mutable, lora(use_dora=True), adapter_name="dora").eval()
    with torch.no_grad():
        for layer in layers_of(mutable):
            layer.lora_magnitude_vector["dora"].weight.mul_(1.3)
    never_compiles(mutable, lambda: None, ids)
    model.add_adapter("plain", lora())
    model.eval()
    never_compiles(mutable, lambda: model.base_model.set_adapter(["plain", "dora"]), ids)
    never_compiles(mutable, lambda: model.base_model.set_adapter("plain"), ids)


KINDS: dict[str, Callable[[], Any]] = {
    "loha": lambda: peft.LoHaConfig(r=4, alpha=4, target_modules=["first", "conv"], init_weights=False),
    "lokr": lambda: peft.LoKrConfig(r=4, alpha=4, target_modules=["first", "conv"], init_weights=False),
    "ia3": lambda: peft.IA3Config(
        target_modules=["first", "last"], feedforward_modules=["last"], init_ia3_weights=False
    ),
    "oft": lambda: peft.OFTConfig(r=4, oft_block_size=0, target_modules=["first"], init_weights=False),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["first"], init_weights=False),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "tokens": lambda: peft.TrainableTokensConfig(
        token_indices=list(range(25)), target_modules=["words"], init_weights=False
    ),
    "lora_bias": lambda: lora(lora_bias=True, target_modules=["first"]),
    "modules_to_save": lambda: lora(target_modules=["first"], modules_to_save=["last"]),
    "lora_tokens": lambda: lora(target_modules=["first"], trainable_token_indices={"words": list(range(25))}),
    "lora_trains_biases": lambda: lora(target_modules=["first"], bias="all"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_m_8_other_kinds_are_merged_by_peft(mutable: MutableModule, ids: torch.Tensor, kind: str) -> None:
    plain = compiled_result(mutable, ids)[0]
    model = peft.get_peft_model(mutable, KINDS[kind]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("norm" in name or "modules_to_save" in name or "tokens" in name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    never_compiles(mutable, lambda: None, ids)
    assert not torch.allclose(compiled_result(mutable, ids)[0], plain)
    with model.disable_adapter():
        never_compiles(mutable, lambda: None, ids)
        assert torch.equal(compiled_result(mutable, ids)[0], plain) or "bias" in str(model.peft_config)
    never_compiles(mutable, lambda: None, ids)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)
    never_compiles(mutable, lambda: None, ids)


def test_m_8_adapters_that_are_no_change_of_weights_run_in_pytorch() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, groups=2)
            self.config: dict[str, Any] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(x))

    net, x = Grouped().eval(), torch.randn(1, 8, 5, 5)
    mutable = MutableModule(net)
    assert_agrees(mutable, x)
    model = peft.get_peft_model(mutable, lora(target_modules=["conv"])).eval()
    with pytest.warns(UserWarning, match="PEFT does not merge Conv2d"):
        result = compiled_result(mutable, x)[0]
    assert torch.equal(result, pytorch_result(net, x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled_result(mutable, x)
        model.base_model.disable_adapter_layers()
        assert_agrees(mutable, x)
    counted = Counted(mutable)
    model.unload()
    net.conv.weight.data.mul_(2)
    assert_agrees(mutable, x)
    assert counted() == (1, 0)


def test_m_8_adapters_by_sample_run_in_pytorch(net: Net, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(net, lora(target_modules=["first", "last"])).eval()
    mutable = MutableModule(model)
    assert_agrees(mutable, ids)
    with torch.inference_mode():
        mixed = mutable(ids, adapter_names=["default", "__base__"])
        assert torch.equal(mixed, model(ids, adapter_names=["default", "__base__"]))
        assert torch.allclose(mixed[0], mutable(ids)[0], atol=1e-5) and not torch.allclose(
            mixed[1], mutable(ids)[1]
        )
    assert mutable.recompiles == 0
    inner = MutableModule(model.base_model.model)
    model.base_model.model = inner
    with torch.inference_mode(), pytest.warns(UserWarning, match="forward hooks"):
        assert torch.equal(model(ids, adapter_names=["default", "__base__"]), mixed)
    assert_agrees(inner, ids)


def test_m_8_copies_keep_their_adapters(mutable: MutableModule, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(mutable, lora()).eval()
    assert_agrees(mutable, ids)
    copied = copy.deepcopy(mutable)
    model.merge_and_unload()
    assert_agrees(copied, ids)
    assert_agrees(mutable, ids)
    counted = Counted(copied)
    for layer in layers_of(copied):
        layer.enable_adapters(False)
    assert_agrees(copied, ids)
    assert counted() == (1, 0) and copied.recompiles == 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.words.weight
        self.config: dict[str, Any] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids))


@pytest.mark.parametrize("targets", [["head"], ["words"], ["head", "words"]], ids="-".join)
def test_m_8_adapters_belong_to_one_use_of_a_tied_weight(ids: torch.Tensor, targets: list[str]) -> None:
    mutable = MutableModule(Tied().eval())
    plain = compiled_result(mutable, ids)[0]
    base = mutable.words.weight
    model = peft.get_peft_model(mutable, lora(target_modules=targets)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", regraft.RegraftWarning)
        never_compiles(mutable, lambda: None, ids)
        for factor in (part for name, part in model.named_parameters() if "lora_" in name):
            factor.data.mul_(1.5)
        never_compiles(mutable, lambda: None, ids)
        never_compiles(mutable, lambda: base.data.mul_(2), ids)
        base.data.div_(2)
        with model.disable_adapter():
            assert_agrees(mutable, ids)
        assert model.unload() is mutable
        assert torch.equal(compiled_result(mutable, ids)[0], plain)
    assert mutable.recompiles == 0


def test_m_8_merged_adapters_of_a_tied_weight_run_in_pytorch(ids: torch.Tensor) -> None:
    mutable = MutableModule(Tied().eval())
    assert_agrees(mutable, ids)
    # These are not a sum that a use of a weight could have of its own.
    model = peft.get_peft_model(mutable, lora(target_modules=["head"], use_dora=True)).eval()
    with pytest.warns(UserWarning, match=r"head has adapters, and shares its weight with words\.weight"):
        assert_agrees(mutable, ids)
    never = Counted(mutable)
    with model.disable_adapter():
        assert_agrees(mutable, ids)
    mutable.words.weight.data.mul_(2)
    assert_agrees(mutable, ids)
    assert model.unload() is mutable
    assert_agrees(mutable, ids)
    assert never() == (1, 0)


def test_m_8_merged_then_disabled_is_as_in_pytorch(mutable: MutableModule, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(mutable, lora()).eval()
    never_compiles(mutable, lambda: None, ids)
    model.merge_adapter()
    model.base_model.disable_adapter_layers()
    never_compiles(mutable, lambda: None, ids)
    assert not any(layer.merged for layer in layers_of(mutable))


def test_m_8_layers_of_gpt2_that_are_stored_transposed(ids: torch.Tensor) -> None:
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 16)
            self.square, self.wide = Conv1D(16, 16), Conv1D(32, 16)
            self.plain = nn.Linear(32, 16)
            self.config: dict[str, Any] = {}

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.plain(torch.relu(self.wide(self.square(self.words(ids)))))

    mutable = MutableModule(Net().eval())
    assert_agrees(mutable, ids)
    for fan_in_fan_out in (True, False):
        config = lora(target_modules=["square", "wide", "plain"], fan_in_fan_out=fan_in_fan_out)
        model = peft.get_peft_model(mutable, config).eval()
        never_compiles(mutable, lambda: None, ids)
        assert model.unload() is mutable


def test_m_8_parts_in_pytorch_are_adapted_too() -> None:
    net, x = Square().eval(), torch.randn(3, 16)
    net.config = {}
    mutable = MutableModule(net, torch_executed_ops=["aten.relu.default"], min_block_size=1)
    assert_agrees(mutable, x)
    assert mutable.compiled is not None and len(mutable.compiled.models) == 2
    model = peft.get_peft_model(mutable, lora(target_modules=["body.0", "body.2"])).eval()
    never_compiles(mutable, lambda: None, x)
    assert model.unload() is mutable
    never_compiles(mutable, lambda: None, x)


def test_m_8_the_methods_of_transformers() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    mutable = MutableModule(BertForSequenceClassification(BertConfig(**sizes, vocab_size=100)).eval())
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=2, max=64)
    axes = {0: batch, 1: length}
    mutable.set_expected_dynamic_shape_range((), {"input_ids": axes, "attention_mask": axes})

    def agrees(rows: int, columns: int) -> None:
        ids = torch.randint(0, 100, (rows, columns))
        assert_agrees(mutable, input_ids=ids, attention_mask=torch.ones_like(ids))

    counted = Counted(mutable)
    agrees(2, 7)
    agrees(1, 64)
    assert counted() == (0, 0)
    mutable.add_adapter(lora(target_modules=["query", "value"]), "a")
    mutable.add_adapter(lora(target_modules=["query", "dense"]), "b")
    mutable.eval()
    for change in (
        lambda: mutable.set_adapter("a"),
        lambda: mutable.set_adapter(["a", "b"]),
        mutable.disable_adapters,
        mutable.enable_adapters,
        lambda: mutable.delete_adapter("b"),
    ):
        change()
        agrees(3, 5)
        assert counted() == (1, 0)


def test_m_8_a_layer_on_its_own(net: Net) -> None:
    peft.get_peft_model(net, lora(target_modules=["first"])).eval()
    x, mutable = torch.randn(3, 24), MutableModule(net.first)
    assert_agrees(mutable, x)
    never_compiles(mutable, lambda: net.first.set_scale("default", 0.5), x)
    never_compiles(mutable, lambda: net.first.lora_B["default"].weight.data.mul_(2), x)
    never_compiles(mutable, lambda: net.first.base_layer.weight.data.mul_(2), x)


def test_m_8_swapping_keeps_memory_flat(mutable: MutableModule, ids: torch.Tensor) -> None:
    model = peft.get_peft_model(mutable, lora(), adapter_name="one").eval()
    model.add_adapter("two", lora())
    expected = {}
    for turn in range(200):
        name = ("one", "two")[turn % 2]
        model.set_adapter(name)
        found = compiled_result(mutable, ids)[0]
        assert torch.equal(expected.setdefault(name, found), found)
        if turn == 20:
            before = mutable.compiled.memory()
    assert mutable.refits == 200 and mutable.compiled.memory() == before


def test_m_8_several_programs_and_a_saved_one(net: Net, ids: torch.Tensor, tmp_path: Path) -> None:
    mutable = MutableModule(net)
    other = ids[:1]
    for inputs in (ids, other):
        assert_agrees(mutable, inputs)
    plain = compiled_result(mutable, ids)[0]
    model = peft.get_peft_model(mutable, lora()).eval()
    for inputs in (ids, other):
        never_compiles(mutable, lambda: None, inputs)
    MutableModule.save(mutable, tmp_path / "saved")
    assert model.unload() is mutable
    loaded = MutableModule.load(tmp_path / "saved", net)
    for inputs in (ids, other):
        assert_agrees(loaded, inputs)
    assert loaded.recompiles == 0
    assert torch.equal(compiled_result(loaded, ids)[0], plain)
