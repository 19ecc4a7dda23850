"""Small configurations of transformers: what a family's configuration has, with small sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

VOCABULARY = 99
HIDDEN, HEADS, LAYERS = 32, 4, 2

# By the names that configurations have for them: what is larger becomes this.
_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input entity_vocab_size",
    64: "max_position_embeddings n_positions n_ctx max_encoder_position_embeddings "
    "max_decoder_position_embeddings max_2d_position_embeddings context_length max_seq_len "
    "max_source_positions max_target_positions",
    48: "intermediate_size ffn_dim d_ff dff d_inner hidden_dim encoder_ffn_dim decoder_ffn_dim mlp_dim "
    "encoder_feedforward_dim dim_feedforward ffn_hidden_size dim_ff",
    HIDDEN: "hidden_size d_model n_embd emb_dim dim embedding_size input_embedding_size "
    "output_embedding_size "
    "entity_emb_size embed_dim encoder_hidden_size image_size decoder_hidden_size visual_embedding_dim",
    16: "projection_dim moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "project_dim image_text_hidden_size classifier_proj_size intermediate_size_mlp num_conv_pos_embeddings "
    "expert_capacity",
    8: "head_dim d_kv d_head dim_head patch_size kv_lora_rank q_lora_rank v_head_dim sliding_window "
    "query_pre_attn_scalar state_size mamba_d_state mamba_chunk_size chunk_size hidden_size_per_layer_input "
    "mamba_n_heads attention_window local_attention_window_len kv_channels linear_key_head_dim "
    "linear_value_head_dim laurel_rank mamba_d_head attention_chunk_size block_size",
    6: "num_queries",
    HEADS: "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads qk_rope_head_dim "
    "qk_nope_head_dim rotary_dim num_experts num_local_experts n_routed_experts moe_num_experts "
    "encoder_num_attention_heads decoder_num_attention_heads linear_num_value_heads "
    "speech_encoder_attention_heads num_query_tokens",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_key_value_heads num_kv_heads num_experts_per_tok moe_k num_codevector_groups "
    "encoder_num_hidden_layers decoder_num_hidden_layers num_conv_pos_embedding_groups linear_num_key_heads "
    "decoder_num_hidden_layers n_group topk_group speech_encoder_layers",
    1: "num_kv_shared_layers first_k_dense_replace n_shared_experts num_mtp_layers",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
# Tokens with a meaning; others are the last of the vocabulary, one after the other.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def small(config: str, **fixed: Any) -> Any:
    """An instance of a configuration class of transformers, small where ``fixed`` does not say otherwise."""
    import transformers

    kind = getattr(transformers, config)
    values: dict[str, Any] = {}
    last = VOCABULARY
    for field in dataclasses.fields(kind):
        name, default = field.name, field.default
        if name in fixed or type(default) is not int:
            if name in ("num_key_value_heads", "num_kv_heads") and default is None and name not in fixed:
                values[name] = LAYERS
            continue
        if name in _SMALL:
            values[name] = min(default, _SMALL[name])
        elif name.endswith(("_token_id", "_token_index")) and default >= VOCABULARY:
            if name not in _TOKENS:
                last -= 1
            values[name] = _TOKENS.get(name, last)
    return kind(**{**values, **fixed})
