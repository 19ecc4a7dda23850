"""Layers that PEFT puts around others: what they are around, and what their adapters make of its weights.

PyTorch and this module only: PEFT is used only when it has been imported already.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

__all__ = [
    "CannotMerge",
    "Overlay",
    "adds_nothing",
    "check_ties",
    "is_within",
    "layers_with_values",
    "overlay",
    "plain",
    "scale_of_call",
    "settle",
    "shadow",
    "state",
]


def plain(found: nn.Module) -> nn.Module:
    """``found``, or what is inside of it where it is a wrapper: a layer with adapters, a module that PEFT
    trains a copy of, or a mutable module.
    """
    module: Any = found
    while True:
        inner = getattr(type(module), "_regraft_original", None)
        if inner is not None:
            module = inner.__get__(module)
        elif _is_tuner(module):
            module = module.base_layer
        elif _is("peft.utils.other", "ModulesToSaveWrapper", module):
            module = _selected(module)
        elif _is("peft.utils.other", "TrainableTokensWrapper", module):
            module = module.token_adapter
        else:
            return cast(nn.Module, module)


def _selected(wrapper: Any) -> Any:
    """The copy that is active, or the original."""
    active = wrapper.active_adapters
    if wrapper.disable_adapters or not active or any(name not in wrapper.modules_to_save for name in active):
        return wrapper.original_module
    return wrapper.modules_to_save[active[0]]


def _is(module: str, name: str, value: Any) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name, ()))


def _is_tuner(module: nn.Module) -> bool:
    return _is("peft.tuners.tuners_utils", "BaseTunerLayer", module) and "base_layer" in module._modules


def _layers(wrapper: nn.Module) -> list[Any]:
    """The layers with adapters in a wrapper, the innermost first."""
    layers: list[Any] = []
    module: Any = wrapper
    while True:
        if _is("peft.utils.other", "TrainableTokensWrapper", module):
            module = module.token_adapter
        elif _is_tuner(module):
            layers.insert(0, module)
            module = module.base_layer
        else:
            return layers


def shadow(root: nn.Module) -> nn.Module:
    """The program's module: ``root`` with wrappers replaced by what is inside. Modules that have none below
    them are the same objects; the others are copies that share everything but their children. Hooks of
    accelerate around the whole are not there.
    """
    made: dict[int, nn.Module] = {}

    def of(found: nn.Module) -> nn.Module:
        if id(found) in made:
            return made[id(found)]
        module = plain(found)
        made[id(found)] = module
        children = {name: child and of(child) for name, child in module._modules.items()}
        if any(child is not module._modules[name] for name, child in children.items()):
            copied: nn.Module = object.__new__(type(module))
            copied.__dict__.update(module.__dict__, _modules=children)
            module = made[id(found)] = copied
        return module

    return _without_hook(of(root))


def _without_hook(root: nn.Module) -> nn.Module:
    """``root``, without what accelerate put around it, which would move its weights."""
    if "_hf_hook" not in vars(root):
        return root
    copied: nn.Module = object.__new__(type(root))
    copied.__dict__.update({name: value for name, value in vars(root).items() if name != "_hf_hook"})
    return copied


def state(wrapper: nn.Module) -> tuple[Any, ...]:
    """What decides which adapters count, and how much; equal as long as that does not change."""
    return tuple(_layer_state(layer) for layer in _layers(wrapper))


def _layer_state(layer: Any) -> tuple[Any, ...]:
    active = _active(layer)
    numbers = [
        (name, adapter, values[adapter])
        for name, values in vars(layer).items()
        if type(values) is dict
        for adapter in active
        if isinstance(values.get(adapter), (bool, int, float, str))
    ]
    return type(layer), layer.disable_adapters, tuple(layer.merged_adapters), tuple(active), tuple(numbers)


def _active(layer: Any) -> list[str]:
    """Active adapters that the layer has, in their order."""
    available = layer._get_available_adapters()
    return [name for name in layer.active_adapters if name in available]


def _added(layer: Any) -> list[str]:
    """Adapters that a call adds to the layer's weights as they are."""
    return [] if layer.disable_adapters or layer.merged else _active(layer)


