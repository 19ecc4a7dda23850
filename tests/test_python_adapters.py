"""Adapters through the package: what serves after each step, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

import regraft
from adapter_checks import KINDS, TOKENS, Folded, Net, adapted, config_of, in_memory, merged, saved, sum_of
from comparing import assert_close, assert_same, same
from conftest import Cli
from module_checks import called, spoil
from small import answers, numbers, seeded, uncompiled

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path: Path) -> Cli:
    """A folder with new names; no command is run."""
    return Cli(Path("unused"), tmp_path)


@pytest.fixture(scope="module")
def net_engine() -> regraft.Module:
    return regraft.compile(seeded(Net, 0), TOKENS)


@pytest.fixture
def module(net_engine: regraft.Module) -> regraft.Module:
    return net_engine.fork()


@pytest.mark.parametrize("kind", KINDS)
def test_a_1_every_kind_in_memory_and_on_disk(kind: str, files: Cli, module: regraft.Module) -> None:
    model = adapted(seeded(Net, 0), KINDS[kind])
    before = called(module, TOKENS)
    module.refit(adapters=[(in_memory(module, model), 0.6)])
    found = called(module, TOKENS)
    assert_close(found, answers(merged(model, 0.6), TOKENS))
    module.refit(adapters=[(module.adapter("file", str(saved(files, model))), 0.6)])
    assert_same(called(module, TOKENS), found)
    module.refit(adapters=[])
    assert_same(called(module, TOKENS), before)


# ------------------------------------------------------------------------------------ what serves


def test_a_2_one_then_the_other_then_none(module: regraft.Module) -> None:
    before = called(module, TOKENS)
    base = seeded(Net, 0)
    pair = [adapted(base, KINDS["lora_all"], 1), adapted(base, KINDS["lokr"], 2)]
    first, second = (in_memory(module, model, name) for name, model in zip("ab", pair, strict=True))
    module.refit(adapters=[(first, 1.0)])
    with_first = called(module, TOKENS)
    module.refit(adapters=[(second, 0.5)])
    with_second = called(module, TOKENS)
    assert_close(with_second, answers(merged(pair[1], 0.5), TOKENS))
    for _ in range(20):
        report = module.refit(adapters=[(first, 1.0)])
        assert report.adapters == (("a", 1.0),)
        assert_same(called(module, TOKENS), with_first)
        module.refit(adapters=[(second, 0.5)])
        assert_same(called(module, TOKENS), with_second)
        module.refit(adapters=[])
        assert_same(called(module, TOKENS), before)
    assert module.refit(seeded(Net, 0).state_dict()).applied == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_2_the_same_bits_in_other_types(dtype: torch.dtype) -> None:
    def build() -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), 0)

    x = (numbers(3, 8).to(dtype),)
    module = regraft.compile(build().to(dtype), x)
    before = called(module, x)
    adapters = [
        in_memory(module, adapted(build(), LoraConfig(r=2, target_modules=["0", "2"]), seed), str(seed))
        for seed in (1, 2)
    ]
    for adapter in adapters:
        module.refit(adapters=[(adapter, 1.0)])
        assert not same(called(module, x), before)
    module.refit(adapters=[])
    assert_same(called(module, x), before)


def test_a_3_two_in_either_order(module: regraft.Module) -> None:
    base = seeded(Net, 0)
    pair = [adapted(base, KINDS["lora_all"], 1), adapted(base, KINDS["loha"], 2)]
    first, second = (in_memory(module, model, name) for name, model in zip("ab", pair, strict=True))
    module.refit(adapters=[(first, 0.3), (second, 0.7)])
    found = called(module, TOKENS)
    module.refit(adapters=[(second, 0.7), (first, 0.3)])
    assert_same(called(module, TOKENS), found)
    assert_close(found, answers(sum_of(base, (pair[0], 0.3), (pair[1], 0.7)), TOKENS))


def test_a_1_weights_under_an_adapter_that_serves(module: regraft.Module) -> None:
    """New weights, all or some, leave the adapter on; it is applied to the new ones."""
    model = adapted(seeded(Net, 1), KINDS["lora_all"])
    adapter = in_memory(module, model)
    module.refit(adapters=[(adapter, 1.0)])
    module.refit(seeded(Net, 1).state_dict())
    found = called(module, TOKENS)
    assert_close(found, answers(merged(model), TOKENS))
    at_once = regraft.compile(seeded(Net, 0), TOKENS)
    at_once.refit(seeded(Net, 1).state_dict(), adapters=[(in_memory(at_once, model), 1.0)])
    assert_same(called(at_once, TOKENS), found)

    other = seeded(Net, 0).state_dict()["fc.weight"]
    module.refit({"fc.weight": other}, partial=True)
    changed = seeded(Net, 1)
    changed.load_state_dict({**changed.state_dict(), "fc.weight": other})
    assert_close(
        called(module, TOKENS),
        answers(merged(adapted(changed, KINDS["lora_all"])), TOKENS),
    )
    module.refit(adapters=[])
    assert_same(called(module, TOKENS), called(regraft.compile(changed, TOKENS), TOKENS))


def test_a_7_a_norm_folded_into_an_adapted_convolution() -> None:
    """The slot is made of both: a refit of one keeps the other's part."""
    base, other = seeded(Folded, 0), seeded(Folded, 1)
    inputs = (numbers(2, 3, 8, 8),)
    module = regraft.compile(base, inputs)
    config = LoraConfig(r=3, lora_alpha=4, target_modules=["conv1", "conv2"])
    module.refit(adapters=[(in_memory(module, adapted(base, config)), 0.8)])
    some = {name: other.state_dict()[name] for name in ("bn1.weight", "bn2.running_var")}
    module.refit(some, partial=True)
    changed = seeded(Folded, 0)
    changed.load_state_dict({**changed.state_dict(), **some})
    assert_close(called(module, inputs), answers(merged(adapted(changed, config), 0.8), inputs))
    module.refit(adapters=[])
    assert_same(called(module, inputs), called(regraft.compile(changed, inputs), inputs))


