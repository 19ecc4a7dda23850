"""UNets of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import numbers, whole
from zoo.diffusers_inputs import (
    COND,
    DOWN_UP,
    DOWN_UP_3D,
    STEPS,
    TWO,
    Arguments,
    Entry,
    both,
    noise,
)

UNETS: list[Entry] = [
    (
        "UNet1DModel",
        {
            "sample_size": 128,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 16, 32),
            "time_embedding_type": "positional",
            "use_timestep_embedding": True,
            "act_fn": "silu",
            "down_block_types": ("DownBlock1D", "DownBlock1D", "DownBlock1D"),
            "up_block_types": ("UpBlock1D", "UpBlock1D", "UpBlock1D"),
            "out_block_type": "OutConv1DBlock",
        },
        lambda: {"sample": numbers(2, 4, 128), "timestep": STEPS},
    ),
    (
        "UNet2DModel",
        {
            **TWO,
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda: {"sample": numbers(2, 3, 16, 16), "timestep": STEPS},
    ),
    ("UNet2DConditionModel", {**COND, **DOWN_UP, "sample_size": 16}, noise()),
    (
        "UNet3DConditionModel",
        {**COND, **DOWN_UP_3D, "sample_size": 16},
        both(noise(), lambda: {"sample": numbers(2, 4, 3, 16, 16)}),
    ),
    (
        "UNetSpatioTemporalConditionModel",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "num_attention_heads": (2, 4),
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        lambda: {
            "sample": numbers(2, 2, 8, 16, 16),
            "timestep": STEPS[:1],
            "encoder_hidden_states": numbers(2, 1, 32),
            "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * 2),
        },
    ),
    (
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 16,
            "groups": 4,
            "attention_head_dim": 4,
            "layers_per_block": 3,
            "block_out_channels": (16, 32),
            "cross_attention_dim": 16,
            "encoder_hid_dim": 16,
        },
        both(noise(), lambda: {"encoder_attention_mask": torch.ones(2, 7)}),
    ),
    (
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 16),
            "conditioning_dim": 16,
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "clip_text_pooled_in_channels": 16,
            "clip_text_in_channels": 16,
            "clip_image_in_channels": 16,
        },
        lambda: {
            "sample": numbers(2, 4, 8, 8),
            "timestep_ratio": torch.tensor([0.1, 0.7]),
            "clip_text_pooled": numbers(2, 1, 16),
            "clip_text": numbers(2, 5, 16),
            "clip_img": numbers(2, 1, 16),
        },
    ),
    (
        "UVit2DModel",
        {
            "hidden_size": 32,
            "cond_embed_dim": 16,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
            "encoder_hidden_size": 32,
            "vocab_size": 33,
            "codebook_size": 32,
            "in_channels": 32,
            "block_out_channels": 32,
            "num_res_blocks": 1,
            "block_num_heads": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "sample_size": 8,
        },
        lambda: {
            "input_ids": whole(2, 8, 8, below=32),
            "encoder_hidden_states": numbers(2, 7, 32),
            "pooled_text_emb": numbers(2, 16),
            "micro_conds": numbers(2, 5),
        },
    ),
]

# Large ones in the shape of those that are in use.
NAMED: list[tuple[str, str, dict[str, Any], Arguments]] = [
    (
        "UNet of Stable Diffusion XL",
        "UNet2DConditionModel",
        {
            **TWO,
            "sample_size": 16,
            "cross_attention_dim": 16,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 8 * 6 + 16,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        both(
            noise(),
            lambda: {"added_cond_kwargs": {"text_embeds": numbers(2, 16), "time_ids": numbers(2, 6, seed=3)}},
        ),
    ),
]
