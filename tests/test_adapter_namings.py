"""Adapters (A-5): files of one adapter in the namings of several tools, and keys that no tool has."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from adapter_checks import (
    KINDS,
    TOKENS,
    Net,
    adapted,
    assert_refused,
    assert_same_engine,
    merged,
    refit,
    saved,
    with_key,
)
from comparing import assert_close, same
from conftest import Cli
from small import answers, arrays, compile_model, save_state, seeded
from unet_adapters import (
    NAMINGS,
    UNET_CONFIG,
    UNET_INPUTS,
    build_unet,
    diffusers_file,
    kohya_file,
    kohya_file_by_hand,
)


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