def test_a_2_forks_have_adapters_of_their_own(module: regraft.Module) -> None:
    before = called(module, TOKENS)
    adapter = in_memory(module, adapted(seeded(Net, 0), KINDS["lora_all"]))
    module.refit(adapters=[(adapter, 1.0)])
    found = called(module, TOKENS)
    fork = module.fork()
    assert_same(called(fork, TOKENS), found)
    module.refit(adapters=[])
    assert_same(called(fork, TOKENS), found)
    assert_same(called(module, TOKENS), before)
    # The adapter that was read for one serves the other.
    fork.refit(adapters=[])
    assert_same(called(fork, TOKENS), before)
    fork.refit(adapters=[(adapter, 1.0)])
    assert_same(called(fork, TOKENS), found)


def test_a_1_factors_are_the_callers_again(module: regraft.Module, files: Cli) -> None:
    model = adapted(seeded(Net, 0), KINDS["lora_all"])
    adapter = in_memory(module, model)
    path = saved(files, model)
    from_file = module.adapter("file", path)
    module.refit(adapters=[(adapter, 1.0)])
    found = called(module, TOKENS)
    spoil(get_peft_model_state_dict(model))
    (path / "adapter_model.safetensors").unlink()
    for one in (adapter, from_file):
        module.refit(adapters=[])
        module.refit(adapters=[(one, 1.0)])
        assert_same(called(module, TOKENS), found)
    module.refit({"fc.bias": seeded(Net, 0).fc.bias}, partial=True, changed="all")
    assert_same(called(module, TOKENS), found)


# ------------------------------------------------------------------------------------------ saved with one


def test_a_2_a_saved_module_with_an_adapter(module: regraft.Module, files: Cli) -> None:
    """Whatever is kept of it, the file computes what the module did, and refits give no mixture."""
    base = seeded(Net, 0)
    model = adapted(base, KINDS["lora_all"])
    module.refit(adapters=[(in_memory(module, model), 1.0)])
    found = called(module, TOKENS)
    for keep in range(2):
        folder = files.path("net")
        regraft.save(module, folder)
        module = regraft.load(folder)
        assert_same(called(module, TOKENS), found), keep
    bias = {"fc.bias": seeded(Net, 1).fc.bias.detach()}
    module.refit(bias, partial=True)
    wanted = merged(model)
    wanted.load_state_dict({**wanted.state_dict(), **bias})
    assert_close(called(module, TOKENS), answers(wanted, TOKENS))
    module.refit(seeded(Net, 1).state_dict(), adapters=[])
    assert_same(called(module, TOKENS), called(regraft.compile(seeded(Net, 1), TOKENS), TOKENS))


def test_a_7_a_saved_fold_with_an_adapter(files: Cli) -> None:
    """A refit of a norm rebuilds the slot, of a convolution that must still be the adapted one."""
    base, other = seeded(Folded, 0), seeded(Folded, 1)
    inputs = (numbers(2, 3, 8, 8),)
    module = regraft.compile(base, inputs)
    config = LoraConfig(r=3, lora_alpha=4, target_modules=["conv1", "conv2"])
    model = adapted(base, config)
    module.refit(adapters=[(in_memory(module, model), 1.0)])
    folder = files.path("net")
    regraft.save(module, folder)
    loaded = regraft.load(folder)
    some = {"bn1.weight": other.state_dict()["bn1.weight"]}
    loaded.refit(some, partial=True)
    wanted = merged(model)
    wanted.load_state_dict({**wanted.state_dict(), **some})
    assert_close(called(loaded, inputs), answers(wanted, inputs))


