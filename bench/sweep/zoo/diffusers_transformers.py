"""Transformers of diffusers for pictures, films and sound."""

from __future__ import annotations

import torch

from zoo.case import numbers
from zoo.diffusers_inputs import (
    FLUX,
    SD3,
    STEPS,
    Entry,
    both,
    latent,
    rotary,
)

_CHROMA = {name: value for name, value in FLUX.items() if name != "pooled_projection_dim"}
_SIZES = {name: torch.tensor([[16.0, 16.0]] * 2) for name in ("original_size", "target_size", "crop_coords")}
_ADA = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2, "sample_size": 8}

TRANSFORMERS: list[Entry] = [
    (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        latent(2, 4, 16, 16, prompt=(2, 7, 32)),
    ),
    (
        "ChromaTransformer2DModel",
        {
            **_CHROMA,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        both(latent(1, 16, 4, prompt=(1, 7, 32)), rotary(16, 7)),
    ),
    (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 8,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            # The frames that two latent ones stand for: for other sizes than these forward() makes positions
            # that it writes to a tensor's .data, which torch.export does not trace.
            "sample_frames": 5,
            "max_text_seq_length": 8,
        },
        latent(2, 2, 4, 8, 8, prompt=(2, 8, 8)),
    ),
    (
        "CogView3PlusTransformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 2,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        both(latent(2, 4, 8, 8, prompt=(2, 8, 8)), lambda: _SIZES),
    ),
    (
        "CogView4Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 4,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        both(latent(2, 4, 8, 8, prompt=(2, 8, 8)), lambda: _SIZES),
    ),
    (
        "DiTTransformer2DModel",
        {
            **_ADA,
            "in_channels": 4,
            "out_channels": 8,
            "num_embeds_ada_norm": 8,
        },
        lambda: {
            "hidden_states": numbers(2, 4, 8, 8),
            "timestep": STEPS,
            "class_labels": torch.tensor([3, 5]),
        },
    ),
    (
        "FluxTransformer2DModel",
        FLUX,
        both(
            both(latent(1, 16, 4, prompt=(1, 7, 32)), rotary(16, 7)),
            lambda: {"pooled_projections": numbers(1, 32)},
        ),
    ),
    (
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
        },
        both(
            latent(1, 4, 1, 8, 8, prompt=(1, 7, 16)),
            lambda: {
                "pooled_projections": numbers(1, 8),
                "guidance": torch.tensor([1000.0]),
                "encoder_attention_mask": torch.ones(1, 7, dtype=torch.int64),
            },
        ),
    ),
    (
        "LatteTransformer3DModel",
        {
            **_ADA,
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 16,
            "out_channels": 8,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "video_length": 2,
        },
        latent(2, 4, 2, 8, 8, prompt=(2, 5, 8)),
    ),
    (
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "num_layers": 1,
            "caption_channels": 16,
        },
        both(
            latent(2, 32, 4, prompt=(2, 7, 16)),
            lambda: {
                "encoder_attention_mask": torch.ones(2, 7, dtype=torch.int64),
                "num_frames": 2,
                "height": 4,
                "width": 4,
            },
        ),
    ),
    (
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 16,
        },
        both(
            latent(2, 4, 2, 8, 8, prompt=(2, 16, 16)),
            # Tokens of a prompt that is shorter, and of one with holes.
            lambda: {
                "encoder_attention_mask": torch.stack([torch.arange(16) < 11, torch.arange(16) % 3 > 0])
            },
        ),
    ),
    (
        "PixArtTransformer2DModel",
        {
            **_ADA,
            "in_channels": 4,
            "cross_attention_dim": 16,
            "caption_channels": 8,
        },
        latent(2, 4, 8, 8, prompt=(2, 5, 8)),
    ),
    (
        "PriorTransformer",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 2,
            "embedding_dim": 8,
            "num_embeddings": 7,
        },
        lambda: {
            "hidden_states": numbers(2, 8),
            "timestep": STEPS,
            "proj_embedding": numbers(2, 8, seed=1),
            "encoder_hidden_states": numbers(2, 7, 8, seed=2),
        },
    ),
    (
        "QwenImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        both(
            latent(1, 16, 16, prompt=(1, 7, 16), step=torch.tensor([0.7])),
            lambda: {
                "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.int64),
                "img_shapes": [[(1, 4, 4)]],
            },
        ),
    ),
    (
        "SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": 8,
            "sample_size": 8,
        },
        latent(2, 4, 8, 8, prompt=(2, 5, 8)),
    ),
    (
        "SD3Transformer2DModel",
        {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        both(latent(2, 4, 16, 16, prompt=(2, 7, 32)), lambda: {"pooled_projections": numbers(2, 16)}),
    ),
    (
        "StableAudioDiTModel",
        {
            "sample_size": 4,
            "in_channels": 3,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 2,
            "out_channels": 3,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 8,
            "cross_attention_input_dim": 16,
        },
        both(
            latent(2, 3, 8, prompt=(2, 5, 16)),
            lambda: {
                "global_hidden_states": numbers(2, 1, 8),
                "rotary_embedding": (numbers(9, 4), numbers(9, 4, seed=1)),
            },
        ),
    ),
    (
        "Transformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 16,
            "norm_num_groups": 8,
            "cross_attention_dim": 16,
        },
        lambda: {"hidden_states": numbers(2, 16, 8, 8), "encoder_hidden_states": numbers(2, 5, 16, seed=1)},
    ),
    (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        latent(1, 4, 2, 8, 8, prompt=(1, 7, 16)),
    ),
]
