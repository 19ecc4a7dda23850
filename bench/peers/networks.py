"""The models that engines are compared on, with seeded random weights; MiniLM has its trained ones.

Every model takes tensors and gives tensors, and sizes are fixed, as they are where latency counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from models import build_minilm, calibrate_batch_norms_, images, padding_mask, randomize_, tokens

# Tokens that a cache holds before the step that is measured.
CACHED = 128

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """One model: how to build it with weights number `seed`, and its inputs for a batch."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Inputs]


class First(nn.Module):
    """The first tensor of what a model of transformers or diffusers gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)[0]


class Prefill(nn.Module):
    """The logits after a prompt."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False, logits_to_keep=1).logits


class Step(nn.Module):
    """One token after those in a cache: its logits, and its own keys and values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *cached: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache()
        cache.layers = []
        for keys, values in zip(cached[::2], cached[1::2], strict=True):
            layer = DynamicLayer()
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        logits = self.model(ids, past_key_values=cache, use_cache=True).logits
        new = [kept[:, :, -1:] for layer in cache.layers for kept in (layer.keys, layer.values)]
        return (logits, *new)


def normal(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- images


def vision(constructor: str) -> Network:
    def build(seed: int) -> nn.Module:
        import torchvision

        model = randomize_(getattr(torchvision.models, constructor)(weights=None), seed)
        return calibrate_batch_norms_(model, images(4, seed, 96)).eval()

    return Network(build, lambda batch: (images(batch, 1),))


def vit(seed: int) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return First(randomize_(model, seed)).eval()


def unet(seed: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=32, block_out_channels=(160, 320, 640, 640), attention_head_dim=8, cross_attention_dim=768
    )
    return First(randomize_(model, seed)).eval()


def unet_inputs(batch: int) -> Inputs:
    return normal(batch, 4, 32, 32), torch.tensor(500), normal(batch, 77, 768, seed=2)


# ---------------------------------------------------------------------------------- sound and words


def whisper(seed: int) -> nn.Module:
    """The encoder of Whisper-tiny."""
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        decoder_layers=1,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        attn_implementation="sdpa",
    )
    return First(randomize_(WhisperModel(config).encoder, seed)).eval()


def bert(seed: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return First(randomize_(model, seed)).eval()


def gpt2(seed: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return randomize_(GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")), seed).eval()


def llama(seed: int) -> nn.Module:
    """134 M parameters in the shape of Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        attn_implementation="sdpa",
    )
    return randomize_(LlamaForCausalLM(config), seed).eval()


def words(length: int, vocabulary: int = 30000) -> Callable[[int], Inputs]:
    return lambda batch: (tokens(batch, length, vocabulary, 1),)


def masked_words(batch: int) -> Inputs:
    return tokens(batch, 128, 30000, 1), padding_mask(batch, 128)


def word_and_cache(batch: int) -> Inputs:
    """One token, and the cache of a model of 12 layers with 12 heads of 64."""
    cache = (normal(batch, 12, CACHED, 64, seed=seed, scale=0.5) for seed in range(24))
    return (tokens(batch, 1, 30000, 1), *cache)


# The order in which they are measured.
NETWORKS: dict[str, Network] = {
    "resnet50": vision("resnet50"),
    "mobilenet_v3_large": vision("mobilenet_v3_large"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "convnext_tiny": vision("convnext_tiny"),
    "vit_b_16": Network(vit, lambda batch: (images(batch, 1),)),
    "minilm_128": Network(build_minilm, masked_words),
    "bert_base_128": Network(bert, words(128)),
    "bert_base_16": Network(bert, words(16)),
    "bert_base_384": Network(bert, words(384)),
    "whisper_tiny_encoder": Network(whisper, lambda batch: (normal(batch, 80, 3000),)),
    "unet_half": Network(unet, unet_inputs),
    "gpt2_prefill_128": Network(lambda seed: Prefill(gpt2(seed)), words(128)),
    "gpt2_token": Network(lambda seed: Step(gpt2(seed)), word_and_cache),
    "llama_0.1b_token": Network(lambda seed: Step(llama(seed)), word_and_cache),
}