def adds_nothing(wrapper: nn.Module) -> bool:
    """Whether the weights inside count as they are."""
    return not any(_added(layer) for layer in _layers(wrapper))


def settle(root: nn.Module) -> None:
    """Takes merged adapters out of layers whose adapters are disabled, which PEFT does when such a layer is
    called.
    """
    with torch.no_grad():
        layers: Iterable[Any] = (module for module in root.modules() if _is_tuner(module))
        for layer in layers:
            if layer.disable_adapters and layer.merged:
                layer.unmerge()


def scale_of_call(module: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The factor that a call of a module of diffusers scales adapters with, and the arguments without it."""
    for name in _SCALING & kwargs.keys():
        scale = kwargs[name].get("scale") if isinstance(kwargs[name], dict) else None
        if isinstance(scale, (int, float)) and _is("diffusers.loaders.peft", "PeftAdapterMixin", module):
            # Calls without a scale have none of it, and take the same program.
            others = {key: value for key, value in kwargs[name].items() if key != "scale"}
            return {**kwargs, name: others or None}, float(scale)
    return kwargs, 1.0


# Arguments of diffusers whose entry "scale" is about adapters.
_SCALING = frozenset(("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs"))


def mixes_adapters(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call applies other adapters to each of its samples, which no weights do."""
    return kwargs.get("adapter_names") is not None or kwargs.get("alora_offsets") is not None


@dataclass
class Overlay:
    """What adapters make of weights."""

    native: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Factors by adapter, under the names of PEFT's files, with the scales of the layers in them."""
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    """Merged weights by the names of their sources, where the adapters are of other kinds."""


class CannotMerge(Exception):
    """A layer whose adapters are not a change of its weights."""


def check_ties(
    tuners: Mapping[str, nn.Module], ties: Iterable[Collection[str]], native: Collection[str]
) -> None:
    """Checks that adapters change the weights of no other layer: those that Regraft merges itself belong to
    a use of a weight, and the other uses keep theirs.

    Args:
        tuners: wrappers by the names of the layers inside.
        ties: names of sources that are one tensor.
        native: sources that adapters may be given for.

    Raises:
        CannotMerge: when a layer with adapters shares a weight, so that a program has one source for both.

    """
    for name, tuner in tuners.items():
        if _native_layer(name, tuner, native) is not None:
            continue
        within = is_within(name)
        shared = [names for names in ties if 0 < sum(map(within, names)) < len(names)]
        if shared and not adds_nothing(tuner):
            other = next(source for source in shared[0] if not within(source))
            raise CannotMerge(f"{name} has adapters, and shares its weight with {other}")


def overlay(
    tuners: Mapping[str, nn.Module], native: Collection[str], wanted: Iterable[str], scale: float
) -> Overlay:
    """What the active adapters of ``tuners`` make of the weights inside.

    Args:
        tuners: wrappers by the names of the layers inside.
        native: sources that adapters may be given for.
        wanted: names of layers whose merged weights are wanted.
        scale: what adapters are scaled with besides.

    Raises:
        CannotMerge: when PEFT cannot merge a layer.

    """
    result, wanted = Overlay(), set(wanted)
    # A wrapper inside of another is merged with it: what the outer one says comes last.
    for name in sorted(tuners, key=len, reverse=True):
        layer = _native_layer(name, tuners[name], native)
        if layer is not None:
            for adapter in _added(layer):
                result.native.setdefault(adapter, {}).update(_factors(layer, adapter, name, scale))
        elif name in wanted and not adds_nothing(tuners[name]):
            result.values.update(_merged(tuners[name], name, scale))
    return result


def layers_with_values(tuners: Mapping[str, nn.Module], native: Collection[str]) -> set[str]:
    """Names of layers whose weights :func:`overlay` gives merged."""
    return {
        name
        for name, tuner in tuners.items()
        if not adds_nothing(tuner) and _native_layer(name, tuner, native) is None
    }


def _native_layer(name: str, wrapper: nn.Module, native: Collection[str]) -> Any:
    """The layer in a wrapper when Regraft merges its adapters itself, ``None`` otherwise."""
    layers = _layers(wrapper)
    # Files of adapters have no names for a module as a whole.
    known = name and f"{name}.weight" in native and len(layers) == 1
    return layers[0] if known and _is_native(layers[0]) else None


def _is_native(layer: Any) -> bool:
    """Whether Regraft merges its adapters itself: LoRA, rsLoRA and DoRA as PEFT defines them, on layers
    stored as usual.
    """
    lora = sys.modules["peft.tuners.lora.layer"]
    variants = sys.modules["peft.tuners.lora.variants"]
    dora = {
        lora.Linear: variants.DoraLinearVariant,
        lora.Embedding: variants.DoraEmbeddingVariant,
        lora.Conv1d: variants.DoraConv1dVariant,
        lora.Conv2d: variants.DoraConv2dVariant,
        lora.Conv3d: variants.DoraConv3dVariant,
    }
    if type(layer) not in dora or layer.quantization_backend is not None:
        return False
    base, active = layer.base_layer, _active(layer)
    if (
        getattr(layer, "fan_in_fan_out", False)
        or getattr(base, "groups", 1) != 1
        or not base.weight.is_floating_point()
    ):
        return False
    if any(layer.lora_bias.get(name) for name in active):
        return False
    kinds = [layer.lora_variant.get(name) for name in active]
    # DoRA after another adapter scales that one's result, too, which is not a sum.
    return kinds == [None] * len(kinds) or (len(kinds) == 1 and kinds[0] is dora[type(layer)])


def _factors(layer: Any, adapter: str, name: str, scale: float) -> dict[str, torch.Tensor]:
    path = f"base_model.model.{name}"
    if adapter in layer.lora_A:
        down, up = (factor[adapter].weight.detach() for factor in (layer.lora_A, layer.lora_B))
        names = (f"{path}.lora_A.weight", f"{path}.lora_B.weight")
    else:
        down, up = (factor[adapter].detach() for factor in (layer.lora_embedding_A, layer.lora_embedding_B))
        names = (f"{path}.lora_embedding_A", f"{path}.lora_embedding_B")
        # PEFT does not scale those of embeddings afterwards.
        scale = 1.0
    factors = {names[0]: down, names[1]: up.float() * (layer.scaling[adapter] * scale)}
    if adapter in layer.lora_variant:
        factors[f"{path}.lora_magnitude_vector"] = layer.lora_magnitude_vector[adapter].weight.detach()
    return factors


def _merged(wrapper: nn.Module, name: str, scale: float) -> dict[str, torch.Tensor]:
    """The weights inside with the adapters merged in, by PEFT itself, on a copy."""
    copied = copy.deepcopy(wrapper)
    try:
        with torch.no_grad():
            for layer in _layers(copied):
                active = _added(layer)
                if active:
                    if scale != 1.0:
                        layer.scale_layer(scale)
                    layer.merge(safe_merge=False, adapter_names=active)
    except Exception as error:
        raise CannotMerge(f"{name}: PEFT does not merge {type(wrapper).__name__}: {error}") from error
    inside = shadow(copied)
    named = (*inside.named_parameters(remove_duplicate=False), *inside.named_buffers(remove_duplicate=False))
    return {_joined(name, key): value.detach() for key, value in named}


def is_within(layer: str) -> Callable[[str], bool]:
    """Whether a source is one of a layer's."""
    prefix = _joined(layer, "")
    return lambda source: source.startswith(prefix)


def _joined(layer: str, key: str) -> str:
    # The module itself has no name.
    return f"{layer}.{key}" if layer else key
