"""Language models of transformers: encoders, decoders with and without a cache, encoders with decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.case import Call, Case, whole
from zoo.small_config import HIDDEN, small

LIBRARY = "transformers"
LENGTH = 10
Entry = tuple[str, str, dict[str, Any]]


def padding_mask(batch: int = 2, length: int = LENGTH) -> Tensor:
    """The second sentence ends three tokens early."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1:, length - 3 :] = 0
    return mask


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return whole(batch, length, least=3, seed=seed)


# ----------------------------------------------------------------------------------------- encoders

# Name of the model's class, of its configuration, and what is not as `small` makes it.
ENCODERS: list[Entry] = [
    ("AlbertModel", "AlbertConfig", {}),
    ("BertForMaskedLM", "BertConfig", {}),
    ("BertForSequenceClassification", "BertConfig", {}),
    ("BertGenerationEncoder", "BertGenerationConfig", {}),
    ("BigBirdModel", "BigBirdConfig", {"attention_type": "original_full"}),
    ("CamembertModel", "CamembertConfig", {}),
    ("ConvBertModel", "ConvBertConfig", {}),
    ("Data2VecTextModel", "Data2VecTextConfig", {}),
    ("DebertaModel", "DebertaConfig", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    ("DebertaV2Model", "DebertaV2Config", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    ("DistilBertForMaskedLM", "DistilBertConfig", {}),
    ("ElectraForPreTraining", "ElectraConfig", {}),
    ("ErnieModel", "ErnieConfig", {}),
    ("EsmModel", "EsmConfig", {"vocab_size": 99, "pad_token_id": 1, "position_embedding_type": "rotary"}),
    ("EuroBertModel", "EuroBertConfig", {}),
    ("FlaubertModel", "FlaubertConfig", {}),
    ("FNetModel", "FNetConfig", {}),
    ("FunnelModel", "FunnelConfig", {"block_sizes": [1, 1], "num_decoder_layers": 1}),
    ("GteModel", "GteConfig", {}),
    ("IBertModel", "IBertConfig", {}),
    ("LongformerModel", "LongformerConfig", {"attention_window": 4}),
    ("LukeModel", "LukeConfig", {}),
    ("MegatronBertModel", "MegatronBertConfig", {}),
    ("MobileBertModel", "MobileBertConfig", {"intra_bottleneck_size": 16, "num_feedforward_networks": 2}),
    ("ModernBertForMaskedLM", "ModernBertConfig", {"local_attention": 8, "num_hidden_layers": 4}),
    ("MPNetModel", "MPNetConfig", {}),
    ("NomicBertModel", "NomicBertConfig", {}),
    ("NystromformerModel", "NystromformerConfig", {"num_landmarks": 10, "segment_means_seq_len": 10}),
    ("RemBertModel", "RemBertConfig", {}),
    ("RobertaModel", "RobertaConfig", {}),
    ("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", {}),
    ("RoFormerModel", "RoFormerConfig", {}),
    ("SqueezeBertModel", "SqueezeBertConfig", {}),
    ("XLMModel", "XLMConfig", {}),
    ("XLMRobertaModel", "XLMRobertaConfig", {}),
    ("XLMRobertaXLModel", "XLMRobertaXLConfig", {}),
    ("XLNetModel", "XLNetConfig", {}),
    ("XmodModel", "XmodConfig", {"default_language": "en_XX"}),
    ("YosoModel", "YosoConfig", {"use_expectation": True}),
]
# Those whose calls take something else than tokens and a mask of padding.
ENCODER_CALLS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "FNetModel": lambda: {"input_ids": tokens()},
    "CanineModel": lambda: {"input_ids": whole(2, 16, below=5000), "attention_mask": padding_mask(2, 16)},
    "LayoutLMModel": lambda: texts() | {"bbox": boxes()},
    "LiltModel": lambda: texts() | {"bbox": boxes()},
    "BrosModel": lambda: texts() | {"bbox": boxes().float() / 64},
    "TapasModel": lambda: texts() | {"token_type_ids": torch.zeros(2, LENGTH, 7, dtype=torch.int64)},
    "LongformerModel": lambda: {"input_ids": tokens(2, 16), "attention_mask": padding_mask(2, 16)},
    "EsmModel": lambda: {"input_ids": tokens(), "attention_mask": padding_mask()},
    "MarkupLMModel": lambda: (
        texts()
        | {
            "xpath_tags_seq": whole(2, LENGTH, 6, below=20),
            "xpath_subs_seq": whole(2, LENGTH, 6, below=20, seed=1),
        }
    ),
    "SplinterModel": lambda: texts(),
}
ENCODERS += [
    ("BrosModel", "BrosConfig", {"hidden_size": 64}),
    ("CanineModel", "CanineConfig", {"num_hash_buckets": 64, "local_transformer_stride": 8}),
    ("LayoutLMModel", "LayoutLMConfig", {}),
    ("LiltModel", "LiltConfig", {"channel_shrink_ratio": 2, "hidden_size": 48}),
    ("MarkupLMModel", "MarkupLMConfig", {"max_depth": 6, "xpath_unit_hidden_size": 8}),
    ("SplinterModel", "SplinterConfig", {}),
    ("TapasModel", "TapasConfig", {"type_vocab_sizes": [3, 16, 16, 2, 16, 16, 10]}),
    ("RoCBertModel", "RoCBertConfig", {"shape_vocab_size": 99, "pronunciation_vocab_size": 99}),
]


def texts() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "attention_mask": padding_mask()}


