"""One model of the sweep, and what its call is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """A module and the arguments of one call."""

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    strict: bool = False
    """Whether it is exported with ``strict=True``, as its library does so itself."""


@dataclass(frozen=True)
class Case:
    """A model: a small instance of a family, rebuilt at each call of ``make``, the same each time."""

    library: str
    kind: str
    name: str
    make: Callable[[], Call] = field(repr=False)

    @property
    def id(self) -> str:
        return f"{self.library}/{self.kind}/{self.name}"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """From a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, below: int = 90, least: int = 0, seed: int = 0) -> Tensor:
    return torch.randint(least, below, shape, generator=torch.Generator().manual_seed(seed))


def image(size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return numbers(batch, channels, size, size)


class Method(nn.Module):
    """A method other than ``forward`` as a module; names of weights have ``module.`` in front."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.name)(*args, **kwargs)
