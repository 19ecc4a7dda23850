"""Adapters of models whose own code has other modules than diffusers: joined, and in other orders.

What is right, diffusers' own converters say, of checkpoints and of LoRAs. They know one size of each model,
which is exchanged for a small one here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, single_file_utils
from torch import Tensor, nn

import regraft
from comparing import assert_close
from module_checks import called
from small import answers

pytestmark = pytest.mark.usefixtures("one_thread")

# Inner sizes of the models here, and that of diffusers' converters.
SIZE, REAL = 8, 3072

State = dict[str, Tensor]


def converter(module: ModuleType, name: str, size: int = SIZE) -> Callable[..., State]:
    """A function of diffusers for models of another size; it gets copies."""
    source = (
        inspect.getsource(getattr(module, name))
        .replace(str(4 * REAL), str(4 * size))
        .replace(str(REAL), str(size))
    )
    space = dict(vars(module))
    exec(source, space)
    return lambda state: space[name]({key: value.clone() for key, value in state.items()})


def flux() -> dict[str, tuple[int, int]]:
    """Modules of Flux's own code with their outputs and inputs."""
    shapes = {"img_in": (SIZE, 5), "txt_in": (SIZE, 6)}
    for name, inputs in (("time_in", 7), ("vector_in", 6), ("guidance_in", 7)):
        shapes |= {f"{name}.in_layer": (SIZE, inputs), f"{name}.out_layer": (SIZE, SIZE)}
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        shapes |= {f"{block}_attn.qkv": (3 * SIZE, SIZE), f"{block}_attn.proj": (SIZE, SIZE)}
        shapes |= {f"{block}_mlp.0": (4 * SIZE, SIZE), f"{block}_mlp.2": (SIZE, 4 * SIZE)}
        shapes[f"{block}_mod.lin"] = (6 * SIZE, SIZE)
    shapes |= {"single_blocks.0.linear1": (7 * SIZE, SIZE), "single_blocks.0.linear2": (SIZE, 5 * SIZE)}
    shapes |= {"single_blocks.0.modulation.lin": (3 * SIZE, SIZE), "final_layer.linear": (5, SIZE)}
    return shapes | {"final_layer.adaLN_modulation.1": (2 * SIZE, SIZE)}


def hunyuan() -> dict[str, tuple[int, int]]:
    """Those of Hunyuan Video's."""
    shapes = {"img_in.proj": (SIZE, 5), "txt_in.input_embedder": (SIZE, 6)}
    shapes |= {"vector_in.in_layer": (SIZE, 6), "vector_in.out_layer": (SIZE, SIZE)}
    for name in ("time_in", "guidance_in", "txt_in.t_embedder"):
        shapes |= {f"{name}.mlp.0": (SIZE, 7), f"{name}.mlp.2": (SIZE, SIZE)}
    shapes |= {"txt_in.c_embedder.linear_1": (SIZE, 6), "txt_in.c_embedder.linear_2": (SIZE, SIZE)}
    refiner = "txt_in.individual_token_refiner.blocks.0"
    shapes |= {f"{refiner}.self_attn_qkv": (3 * SIZE, SIZE), f"{refiner}.self_attn_proj": (SIZE, SIZE)}
    shapes |= {f"{refiner}.mlp.fc1": (4 * SIZE, SIZE), f"{refiner}.mlp.fc2": (SIZE, 4 * SIZE)}
    shapes[f"{refiner}.adaLN_modulation.1"] = (2 * SIZE, SIZE)
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        shapes |= {f"{block}_attn_qkv": (3 * SIZE, SIZE), f"{block}_attn_proj": (SIZE, SIZE)}
        shapes |= {f"{block}_mlp.fc1": (4 * SIZE, SIZE), f"{block}_mlp.fc2": (SIZE, 4 * SIZE)}
        shapes[f"{block}_mod.linear"] = (6 * SIZE, SIZE)
    shapes |= {"single_blocks.0.linear1": (7 * SIZE, SIZE), "single_blocks.0.linear2": (SIZE, 5 * SIZE)}
    shapes |= {"single_blocks.0.modulation.linear": (3 * SIZE, SIZE), "final_layer.linear": (5, SIZE)}
    return shapes | {"final_layer.adaLN_modulation.1": (2 * SIZE, SIZE)}


