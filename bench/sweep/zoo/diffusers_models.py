"""Models of diffusers: UNets, autoencoders, transformers, and what steers them."""

from __future__ import annotations

from typing import Any

from zoo.case import Call, Case, numbers
from zoo.diffusers_autoencoders import AUTOENCODERS
from zoo.diffusers_inputs import COND, FLUX, SD3, Arguments, Entry, both, latent, noise, rotary
from zoo.diffusers_transformers import TRANSFORMERS
from zoo.diffusers_unets import NAMED, UNETS

LIBRARY = "diffusers"

STEERING: list[Entry] = [
    (
        "ControlNetModel",
        {
            **COND,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "conditioning_embedding_out_channels": (8, 16),
        },
        both(noise(), lambda: {"controlnet_cond": numbers(2, 3, 32, 32)}),
    ),
    (
        "FluxControlNetModel",
        FLUX,
        both(
            both(latent(1, 16, 4, prompt=(1, 7, 32)), rotary(16, 7)),
            lambda: {"pooled_projections": numbers(1, 32), "controlnet_cond": numbers(1, 16, 4, seed=5)},
        ),
    ),
    (
        "SD3ControlNetModel",
        SD3,
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
