"""Adapters (A): what `regraft refit --adapter` makes of the files of PEFT, diffusers and kohya.


The answers are compared with PyTorch's. Adapters become part of the weights of the engine that is written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comparing import assert_close, assert_same, same
from conftest import Cli, CommandFailed
from models import randomize_
from small import Inputs, answers, arrays, compile_model, numbers, save_state, seeded

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


# ------------------------------------------------------------------------------------ kinds of adapters


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_1_adapter_equals_merge(cli: Cli, kind: str) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    before = cli.run(engine, arrays(TOKENS))
    model = adapted(base, KINDS[kind])
    folder = saved(cli, model)

    for scale in (1.0, 0.6, -1.5):
        refitted, report = refit(cli, engine, f"{folder}:{scale}")
        after = cli.run(refitted, arrays(TOKENS))
        assert_close(after, answers(merged(model, scale), TOKENS))
        assert not same(after, before)
        assert report["recomputed_slots"]

    # Without a scale it is 1, and the weights file inside of the folder will do.
    whole, _ = refit(cli, engine, folder)
    assert_close(cli.run(whole, arrays(TOKENS)), answers(merged(model), TOKENS))
    by_file, _ = refit(cli, engine, folder / "adapter_model.safetensors")
    assert_same_engine(cli, by_file, whole)

    # What was merged goes by giving the weights that were there before.
    back, _ = cli.refit(whole, save_state(cli, base.state_dict()))
    assert_same(cli.run(back, arrays(TOKENS)), before)
    assert back.read_bytes() == engine.read_bytes()


def test_a_1_nothing_of_an_adapter_at_scale_0(cli: Cli) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    folder = saved(cli, adapted(base, KINDS["lora_all"]))
    refitted, _ = refit(cli, engine, f"{folder}:0")
    assert_same(cli.run(refitted, arrays(TOKENS)), cli.run(engine, arrays(TOKENS)))


def test_a_1_adapter_on_new_weights(cli: Cli) -> None:
    """Weights and an adapter in one refit: the adapter is computed from the new weights, magnitudes too."""
    first, second = seeded(Net, 0), seeded(Net, 1)
    engine = compile_model(cli, first, TOKENS)
    state = save_state(cli, second.state_dict())
    for kind in ("lora_all", "dora"):
        model = adapted(second, KINDS[kind])
        at_once, _ = refit(cli, engine, saved(cli, model), weights=state)
        assert_close(cli.run(at_once, arrays(TOKENS)), answers(merged(model), TOKENS))
        in_steps, _ = refit(cli, cli.refit(engine, state)[0], saved(cli, model))
        assert_same_engine(cli, at_once, in_steps)
        built = compile_model(cli, second, TOKENS)
        assert_same_engine(cli, at_once, refit(cli, built, saved(cli, model))[0])


def test_a_1_close_to_a_build_of_the_merged_weights(cli: Cli) -> None:
    base = seeded(Net, 0)
    model = adapted(base, KINDS["lora_all"])
    refitted, _ = refit(cli, compile_model(cli, base, TOKENS), saved(cli, model))
    built = compile_model(cli, merged(model), TOKENS)
    assert_close(cli.run(refitted, arrays(TOKENS)), cli.run(built, arrays(TOKENS)))


def test_a_1_file_in_16_bits(cli: Cli) -> None:
    """Trained factors are often saved in half precision: they are widened, not computed with in 16 bits."""
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    for dtype in (torch.float16, torch.bfloat16):
        model = adapted(base, KINDS["lora_all"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(parameter.to(dtype))
        folder = saved(cli, model)
        file = folder / "adapter_model.safetensors"
        save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
        refitted, _ = refit(cli, engine, folder)
        assert_close(cli.run(refitted, arrays(TOKENS)), answers(merged(model), TOKENS))


def test_a_1_folder_with_a_pickle(cli: Cli) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    model = adapted(base, KINDS["lora_all"])
    folder = saved(cli, model)
    file = folder / "adapter_model.safetensors"
    wanted, _ = refit(cli, engine, folder)
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    refitted, _ = refit(cli, engine, folder)
    assert refitted.read_bytes() == wanted.read_bytes()


def perturbed(model: PeftModel) -> PeftModel:
    """Everything that is trained beside the factors moved a little, too."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.requires_grad and not any(part in name for part in ADAPTER_PARTS):
                parameter.add_(numbers(*parameter.shape, seed=number) * 0.1)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["fc"], modules_to_save=["head"]),
        LoraConfig(r=2, target_modules=["fc"], bias="lora_only"),
        LoraConfig(r=2, target_modules=["fc"], bias="all"),
        LoraConfig(r=2, target_modules=["fc"], trainable_token_indices={"embedding": [3, 19]}),
    ],
    ids=["modules_to_save", "bias_of_lora", "all_biases", "tokens"],
)
def test_a_1_whole_tensors_come_with_the_adapter(cli: Cli, config: PeftConfig) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    model = perturbed(adapted(base, config))
    refitted, _ = refit(cli, engine, saved(cli, model))
    assert_close(cli.run(refitted, arrays(TOKENS)), answers(model, TOKENS))


