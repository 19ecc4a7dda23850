"""Why a mutable module compiled, refitted and went to PyTorch, and what that cost."""

from __future__ import annotations

import html
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from regraft.checks import listed
from regraft.inputs import Size
from regraft.kept import short_name
from regraft.mutable.inputs import Call, Leaf, Takes

__all__ = ["Event", "Explanation", "History", "difference", "other_structure", "type_text"]

# Events that are remembered one by one.
_MOST_EVENTS = 100

What = Literal["compile", "refit", "pytorch"]


@dataclass(frozen=True)
class Event:
    """One thing that a mutable module did besides running."""

    what: What
    """``compile``, ``refit``, or ``pytorch`` for calls that PyTorch ran."""
    why: str
    call: int
    """Number of the call, from 1."""
    seconds: float = 0.0
    detail: str = ""
    """What it did: engines and slots made."""

    def __str__(self) -> str:
        cost = "" if self.what == "pytorch" else f"  {_time(self.seconds)}"
        return f"call {self.call}: {self.what}{cost}  {self.why}" + (
            f" ({self.detail})" if self.detail else ""
        )


@dataclass(frozen=True)
class Explanation:
    """What a mutable module did, newest last. ``print`` it."""

    calls: int
    totals: Mapping[str, tuple[int, float]]
    """How often, and how many seconds together, by :attr:`Event.what`."""
    events: tuple[Event, ...] = field(default=(), repr=False)
    """The last hundred."""

    def __str__(self) -> str:
        names = {"compile": "compilations", "refit": "refits", "pytorch": "calls in PyTorch"}
        totals = [
            f"{count} {names[what]}" + (f" in {_time(seconds)}" if what != "pytorch" else "")
            for what, (count, seconds) in self.totals.items()
        ]
        head = ", ".join([f"{self.calls} calls", *totals])
        return "\n".join([head, *(f"  {event}" for event in self.events)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{event.call}</td><td>{event.what}</td><td>{_time(event.seconds)}</td>"
            f"<td>{html.escape(event.why)} {html.escape(event.detail)}</td></tr>"
            for event in self.events
        )
        head = html.escape(str(self).splitlines()[0])
        return (
            f"<p>{head}</p><table><tr><th>call</th><th>what</th><th>cost</th><th>why</th></tr>{rows}</table>"
        )


class History:
    """Events as they happen."""

    def __init__(self) -> None:
        self.calls = 0
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._counts: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def add(self, what: What, why: str, seconds: float = 0.0, detail: str = "") -> None:
        """Notes an event of the current call. Calls that PyTorch runs for one reason are noted once."""
        self._counts[what] += 1
        self._seconds[what] += seconds  # type: ignore[assignment]
        if what != "pytorch" or not any(event.what == what and event.why == why for event in self._events):
            self._events.append(Event(what, why, self.calls, seconds, detail))

    def explanation(self) -> Explanation:
        """What happened so far."""
        totals = {what: (count, float(self._seconds[what])) for what, count in self._counts.items()}
        return Explanation(self.calls, totals, tuple(self._events))


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def type_text(leaf: Leaf) -> str:
    """Such as ``f32[d0, 8]``, or the value of what is not a tensor."""
    kind, value = leaf
    if not isinstance(kind, torch.dtype):
        return repr(value) if kind in (bool, int, float, str, type(None)) else kind.__name__
    sizes = ", ".join("?" if size is None else str(size) for size in value)
    return f"{short_name(str(kind).removeprefix('torch.'))}[{sizes}]"


def difference(call: Call, programs: Sequence[Takes], places: Sequence[str]) -> str:
    """Why none of the programs takes a call: what differs from the last that is closest to it."""
    programs = [takes for takes in programs if takes.method == call.method]
    if not programs:
        return f"the first call of {call.method}"
    same = [takes for takes in programs if takes.spec == call.spec and len(takes.leaves) == len(call.key)]
    if not same:
        return "the arguments have another structure than before"
    best = min(reversed(same), key=lambda takes: len(_other_leaves(takes, call)))
    parts = [
        f"{places[index]} is {type_text(call.key[index])}, was {type_text(best.leaves[index])}"
        for index in _other_leaves(best, call)
    ]
    return listed(parts) or "sizes that were the same differ, or are outside of their range"


def _other_leaves(takes: Takes, call: Call) -> list[int]:
    def differs(want: Leaf, found: Leaf) -> bool:
        if want[0] is not found[0]:
            return True
        if not isinstance(want[0], torch.dtype):
            return bool(want[1] != found[1])
        return len(want[1]) != len(found[1]) or any(
            not isinstance(size, Size) and size is not None and size != other
            for size, other in zip(want[1], found[1], strict=True)
        )

    return [
        i for i, (want, found) in enumerate(zip(takes.leaves, call.key, strict=True)) if differs(want, found)
    ]


def other_structure(
    before: Mapping[str, tuple[Any, ...]], after: Mapping[str, tuple[Any, ...]], same: Any
) -> str:
    """What differs between two structures of a tree of modules; ``same`` compares two values."""
    gone, new = _layers(before.keys() - after.keys()), _layers(after.keys() - before.keys())
    parts = [f"{name} is new" for name in new] + [f"{name} is gone" for name in gone]
    for key in after:
        if key in before and not same(before[key], after[key]):
            parts.append(_other_facts(key.removeprefix("."), before[key], after[key], same))
    return listed(parts) or "the structure changed"


def _layers(keys: Iterable[str]) -> list[str]:
    return sorted(key.removeprefix(".") for key in keys)


def _other_facts(name: str, before: tuple[Any, ...], after: tuple[Any, ...], same: Any) -> str:
    if not name and (not after or not isinstance(after[0], type)):
        return "which weights are one changed"
    where = name or "the module"
    if before[0] is not after[0]:
        return f"{where} is a {after[0].__name__}, was a {before[0].__name__}"
    for position, what in ((1, "weight"), (3, "attribute")):
        changed = sorted(
            key
            for key in before[position].keys() | after[position].keys()
            if not same(before[position].get(key), after[position].get(key))
        )
        if changed:
            return f"{what} {listed(changed)} of {where} changed"
    return f"forward hooks of {where} changed"