# ---------------------------------------------------------------------------------------------- refused


class Swapped(nn.Module):
    """The names of Net's last layers, in another order and another size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 24)
        self.fc = nn.Linear(24, 144)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.head(x)))


class Mirrored(nn.Module):
    """Two layers of one shape, whose names are in the order that is given."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


def test_a_5_an_adapter_of_a_larger_module_is_refused(module: regraft.Module) -> None:
    x = (numbers(2, 8),)
    stranger = regraft.compile(seeded(Swapped, 0), x)
    before = called(stranger, x)
    adapter = in_memory(module, adapted(seeded(Net, 0), KINDS["lora_linear"]))
    with pytest.raises(regraft.WeightsError):
        stranger.refit(adapters=[(adapter, 1.0)])
    assert_same(called(stranger, x), before)


def test_a_5_an_adapter_of_another_module_is_never_misapplied() -> None:
    """Two modules with the same layers in another order."""
    x = (numbers(2, 8),)
    one, other = seeded(lambda: Mirrored("a", "b"), 0), seeded(lambda: Mirrored("b", "a"), 0)
    first, second = regraft.compile(one, x), regraft.compile(other, x)
    config = LoraConfig(r=2, target_modules=["a"])
    adapter = in_memory(first, adapted(one, config))
    before = called(second, x)
    try:
        second.refit(adapters=[(adapter, 1.0)])
    except regraft.WeightsError:
        assert_same(called(second, x), before)
    else:
        assert_close(called(second, x), answers(merged(adapted(other, config)), x))


def test_a_5_refused_and_nothing_changed(module: regraft.Module, files: Cli) -> None:
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    before = called(module, TOKENS)
    state = get_peft_model_state_dict(model)
    adapter = in_memory(module, model)
    for weights in (
        {},
        {**state, "base_model.model.fc.lora_A.weight": torch.ones(4, 3)},
        {name: value for name, value in state.items() if "fc.lora_B" not in name},
        seeded(Net, 1).state_dict(),
        files.path("nowhere", ".safetensors"),
        {name: value.to(torch.complex64) for name, value in state.items()},
        {name: value.to("meta") for name, value in state.items()},
    ):
        with pytest.raises(regraft.WeightsError):
            module.adapter("wrong", weights, config_of(model))
    with pytest.raises(regraft.WeightsError):
        module.adapter("wrong", state, "no JSON")
    with pytest.raises(regraft.WeightsError):
        module.refit(adapters=[(adapter, 1.0), (adapter, 0.5)])
    for scale in (float("nan"), float("inf")):
        with pytest.raises(regraft.WeightsError):
            module.refit(adapters=[(adapter, scale)])
    with pytest.raises(regraft.WeightsError):
        module.refit({"haed": torch.zeros(1)}, partial=True, adapters=[(adapter, 1.0)])
    for wrong in ([adapter], [(adapter,)], [("one", 1.0)], [(adapter, "1")], 5):
        with pytest.raises(regraft.WeightsError):
            module.refit(adapters=wrong)
    assert module.models[0].adapters == []
    assert_same(called(module, TOKENS), before)


def test_a_5_problems_are_objects(module: regraft.Module) -> None:
    """What is wrong with each key, its kind and what depends on that; the same through a refit."""
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    state = get_peft_model_state_dict(model)
    wrong = {name.replace("head", "haed"): value for name, value in state.items() if "fc.lora_B" not in name}
    with pytest.raises(regraft.WeightsError) as caught:
        module.adapter("wrong", wrong, config_of(model))
    found = {problem.name: problem for problem in caught.value.problems}
    factor = "base_model.model.haed.lora_A.weight"
    assert {name: problem.kind for name, problem in found.items()} == {
        "base_model.model.fc.lora_A.weight": "incomplete",
        factor: "unmatched",
        factor.replace("lora_A", "lora_B"): "unmatched",
    }
    assert found[factor].details["suggestion"] == "head" and "did you mean head?" in found[factor].what
    with pytest.raises(regraft.WeightsError, match=r"help: adapter\(\.\.\., alpha=16\) states it") as caught:
        module.adapter("bare", state)
    assert caught.value.cause == "no_scale" and caught.value.problems[0].kind == "no_scale"
    assert "--" not in str(caught.value)
    with pytest.raises(regraft.WeightsError) as caught:
        module.refit(adapters=[(in_memory(module, model), float("inf"))])
    assert str(caught.value).count("\n  help: ") <= 1


