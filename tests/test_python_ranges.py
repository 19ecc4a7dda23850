"""Sizes that change: everything that `torch.export` takes for them is taken by a mutable module, too."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from mutable_checks import Counted, assert_agrees
from regraft import MutableModule
from small import numbers, seeded

Pair = namedtuple("Pair", ["x", "mask"])

pytestmark = pytest.mark.usefixtures("one_thread")


class Halved(nn.Module):
    """Needs an even height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(nn.functional.interpolate(self.down(x), scale_factor=2.0))


class Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, pair: Pair, scale: torch.Tensor | None = None) -> torch.Tensor:
        y = self.fc(pair.x) * pair.mask
        return y if scale is None else y * scale


def image(batch: int, height: int, width: int) -> torch.Tensor:
    return numbers(batch, 3, height, width)


def test_expressions_over_dimensions(tmp_path: Path) -> None:
    mutable = MutableModule(seeded(Halved))
    batch, h, w = Dim("batch", min=1, max=8), Dim("h", min=1, max=32), Dim("w", min=1, max=32)
    mutable.set_expected_dynamic_shape_range(({0: batch, 2: 2 * h, 3: 2 * w},))
    for sizes in ((2, 8, 12), (1, 2, 4), (8, 64, 10), (3, 4, 4)):
        assert_agrees(mutable, image(*sizes))
    assert mutable.recompiles == 0
    assert_agrees(mutable, image(2, 66, 8))
    assert mutable.recompiles == 1, "outside of the range: on its own"
    folder = tmp_path / "saved"
    MutableModule.save(mutable, folder)
    again = MutableModule.load(folder, seeded(Halved))
    assert_agrees(again, image(5, 6, 20))
    assert again.recompiles == 0


def test_offsets_tie_sizes_to_each_other() -> None:
    class Longer(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.relu(x[:, 1:] + y) * 2

    n = Dim("n", min=2, max=64)
    mutable = MutableModule(Longer().eval(), min_block_size=1)
    mutable.set_expected_dynamic_shape_range(({1: n + 1}, {1: n}))
    for size in (4, 2, 64, 9):
        assert_agrees(mutable, numbers(2, size + 1), numbers(2, size))
    assert mutable.recompiles == 0


@pytest.mark.parametrize("hint", [Dim.AUTO, Dim.DYNAMIC, Dim.AUTO(min=2, max=16)])
def test_hints(hint: Any) -> None:
    mutable = MutableModule(seeded(Halved))
    mutable.set_expected_dynamic_shape_range(((hint, None, 8, Dim.STATIC),))
    for batch in (2, 3, 16):
        assert_agrees(mutable, image(batch, 8, 8))
    assert mutable.recompiles == 0
    assert_agrees(mutable, image(1, 8, 8))
    assert mutable.recompiles == 1, "PyTorch takes a size of 1 for fixed"


def test_named_tuples() -> None:
    mutable, batch = MutableModule(seeded(Paired)), Dim("batch", min=1, max=16)
    for ranges in (
        Pair({0: batch}, {0: batch}),
        ({0: batch}, {0: batch}),
        {"x": {0: batch}, "mask": {0: batch}},
    ):
        mutable.set_expected_dynamic_shape_range((ranges,))
        counted = Counted(mutable)
        for size in (2, 9, 1):
            assert_agrees(mutable, Pair(numbers(size, 8), numbers(size, 1)))
        assert counted()[1] <= 1
    assert mutable.recompiles == 0
    mutable.set_expected_dynamic_shape_range(({"y": {0: batch}},))
    with pytest.raises(
        regraft.InputError, match=r"argument 0: expected a mapping with keys among \['x', 'mask'\]"
    ):
        assert_agrees(mutable, Pair(numbers(40, 8), numbers(40, 1)))


def test_a_diffusion_unet_of_many_sizes_compiles_once() -> None:
    from diffusers import UNet2DConditionModel

    unet = seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    mutable = MutableModule(unet)
    batch, h, w, text = (
        Dim("batch", min=1, max=8),
        Dim("h", min=1, max=16),
        Dim("w", min=1, max=16),
        Dim("text", max=80),
    )
    mutable.set_expected_dynamic_shape_range(
        ({0: batch, 2: 2 * h, 3: 2 * w},), {"encoder_hidden_states": {0: batch, 1: text}}
    )
    for b, height, width, length in (
        (2, 8, 8, 7),
        (1, 8, 16, 7),
        (4, 16, 8, 7),
        (2, 4, 6, 77),
        (1, 2, 2, 5),
        (3, 10, 12, 9),
        (8, 4, 4, 77),
        (1, 16, 16, 1),
        (2, 6, 32, 20),
        (5, 12, 2, 3),
        (7, 2, 14, 80),
        (6, 20, 4, 11),
    ):
        latents, states = numbers(b, 4, height, width), numbers(b, length, 8)
        assert_agrees(mutable, latents, torch.tensor(7), encoder_hidden_states=states, return_dict=False)
    assert mutable.recompiles == 0
