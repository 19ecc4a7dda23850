"""A network of several kinds of layers, compiled with weights number 0, and its results with number 1."""

from __future__ import annotations

import functools

import numpy as np
from torch import nn

import regraft
from module_checks import called
from small import seeded
from test_sources import TOKENS, Net


def net(seed: int) -> nn.Module:
    return seeded(Net, seed)


@functools.cache
def original() -> regraft.Module:
    return regraft.compile(net(0), TOKENS)


def fresh() -> regraft.Module:
    """Compiled with the first weights; nobody else has it."""
    return original().fork()


@functools.cache
def results_of_second() -> list[np.ndarray]:
    """What a module compiled from the second weights gives."""
    return called(regraft.compile(net(1), TOKENS), TOKENS)
