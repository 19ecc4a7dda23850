"""Weights that a wrong kernel cannot hide behind: no zeros, no ones, nothing so small that it is lost."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_EMBEDDING = 0.5
_VECTOR = 0.1
# The variance that a layer gives what it is fed with variance 1; a ReLU behind it takes half of it.
_GAIN = 1.5
_WITH_FAN_IN = (nn.Linear, nn.modules.conv._ConvNd)


def randomize_(module: nn.Module, seed: int) -> nn.Module:
    """Fills parameters and the statistics of batch norms, the same for the same seed. Integers, and buffers
    whose values mean something, such as tables of positions, stay.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    with torch.no_grad():
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                if not parameter.is_floating_point():
                    continue
                if parameter.dim() < 2:
                    # What it was made with means something: scales are near one, decays negative.
                    parameter.add_(_VECTOR * normal(parameter))
                elif isinstance(part, nn.Embedding):
                    parameter.copy_(_EMBEDDING * normal(parameter))
                else:
                    parameter.copy_(math.sqrt(_GAIN / _fan_in(part, parameter)) * normal(parameter))
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_var is not None:
                part.running_mean.copy_(_VECTOR * normal(part.running_mean))
                part.running_var.copy_(0.5 + normal(part.running_var).abs())
    return module


def _fan_in(part: nn.Module, parameter: Tensor) -> int:
    """How many numbers are added up in one of a layer's results, or about that."""
    return parameter[0].numel() if isinstance(part, _WITH_FAN_IN) else parameter.shape[-1]
