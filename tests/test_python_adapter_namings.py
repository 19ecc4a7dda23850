"""Files and state dicts of one adapter of a UNet, in the namings of several tools, through the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

import regraft
from adapter_checks import adapted, config_of, in_memory, merged, saved
from comparing import assert_close, assert_same, same
from conftest import Cli
from module_checks import called
from small import answers
from unet_adapters import NAMINGS, UNET_CONFIG, UNET_INPUTS, build_unet, factors_of, kohya_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path: Path) -> Cli:
    """A folder with new names; no command is run."""
    return Cli(Path("unused"), tmp_path)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build_unet()


@pytest.fixture(scope="module")
def unet_engine(unet: nn.Module) -> regraft.Module:
    return regraft.compile(unet, UNET_INPUTS)


@pytest.fixture(scope="module")
def unet_adapter(unet: nn.Module) -> PeftModel:
    return adapted(unet, UNET_CONFIG)


def test_a_5_files_of_one_adapter_give_the_same_bits(
    files: Cli, unet: nn.Module, unet_engine: regraft.Module, unet_adapter: PeftModel
) -> None:
    before = called(unet_engine, UNET_INPUTS)
    module = unet_engine.fork()
    factors = factors_of(unet_adapter)
    kohya = load_file(kohya_file(files, unet_adapter))
    for scale in (1.0, 0.7):
        module.refit(adapters=[(module.adapter("peft", saved(files, unet_adapter)), scale)])
        wanted = called(module, UNET_INPUTS)
        assert_close(wanted, answers(merged(unet_adapter, scale), UNET_INPUTS))
        assert not same(wanted, before)
        forms = {write.__name__: (write(files, unet_adapter), None) for write in NAMINGS}
        forms["state_dict_of_peft"] = (get_peft_model_state_dict(unet_adapter), config_of(unet_adapter))
        forms["factors"] = (factors, config_of(unet_adapter))
        forms["arrays"] = ({n: t.numpy() for n, t in factors.items()}, config_of(unet_adapter))
        forms["kohya_in_memory"] = (kohya, None)
        for form, (weights, config) in forms.items():
            module.refit(adapters=[])
            assert_same(called(module, UNET_INPUTS), before)
            module.refit(adapters=[(module.adapter(form, weights, config), scale)])
            assert same(called(module, UNET_INPUTS), wanted), form


def test_a_5_every_unmatched_key_is_listed_and_nothing_applied(
    files: Cli, unet_engine: regraft.Module, unet_adapter: PeftModel
) -> None:
    module = unet_engine.fork()
    before = called(module, UNET_INPUTS)
    extra = torch.ones(3, 16)
    factors = {
        **factors_of(unet_adapter),
        "nowhere.lora_A.weight": extra,
        "lost.lora_B.weight": extra.clone(),
    }
    kohya = {
        **load_file(kohya_file(files, unet_adapter)),
        "lora_unet_nowhere.lora_down.weight": extra,
        "lora_unet_lost.lora_up.weight": extra.clone(),
    }
    path = files.path("kohya", ".safetensors")
    save_file(kohya, path)
    for weights, config in ((factors, config_of(unet_adapter)), (kohya, None), (path, None)):
        with pytest.raises(regraft.WeightsError) as caught:
            module.adapter("strange", weights, config)
        assert "nowhere" in str(caught.value) and "lost" in str(caught.value)
    assert module.models[0].adapters == []
    assert_same(called(module, UNET_INPUTS), before)


def test_a_5_dora_as_diffusers_loads_it(unet: nn.Module, unet_engine: regraft.Module) -> None:
    """Factors with norms of outputs, read by diffusers' own loader; it leaves out those of kohya's files."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_k", "to_v"], use_dora=True)
    state = {f"unet.{name}": value for name, value in factors_of(adapted(unet, config)).items()}
    loaded = build_unet()
    found, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(state))
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(found, network_alphas=alphas, unet=loaded)
    module = unet_engine.fork()
    before = called(module, UNET_INPUTS)
    module.refit(adapters=[(module.adapter("style", state), 1.0)])
    assert_close(called(module, UNET_INPUTS), answers(loaded, UNET_INPUTS))
    assert not same(called(module, UNET_INPUTS), before)


def test_a_5_kohya_conversions_of_diffusers_are_read(
    files: Cli, unet_engine: regraft.Module, unet_adapter: PeftModel
) -> None:
    """Converted in memory, without a file; diffusers writes the rank for every alpha."""
    state = convert_state_dict_to_kohya({f"unet.{n}": t for n, t in factors_of(unet_adapter).items()})
    module = unet_engine.fork()
    module.refit(adapters=[(module.adapter("kohya", state), 1.0)])
    found = called(module, UNET_INPUTS)
    # The rank in the place of alpha 5 is a scale of 1 in the place of 5 / 3.
    module.refit(adapters=[(in_memory(module, unet_adapter), 3 / 5)])
    assert_close(called(module, UNET_INPUTS), found)
