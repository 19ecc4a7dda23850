"""Adapters (A): what `regraft refit --adapter` makes of the files of PEFT.

The answers are compared with PyTorch's. Adapters become part of the weights of the engine that is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter_checks import (
    ADAPTER_PARTS,
    KINDS,
    LINEAR,
    TOKENS,
    Net,
    adapted,
    assert_refused,
    assert_same_engine,
    merged,
    refit,
    saved,
    sum_of,
    with_key,
)
from comparing import assert_close, assert_same, same
from conftest import Cli, CommandFailed
from small import answers, arrays, compile_model, numbers, save_state, seeded


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
