"""A small UNet, and one adapter of it in the files of each tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from adapter_checks import plain, saved
from conftest import Cli
from models import randomize_
from small import Inputs, numbers, save_state


class Unet(UNet2DConditionModel):
    """Tensors in, tensors out, as in a pipeline's inner loop."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return super().forward(sample, timestep, encoder_hidden_states, return_dict=False)[0]


UNET_INPUTS: Inputs = (numbers(1, 4, 16, 16), torch.tensor([7]), numbers(1, 5, 32, seed=1))
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "conv_shortcut", "proj_in"]
UNET_CONFIG = LoraConfig(r=3, lora_alpha=5, target_modules=UNET_TARGETS)


def build_unet() -> Unet:
    unet = Unet(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return randomize_(unet, 0)


def factors_of(model: PeftModel) -> dict[str, Tensor]:
    """By the names that the modules have in the UNet: `conv_in.lora_A.weight`."""
    state = get_peft_model_state_dict(model)
    return {name.removeprefix("base_model.model."): value.contiguous() for name, value in state.items()}


def diffusers_file(cli: Cli, model: PeftModel) -> Path:
    folder = cli.path("diffusers")
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder, unet_lora_layers=factors_of(model), unet_lora_adapter_metadata=plain(UNET_CONFIG)
    )
    return folder / "pytorch_lora_weights.safetensors"


def unet_adapter_file(cli: Cli, model: PeftModel) -> Path:
    """What the UNet itself saves, which names no component."""
    folder = cli.path("unet")
    unet = build_unet()
    unet.add_adapter(UNET_CONFIG)
    set_peft_model_state_dict(unet, factors_of(model))
    unet.save_lora_adapter(folder)
    return folder / "pytorch_lora_weights.safetensors"


def kohya_file(cli: Cli, model: PeftModel) -> Path:
    state = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in factors_of(model).items()})
    # diffusers writes the rank for every alpha.
    alpha = torch.tensor(float(UNET_CONFIG.lora_alpha))
    state = {name: alpha.clone() if name.endswith(".alpha") else value for name, value in state.items()}
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in state
    path = cli.path("kohya", ".safetensors")
    save_file(state, path)
    return path


def kohya_file_by_hand(cli: Cli, model: PeftModel) -> Path:
    """The alpha beside each pair of factors, and a pickle in place of safetensors."""
    state = {}
    for name, value in factors_of(model).items():
        module, _, part = name.partition(".lora_")
        flat = f"lora_unet_{module.replace('.', '_')}"
        state[f"{flat}.{'lora_down' if part == 'A.weight' else 'lora_up'}.weight"] = value
        state[f"{flat}.alpha"] = torch.tensor(float(UNET_CONFIG.lora_alpha))
    return save_state(cli, state)


NAMINGS: list[Callable[[Cli, PeftModel], Path]] = [
    saved,
    diffusers_file,
    unet_adapter_file,
    kohya_file,
    kohya_file_by_hand,
]