def test_a_1_a_copy_of_the_embedding_beside_its_adapter(cli: Cli) -> None:
    """PEFT saves it where the vocabulary could have been resized; another size is refused with both."""
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    model = adapted(base, LoraConfig(r=2, target_modules=["embedding"]))
    folder = cli.path("adapter")
    model.save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_model.safetensors"
    key = "base_model.model.embedding.base_layer.weight"
    with_key(file, file, key, base.embedding.weight.detach().clone())
    refitted, _ = refit(cli, engine, folder)
    assert_close(cli.run(refitted, arrays(TOKENS)), answers(model, TOKENS))
    with_key(file, file, key, torch.zeros(21, 36))
    assert_refused(cli, engine, folder, "has 21 rows, and the engine's embedding.weight has 20")


class TiedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


@pytest.mark.parametrize("target", ["embed", "head"])
def test_a_1_an_adapter_of_a_tied_module_leaves_the_other_alone(cli: Cli, target: str) -> None:
    base = seeded(TiedNet, 0)
    tokens = (torch.tensor([[3, 0, 8]]),)
    engine = compile_model(cli, base, tokens)
    model = adapted(base, LoraConfig(r=2, lora_alpha=6, target_modules=[target]))
    refitted, _ = refit(cli, engine, saved(cli, model))
    assert_close(cli.run(refitted, arrays(tokens)), answers(model, tokens))


def test_a_1_a_scale_that_nothing_says_is_stated(cli: Cli) -> None:
    """PEFT's tensors without their configuration are refused, and never taken for a scale of 1."""
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    model = adapted(base, LoraConfig(r=2, lora_alpha=32, target_modules=LINEAR))
    folder = saved(cli, model)
    style = cli.path("style", ".safetensors")
    save_file(load_file(folder / "adapter_model.safetensors"), style)
    assert_refused(cli, engine, style, "nothing says its scale(.|\n)*--adapter-alpha")
    wanted, _ = refit(cli, engine, folder)
    renamed = (folder / "adapter_model.safetensors").rename(folder / "style.safetensors")
    assert_same_engine(cli, refit(cli, engine, renamed)[0], wanted)
    config = (folder / "adapter_config.json").rename(cli.path("config", ".json"))
    for option in (["--adapter-alpha", "32"], ["--adapter-config", str(config)]):
        stated = cli.path("stated", ".rgf")
        cli.call("refit", engine, "--adapter", style, *option, "-o", stated)
        assert_same_engine(cli, stated, wanted)


def test_a_1_initialisations_that_change_the_base_are_refused(cli: Cli) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    config = LoraConfig(r=2, target_modules=["fc"], init_lora_weights="pissa")
    assert_refused(cli, engine, saved(cli, adapted(base, config)), "init_lora_weights")


def test_a_1_grouped_convolutions_are_refused(cli: Cli) -> None:
    """PEFT's factors for them mix the groups, so that no weight of the layer is their sum with it."""
    base = seeded(lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), 0)
    engine = compile_model(cli, base, (numbers(1, 4, 5, 5),))
    with pytest.warns(UserWarning, match="Merging is not supported"):
        model = adapted(base, LoraConfig(r=2, target_modules=["0"]))
    assert_refused(cli, engine, saved(cli, model), "0.lora_[AB].weight")


