"""LoRAs of a diffusers UNet: added, swapped, scaled and taken off, and the UNet stays compiled.

PYTHON examples/lora_hot_swap.py
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

import regraft


def small_unet() -> UNet2DConditionModel:
    """The structure of Stable Diffusion's UNet, with few channels and random weights."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def main() -> None:
    torch.manual_seed(0)
    reference = small_unet()
    unet = regraft.MutableModule(reference)
    call = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }

    def show(what: str) -> None:
        """Runs compiled and in PyTorch, and compares."""
        with torch.no_grad():
            found, expected = unet(**call).sample, reference(**call).sample
        close = (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        print(f"{what:<22} as PyTorch: {bool(close)}  refits {unet.refits}, recompiles {unet.recompiles}")
        results.append(found)

    results: list[torch.Tensor] = []
    show("no LoRA")
    for seed, name in enumerate(("ink", "oil")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
        unet.add_adapter(config, adapter_name=name)
    unet.set_adapters(["ink"])
    show("ink")
    unet.set_adapters(["oil"])
    show("oil")
    unet.set_adapters(["ink", "oil"], [0.7, 0.3])
    show("0.7 ink and 0.3 oil")
    unet.disable_adapters()
    show("no LoRA again")
    print(f"the first and the last result are the same: {torch.equal(results[0], results[-1])}")


if __name__ == "__main__":
    main()
