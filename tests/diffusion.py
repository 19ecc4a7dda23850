"""A small pipeline of Stable Diffusion with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from small import seeded

diffusers = pytest.importorskip("diffusers")


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def vae() -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=64, max_position_embeddings=7, **sizes))


def pipeline() -> Any:
    made = diffusers.StableDiffusionPipeline(
        vae=seeded(vae),
        text_encoder=seeded(text_encoder),
        tokenizer=None,
        unet=seeded(unet),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def image(pipe: Any, steps: int = 2, **options: Any) -> Any:
    embeddings = pipe.text_encoder(torch.arange(7)[None])[0]
    return pipe(
        prompt_embeds=embeddings.detach(),
        negative_prompt_embeds=torch.zeros_like(embeddings),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        height=16,
        width=16,
        **options,
    ).images