def boxes() -> Tensor:
    """Left, top, right, bottom: in this order."""
    corners = whole(2, LENGTH, 4, below=64).view(2, LENGTH, 2, 2).sort(dim=2).values
    return corners.view(2, LENGTH, 4).contiguous()


def of(
    model: str, config: str, fixed: dict[str, Any], call: Callable[[], dict[str, Any]]
) -> Callable[[], Call]:
    def make() -> Call:
        import transformers

        return Call(getattr(transformers, model)(small(config, **fixed)), kwargs=call())

    return make


def encoders() -> list[Case]:
    return [
        Case(LIBRARY, "encoder", model, of(model, config, fixed, ENCODER_CALLS.get(model, texts)))
        for model, config, fixed in ENCODERS
    ]


# ----------------------------------------------------------------------------------------- decoders

# Attention heads with one key and value each.
_FULL = {"num_key_value_heads": 4}
_LATENT = {**_FULL, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}

DECODERS: dict[str, dict[str, Any]] = {
    "ApertusConfig": {},
    "ArceeConfig": {},
    "BambaConfig": {"attn_layer_indices": [1]},
    "BioGptConfig": {},
    "BitNetConfig": {},
    "BloomConfig": {"n_head": 4},
    "CodeGenConfig": {},
    "CohereConfig": {},
    "Cohere2Config": {},
    "CTRLConfig": {},
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekV2Config": {**_LATENT, "first_k_dense_replace": 1},
    "DeepseekV3Config": {**_LATENT, "first_k_dense_replace": 1, "n_group": 2},
    "DiffLlamaConfig": {},
    "DogeConfig": {"keep_window_size": 8},
    "Dots1Config": {**_FULL, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "Ernie4_5Config": {},
    "Ernie4_5_MoeConfig": {},
    "Exaone4Config": {"sliding_window": 8, "sliding_window_pattern": 2},
    "FalconConfig": {},
    "FalconH1Config": {"mamba_d_ssm": 64},
    "FalconMambaConfig": {},
    "Gemma2Config": {},
    "Gemma3TextConfig": {},
    "Gemma3nTextConfig": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "altup_num_inputs": 2},
    "GemmaConfig": {},
    "Glm4Config": {},
    "Glm4MoeConfig": {"n_group": 1, "topk_group": 1},
    "GlmConfig": {},
    "GPT2Config": {},
    "GPTBigCodeConfig": {},
    "GPTJConfig": {},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "GPTNeoXConfig": {},
    "GPTNeoXJapaneseConfig": {},
    "GptOssConfig": {},
    "GraniteConfig": {},
    "GraniteMoeConfig": {},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"]},
    "HeliumConfig": {},
    "HunYuanDenseV1Config": {"head_dim": 8},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "JetMoeConfig": {"num_key_value_heads": 2},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Llama4TextConfig": {"interleave_moe_layer_step": 2},
    "LlamaConfig": {},
    "MambaConfig": {},
    "Mamba2Config": {"num_heads": 8, "n_groups": 2},
    "MiniCPM3Config": _LATENT,
    "MiniMaxConfig": {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    "MistralConfig": {},
    "MixtralConfig": {},
    "ModernBertDecoderConfig": {"local_attention": 8, "num_hidden_layers": 4},
    "MptConfig": {},
    "NanoChatConfig": {},
    "NemotronConfig": {},
    "OlmoConfig": {},
    "Olmo2Config": {},
    "Olmo3Config": {},
    "OlmoeConfig": _FULL,
    "OpenAIGPTConfig": {},
    "OPTConfig": {"word_embed_proj_dim": 32},
    "PersimmonConfig": {},
    "Phi3Config": {"original_max_position_embeddings": 64},
    "PhiConfig": {},
    "PhimoeConfig": {},
    "Qwen2Config": {},
    "Qwen2MoeConfig": {},
    "Qwen3Config": {},
    "Qwen3MoeConfig": {},
    "Qwen3NextConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "RecurrentGemmaConfig": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "RwkvConfig": {"attention_hidden_size": 32, "intermediate_size": 48},
    "SeedOssConfig": {},
    "SmolLM3Config": {},
    "StableLmConfig": {},
    "Starcoder2Config": {},
    "VaultGemmaConfig": {},
    "XGLMConfig": {},
    "YoutuConfig": _LATENT,
    "Zamba2Config": {
        "layers_block_type": ["mamba", "hybrid"],
        "use_mamba_kernels": False,
        "n_mamba_heads": 8,
        "num_key_value_heads": 4,
    },
}
# Those that are also run for one token with a cache of those before.
WITH_CACHE = (
    "BloomConfig",
    "CohereConfig",
    "FalconConfig",
    "Gemma2Config",
    "Gemma3TextConfig",
    "GemmaConfig",
    "GlmConfig",
    "GPT2Config",
    "GPTJConfig",
    "GPTNeoXConfig",
    "GptOssConfig",
    "GraniteConfig",
    "LlamaConfig",
    "MistralConfig",
    "MixtralConfig",
    "Olmo2Config",
    "OPTConfig",
    "Phi3Config",
    "PhiConfig",
    "Qwen2Config",
    "Qwen3Config",
    "SmolLM3Config",
    "StableLmConfig",
    "Starcoder2Config",
)
STATIC_CACHE = ("GemmaConfig", "LlamaConfig", "MistralConfig", "Qwen3Config")
_CACHED = 6


def causal(config: str, *, use_cache: bool) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(small(config, use_cache=use_cache, **DECODERS[config])).eval()


def decoder(config: str) -> Callable[[], Call]:
    return lambda: Call(causal(config, use_cache=False), kwargs={"input_ids": tokens()})


def with_cache(config: str) -> Callable[[], Call]:
    def make() -> Call:
        model = causal(config, use_cache=True)
        with torch.no_grad():
            cache = model(input_ids=tokens(2, _CACHED)).past_key_values
        return Call(model, kwargs={"input_ids": tokens(2, 1, seed=1), "past_key_values": cache})

    return make


def static_cache(config: str) -> Callable[[], Call]:
    """The export of transformers for its own static cache, which writes to buffers."""

    def make() -> Call:
        from transformers import GenerationConfig
        from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

        model = causal(config, use_cache=True)
        model.generation_config = GenerationConfig(
            use_cache=True,
            cache_implementation="static",
            max_length=16,
            cache_config={"batch_size": 1, "max_cache_len": 16},
        )
        kwargs = {"input_ids": tokens(1, 1), "cache_position": torch.tensor([0])}
        # As its own convert_and_export_with_cache() does: an object beside the modules has the buffers, too.
        return Call(TorchExportableModuleWithStaticCache(model), kwargs=kwargs, strict=True)

    return make


def decoders() -> list[Case]:
    short = {config: config.removesuffix("Config").removesuffix("Text") for config in DECODERS}
    return [
        *(Case(LIBRARY, "decoder", name, decoder(config)) for config, name in short.items()),
        *(Case(LIBRARY, "decoder with cache", short[config], with_cache(config)) for config in WITH_CACHE),
        *(
            Case(LIBRARY, "decoder with static cache", short[config], static_cache(config))
            for config in STATIC_CACHE
        ),
    ]


# ------------------------------------------------------------------------------- encoders with decoders

ENCODER_DECODERS: list[Entry] = [
    ("BartForConditionalGeneration", "BartConfig", {}),
    ("BigBirdPegasusForConditionalGeneration", "BigBirdPegasusConfig", {"attention_type": "original_full"}),
    ("BlenderbotForConditionalGeneration", "BlenderbotConfig", {}),
    ("BlenderbotSmallForConditionalGeneration", "BlenderbotSmallConfig", {}),
    ("FSMTForConditionalGeneration", "FSMTConfig", {}),
    ("LEDForConditionalGeneration", "LEDConfig", {"attention_window": 4}),
    (
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        {"local_radius": 3, "encoder_attention_type": "local"},
    ),
    ("M2M100ForConditionalGeneration", "M2M100Config", {}),
    ("MarianMTModel", "MarianConfig", {}),
    ("MBartForConditionalGeneration", "MBartConfig", {}),
    ("MT5ForConditionalGeneration", "MT5Config", {}),
    ("MvpForConditionalGeneration", "MvpConfig", {}),
    ("PegasusForConditionalGeneration", "PegasusConfig", {}),
    ("PegasusXForConditionalGeneration", "PegasusXConfig", {"num_global_tokens": 2}),
    ("PLBartForConditionalGeneration", "PLBartConfig", {}),
    ("ProphetNetForConditionalGeneration", "ProphetNetConfig", {}),
    (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    ("T5ForConditionalGeneration", "T5Config", {}),
    ("T5EncoderModel", "T5Config", {"feed_forward_proj": "gated-gelu"}),
    ("T5GemmaForConditionalGeneration", "T5GemmaConfig", {}),
    ("UMT5ForConditionalGeneration", "UMT5Config", {}),
]


def encoder_decoder(model: str, config: str, fixed: dict[str, Any]) -> Callable[[], Call]:
    fixed = {"use_cache": False, **fixed}
    if model == "T5EncoderModel":
        return of(model, config, fixed, texts)
    if config == "T5GemmaConfig":

        def make() -> Call:
            import transformers

            part = small("T5GemmaModuleConfig", use_cache=False).to_dict()
            whole_config = transformers.T5GemmaConfig(
                encoder=part, decoder=part, vocab_size=99, use_cache=False
            )
            return Call(getattr(transformers, model)(whole_config), kwargs=pairs())

        return make
    length = 16 if config == "LEDConfig" else LENGTH
    return of(model, config, fixed, lambda: pairs(length))


def pairs(length: int = LENGTH) -> dict[str, Tensor]:
    return {
        "input_ids": tokens(2, length),
        "attention_mask": padding_mask(2, length),
        "decoder_input_ids": tokens(2, 5, seed=1),
    }


def encoder_decoders() -> list[Case]:
    return [
        Case(
            LIBRARY,
            "encoder-decoder",
            entry[0].removesuffix("ForConditionalGeneration"),
            encoder_decoder(*entry),
        )
        for entry in ENCODER_DECODERS
    ]


def cases() -> list[Case]:
    assert HIDDEN == 32, "sizes above are in its terms"
    return [*encoders(), *decoders(), *encoder_decoders()]
