"""What notices that a module changed: tensors, their memory, and containers (scenario M-3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft import _regraft


@pytest.mark.parametrize("offset", [0, 1, 8, 60, 63])
def test_m_3_small_memory_is_read_whole_and_large_at_its_ends(offset: int) -> None:
    memory = torch.zeros(offset + 100_000, dtype=torch.uint8)
    for size in (1, 7, 64, 65, 127, 128, 500, 512, 100_000):
        part = memory[offset : offset + size]
        watch = _regraft.Watch()
        watch.watch_memory([part.data_ptr()], [size])
        assert watch.changed_memory([part.data_ptr()]) == []
        for at in range(size) if size <= 512 else (0, 1, 63, size - 64, size - 1):
            part[at] ^= 1
            assert watch.changed_memory([part.data_ptr()]) == [0], f"byte {at} of {size}"
            part[at] ^= 1
        memory[offset + size :] ^= 1
        memory[:offset] ^= 1
        assert watch.changed_memory([part.data_ptr()]) == [], "nothing outside is read"
        assert watch.changed_memory([part.data_ptr() + 64]) == [0]


def test_m_3_tensors_are_compared_by_what_pytorch_holds() -> None:
    watch = _regraft.Watch()
    one = torch.zeros(2, 3)
    counted, other = one.detach(), one.data
    facts = (one._cdata, counted._cdata, other._cdata)
    assert watch.find_versions(*facts, one._version)
    assert not _regraft.Watch().find_versions(*facts, one._version + 1), "another place"
    assert not _regraft.Watch().find_versions(facts[0], facts[2], facts[2], 0), "nothing is shared"
    tensors = [one, torch.zeros(4), torch.zeros(2, 2)]
    known = [(tensor, tensor._cdata, tensor.untyped_storage()._cdata) for tensor in tensors]
    assert watch.watch_tensors([known[0], (*known[1][:2], known[0][2]), known[2]]) == [1], (
        "of another storage"
    )
    assert watch.changed_tensors() == ([], [])
    one.add_(1)
    assert watch.changed_tensors() == ([], [0])
    tensors[2].data = tensors[2].data.t()
    assert watch.changed_tensors() == ([2], [0])
    watch.rebase_tensors()
    assert watch.changed_tensors() == ([], [])
    one.untyped_storage().resize_(4096)
    assert watch.changed_tensors()[0] == [0], "its memory is elsewhere"


def test_m_3_every_way_to_change_a_container_arrives() -> None:
    """Where dicts count what is done to them, that they do is relied on."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.table, self.items = 0, {"a": 1, "b": 2}, [1, 2]

    part = Part()
    native = regraft._regraft.Watch()

    def assign() -> None:
        part.value += 1

    changes: list[Callable[[], object]] = [
        assign,
        lambda: setattr(part, "value", part.value + 1),
        lambda: vars(part).update(value=-1),
        lambda: part.register_buffer("b", None),
        lambda: part._buffers.pop("b"),
        lambda: part.__delattr__("value"),
        lambda: part.table.__setitem__("a", object()),
        lambda: part.table.setdefault("c", 3),
        lambda: part.table.popitem(),
        lambda: part.table.__ior__({"a": 5}),
        lambda: part.items.append(3),
        lambda: part.items.__setitem__(0, 9),
        part.table.clear,
    ]
    # What the interpreter does often, it does in other ways.
    for _ in range(1000):
        assign()
    for change in changes:
        containers = [vars(part), part._buffers, part._parameters, part.table, part.items]
        native.watch_containers(containers)
        assert native.is_unchanged() and native.changed_containers() == []
        change()
        assert not native.is_unchanged() and len(native.changed_containers()) == 1
    native.watch_containers([part.table])
    part.table["a"] = 1
    del part.table["a"]
    assert native.is_unchanged() and native.changed_containers() == [], "it holds what it did"


def test_m_3_containers_are_compared_by_what_they_hold() -> None:
    held: list[Any] = [{"a": 1, "b": [2]}, [], {}, ["x"]]
    watch = _regraft.Watch()
    watch.watch_containers(held)
    assert watch.changed_containers() == []
    held[0]["b"].append(3)
    assert watch.changed_containers() == [], "shallow"
    held[0]["c"] = held[0].pop("a")
    held[1].append(None)
    held[3][0] = "y"
    assert watch.changed_containers() == [0, 1, 3]
    with pytest.raises(TypeError, match="a dict or a list"):
        watch.watch_containers([(1, 2)])
