"""A tree of modules as the compiled program sees it: with the layers that PEFT put in replaced by what they
are around.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from regraft.checks import depends_on_mode
from regraft.mutable import peft

__all__ = ["LOOSE", "Tree", "same_structure", "same_values"]

LOOSE = "*"
"""Owns tensors that modules hold in lists, tuples and dicts: programs have no names for them."""

# What every module has and what says nothing about the program: registries, which are looked at by content;
# hooks of gradients and of state dicts; and the mode, which is looked at on its own.
_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NOT_COMPARED = _REGISTRIES | {
    "training",
    "_is_full_backward_hook",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    # What accelerate puts around modules.
    "forward",
    "_old_forward",
    "_hf_hook",
    # What generation of transformers notes down between calls.
    "_cache",
    "_previous_max_cache_length",
    "generation_config",
    # What PEFT and diffusers note down about adapters, on modules that are none.
    "peft_config",
    "_hf_peft_config_loaded",
    "_prepare_lora_hotswap_kwargs",
    "lora_scale",
    "_safe_fusing",
}
_VALUES = (
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.Size,
    type,
)
_Dropout = nn.modules.dropout._DropoutNd


class Tree:
    """What a module consists of at one moment.

    Attributes:
        layers: Every module by its name in the program.
        sources: Parameters, buffers and tensors in plain attributes by their names in the program. A tensor
            with several names is there under each.
        tuners: What PEFT put around a layer, by the layer's name: the outermost.
        containers: Dicts and lists whose content decides what the module is.
        tensors: Every tensor once: those of ``sources``, those of adapters, and those without a name.
        owners: For each of ``tensors`` the names of what changes with it: sources, ``tuners``, or ``LOOSE``.
        in_pytorch: Why calls are PyTorch's matter, if they are.

    """

    def __init__(self, root: nn.Module) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.sources: dict[str, torch.Tensor] = {}
        self.tuners: dict[str, nn.Module] = {}
        self.containers: list[dict[Any, Any] | list[Any]] = []
        self.in_pytorch: str | None = None
        self._loose: list[torch.Tensor] = []
        self._walk(root, "", ())
        owners: dict[int, tuple[torch.Tensor, list[str]]] = {}
        for name, tensor in self.sources.items():
            owners.setdefault(id(tensor), (tensor, []))[1].append(name)
        for name, tuner in self.tuners.items():
            for tensor in (*tuner.parameters(), *tuner.buffers()):
                owners.setdefault(id(tensor), (tensor, []))[1].append(name)
        for tensor in self._loose:
            owners.setdefault(id(tensor), (tensor, []))[1].append(LOOSE)
        self.tensors = [tensor for tensor, _ in owners.values()]
        self.owners = [tuple(names) for _, names in owners.values()]

    def _walk(self, found: nn.Module, name: str, above: tuple[nn.Module, ...]) -> None:
        module = peft.plain(found)
        if module is not found:
            self.tuners[name] = found
            known = set(map(id, module.modules()))
            for part in found.modules():
                if id(part) not in known:
                    self._watch(part)
                    if isinstance(part, _Dropout) and part.training and part.p > 0:
                        self._leave(f"adapters of {name} are in training mode: call eval() on the whole")
                    if any(getattr(part, hooks) for hooks in _HOOKS):
                        self._leave(f"adapters of {name} have forward hooks")
        self.layers[name] = module
        self._watch(module)
        if module.training and depends_on_mode(module):
            self._leave(f"{name or 'it'} is in training mode: call eval() on the whole")
        prefix = f"{name}." if name else ""
        if any(tensor is not None and tensor.is_meta for tensor in module._parameters.values()):
            self._leave(
                f"weights of {name or 'it'} are on the meta device between calls, where sequential "
                "offloading leaves them: enable_model_cpu_offload() moves whole components"
            )
        for registry in (module._parameters, module._buffers):
            self.sources.update(
                (prefix + key, tensor) for key, tensor in registry.items() if tensor is not None
            )
        for key, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                self.sources[prefix + key] = value
            elif type(value) in (dict, list, tuple):
                inside = value.values() if isinstance(value, dict) else value
                self._loose += [part for part in inside if isinstance(part, torch.Tensor)]
        for key, child in module._modules.items():
            # A module that holds one of those around it has no end, and no program either: exporting it says
            # so.
            if child is not None and child not in above:
                self._walk(child, prefix + key, (*above, module))

    def _leave(self, why: str) -> None:
        self.in_pytorch = self.in_pytorch or why

    def _watch(self, module: nn.Module) -> None:
        held = vars(module)
        self.containers.append(held)
        self.containers += [held[name] for name in ("_parameters", "_buffers", "_modules", *_HOOKS)]
        self.containers += [
            v for name, v in held.items() if type(v) in (dict, list) and name not in _NOT_COMPARED
        ]

    def structure(self) -> dict[str, tuple[Any, ...]]:
        """What decides which program this is, besides the values of sources: see :func:`same_structure`."""
        return {
            "": tuple(self.ties()),
            **{f".{name}": _facts(module) for name, module in self.layers.items()},
        }

    def ties(self) -> Iterator[tuple[str, ...]]:
        """For each source of several names these names."""
        tied = (tuple(name for name in names if name in self.sources) for names in self.owners)
        return (names for names in tied if len(names) > 1)

    def sources_within(self, layers: Iterable[str]) -> set[str]:
        """Names of the sources of ``layers``."""
        return {name for layer in layers for name in filter(peft.is_within(layer), self.sources)}


def _facts(module: nn.Module) -> tuple[Any, ...]:
    tensors = {
        name: (tensor.dtype, tuple(tensor.shape), tensor.device)
        for registry in (module._parameters, module._buffers)
        for name, tensor in registry.items()
        if tensor is not None
    }
    hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
    ignored = _NOT_COMPARED.union(_HOOKS)
    attributes = {name: _kept(value) for name, value in vars(module).items() if name not in ignored}
    return type(module), tensors, hooks, attributes


def _kept(value: Any) -> Any:
    """A copy as deep as changes are looked for."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.dtype, tuple(value.shape), value.device
    if type(value) is dict:
        return dict(value)
    return list(value) if type(value) is list else value


def same_structure(one: dict[str, tuple[Any, ...]], other: dict[str, tuple[Any, ...]]) -> bool:
    """Whether two trees are the same program: types of modules, shapes, dtypes and places of tensors and
    which of them are one, plain attributes by value, other attributes and forward hooks by identity.
    ``False`` may be wrong; ``True`` is not, as far as objects in attributes were not changed in place.
    """
    return same_values(one, other)


def same_values(one: Any, other: Any) -> bool:
    """Whether two values of structures are the same; ``False`` may be wrong."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same_values(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, (set, frozenset)):
        return bool(one == other)
    if isinstance(one, types.MethodType):
        return bool(one.__func__ is other.__func__ and one.__self__ is other.__self__)
    return isinstance(one, _VALUES) and bool(one == other)
