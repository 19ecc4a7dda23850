"""A diffusers pipeline on a GPU whose UNet runs compiled while LoRAs are loaded, swapped and mixed.

PYTHON examples/diffusers_lora_cuda.py

The components are small and have random weights, so that nothing is downloaded; with a model of your own only
``small_pipeline`` changes. The table says how long the UNet's first call took after each change, which
refits it, how long the next one took, and what the refit itself took.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import regraft


def small_pipeline() -> Any:
    """The structure of Stable Diffusion, with few channels and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        bos_token_id=0,
        eos_token_id=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval(), pipe.vae.eval()
    return pipe


def write_lora(folder: Path, name: str, seed: int) -> None:
    """A LoRA file as trainers write it."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = small_pipeline().unet
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=8, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    layers = {key: value * 0.2 for key, value in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, weight_name=f"{name}.safetensors"
    )


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped: there is no NVIDIA GPU")
        return
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    prompt = torch.randn(1, 77, 64, dtype=torch.float16, device="cuda")
    pipe = small_pipeline().to("cuda", torch.float16)
    reference = small_pipeline().to("cuda", torch.float16)
    pipe.unet = regraft.MutableModule(pipe.unet)

    def image(of: Any) -> torch.Tensor:
        generator = torch.Generator("cuda").manual_seed(1)
        with torch.inference_mode():
            return of(
                prompt_embeds=prompt,
                negative_prompt_embeds=torch.zeros_like(prompt),
                num_inference_steps=4,
                generator=generator,
                output_type="pt",
            ).images.float()

    def timed(work: Any) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    sample = torch.randn(2, 4, 32, 32, dtype=torch.float16, device="cuda")
    call = {"timestep": torch.tensor(10, device="cuda"), "encoder_hidden_states": prompt.repeat(2, 1, 1)}

    def step() -> None:
        with torch.inference_mode():
            pipe.unet(sample, return_dict=False, **call)

    rows = []

    def show(what: str, change: Any) -> None:
        for one in (pipe, reference):
            change(one)
        before = pipe.unet.refits
        first = timed(step)
        usual = timed(step)
        report = pipe.unet.last_report
        refit = report.milliseconds if report is not None and pipe.unet.refits > before else 0.0
        found, expected = image(pipe), image(reference)
        error = float((found - expected).abs().max())
        rows.append((what, first, usual, refit, error))
        print(f"{what:<24} {first:9.2f} {usual:9.2f} {refit:9.2f} {error:10.4f}", flush=True)

    print(f"{'':<24} {'first ms':>9} {'next ms':>9} {'refit ms':>9} {'difference':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(("ink", "oil"), start=1):
            write_lora(Path(folder), name, seed)

        def loads(name: str) -> Any:
            def load(one: Any) -> None:
                one.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
                one.set_adapters([name])

            return load

        show("compiled", lambda one: None)
        show("ink loaded", loads("ink"))
        show("oil loaded", loads("oil"))
    show("ink again", lambda one: one.set_adapters(["ink"]))
    show("0.7 ink and 0.3 oil", lambda one: one.set_adapters(["ink", "oil"], [0.7, 0.3]))
    show("no LoRA", lambda one: one.unload_lora_weights())
    right = all(error <= 0.02 for *_, error in rows)
    print(f"images as PyTorch's: {right}; refits {pipe.unet.refits}, recompiles {pipe.unet.recompiles}")
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
