"""Adapters by the methods of diffusers' pipelines whose parts stay compiled: scenario M-9."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion
import regraft
from mutable_checks import Counted
from regraft import MutableModule

pytest.importorskip("peft")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=100))
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (unet, vae, text):
        part.eval()
    return pipe


def make_lora(pipe: Any, folder: Path, name: str, rank: int, targets: list[str]) -> Path:
    """A file as training scripts write it."""
    from peft import LoraConfig, get_peft_model_state_dict

    unet = type(pipe.unet).from_config(pipe.unet.config)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False))
    state = get_peft_model_state_dict(unet)
    pipe.save_lora_weights(folder / name, unet_lora_layers=state)
    return folder / name


def images(pipe: Any, scale: float | None = None) -> torch.Tensor:
    embeds = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return pipe(
            prompt_embeds=embeds, negative_prompt_embeds=-embeds, num_inference_steps=2, height=16, width=16,
            cross_attention_kwargs=None if scale is None else {"scale": scale},
            output_type="latent", generator=torch.Generator().manual_seed(4),
        ).images  # fmt: skip


def test_m_9_loras_by_the_methods_of_the_pipeline(pipeline: Any, tmp_path: Path) -> None:
    pipe = pipeline
    original = pipe.unet
    style = make_lora(pipe, tmp_path, "style", 4, ["to_q", "to_k", "to_v", "to_out.0"])
    detail = make_lora(pipe, tmp_path, "detail", 2, ["conv1", "conv2", "proj_in", "ff.net.0.proj", "to_q"])
    pipe.unet = MutableModule(pipe.unet)
    counted = Counted(pipe.unet)

    def step(change: Callable[[], Any], refits: int) -> torch.Tensor:
        change()
        found = images(pipe)
        assert counted() == (refits, 0)
        mutable, pipe.unet = pipe.unet, original
        wanted = images(pipe)
        pipe.unet = mutable
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        return found

    plain = step(lambda: None, 0)
    with_style = step(lambda: pipe.load_lora_weights(style, adapter_name="style"), 1)
    assert not torch.allclose(with_style, plain, rtol=1e-3)
    step(lambda: pipe.load_lora_weights(detail, adapter_name="detail"), 1)
    step(lambda: pipe.set_adapters(["style", "detail"], adapter_weights=[0.3, 0.7]), 1)
    by_block = {"unet": {"down": 0.2, "mid": 1.0, "up": 0.9}}
    step(lambda: pipe.set_adapters(["detail", "style"], adapter_weights=[0.5, by_block]), 1)
    assert torch.equal(step(pipe.disable_lora, 1), plain)
    step(pipe.enable_lora, 1)
    assert torch.equal(step(lambda: pipe.set_adapters("style"), 1), with_style)
    step(lambda: pipe.fuse_lora(lora_scale=0.5), 1)
    step(pipe.unfuse_lora, 1)
    step(lambda: pipe.delete_adapters("detail"), 0)
    pipe.unload_lora_weights()
    unloaded = images(pipe)
    # PyTorch's merging and unmerging is not exact.
    assert (unloaded - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert counted() == (1, 0)
    assert isinstance(pipe.unet, type(original)) and pipe.unet.recompiles == 0
    pipe.unet = original


def test_m_9_the_scale_of_a_call_refits(pipeline: Any, tmp_path: Path) -> None:
    pipe, original = pipeline, pipeline.unet
    file = make_lora(pipe, tmp_path, "style", 4, ["to_q", "conv1", "ff.net.2"])
    pipe.load_lora_weights(file, adapter_name="style")
    mutable = MutableModule(original)
    counted = Counted(mutable)
    for scale, expected in ((0.5, (1, 0)), (0.5, (0, 0)), (0.25, (1, 0)), (None, (1, 0)), (0.5, (1, 0))):
        pipe.unet = mutable
        found = images(pipe, scale)
        assert counted() == expected
        pipe.unet = original
        wanted = images(pipe, scale)
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    pipe.unload_lora_weights()


def test_m_9_a_pipeline_with_a_mutable_part_is_saved(pipeline: Any, tmp_path: Path) -> None:
    original = pipeline.unet
    pipeline.unet = MutableModule(pipeline.unet)
    pipeline.unet.save_pretrained(tmp_path / "unet")
    again = type(pipeline.unet).from_pretrained(tmp_path / "unet")
    assert type(again) is type(original)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), original.parameters(), strict=True))
    assert isinstance(pipeline.unet, regraft.MutableModule)
    pipeline.unet = original


class Adapters:
    """Files of adapters for that pipeline of `diffusion`: none has the values of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of_peft(self, name: str, seed: int) -> str:
        """The folder that PEFT saves, with `adapter_config.json`."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=targets)
        get_peft_model(diffusion.pipeline().unet, config).save_pretrained(self.folder / name)
        return str(self.folder / name)

    def file(self, name: str, seed: int, *, text: bool = False, kohya: bool = False) -> str:
        from diffusers.utils import convert_state_dict_to_kohya
        from peft import LoraConfig, get_peft_model_state_dict

        def factors(part: Any, *targets: str) -> dict[str, torch.Tensor]:
            config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=list(targets))
            part.add_adapter(config, "default")
            return {key: value.contiguous() for key, value in get_peft_model_state_dict(part).items()}

        pipe, path = diffusion.pipeline(), self.folder / name
        torch.manual_seed(seed)
        layers = factors(pipe.unet, "to_q", "to_k", "to_v", "to_out.0")
        if kohya:
            from safetensors.torch import save_file

            path.mkdir()
            state = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in layers.items()})
            save_file(state, path / "style.safetensors")
            return str(path / "style.safetensors")
        encoder = factors(pipe.text_encoder, "q_proj", "v_proj") if text else None
        pipe.save_lora_weights(path, unet_lora_layers=layers, text_encoder_lora_layers=encoder)
        return str(path)


def steps_with(pipe: Any, files: Adapters) -> list[tuple[Any, dict[str, Any]]]:
    """Thirty things that people do with LoRAs, with options of the image after each."""
    with_text, other = files.file("a", 1, text=True), files.file("b", 2, text=True)
    small, swapped, kohya = files.file("c", 3), files.file("d", 4), files.file("k", 5, kohya=True)
    of_peft = files.of_peft("p", 6)
    load, choose = pipe.load_lora_weights, pipe.set_adapters

    def load_of_peft() -> None:
        # The pipeline's method knows no keys of PEFT, that of a component does.
        pipe.unet.load_lora_adapter(
            of_peft,
            prefix="base_model.model",
            weight_name="adapter_model.safetensors",
            adapter_name="P",
        )
        assert "P" in pipe.unet.peft_config

    steps = [
        lambda: None,
        lambda: load(with_text, adapter_name="A"),
        lambda: choose(["A"], [{"unet": {"down": 0.5, "mid": 0.2, "up": 1.0}}]),
        lambda: choose(["A"], [0.8]),
        lambda: load(other, adapter_name="B"),
        lambda: choose(["A", "B"], [0.3, 0.7]),
        lambda: choose(["B", "A"], [0.7, 0.3]),
        lambda: choose(["B"], [1.0]),
        lambda: pipe.disable_lora(),
        lambda: pipe.enable_lora(),
        lambda: pipe.fuse_lora(),
        lambda: pipe.unfuse_lora(),
        lambda: pipe.fuse_lora(lora_scale=0.5),
        lambda: pipe.unfuse_lora(),
        lambda: pipe.delete_adapters("A"),
        lambda: load(kohya, adapter_name="K"),
        lambda: choose(["K"], [1.0]),
        lambda: choose(["K", "B"], [0.5, 0.5]),
        lambda: pipe.unload_lora_weights(),
        lambda: load(small, adapter_name="C"),
        lambda: load(swapped, adapter_name="C", hotswap=True),
        lambda: load(small, adapter_name="C", hotswap=True),
        lambda: choose(["C"], [0.3]),
        lambda: pipe.unload_lora_weights(),
        load_of_peft,
        lambda: pipe.fuse_lora(components=["unet"]),
        lambda: pipe.unfuse_lora(components=["unet"]),
        lambda: pipe.unload_lora_weights(),
    ]
    planned: list[tuple[Any, dict[str, Any]]] = [(step, {}) for step in steps]
    # A scale of one call, and a call without one.
    planned[2:2] = [(steps[0], {"cross_attention_kwargs": {"scale": 0.5}}), (steps[0], {})]
    return planned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_m_9_thirty_steps_of_adapters_compile_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    pipe = diffusion.pipeline().to(dtype)
    names = ("text_encoder", "unet")
    wrapped = regraft.wrap(pipe, components=names)
    steps = steps_with(pipe, Adapters(tmp_path))
    assert len(steps) == 30
    images = []
    for step, options in steps:
        step()
        with torch.no_grad():
            found = diffusion.image(pipe, **options)
            for name in names:
                setattr(pipe, name, wrapped[name].module)
            wanted = diffusion.image(pipe, **options)
        for name in names:
            setattr(pipe, name, wrapped[name])
        # Halves are rounded elsewhere, which guidance makes seven times as large.
        most, mean = (1e-4, 1e-5) if dtype == torch.float32 else (0.15, 0.02)
        assert abs(found - wanted).max() <= most and abs(found - wanted).mean() <= mean
        images.append(wanted)
    for name in names:
        assert wrapped[name].recompiles == 0, wrapped[name].explain()
    assert wrapped["unet"].refits > 15 and wrapped["text_encoder"].refits > 8
    # Adapters do something.
    assert sum(float(abs(one - images[0]).max()) > 1e-4 for one in images) > 15
