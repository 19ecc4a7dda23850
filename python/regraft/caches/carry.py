"""What becomes of the caches of a call: their new tensors go back into the objects of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree

from regraft.caches.form import Ref, dumped, is_static, loaded

__all__ = ["MARK", "Carry"]

MARK = "regraft.cache."


@dataclass(frozen=True)
class Carry:
    """What becomes of the caches of a call: what each consists of afterwards, whether it came with the
    call or is new.
    """

    caches: tuple[tuple[bool, Ref], ...] = field(default=())

    def to_json(self) -> list[Any]:
        """It as JSON holds it."""
        return [[is_given, dumped(ref)] for is_given, ref in self.caches]

    @classmethod
    def from_json(cls, data: list[Any]) -> Carry:
        """The inverse of :meth:`to_json`.

        Raises:
            EngineFileError: when it is something else.

        """
        return cls(tuple((bool(is_given), loaded(ref)) for is_given, ref in data))

    def result(self, made: Any, inputs: Sequence[torch.Tensor], caches: Sequence[Any]) -> Any:
        """The result of a call, after its caches got their new tensors."""
        result, tensors = made
        after = list(caches)
        for index, (is_given, ref) in enumerate(self.caches):
            put = _Put(tensors, inputs)
            if is_given:
                put.into(caches[index], ref)
            else:
                after.append(put.value(ref, None, False))

        def unmarked(value: Any) -> Any:
            is_mark = type(value) is str and value.startswith(MARK)
            return after[int(value.removeprefix(MARK))] if is_mark else value

        return pytree.tree_map(unmarked, result)


class _Put:
    """Puts the results of a call into caches."""

    def __init__(self, tensors: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._inputs = inputs

    def into(self, target: Any, ref: Ref) -> None:
        """Makes an object of a cache what ``ref`` says."""
        in_place, held = is_static(type(target)), target.__dict__
        for name, part in ref[2]:
            before = held.get(name)
            after = self.value(part, before, in_place)
            if after is not before:
                held[name] = after

    def value(self, ref: Ref, before: Any, in_place: bool) -> Any:
        """What ``ref`` says, in the place of ``before``."""
        kind, *what = ref
        if kind == "same":
            return before
        if kind == "tensor":
            made = self._tensors[what[0]]
            if in_place and isinstance(before, torch.Tensor) and before.shape == made.shape:
                before.copy_(made)
                return before
            return made
        if kind == "constant":
            return before if type(before) is type(what[0]) and before == what[0] else what[0]
        if kind == "size":
            return what[0] + sum(coefficient * self._symbol(*place) for place, coefficient in what[1])
        if kind == "object":
            target = before if type(before) is what[0] else object.__new__(what[0])
            self.into(target, ref)
            return target
        if kind == "dict":
            known = before if isinstance(before, dict) else {}
            found = {key: self.value(part, known.get(key), False) for key, part in what[0]}
            known.update(found)
            return known
        parts = [
            self.value(
                part, before[i] if isinstance(before, (list, tuple)) and i < len(before) else None, False
            )
            for i, part in enumerate(what[0])
        ]
        if isinstance(before, list):
            before[:] = parts
            return before
        return parts if kind == "list" else tuple(parts)

    def _symbol(self, index: int, axis: int, factor: int, offset: int) -> int:
        return (self._inputs[index].shape[axis] - offset) // factor
