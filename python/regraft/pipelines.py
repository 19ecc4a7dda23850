"""Pipelines of diffusers, whose components run compiled."""

from __future__ import annotations

import html
from collections.abc import Collection
from typing import Any

from torch import nn

from regraft.checks import listed
from regraft.errors import CompileError
from regraft.mutable import MutableModule
from regraft.report import size_text

__all__ = ["Wrapped", "wrap"]

# Components whose code looks at the values of images, or that do next to nothing.
_NOT_WORTH = frozenset(("safety_checker", "watermarker", "feature_extractor", "tokenizer", "scheduler"))
# Smaller components are not worth an engine.
_LEAST_BYTES = 100_000


class Wrapped(dict[str, MutableModule]):
    """The components of a pipeline that are mutable modules now, by name. ``print`` it."""

    def __init__(self, components: dict[str, MutableModule], left: dict[str, str]) -> None:
        super().__init__(components)
        self.left = left
        """Components that stay as they are, with the reason."""

    def __repr__(self) -> str:
        lines = [f"{len(self)} components run compiled"]
        for name, module in self.items():
            state = module._regraft_state
            size = sum(parameter.nbytes for parameter in state.module.parameters())
            methods = ", ".join(("forward", *state.methods))
            lines.append(f"  {name}: {type(state.module).__name__}, {size_text(size)} ({methods})")
        lines += [f"  {name} stays in PyTorch: {why}" for name, why in self.left.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def wrap(pipeline: Any, *, components: Collection[str] | None = None, **settings: Any) -> Wrapped:
    """Turns the components of a pipeline into mutable modules, where that is worthwhile: networks, text
    encoders, the encoder and decoder of images, ControlNets and adapters. The pipeline itself is changed,
    and used as before.

    Parts of a component that cannot be compiled run in PyTorch, with one warning.

    Args:
        pipeline: a pipeline of diffusers, or any object with a dict ``components``.
        components: names of the components; by default all that are worthwhile.
        settings: what :class:`MutableModule` takes.

    Returns:
        The components that are wrapped now, by name.

    Raises:
        CompileError: when the pipeline has no components, or none of these names.

    Example:
        >>> print(regraft.wrap(pipe))  # doctest: +SKIP
        4 components run compiled
          vae: AutoencoderKL, 334.6 MB (forward, encode, decode)
          text_encoder: CLIPTextModel, 492.3 MB (forward)
          ...

    """
    found = getattr(pipeline, "components", None)
    if not isinstance(found, dict):
        kind = type(pipeline).__name__
        raise CompileError(
            f"a {kind} has no components\n  help: regraft.MutableModule(module) wraps a single module"
        )
    unknown = sorted(set(components or ()) - found.keys())
    if unknown:
        raise CompileError(f"components: there is no {listed(unknown)}, there are {', '.join(found)}")
    settings = {"fallback": True, **settings}
    wrapped, left = {}, {}
    for name, component in found.items():
        if not isinstance(component, nn.Module) or (components is not None and name not in components):
            continue
        why = None if components is not None else _why_not(name, component)
        if why is not None:
            left[name] = why
            continue
        wrapped[name] = (
            component if isinstance(component, MutableModule) else MutableModule(component, **settings)
        )
        setattr(pipeline, name, wrapped[name])
    return Wrapped(wrapped, left)


def _why_not(name: str, component: nn.Module) -> str | None:
    """Why a component is not worth it."""
    if name in _NOT_WORTH:
        return "it looks at values on the way"
    size = sum(parameter.nbytes for parameter in component.parameters())
    return f"it has {size_text(size)} only" if size < _LEAST_BYTES else None