def test_a_5_in_memory_without_a_configuration(module: regraft.Module) -> None:
    """Factors alone do not say their alpha: a guess would be a silent wrong scale."""
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    state = get_peft_model_state_dict(model)
    try:
        adapter = module.adapter("bare", state)
    except regraft.WeightsError:
        return
    # As PEFT does without a configuration: alpha is the rank, so the scale is 1.
    module.refit(adapters=[(adapter, 1.0)])
    alone = LoraConfig(r=4, lora_alpha=4, target_modules=["fc", "head"])
    assert_close(called(module, TOKENS), answers(merged(adapted(seeded(Net, 0), alone)), TOKENS))


def test_r_11_frozen_and_stripped_modules(files: Cli) -> None:
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    frozen = regraft.compile(seeded(Net, 0), TOKENS, mode="frozen")
    with pytest.raises(regraft.RegraftError):
        frozen.refit(adapters=[(in_memory(frozen, model), 1.0)])
    stripped = regraft.compile(seeded(Net, 0), TOKENS, mode="stripped")
    with pytest.raises(regraft.RegraftError):
        stripped.refit(adapters=[(in_memory(stripped, model), 1.0)])
    with pytest.raises(regraft.NotBoundError):
        stripped(*TOKENS)
    stripped.refit(seeded(Net, 0).state_dict(), adapters=[(in_memory(stripped, model), 1.0)])
    assert_close(called(stripped, TOKENS), answers(merged(model), TOKENS))


class Cut(Mirrored):
    """Two engines with an operator between them that Regraft has not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(uncompiled(self.a(x)))


def test_a_5_modules_of_several_engines_take_adapters() -> None:
    x = (numbers(2, 8),)
    base = seeded(lambda: Cut("a", "b"), 0)
    module = regraft.compile(base, x, min_block_size=1)
    assert len(module.models) == 2
    before = called(module, x)
    both = adapted(base, LoraConfig(r=2, lora_alpha=3, target_modules=["a", "b"]))
    second = adapted(base, LoraConfig(r=3, target_modules=["b"]), seed=6)
    style, detail = (
        in_memory(module, both),
        module.adapter("detail", get_peft_model_state_dict(second), config_of(second)),
    )
    assert (style.layers, style.sources, detail.layers) == (2, ["a.weight", "b.weight"], 1)
    for scale in (1.0, 0.4):
        report = module.refit(adapters=[(style, scale)])
        assert report.adapters == ((style.name, scale),) and set(report.adapted) == {"a.weight", "b.weight"}
        assert_close(called(module, x), answers(merged(both, scale), x))
    module.refit(adapters=[(detail, 1.0), (style, 1.0)])
    assert_close(called(module, x), answers(sum_of(base, (both, 1.0), (second, 1.0)), x))
    # New weights keep them, and they go without a trace.
    module.refit(seeded(lambda: Cut("a", "b"), 1).state_dict())
    module.refit(base.state_dict(), adapters=[])
    assert_same(called(module, x), before)


def test_a_5_parts_in_pytorch_take_no_adapters() -> None:
    x = (numbers(2, 8),)
    base = seeded(lambda: Cut("a", "b"), 0)
    model = adapted(base, LoraConfig(r=2, target_modules=["a", "b"]))
    one = regraft.compile(base, x, min_block_size=1, torch_executed_ops=("aten.linear",))
    with pytest.raises(regraft.WeightsError, match="stays in PyTorch"):
        in_memory(one, model)
    one.refit(merged(model).state_dict())
    assert_close(called(one, x), answers(merged(model), x))


def test_a_4_what_is_part_of_saved_weights_is_said(module: regraft.Module, tmp_path: Path) -> None:
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    module.refit(adapters=[(in_memory(module, model), 0.5)])
    regraft.save(module, tmp_path / "styled")
    loaded = regraft.load(tmp_path / "styled")
    report = loaded.refit(adapters=[(in_memory(loaded, model), 0.25)])
    assert [scale for _, scale in report.baked] == [0.5] and [scale for _, scale in report.adapters] == [0.25]
    assert_close(called(loaded, TOKENS), answers(merged(model, 0.75), TOKENS))
    # Other weights are without it.
    assert loaded.refit(seeded(Net, 1).state_dict()).baked == ()


def test_values_of_adapters_that_are_no_numbers(module: regraft.Module) -> None:
    model = adapted(seeded(Net, 0), KINDS["lora_linear"])
    state = get_peft_model_state_dict(model)
    name = next(name for name in state if "fc.lora_B" in name)
    state[name] = torch.full_like(state[name], float("nan"))
    adapter = module.adapter("wild", state, config_of(model))
    assert adapter.non_finite == state[name].numel()
    with pytest.raises(regraft.WeightsError, match=r"fc.weight .adapter wild.(.|\n)*infinite"):
        module.refit(adapters=[(adapter, 1.0)], reject_non_finite=True)
    assert module.models[0].adapters == []
    assert module.refit(adapters=[(adapter, 1.0)]).non_finite == (("wild", state[name].numel()),)
