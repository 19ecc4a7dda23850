"""Inputs of diffusers' models, and what several of them are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.case import numbers, whole

Arguments = Callable[[], Mapping[str, Any]]
Entry = tuple[str, dict[str, Any], Arguments]

STEP = torch.tensor([17])
STEPS = torch.tensor([17, 901])
TWO = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
DOWN_UP = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
DOWN_UP_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
COND = {**TWO, "cross_attention_dim": 16, "attention_head_dim": 8}


def noise(
    *, batch: int = 2, channels: int = 4, size: int = 16, length: int = 7, width: int = 16
) -> Arguments:
    """A noisy picture, the step, and a prompt."""
    return lambda: {
        "sample": numbers(batch, channels, size, size),
        "timestep": STEPS[:batch],
        "encoder_hidden_states": numbers(batch, length, width, seed=1),
    }


def both(first: Arguments, second: Arguments) -> Arguments:
    return lambda: {**first(), **second()}


def latent(*shape: int, prompt: tuple[int, ...], step: Tensor | None = None) -> Arguments:
    return lambda: {
        "hidden_states": numbers(*shape),
        "encoder_hidden_states": numbers(*prompt, seed=1),
        "timestep": STEPS[: shape[0]] if step is None else step,
    }


def rotary(tokens: int, words: int) -> Arguments:
    """Where the parts of a picture and of a prompt are, as Flux takes it."""
    return lambda: {
        "img_ids": whole(tokens, 3, below=4).float(),
        "txt_ids": torch.zeros(words, 3),
        "timestep": torch.tensor([0.7]),
    }


FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
