"""Pipelines of diffusers with components that are mutable modules: images are PyTorch's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from comparing import assert_close
from diffusion import image, pipeline, unet, vae
from mutable_checks import Counted
from regraft import MutableModule
from small import numbers, seeded

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_offloading_moves_components_that_run_compiled() -> None:
    pipe = pipeline()
    wanted = image(pipe)
    wrapped = regraft.wrap(pipe, components=WHOLE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", regraft.FallbackWarning)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert_close([image(pipe)], [wanted])
        pipe.remove_all_hooks()
        assert_close([image(pipe)], [wanted])
    for name, module in wrapped.items():
        assert module.compiled is not None and (module.recompiles, module.refits) == (0, 0), name


def test_weights_that_are_nowhere_between_calls() -> None:
    mutable = MutableModule(seeded(Tower))
    mutable.fc.weight = nn.Parameter(mutable.fc.weight.to("meta"))
    said = r"fc are on the meta device.*enable_model_cpu_offload"
    with torch.no_grad(), pytest.warns(regraft.FallbackWarning, match=said):
        mutable(numbers(2, 8))
    assert mutable.compiled is None


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


def text_of(width: int, pooled: int = 0) -> dict[str, torch.Tensor]:
    """What text encoders would give."""
    given = {"prompt_embeds": numbers(1, 6, width), "negative_prompt_embeds": numbers(1, 6, width) / 2}
    if pooled:
        given["pooled_prompt_embeds"] = numbers(1, pooled)
        given["negative_pooled_prompt_embeds"] = numbers(1, pooled) / 2
    return given


def with_control() -> tuple[Any, dict[str, Any]]:
    network = seeded(unet)
    control = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 8)).eval()
    for weights in (*control.controlnet_down_blocks.parameters(), control.controlnet_mid_block.weight):
        nn.init.normal_(weights)
    parts = {"vae": seeded(vae), "unet": network, "controlnet": control}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts,
        text_encoder=None,
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"image": torch.full((1, 3, 16, 16), 0.3), **text_of(8)}


def with_adapter() -> tuple[Any, dict[str, Any]]:
    adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    pipe = diffusers.StableDiffusionAdapterPipeline(
        vae=seeded(vae),
        unet=seeded(unet),
        adapter=adapter.eval(),
        text_encoder=None,
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"image": torch.full((1, 3, 16, 16), 0.3), **text_of(8)}


def sd3() -> tuple[Any, dict[str, Any]]:
    def transformer() -> nn.Module:
        return diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=16,
            pooled_projection_dim=8,
        )

    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=seeded(transformer),
        vae=seeded(vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        tokenizer_3=None,
        **absent,
    )
    pipe.vae.register_to_config(shift_factor=0.06)
    return pipe, text_of(16, pooled=8)


def flux() -> tuple[Any, dict[str, Any]]:
    def transformer() -> nn.Module:
        return diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            axes_dims_rope=[4, 4, 8],
        )

    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        transformer=seeded(transformer),
        vae=seeded(vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **absent,
    )
    pipe.vae.register_to_config(shift_factor=0.06)
    given = text_of(16, pooled=8)
    return pipe, {name: value for name, value in given.items() if not name.startswith("negative")}


def wan() -> tuple[Any, dict[str, Any]]:
    """Of videos."""

    def transformer() -> nn.Module:
        return diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        )

    def video_vae() -> nn.Module:
        return diffusers.AutoencoderKLWan(
            base_dim=2,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1] * 4,
            latents_std=[1.5] * 4,
        )

    pipe = diffusers.WanPipeline(
        transformer=seeded(transformer),
        vae=seeded(video_vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )
    return pipe, {"num_frames": 5, **text_of(16)}


@pytest.mark.filterwarnings("ignore::regraft.SlowWarning")
@pytest.mark.parametrize(
    "build", [with_control, with_adapter, sd3, flux, wan], ids=lambda build: build.__name__
)
def test_pipelines_of_other_kinds(build: Any) -> None:
    pipe, given = build()
    pipe.set_progress_bar_config(disable=True)

    def made() -> Any:
        generator = torch.Generator().manual_seed(0)
        sizes = {"height": 16, "width": 16, "num_inference_steps": 2}
        result = pipe(**given, **sizes, generator=generator, output_type="np")
        return result.frames if build is wan else result.images

    wanted = made()
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    wrapped = regraft.wrap(pipe, components=tuple(modules))
    with warnings.catch_warnings():
        warnings.simplefilter("error", regraft.FallbackWarning)
        assert_close([made()], [wanted])
    for name, module in wrapped.items():
        assert len(module._regraft_state.entries) == 1 and module.recompiles == 0, (name, module.explain())
