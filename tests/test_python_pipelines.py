"""Pipelines of diffusers with components that are mutable modules: images are PyTorch's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from comparing import assert_close
from mutable_checks import Counted, few_threads
from regraft import MutableModule
from small import numbers, seeded

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    with few_threads():
        yield


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


WHOLE = ("vae", "text_encoder", "unet")


def test_all_components_run_compiled(tmp_path: Path) -> None:
    pipe = pipeline()
    wanted = image(pipe)
    wrapped = regraft.wrap(pipe, components=WHOLE)
    assert list(wrapped) == list(WHOLE) and all(isinstance(getattr(pipe, n), MutableModule) for n in WHOLE)
    assert "vae: AutoencoderKL" in repr(wrapped) and "(forward, encode, decode)" in repr(wrapped)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", regraft.RegraftWarning)
        warnings.simplefilter("ignore", regraft.SlowWarning)
        found = image(pipe)
        assert_close([found], [wanted])
        seen: list[int] = []
        kept = image(pipe, callback_on_step_end=lambda p, step, t, given: seen.append(step) or given)
        assert seen == [0, 1]
        assert_close([kept], [wanted])
    for name in WHOLE:
        module = getattr(pipe, name)
        assert module.compiled is not None and module.recompiles == 0, (name, module.explain())
    pipe.save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and other.vae is pipe.vae


def test_encoding_gives_distributions() -> None:
    mutable = MutableModule(seeded(vae))
    x = numbers(2, 3, 16, 16)
    with torch.no_grad():
        found, wanted = mutable.encode(x), mutable.module.encode(x)
        assert type(found) is type(wanted) and type(found.latent_dist) is type(wanted.latent_dist)
        for name in ("parameters", "mean", "logvar", "std", "var"):
            one, other = getattr(found.latent_dist, name), getattr(wanted.latent_dist, name)
            assert_close([one.numpy()], [other.numpy()])
        drawn = [d.latent_dist.sample(torch.Generator().manual_seed(1)) for d in (found, wanted)]
        assert_close([drawn[0].numpy()], [drawn[1].numpy()])
        for seed in (1, 2):
            decoded = mutable.decode(
                drawn[0], return_dict=False, generator=torch.Generator().manual_seed(seed)
            )
            assert_close([decoded[0].numpy()], [mutable.module.decode(drawn[0]).sample.numpy()])
        assert_close(
            [mutable.decode(drawn[0]).sample.numpy()], [mutable.module.decode(drawn[0]).sample.numpy()]
        )
        mutable.module.decoder.conv_in.weight.mul_(2)
        assert_close(
            [mutable.decode(drawn[0]).sample.numpy()], [mutable.module.decode(drawn[0]).sample.numpy()]
        )
    assert (mutable.refits, mutable.recompiles) == (1, 2), "encode, decode, and decode with a generator"
    whys = [event.why for event in mutable.explain().events if event.what == "compile"]
    assert whys[1] == "the first call of decode"


def test_programs_of_methods_are_saved(tmp_path: Path) -> None:
    mutable = MutableModule(seeded(vae))
    z = numbers(1, 4, 8, 8)
    with torch.no_grad():
        wanted = mutable.decode(z).sample
        mutable.encode(numbers(1, 3, 16, 16))
        MutableModule.save(mutable, tmp_path / "vae")
        again = MutableModule.load(tmp_path / "vae", seeded(vae))
        assert torch.equal(again.decode(z).sample, wanted)
        again.encode(numbers(1, 3, 16, 16))
    assert again.recompiles == 0


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc(x)) * 2 + 1

    def size(self) -> int:
        return 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).sum(-1)


def test_methods_that_run_in_pytorch_say_so() -> None:
    mutable, x = MutableModule(seeded(Tower)), numbers(2, 8)
    assert mutable.size() == 8
    with pytest.warns(
        regraft.UnusedWarning, match=r"embed is called, .* forward never was: .*methods=\['embed'\]"
    ):
        wanted = mutable.embed(x)
    chosen = MutableModule(seeded(Tower), methods=["embed"], min_block_size=1)
    with torch.no_grad():
        assert_close([chosen.embed(x).numpy()], [wanted.detach().numpy()])
    assert chosen.compiled is not None and chosen.explain().totals["compile"][0] == 1
    for name in ("none", "eval"):
        with pytest.raises(regraft.CompileError, match=f"has no method {name} that can be compiled"):
            MutableModule(seeded(Tower), methods=[name])


def test_what_cannot_be_compiled_falls_back_where_that_is_asked_for() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    mutable, x = MutableModule(Branch().eval(), fallback=True), torch.ones(3)
    with (
        torch.no_grad(),
        pytest.warns(regraft.FallbackWarning, match="PyTorch runs forward, which cannot be") as caught,
    ):
        assert torch.equal(mutable(x), x * 2) and torch.equal(mutable(-x), -x)
    assert len(caught) == 1
    with torch.no_grad(), pytest.raises(regraft.CompileError):
        MutableModule(Branch().eval())(x)


def test_hooks_of_accelerate_are_around_the_compiled_module() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            Doubling.calls += 1
            return (args[0] * 2, *args[1:]), kwargs

    mutable, x = MutableModule(seeded(Tower), min_block_size=1), numbers(2, 8)
    plain = copy.deepcopy(mutable.module)
    with torch.no_grad():
        mutable(x)
        counted = Counted(mutable)
        add_hook_to_module(mutable, Doubling())
        assert_close([mutable(x).numpy()], [plain(x * 2).numpy()])
        assert Doubling.calls == 1 and counted() == (0, 0)
        mutable.train()
        assert_close([mutable(x).numpy()], [plain(x * 2).numpy()])
        mutable.eval()
        remove_hook_from_module(mutable)
        assert_close([mutable(x).numpy()], [plain(x).numpy()])
    assert counted() == (0, 0)


def test_wrap_says_what_it_leaves() -> None:
    pipe = pipeline()
    wrapped = regraft.wrap(pipe)
    assert wrapped.left["text_encoder"].startswith("it has ") and "text_encoder stays in PyTorch" in repr(
        wrapped
    )
    again = regraft.wrap(pipe)
    assert all(again[name] is module for name, module in wrapped.items())
    with pytest.raises(regraft.CompileError, match="there is no text, there are vae"):
        regraft.wrap(pipe, components=["text"])
    with pytest.raises(regraft.CompileError, match=r"has no components\n  help: regraft\.MutableModule"):
        regraft.wrap(nn.Linear(2, 2))
