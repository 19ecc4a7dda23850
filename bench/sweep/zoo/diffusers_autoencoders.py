"""Autoencoders of diffusers."""

from __future__ import annotations

from zoo.case import numbers
from zoo.diffusers_inputs import (
    Arguments,
    Entry,
)


def picture(size: int = 32, batch: int = 2) -> Arguments:
    return lambda: {"sample": numbers(batch, 3, size, size)}


def film(frames: int, size: int = 16) -> Arguments:
    return lambda: {"sample": numbers(1, 3, frames, size, size)}


_PICTURES = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
_FILMS = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1}

AUTOENCODERS: list[Entry] = [
    (
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (16, 32),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (16, 32),
            "norm_num_groups": 8,
        },
        picture(),
    ),
    (
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        },
        picture(),
    ),
    ("AutoencoderKL", _PICTURES, picture()),
    (
        "AutoencoderKLCogVideoX",
        {
            **_FILMS,
            "norm_num_groups": 2,
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        },
        film(8),
    ),
    (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "attention_resolutions": (8,),
            "resolution": 64,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
            "latents_mean": None,
            "latents_std": None,
        },
        film(9, 32),
    ),
    (
        "AutoencoderKLHunyuanVideo",
        {
            **_FILMS,
            "norm_num_groups": 4,
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
        },
        film(9),
    ),
    (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "patch_size": 1,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
        },
        film(9),
    ),
    (
        "AutoencoderKLMagvit",
        {
            **_FILMS,
            "norm_num_groups": 8,
            "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
            "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
        },
        film(9),
    ),
    (
        "AutoencoderKLMochi",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
        film(7),
    ),
    (
        "AutoencoderKLQwenImage",
        {
            "base_dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        film(1),
    ),
    (
        "AutoencoderKLTemporalDecoder",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
        },
        lambda: {"sample": numbers(3, 3, 32, 32), "num_frames": 3},
    ),
    (
        "AutoencoderKLWan",
        {
            "base_dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        film(5),
    ),
    (
        "AutoencoderOobleck",
        {
            "encoder_hidden_size": 12,
            "decoder_channels": 12,
            "decoder_input_channels": 6,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        lambda: {"sample": numbers(2, 2, 256)},
    ),
    (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 2),
            "num_decoder_blocks": (2, 1),
        },
        picture(),
    ),
    ("VQModel", {**_PICTURES, "latent_channels": 3, "num_vq_embeddings": 32}, picture()),
]
