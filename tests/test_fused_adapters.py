"""Adapters (A-7): of weights that are joined, split, tied, stored transposed or folded into others."""

from __future__ import annotations

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig
from torch import Tensor

from adapter_checks import Folded, adapted, merged, refit, saved
from comparing import assert_close
from conftest import Cli
from models import randomize_
from small import answers, arrays, compile_model, numbers, seeded


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
