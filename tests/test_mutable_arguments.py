"""Arguments of a module that stays compiled: other sizes, types and structures (scenarios M-5 and M-6)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from mutable_checks import Counted, assert_agrees, trained
from regraft import MutableModule

pytestmark = pytest.mark.usefixtures("one_thread")


class Structured(nn.Module):
    """Arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, data: Any, mask: torch.Tensor | None = None, double: bool = False) -> dict[str, Any]:
        y = self.fc(data["x"]) + data["more"][0]
        if data["nothing"] is not None:
            y = y - data["nothing"]
        if mask is not None:
            y = y * mask
        return {"out": y * 2 if double else y, "first": (y[:, :1], None)}


def test_m_5_other_arguments_compile_and_ranges_stay() -> None:
    net = Structured().eval()
    mutable = MutableModule(net)
    batch = Dim("batch", min=1, max=8)
    axes = {"x": {0: batch}, "more": [{0: batch}], "nothing": None}
    mutable.set_expected_dynamic_shape_range((axes,), {"mask": {0: batch}})
    counted = Counted(mutable)

    def data(size: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        x, more = torch.randn(2, size, 8, dtype=dtype)
        return {"x": x, "more": [more], "nothing": None}

    for size in (1, 3, 8, 5):
        assert_agrees(mutable, data(size))
    assert counted() == (0, 0), "one program takes the whole range"
    assert_agrees(mutable, data(9))
    assert counted() == (0, 1), "outside of the range"
    assert_agrees(mutable, data(4), mask=torch.rand(4, 8))
    assert counted() == (0, 1), "a new keyword"
    assert_agrees(mutable, data(7), mask=torch.rand(7, 8))
    assert_agrees(mutable, data(2))
    assert counted() == (0, 0), "the ranges hold for the new program, and the old ones are kept"
    net.double()
    assert_agrees(mutable, data(3, torch.float64))
    assert_agrees(mutable, data(6, torch.float64))
    assert counted() == (0, 1), "a new dtype"
    net.float()
    assert_agrees(mutable, data(3))
    assert counted()[1] <= 1


def test_m_5_sizes_under_one_name_that_differ_are_fixed() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 2 + y[:1, :1]

    mutable = MutableModule(Product().eval())
    size = Dim("size", min=2, max=8)
    mutable.set_expected_dynamic_shape_range(({0: size}, {0: size}))
    assert_agrees(mutable, torch.randn(3, 4), torch.randn(3, 4))
    assert_agrees(mutable, torch.randn(5, 4), torch.randn(5, 4))
    assert mutable.recompiles == 0
    assert_agrees(mutable, torch.randn(5, 4), torch.randn(3, 4))
    assert mutable.recompiles == 1


def test_m_5_programs_for_other_arguments_take_new_weights_in_later() -> None:
    net = trained()
    mutable = MutableModule(net, auto_ranges=False)
    inputs = [torch.randn(size, 3, 4, 4) for size in (1, 2, 3)]
    for x in inputs:
        assert_agrees(mutable, x)
    counted = Counted(mutable)
    net.fc.weight.data.mul_(2)
    net.norm.running_var.mul_(2)
    for x in inputs:
        assert_agrees(mutable, x)
    assert counted() == (3, 0)
    others = [torch.randn(size, 3, 4, 4) for size in range(4, 12)]
    said = "more than 8 programs .* set_expected_dynamic_shape_range"
    with pytest.warns(regraft.ThrashingWarning, match=said):
        assert all(assert_agrees(mutable, x) is None for x in others)
    assert counted() == (0, 8)
    assert_agrees(mutable, inputs[0])
    assert counted() == (0, 1), "eight programs are kept"


def test_m_6_structured_arguments() -> None:
    mutable = MutableModule(Structured().eval())
    x, more, mask = torch.randn(2, 8), torch.randn(2, 8), torch.rand(2, 8)
    data = {"x": x, "more": [more], "nothing": None}
    for kwargs in ({}, {"mask": mask}, {"mask": None, "double": True}, {"double": True, "mask": mask}):
        assert_agrees(mutable, data, **kwargs)
    counted = Counted(mutable)
    assert_agrees(mutable, data, mask=mask, double=True)
    assert_agrees(mutable, {**data, "more": (more,)})
    assert_agrees(mutable, {**data, "nothing": more})
    assert_agrees(mutable, {**data, "nothing": 2})
    assert counted() == (0, 3)
    with torch.inference_mode():
        result = mutable(data)
    assert set(result) == {"out", "first"} and result["first"][1] is None


def test_m_6_ranges_of_another_structure_are_refused() -> None:
    mutable, size = MutableModule(Structured().eval()), Dim("size", min=1, max=8)
    data = {"x": torch.ones(2, 8), "more": [torch.ones(2, 8)], "nothing": None}
    for ranges, words in (
        (({"x": {0: size}, "other": {}},), "keys among"),
        (({"x": {0: "three"}},), "dimension of torch.export"),
        (({"x": {2: size}},), "axes of a tensor of 2"),
        (({"x": {"batch": size}},), "numbers of axes"),
        (({"x": {0: (2, 3)}},), "dimension of torch.export"),
        (({"more": {0: size}},), "a sequence of 1"),
        (({}, {}, {}), "3 positional arguments"),
    ):
        mutable.set_expected_dynamic_shape_range(ranges)
        with pytest.raises(regraft.InputError, match=words), torch.inference_mode():
            mutable(data)