# ------------------------------------------------------------------------------------- several adapters


def sum_of(base: nn.Module, *parts: tuple[PeftModel, float]) -> nn.Module:
    """The base with the differences that each adapter makes, scaled; computed in float64."""
    total = copy.deepcopy(base)
    state = {name: value.double() for name, value in base.state_dict().items()}
    for model, scale in parts:
        for name, value in merged(model).state_dict().items():
            state[name] += scale * (value.double() - base.state_dict()[name].double())
    total.load_state_dict({name: value.float() for name, value in state.items()})
    return total


PAIRS: dict[str, tuple[PeftConfig, PeftConfig]] = {
    "same_layers": (LoraConfig(r=4, target_modules=LINEAR), LoraConfig(r=4, target_modules=LINEAR)),
    # neither the layers nor the ranks of one say anything about the other's.
    "other_layers_and_ranks": (
        KINDS["lora_all"],
        LoraConfig(r=9, lora_alpha=2, target_modules=["fc", "point"]),
    ),
    "other_kinds": (KINDS["loha"], KINDS["lokr"]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_3_two_adapters_in_either_order(cli: Cli, pair: str) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    first, second = (adapted(base, config, seed) for seed, config in enumerate(PAIRS[pair], 10))
    style, detail = f"{saved(cli, first, 'style')}:0.3", f"{saved(cli, second, 'detail')}:0.7"

    one, _ = refit(cli, engine, style, detail)
    other, _ = refit(cli, engine, detail, style)
    assert one.read_bytes() == other.read_bytes()
    outputs = cli.run(one, arrays(TOKENS))
    assert_same(outputs, cli.run(other, arrays(TOKENS)))
    assert_close(outputs, answers(sum_of(base, (first, 0.3), (second, 0.7)), TOKENS))


def test_a_3_adapters_of_the_same_file_name(cli: Cli) -> None:
    """`a/pytorch_lora_weights.safetensors` and `b/pytorch_lora_weights.safetensors` are two adapters."""
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    models = [adapted(base, KINDS["lora_linear"], seed) for seed in (1, 2)]
    paths = []
    for number, model in enumerate(models):
        folder = cli.path(f"of-{number}")
        model.save_pretrained(folder / "same")
        paths.append(folder / "same")
    refitted, _ = refit(cli, engine, *paths)
    wanted = answers(sum_of(base, *((model, 1.0) for model in models)), TOKENS)
    assert_close(cli.run(refitted, arrays(TOKENS)), wanted)


# ----------------------------------------------------------------------------------- namings of a UNet


class Unet(UNet2DConditionModel):
    """Tensors in, tensors out, as in a pipeline's inner loop."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return super().forward(sample, timestep, encoder_hidden_states, return_dict=False)[0]


UNET_INPUTS: Inputs = (numbers(1, 4, 16, 16), torch.tensor([7]), numbers(1, 5, 32, seed=1))
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "conv_shortcut", "proj_in"]
UNET_CONFIG = LoraConfig(r=3, lora_alpha=5, target_modules=UNET_TARGETS)


def build_unet() -> Unet:
    unet = Unet(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return randomize_(unet, 0)


def factors_of(model: PeftModel) -> dict[str, Tensor]:
    """By the names that the modules have in the UNet: `conv_in.lora_A.weight`."""
    state = get_peft_model_state_dict(model)
    return {name.removeprefix("base_model.model."): value.contiguous() for name, value in state.items()}


def diffusers_file(cli: Cli, model: PeftModel) -> Path:
    folder = cli.path("diffusers")
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder, unet_lora_layers=factors_of(model), unet_lora_adapter_metadata=plain(UNET_CONFIG)
    )
    return folder / "pytorch_lora_weights.safetensors"


def plain(config: PeftConfig) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, set) else v for name, v in config.to_dict().items()}


def unet_adapter_file(cli: Cli, model: PeftModel) -> Path:
    """What the UNet itself saves, which names no component."""
    folder = cli.path("unet")
    unet = build_unet()
    unet.add_adapter(UNET_CONFIG)
    set_peft_model_state_dict(unet, factors_of(model))
    unet.save_lora_adapter(folder)
    return folder / "pytorch_lora_weights.safetensors"


def kohya_file(cli: Cli, model: PeftModel) -> Path:
    state = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in factors_of(model).items()})
    # diffusers writes the rank for every alpha.
    alpha = torch.tensor(float(UNET_CONFIG.lora_alpha))
    state = {name: alpha.clone() if name.endswith(".alpha") else value for name, value in state.items()}
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in state
    path = cli.path("kohya", ".safetensors")
    save_file(state, path)
    return path


def kohya_file_by_hand(cli: Cli, model: PeftModel) -> Path:
    """The alpha beside each pair of factors, and a pickle in place of safetensors."""
    state = {}
    for name, value in factors_of(model).items():
        module, _, part = name.partition(".lora_")
        flat = f"lora_unet_{module.replace('.', '_')}"
        state[f"{flat}.{'lora_down' if part == 'A.weight' else 'lora_up'}.weight"] = value
        state[f"{flat}.alpha"] = torch.tensor(float(UNET_CONFIG.lora_alpha))
    return save_state(cli, state)


NAMINGS: list[Callable[[Cli, PeftModel], Path]] = [
    saved,
    diffusers_file,
    unet_adapter_file,
    kohya_file,
    kohya_file_by_hand,
]


def test_a_5_namings_of_one_adapter(cli: Cli) -> None:
    unet = build_unet()
    engine = compile_model(cli, unet, UNET_INPUTS)
    before = cli.run(engine, arrays(UNET_INPUTS))
    assert_close(before, answers(unet, UNET_INPUTS))
    model = adapted(unet, UNET_CONFIG)

    for scale in (1.0, 0.7):
        wanted = answers(merged(model, scale), UNET_INPUTS)
        files: dict[str, Path] = {}
        for write in NAMINGS:
            refitted, _ = refit(cli, engine, f"{write(cli, model)}:{scale}")
            outputs = cli.run(refitted, arrays(UNET_INPUTS))
            assert_close(outputs, wanted)
            assert not same(outputs, before)
            files[write.__name__] = refitted
        for other in files.values():
            assert_same_engine(cli, other, files["saved"])


def test_a_5_kohya_names_of_the_original_blocks(cli: Cli) -> None:
    """`input_blocks_3_1` for `down_blocks_1_attentions_0`, as in files for Stable Diffusion's own code."""
    blocks = {
        "down_blocks_1_attentions_0": "input_blocks_3_1",
        "mid_block_attentions_0": "middle_block_1",
        "up_blocks_0_attentions_0": "output_blocks_0_1",
        "up_blocks_0_attentions_1": "output_blocks_1_1",
    }
    unet = build_unet()
    engine = compile_model(cli, unet, UNET_INPUTS)
    attention = LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in"])
    model = adapted(unet, attention)
    renamed = {}
    for name, value in torch.load(kohya_file_by_hand(cli, model)).items():
        for ours, theirs in blocks.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    assert not any("attentions" in name for name in renamed)
    refitted, _ = refit(cli, engine, save_state(cli, renamed))
    by_peft, _ = refit(cli, engine, saved(cli, model))
    assert_same_engine(cli, refitted, by_peft)


def test_a_5_keys_of_a_text_encoder_are_left_aside(cli: Cli) -> None:
    """A file for a whole pipeline, applied to its UNet alone."""
    unet = build_unet()
    engine = compile_model(cli, unet, UNET_INPUTS)
    model = adapted(unet, UNET_CONFIG)
    state = load_file(kohya_file(cli, model))
    for part, value in {
        "lora_down.weight": torch.ones(3, 32),
        "lora_up.weight": torch.ones(32, 3),
        "alpha": torch.tensor(1.0),
    }.items():
        state[f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{part}"] = value
    path = cli.path("pipeline", ".safetensors")
    save_file(state, path)
    refitted, _ = refit(cli, engine, path)
    assert_same_engine(cli, refitted, refit(cli, engine, saved(cli, model))[0])


def with_key(source: Path, target: Path, key: str, value: Tensor) -> Path:
    save_file({**load_file(source), key: value}, target)
    return target


def test_a_5_unknown_keys_are_listed(cli: Cli) -> None:
    unet = build_unet()
    engine = compile_model(cli, unet, UNET_INPUTS)
    model = adapted(unet, UNET_CONFIG)
    extra = torch.ones(3, 32)
    strangers = {
        diffusers_file: "unet.conv_nowhere.lora_A.weight",
        kohya_file: "lora_unet_conv_nowhere.lora_down.weight",
    }
    for write, key in strangers.items():
        path = with_key(write(cli, model), cli.path("stranger", ".safetensors"), key, extra)
        assert_refused(cli, engine, path, key)
    folder = saved(cli, model)
    file = folder / "adapter_model.safetensors"
    for key in ("base_model.model.conv_nowhere.lora_A.weight", "base_model.model.conv_in.strange"):
        copied = cli.path("stranger")
        copied.mkdir()
        (copied / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        with_key(file, copied / "adapter_model.safetensors", key, extra)
        assert_refused(cli, engine, copied, key)


def test_a_5_every_problem_is_listed(cli: Cli) -> None:
    """A factor without the other, one of a wrong shape, and a module that is not there: one message."""
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    folder = saved(cli, adapted(base, KINDS["lora_linear"]))
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    prefix = "base_model.model"
    del state[f"{prefix}.fc.lora_B.weight"]
    state[f"{prefix}.head.lora_A.weight"] = torch.ones(4, 23)
    state[f"{prefix}.haed.lora_A.weight"] = torch.ones(4, 24)
    save_file(state, file)
    assert_refused(cli, engine, folder, "fc.lora_A.weight")
    assert_refused(cli, engine, folder, "head.lora_A.weight")
    assert_refused(cli, engine, folder, "haed.lora_A.weight")


# --------------------------------------------------------------------------- weights fused with others


def test_a_7_queries_keys_and_values_joined(cli: Cli) -> None:
    from transformers import BertConfig, BertModel

    class Bert(BertModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            return output.last_hidden_state, output.pooler_output

    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        attn_implementation="sdpa",
    )
    base = randomize_(Bert(config), 0)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    inputs = (torch.arange(18).view(2, 9) * 7 % 50, mask)
    engine = compile_model(cli, base, inputs)
    for targets in (["query", "value"], ["key"], ["query", "key", "value", "dense", "word_embeddings"]):
        model = adapted(base, LoraConfig(r=4, lora_alpha=6, target_modules=targets))
        refitted, report = refit(cli, engine, saved(cli, model))
        assert_close(cli.run(refitted, arrays(inputs)), answers(merged(model), inputs))
        if targets == ["key"]:
            sources = [slot["sources"] for slot in report["recomputed_slots"]]
            assert sources and all(any(".key." in name for name in names) for names in sources)


def test_a_7_gpt2_stored_transposed_split_and_tied(cli: Cli) -> None:
    """Weights stored as [in, out], one of them split into three; the embedding is the output layer, too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    class Gpt2(GPT2LMHeadModel):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids=input_ids, use_cache=False).logits

    config = GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        use_cache=False,
        attn_implementation="sdpa",
    )
    base = randomize_(Gpt2(config), 0)
    inputs = (torch.arange(14).view(2, 7) * 11 % 40,)
    engine = compile_model(cli, base, inputs)
    for settings in (
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
        {"target_modules": ["wte", "wpe"]},
    ):
        model = adapted(base, LoraConfig(r=4, lora_alpha=6, **settings))
        refitted, _ = refit(cli, engine, saved(cli, model))
        # Not merged: PEFT would merge an adapter of the embedding into the output layer, too.
        assert_close(cli.run(refitted, arrays(inputs)), answers(model, inputs))


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


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_7_batch_norms_folded(cli: Cli, kind: str) -> None:
    targets = ["conv1", "conv2"]
    config = {
        "lora": LoraConfig(r=3, lora_alpha=4, target_modules=targets),
        "dora": LoraConfig(r=3, lora_alpha=4, target_modules=targets, use_dora=True),
        "loha": LoHaConfig(r=3, alpha=4, target_modules=targets),
        "lokr": LoKrConfig(r=2, alpha=4, target_modules=targets),
    }[kind]
    base = seeded(Folded, 0)
    inputs = (numbers(2, 3, 8, 8),)
    model = adapted(base, config)
    engine = compile_model(cli, base, inputs)
    for scale in (1.0, 0.4):
        refitted, _ = refit(cli, engine, f"{saved(cli, model)}:{scale}")
        assert_close(cli.run(refitted, arrays(inputs)), answers(merged(model, scale), inputs))


# ------------------------------------------------------------------------------- verification and refusals


def npz(cli: Cli, inputs: Mapping[str, np.ndarray]) -> Path:
    path = cli.path("inputs", ".npz")
    np.savez(path, **inputs)
    return path


def test_r_16_verified_refits(cli: Cli) -> None:
    """With weights, with an adapter, and with both; inputs by name and in order."""
    first, second = seeded(Net, 0), seeded(Net, 1)
    engine = compile_model(cli, first, TOKENS)
    by_name = npz(cli, {"tokens": TOKENS[0].numpy()})
    by_number = npz(cli, {"arr_0": TOKENS[0].numpy()})
    state = save_state(cli, second.state_dict())
    folder = saved(cli, adapted(first, KINDS["lora_all"]))
    for inputs, changes in [
        (by_name, ["--weights", state]),
        (by_number, ["--adapter", f"{folder}:0.5"]),
        (by_name, ["--weights", state, "--adapter", folder]),
    ]:
        verified, plain_one = cli.path("verified", ".rgf"), cli.path("plain", ".rgf")
        said = cli.call("refit", engine, *changes, "--verify", inputs, "-o", verified)
        assert "verified" in said and "largest difference" in said
        facts = json.loads(cli.call("refit", engine, *changes, "--verify", inputs, "-o", verified, "--json"))
        assert facts["verification"]["outputs"] == 1 and facts["verification"]["slots"] > 0
        cli.call("refit", engine, *changes, "-o", plain_one)
        assert verified.read_bytes() == plain_one.read_bytes()


def test_r_16_inputs_that_do_not_fit(cli: Cli) -> None:
    model = seeded(Net, 0)
    engine = compile_model(cli, model, TOKENS)
    state = save_state(cli, seeded(Net, 1).state_dict())
    wrong = npz(cli, {"tokns": TOKENS[0].numpy()})
    output = cli.path("unverified", ".rgf")
    with pytest.raises(CommandFailed, match=r"exit status 1\n(.|\n)*tokens *missing(.|\n)*tokns *unknown"):
        cli.call("refit", engine, "--weights", state, "--verify", wrong, "-o", output)
    assert not output.exists()


@pytest.mark.parametrize("mode", ["frozen", "stripped"])
def test_r_11_adapters_need_weights_that_can_change(cli: Cli, mode: str) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS, mode)
    content = engine.read_bytes()
    folder = saved(cli, adapted(base, KINDS["lora_linear"]))
    advice = {"frozen": "frozen(.|\n)*--mode refittable", "stripped": "stripped(.|\n)*regraft bind"}[mode]
    assert_refused(cli, engine, folder, advice)
    assert engine.read_bytes() == content


def test_r_11_adapter_files_that_are_not_there_or_none(cli: Cli) -> None:
    engine = compile_model(cli, seeded(Net, 0), TOKENS)
    assert_refused(cli, engine, cli.folder / "nowhere.safetensors", "nowhere.safetensors")
    text = cli.path("text", ".safetensors")
    text.write_text("no adapter")
    assert_refused(cli, engine, text, "text")
    # Weights are not an adapter.
    weights = cli.path("weights", ".safetensors")
    save_file(seeded(Net, 1).state_dict(), weights)
    assert_refused(cli, engine, weights, "fc.weight")


def test_r_10_adapter_changes_only_its_layers(cli: Cli) -> None:
    base = seeded(Net, 0)
    engine = compile_model(cli, base, TOKENS)
    refitted, report = refit(cli, engine, saved(cli, adapted(base, LoraConfig(r=2, target_modules=["head"]))))
    assert [slot["sources"] for slot in report["recomputed_slots"]] == [["head.weight"]]
    differences = cli.call("diff", engine, refitted)
    assert "head.weight" in differences and "fc.weight" not in differences
