"""`generate()` of language models that are mutable modules: tokens are PyTorch's, and a few programs
make all of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from comparing import assert_close
from models import randomize_
from mutable_checks import Counted
from regraft import MutableModule
from small import numbers

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")


_DECODER: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER))


def qwen() -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_DECODER))


def mistral() -> nn.Module:
    """With a sliding window that generation fills."""
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_DECODER, sliding_window=12))


def gpt2() -> nn.Module:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids)
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=96, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=32,
        max_target_positions=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config)


Build = Callable[[], nn.Module]
BUILDS = (llama, qwen, gpt2, t5, whisper)


def built(build: Build, seed: int = 0) -> Any:
    torch.manual_seed(0)
    return randomize_(build(), seed)


def prompt(model: nn.Module, batch: int = 1, length: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
    if model.config.model_type == "whisper":
        return {"input_features": numbers(batch, 8, 64, seed=seed)}
    ids = torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tokens(model: nn.Module, given: dict[str, torch.Tensor], count: int = 64, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"do_sample": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=regraft.SlowWarning)
        return model.generate(**given, max_new_tokens=count, min_new_tokens=count, **options)


def assert_same_tokens(
    mutable: MutableModule, given: dict[str, torch.Tensor], count: int = 64, **options: Any
) -> None:
    """Compiled, it generates what PyTorch does with the module as it is now."""
    original = MutableModule.module.fget(mutable)
    wanted = tokens(original, given, count, **options)
    found = tokens(mutable, given, count, **options)
    assert torch.equal(found, wanted), f"{found.tolist()}\n{wanted.tolist()}"


def assert_same_tokens_but_for_ties(
    mutable: MutableModule, given: dict[str, torch.Tensor], **options: Any
) -> None:
    """Where tokens part, PyTorch's scores of both may be within the error of bfloat16:
    which one wins there depends on the processor, in PyTorch too.
    """
    original = MutableModule.module.fget(mutable)
    scored = {"return_dict_in_generate": True, "output_logits": True}
    wanted = tokens(original, given, **options, **scored)
    found = tokens(mutable, given, **options, **scored).sequences
    parted = (found != wanted.sequences)[0].nonzero()
    if len(parted):
        place = int(parted[0])
        step = place - (found.shape[1] - len(wanted.logits))
        logits = wanted.logits[step][0].float()
        gap = logits[wanted.sequences[0, place]] - logits[found[0, place]]
        assert gap <= logits.abs().max() / 64, f"{found.tolist()}\n{wanted.sequences.tolist()}"


def assert_all_compiled(mutable: MutableModule) -> None:
    events = mutable.explain().events
    assert not [event for event in events if event.what == "pytorch"], mutable.explain()
    assert all(program.compiled.report().is_whole for program in mutable._regraft_state.entries)


@pytest.mark.parametrize("build", BUILDS)
def test_greedy_with_a_growing_cache(build: Build) -> None:
    mutable = MutableModule(built(build))
    assert_same_tokens(mutable, prompt(mutable))
    assert mutable.recompiles <= 2, mutable.explain()
    assert_all_compiled(mutable)
    counted = Counted(mutable)
    assert_same_tokens(mutable, prompt(mutable, length=9, seed=3), 20)
    assert counted() == (0, 0), "another length is the same program"


@pytest.mark.parametrize("build", BUILDS)
def test_greedy_with_a_static_cache(build: Build) -> None:
    mutable = MutableModule(built(build))
    assert_same_tokens(mutable, prompt(mutable), cache_implementation="static")
    assert mutable.recompiles <= 2, mutable.explain()
    assert_all_compiled(mutable)
    counted = Counted(mutable)
    assert_same_tokens(mutable, prompt(mutable, length=9, seed=3), 20, cache_implementation="static")
    assert counted() == (0, 0), "another length is the same program"


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
@pytest.mark.parametrize("build", BUILDS)
def test_greedy_in_bf16(build: Build, cache: dict[str, Any]) -> None:
    mutable = MutableModule(built(build).to(torch.bfloat16))
    given = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in prompt(mutable).items()
    }
    assert_same_tokens_but_for_ties(mutable, given, **cache)
    assert mutable.recompiles <= 2, mutable.explain()
    assert_all_compiled(mutable)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
def test_beams_and_sampling(cache: dict[str, Any]) -> None:
    mutable = MutableModule(built(llama))
    assert_same_tokens(mutable, prompt(mutable, batch=2), 12, num_beams=3, **cache)
    assert mutable.recompiles <= 2, mutable.explain()
    counted = Counted(mutable)
    assert_same_tokens(
        mutable, prompt(mutable, batch=6), 12, do_sample=True, top_k=20, temperature=0.8, **cache
    )
    assert counted() == (0, 0)


def test_the_programs_of_a_model_share_their_slots(tmp_path: Path) -> None:
    mutable = MutableModule(built(llama))
    given = prompt(mutable)
    for weights in (None, built(llama, 1).state_dict()):
        if weights is not None:
            mutable.load_state_dict(weights)
        assert_same_tokens(mutable, given, 6)
        assert mutable.recompiles == 1
        of_one = mutable.compiled.memory()["slots"]
        # But for a constant or two.
        assert of_one <= mutable.memory()["slots"] <= of_one + 64
        assert mutable.memory()["shared"] >= of_one - 64
    MutableModule.save(mutable, tmp_path / "saved")
    for other in (MutableModule.load(tmp_path / "saved", built(llama, 1)), copy.deepcopy(mutable)):
        assert len(other._regraft_state.entries) == 2
        assert other.memory() == {**mutable.memory(), "free": other.memory()["free"]}
        assert_same_tokens(other, given, 6)
        other.load_state_dict(built(llama).state_dict())
        assert_same_tokens(other, given, 6)
        assert other.recompiles == 0 and other.memory()["slots"] <= of_one + 64
    assert_same_tokens(mutable, given, 6)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["plain", "compiled"])
def test_speculative_decoding(is_compiled: bool) -> None:
    mutable, small = MutableModule(built(llama)), built(llama, 3)
    assistant = MutableModule(small) if is_compiled else small
    given = prompt(mutable)
    wanted = tokens(MutableModule.module.fget(mutable), given, 24, assistant_model=small)
    assert torch.equal(wanted, tokens(MutableModule.module.fget(mutable), given, 24))
    assert torch.equal(tokens(mutable, given, 24, assistant_model=assistant), wanted)
    assert mutable.recompiles <= 2, mutable.explain()
    assert_all_compiled(mutable)
    # The prompt, the check of several tokens, and a single step read the same slots.
    assert len(mutable._regraft_state.entries) >= 2
    assert mutable.memory()["slots"] <= mutable.compiled.memory()["slots"] + 64
    if is_compiled:
        assert_all_compiled(assistant)
        counted = Counted(mutable)
        assert torch.equal(tokens(mutable, given, 24, assistant_model=assistant), wanted)
        assert counted() == (0, 0)


def test_prompts_of_different_lengths_are_padded() -> None:
    mutable = MutableModule(built(llama))
    given = prompt(mutable, batch=2, length=7)
    given["attention_mask"][0, :3] = 0
    assert_same_tokens(mutable, given, 12)
    assert mutable.recompiles <= 2


def test_sliding_windows() -> None:
    mutable = MutableModule(built(mistral))
    assert_same_tokens(mutable, prompt(mutable), 20)
    assert mutable.recompiles <= 4, mutable.explain()
    assert_all_compiled(mutable)


def test_weights_and_adapters_change_between_tokens() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = built(llama)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), model)
    model.eval()
    mutable, ids = MutableModule(model), prompt(model)["input_ids"]
    layers = [module for module in model.modules() if hasattr(module, "scale_layer")]

    def steps(of: nn.Module) -> torch.Tensor:
        """Greedy, with other weights after the third token, and a stronger adapter after the fifth."""
        cache, given, made = transformers.DynamicCache(config=model.config), ids, []
        for step in range(7):
            with torch.no_grad():
                if step == 3:
                    model.lm_head.weight.mul_(-1)
                for layer in layers if step == 5 else ():
                    layer.scale_layer(3.0)
                out = of(input_ids=given, past_key_values=cache, use_cache=True)
            assert out.past_key_values is cache and cache.get_seq_length() == 5 + step
            given = out.logits[:, -1:].argmax(-1)
            made.append(out.logits[:, -1])
        model.lm_head.weight.data.mul_(-1)
        for layer in layers:
            layer.unscale_layer(3.0)
        return torch.stack(made)

    wanted = steps(model)
    assert_close([steps(mutable).numpy()], [wanted.numpy()])
    assert mutable.refits >= 2 and mutable.recompiles == 1


def test_caches_are_those_of_the_caller() -> None:
    mutable = MutableModule(built(llama))
    model, ids = mutable.module, prompt(mutable)["input_ids"]
    with torch.no_grad():
        made = mutable(input_ids=ids).past_key_values
        wanted = model(input_ids=ids).past_key_values
        assert type(made) is transformers.DynamicCache and made.get_seq_length() == 5
        for one, other in zip(made.layers, wanted.layers, strict=True):
            assert vars(one).keys() == vars(other).keys()
            assert_close([one.keys.numpy(), one.values.numpy()], [other.keys.numpy(), other.values.numpy()])
        static = transformers.StaticCache(config=model.config, max_cache_len=16)
        mutable(input_ids=ids, past_key_values=static)
        keys = static.layers[0].keys
        mutable(input_ids=ids[:, :1], past_key_values=static)
        assert static.layers[0].keys is keys, "in place"
        assert static.get_seq_length() == 6 and bool(keys[:, :, 5].any()) and not bool(keys[:, :, 6:].any())


def test_caches_that_no_program_takes() -> None:
    class Own(transformers.DynamicCache):
        pass

    mutable = MutableModule(built(llama))
    ids = prompt(mutable)["input_ids"]
    with torch.no_grad():
        said = "LlamaForCausalLM: PyTorch runs it: a Own is not a cache that programs take"
        with pytest.warns(regraft.FallbackWarning, match=said):
            out = mutable(input_ids=ids, past_key_values=Own(config=mutable.config))
        assert out.past_key_values.get_seq_length() == 5 and mutable.compiled is None


def test_compile_takes_caches(tmp_path: Path) -> None:
    model = built(llama)
    ids = prompt(model)["input_ids"]
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        given = {"input_ids": ids[:, :1], "past_key_values": copy.deepcopy(cache)}
        compiled = regraft.compile(model, kwarg_inputs=given)
        regraft.save(compiled, tmp_path / "step")
        loaded = regraft.load(tmp_path / "step")
        for step in (compiled, loaded):
            mine, theirs = copy.deepcopy(cache), copy.deepcopy(cache)
            for token in (3, 4, 5):
                one = torch.tensor([[token]])
                found = step(input_ids=one, past_key_values=mine)
                wanted = model(input_ids=one, past_key_values=theirs)
                assert_close([found.logits.numpy()], [wanted.logits.numpy()])
            assert found.past_key_values is mine and mine.get_seq_length() == 8
    with pytest.raises(regraft.InputError, match="another structure"):
        compiled(input_ids=ids[:, :1], past_key_values=None)
