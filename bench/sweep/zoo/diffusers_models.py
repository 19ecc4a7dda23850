"""Models of diffusers: UNets, autoencoders, transformers for pictures, films and sound, what steers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.case import Call, Case, numbers, whole

LIBRARY = "diffusers"
Arguments = Callable[[], Mapping[str, Any]]
Entry = tuple[str, dict[str, Any], Arguments]

STEP = torch.tensor([17])
STEPS = torch.tensor([17, 901])
_TWO = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
_DOWN_UP = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_DOWN_UP_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
_COND = {**_TWO, "cross_attention_dim": 16, "attention_head_dim": 8}


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
            **_TWO,
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda: {"sample": numbers(2, 3, 16, 16), "timestep": STEPS},
    ),
    ("UNet2DConditionModel", {**_COND, **_DOWN_UP, "sample_size": 16}, noise()),
    (
        "UNet3DConditionModel",
        {**_COND, **_DOWN_UP_3D, "sample_size": 16},
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
            **_TWO,
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


# ------------------------------------------------------------------------------------------ autoencoders


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


# ------------------------------------------------------------------------------------------ transformers


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


_FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
_CHROMA = {name: value for name, value in _FLUX.items() if name != "pooled_projection_dim"}
_SD3 = {
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
        _FLUX,
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
        {**_SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
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

# ------------------------------------------------------------------------------------ what steers them

STEERING: list[Entry] = [
    (
        "ControlNetModel",
        {
            **_COND,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "conditioning_embedding_out_channels": (8, 16),
        },
        both(noise(), lambda: {"controlnet_cond": numbers(2, 3, 32, 32)}),
    ),
    (
        "FluxControlNetModel",
        _FLUX,
        both(
            both(latent(1, 16, 4, prompt=(1, 7, 32)), rotary(16, 7)),
            lambda: {"pooled_projections": numbers(1, 32), "controlnet_cond": numbers(1, 16, 4, seed=5)},
        ),
    ),
    (
        "SD3ControlNetModel",
        _SD3,
        both(
            latent(2, 4, 16, 16, prompt=(2, 7, 32)),
            lambda: {"pooled_projections": numbers(2, 16), "controlnet_cond": numbers(2, 4, 16, 16, seed=5)},
        ),
    ),
    (
        "T2IAdapter",
        {"channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 4},
        lambda: {"x": numbers(2, 3, 32, 32)},
    ),
]


def model(kind: str, name: str, class_name: str, config: dict[str, Any], arguments: Arguments) -> Case:
    def make() -> Call:
        import diffusers

        return Call(getattr(diffusers, class_name)(**config), kwargs=arguments())

    return Case(LIBRARY, kind, name, make)


def cases() -> list[Case]:
    kinds = {"UNet": UNETS, "autoencoder": AUTOENCODERS, "transformer": TRANSFORMERS, "steering": STEERING}
    plain = [model(kind, entry[0], *entry) for kind, entries in kinds.items() for entry in entries]
    return [*plain, *(model("UNet", *entry) for entry in NAMED)]