def sd3() -> dict[str, tuple[int, int]]:
    """Those of Stable Diffusion 3.5's: two attentions in the first block, and less behind the last."""
    shapes = {"x_embedder.proj": (SIZE, 5), "context_embedder": (SIZE, 6)}
    shapes |= {"t_embedder.mlp.0": (SIZE, 7), "t_embedder.mlp.2": (SIZE, SIZE)}
    shapes |= {"y_embedder.mlp.0": (SIZE, 6), "y_embedder.mlp.2": (SIZE, SIZE)}
    for number in (0, 1):
        x, context = f"joint_blocks.{number}.x_block", f"joint_blocks.{number}.context_block"
        for block in (x, context):
            shapes |= {f"{block}.attn.qkv": (3 * SIZE, SIZE), f"{block}.adaLN_modulation.1": (6 * SIZE, SIZE)}
            shapes |= {f"{block}.attn.proj": (SIZE, SIZE), f"{block}.mlp.fc1": (4 * SIZE, SIZE)}
            shapes[f"{block}.mlp.fc2"] = (SIZE, 4 * SIZE)
    x = "joint_blocks.0.x_block"
    shapes |= {f"{x}.attn2.qkv": (3 * SIZE, SIZE), f"{x}.attn2.proj": (SIZE, SIZE)}
    shapes[f"{x}.adaLN_modulation.1"] = (9 * SIZE, SIZE)
    for part in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        del shapes[f"joint_blocks.1.context_block.{part}"]
    shapes["joint_blocks.1.context_block.adaLN_modulation.1"] = (2 * SIZE, SIZE)
    return shapes | {"final_layer.linear": (5, SIZE), "final_layer.adaLN_modulation.1": (2 * SIZE, SIZE)}


# Beside its modules each family has tensors that take no adapter here.
NORMS = [
    f"double_blocks.0.{side}_attn.norm.{kind}_norm.scale"
    for side in ("img", "txt")
    for kind in ("query", "key")
]
NORMS += [f"single_blocks.0.norm.{kind}_norm.scale" for kind in ("query", "key")]
FAMILIES: dict[str, tuple[Callable[[], dict[str, tuple[int, int]]], str, list[str]]] = {
    "flux": (flux, "convert_flux_transformer_checkpoint_to_diffusers", NORMS),
    "hunyuan": (hunyuan, "convert_hunyuan_video_transformer_to_diffusers", []),
    "sd3": (sd3, "convert_sd3_transformer_checkpoint_to_diffusers", ["pos_embed"]),
}


def seeded_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def original(family: str) -> State:
    """The weights of a small model in the names of its own code."""
    state = {}
    for seed, (name, (outputs, inputs)) in enumerate(FAMILIES[family][0]().items()):
        state[f"{name}.weight"] = seeded_tensor(outputs, inputs, seed=seed)
        state[f"{name}.bias"] = seeded_tensor(outputs, seed=1000 + seed)
    return state


def to_diffusers(family: str, state: State) -> State:
    """The same in diffusers' names, by its own converter."""
    _, name, others = FAMILIES[family]
    convert = converter(single_file_utils, name)
    found = convert(state | {other: torch.zeros(2, 2, SIZE) for other in others})
    no_modules = ("norm_q", "norm_k", "norm_added", "pos_embed.pos_embed")
    return {key: value for key, value in found.items() if not any(part in key for part in no_modules)}


class Tree(nn.Module):
    """Linear layers of these names, each over the identity: its weight is what comes out, and its bias."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
        for name in self.names:
            weight = state[f"{name}.weight"]
            *path, last = name.split(".")
            parent: nn.Module = self
            for segment in path:
                if segment not in dict(parent.named_children()):
                    parent.add_module(segment, nn.Module())
                parent = parent.get_submodule(segment)
            if last in dict(parent.named_children()):
                raise ValueError(f"{name} is a module and has some")
            parent.add_module(last, nn.Linear(weight.shape[1], weight.shape[0]))
        self.load_state_dict(dict(state))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = [self.get_submodule(name) for name in self.names]
        return tuple(layer(x[: layer.in_features, : layer.in_features]) for layer in layers)


EYE = (torch.eye(5 * SIZE),)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engines(family: str) -> dict[str, tuple[Tree, regraft.Module]]:
    """The model in the names of its own code, and in those of diffusers."""
    state = original(family)
    trees = {"original": Tree(state), "diffusers": Tree(to_diffusers(family, state))}
    return {side: (tree.eval(), regraft.compile(tree.eval(), EYE)) for side, tree in trees.items()}


def lora(state: State, rank: Callable[[int], int]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Factors and scale of each module."""
    modules = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    made = {}
    for seed, name in enumerate(modules):
        outputs, inputs = state[f"{name}.weight"].shape
        down = seeded_tensor(rank(seed), inputs, seed=2000 + seed)
        made[name] = (down, seeded_tensor(outputs, rank(seed), seed=3000 + seed), 0.5 + seed % 3)
    return made


