"""The models that bench/refit measures, as exported programs.

    PYTHON bench/refit/export.py FOLDER            # with the environment of scripts/python-env.sh

ResNet-50, BERT-base and ViT-B/16 with random weights, and a UNet of the shape of Stable Diffusion 1.5 with
half the channels (215 million parameters), as diffusers builds it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from exporting import exported  # noqa: E402

ZOO = ["resnet50", "bert_base", "vit_b_16"]


def unet() -> torch.nn.Module:
    """Stable Diffusion 1.5's UNet has channels 320, 640, 1280, 1280 and cross attention of 768."""
    crossing = ("CrossAttnDownBlock2D",) * 3
    return UNet2DConditionModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(160, 320, 640, 640),
        cross_attention_dim=384,
        attention_head_dim=8,
        down_block_types=(*crossing, "DownBlock2D"),
        up_block_types=("UpBlock2D", *(name.replace("Down", "Up") for name in crossing)),
    ).eval()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ZOO:
        exported(name).archive(folder / f"{name}.pt2", "a")
    torch.manual_seed(0)
    inputs = (torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.randn(1, 77, 384))
    program = torch.export.export(unet(), inputs, kwargs={"return_dict": False})
    torch.export.save(program, folder / "unet_sd15_half.pt2")


if __name__ == "__main__":
    main()