def with_lora(state: State, factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> State:
    state = dict(state)
    for name, (down, up, scale) in factors.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + scale * up @ down
    return state


def kohya(name: str) -> tuple[str, str, str]:
    return f"lora_unet_{name.replace('.', '_')}", "lora_down", "lora_up"


# How files spell a module and its factors.
SPELLINGS: dict[str, Callable[[str], tuple[str, str, str]]] = {
    "kohya": kohya,
    "comfyui": lambda name: (f"diffusion_model.{name}", "lora_A", "lora_B"),
    "transformer": lambda name: (f"transformer.{name}", "lora_A", "lora_B"),
    "bfl": lambda name: (name, "lora_A", "lora_B"),
    "bfl_down": lambda name: (name, "lora_down", "lora_up"),
    "kohya_transformer": lambda name: (f"lora_transformer_{name.replace('.', '_')}", "lora_down", "lora_up"),
}


def file(factors: Mapping[str, tuple[Tensor, Tensor, float]], spelling: str) -> State:
    state = {}
    for name, (down, up, scale) in factors.items():
        module, a, b = SPELLINGS[spelling](name)
        state |= {f"{module}.{a}.weight": down, f"{module}.{b}.weight": up}
        state[f"{module}.alpha"] = torch.tensor(scale * len(down))
    return state


def assert_serves(tree: Tree, engine: regraft.Module, adapter: State, expected: State) -> None:
    module = engine.fork()
    module.refit(adapters=[(module.adapter("style", adapter), 1.0)])
    assert_close(called(module, EYE), answers(Tree(expected).eval(), EYE))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_5_names_of_the_own_code_for_both(
    family: str, engines: dict[str, tuple[Tree, regraft.Module]], spelling: str
) -> None:
    """A file for the model's own code gives what the converter makes of the weights with it."""
    state = original(family)
    factors = lora(state, lambda seed: 1 + seed % 3)
    adapter, merged = file(factors, spelling), with_lora(state, factors)
    assert_serves(*engines["original"], adapter, merged)
    assert_serves(*engines["diffusers"], adapter, to_diffusers(family, merged))


@pytest.mark.parametrize("spelling", ["transformer", "kohya_transformer"])
@pytest.mark.parametrize("share", [1, 2])
def test_a_5_names_of_diffusers_for_both(
    family: str, engines: dict[str, tuple[Tree, regraft.Module]], spelling: str, share: int
) -> None:
    """A file in diffusers' names, for all of its modules or every other one, for the model that has them
    joined: what that gives is converted to what diffusers has with the file.
    """
    state = to_diffusers(family, original(family))
    factors = {
        name: one
        for at, (name, one) in enumerate(lora(state, lambda seed: 1 + seed % 3).items())
        if at % share == 0
    }
    adapter, expected = file(factors, spelling), with_lora(state, factors)
    assert_serves(*engines["diffusers"], adapter, expected)
    tree, engine = engines["original"]
    module = engine.fork()
    module.refit(adapters=[(module.adapter("style", adapter), 1.0)])
    assert_close(*converted_answers(tree, called(module, EYE), family, expected))


def converted_answers(
    tree: Tree, outputs: list[np.ndarray], family: str, expected: State
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What an engine in the names of the own code serves, converted, and what it should be."""
    served = {}
    for name, output in zip(tree.names, outputs, strict=True):
        bias = tree.state_dict()[f"{name}.bias"]
        served |= {f"{name}.weight": (torch.from_numpy(output) - bias).T, f"{name}.bias": bias}
    found = to_diffusers(family, served)
    return [found[name].contiguous().numpy() for name in expected], [
        value.numpy() for value in expected.values()
    ]


def converted_lora(name: str, adapter: State) -> State:
    return converter(lora_conversion_utils, name)(adapter)


def test_a_5_loras_as_diffusers_converts_them() -> None:
    """Its converters of LoRAs, and with Flux its own loader and model."""
    config: dict[str, Any] = {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": SIZE,
        "num_attention_heads": 1,
        "joint_attention_dim": 6,
        "pooled_projection_dim": 6,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": False,
    }
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**config).eval()
    shapes = {name: shape for name, shape in flux().items() if "_blocks" in name}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    adapter = file(lora(state, lambda _: 2), "kohya")
    converted = converted_lora("_convert_kohya_flux_lora_to_diffusers", adapter)
    inputs = {
        "hidden_states": seeded_tensor(1, 4, 4, seed=1),
        "encoder_hidden_states": seeded_tensor(1, 3, 6, seed=2),
        "pooled_projections": seeded_tensor(1, 6, seed=3),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }
    module = regraft.compile(model, (), kwarg_inputs=inputs)
    module.refit(adapters=[(module.adapter("style", adapter), 1.0)])
    found = module(**inputs)[0]
    with torch.no_grad():
        before = model(**inputs)[0]
        model.load_lora_adapter(converted, prefix="transformer")
        expected = model(**inputs)[0]
    assert not torch.allclose(before, expected, atol=1e-3)
    assert_close([found.numpy()], [expected.numpy()])


def xlabs() -> State:
    """A LoRA of Flux as XLabs' trainer saves the processors of attention."""
    double, single = "double_blocks.0.processor", "single_blocks.0.processor"
    shapes = {f"{double}.qkv_lora{side}": (3 * SIZE, SIZE) for side in (1, 2)}
    shapes |= {f"{double}.proj_lora{side}": (SIZE, SIZE) for side in (1, 2)}
    shapes |= {f"{single}.qkv_lora": (3 * SIZE, SIZE), f"{single}.proj_lora": (SIZE, 5 * SIZE)}
    state = {}
    for seed, (name, (outputs, inputs)) in enumerate(shapes.items()):
        state[f"{name}.down.weight"] = seeded_tensor(2, inputs, seed=4000 + seed)
        state[f"{name}.up.weight"] = seeded_tensor(outputs, 2, seed=5000 + seed)
    return state


@pytest.mark.parametrize("front", ["", "diffusion_model."])
def test_a_5_loras_of_xlabs_as_diffusers_converts_them(front: str) -> None:
    adapter = {f"{front}{key}": value for key, value in xlabs().items()}
    converted = converted_lora("_convert_xlabs_flux_lora_to_diffusers", adapter)
    state = original("flux")
    expected = to_diffusers("flux", state)
    tree = Tree(expected).eval()
    for key, down in converted.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            weight = f"{name.removeprefix('transformer.')}.weight"
            expected[weight] = expected[weight] + converted[f"{name}.lora_B.weight"] @ down
    assert_serves(tree, regraft.compile(tree, EYE), adapter, expected)
    # For an engine in the names of the own code, what it serves is converted.
    tree = Tree(state).eval()
    module = regraft.compile(tree, EYE)
    module.refit(adapters=[(module.adapter("style", adapter), 1.0)])
    assert_close(*converted_answers(tree, called(module, EYE), "flux", expected))


def test_a_5_loras_of_hunyuan_as_diffusers_converts_them() -> None:
    state = original("hunyuan")
    # The converter takes the rows of these, and not of what is between them.
    names = [name for name in state if not any(part in name for part in ("refiner", "final_layer.ada"))]
    factors = lora({name: state[name] for name in names}, lambda _: 2)
    factors = {name: (down, up, 1.0) for name, (down, up, _) in factors.items()}
    adapter = {key: value for key, value in file(factors, "comfyui").items() if not key.endswith(".alpha")}
    converted = converted_lora("_convert_hunyuan_video_lora_to_diffusers", adapter)
    expected = to_diffusers("hunyuan", state)
    tree = Tree(expected).eval()
    for key, down in converted.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            weight = f"{name.removeprefix('transformer.')}.weight"
            expected[weight] = expected[weight] + converted[f"{name}.lora_B.weight"] @ down
    assert_serves(tree, regraft.compile(tree, EYE), adapter, expected)
