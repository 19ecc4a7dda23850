"""What a refit did, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regraft._regraft import ReportNames

_T = TypeVar("_T")

__all__ = ["Memory", "RefitReport", "joined", "report_of", "size_text"]


class Memory(dict[str, int]):
    """Bytes by what they are for."""

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{size_text(size)}</td></tr>" for name, size in self.items())
        return f"<table>{rows}</table>"


def _summed(counts: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Counts of the same name together, without those that are zero."""
    sums: dict[str, int] = {}
    for name, count in counts:
        sums[name] = sums.get(name, 0) + count
    return tuple((name, count) for name, count in sums.items() if count)


class _Names:
    """The default of a field: what the native module has for it, as strings once it is looked at. A refit has
    thousands of names, and most reports are never read.
    """

    def __init__(self) -> None:
        self.__doc__ = "Names, in the engine's order."

    def __set_name__(self, owner: type, name: str) -> None:
        self._field = name

    def __get__(self, report: RefitReport | None, owner: type) -> tuple[str, ...]:
        names: ReportNames | None = None if report is None else report.__dict__.get("_names")
        if report is None or names is None:
            return ()
        # From now on it is found there.
        made: tuple[str, ...] = report.__dict__.setdefault(self._field, names.of(self._field))
        return made


def _names() -> Any:
    return _Names()


@dataclass(frozen=True)
class RefitReport:
    """What a refit changed, and the time of each phase.

    >>> report = compiled.refit(model.state_dict())  # doctest: +SKIP
    >>> report.milliseconds, len(report.recomputed_slots)  # doctest: +SKIP
    """

    applied: tuple[str, ...] = _names()
    """Sources that were given and differ from before."""
    unchanged: tuple[str, ...] = _names()
    """Sources that were given and are the same as before, bit for bit."""
    kept: tuple[str, ...] = _names()
    """Sources that were not given and kept."""
    adapted: tuple[str, ...] = _names()
    """Sources whose adapters, or their scales, differ from before."""
    adapters: tuple[tuple[str, float], ...] = ()
    """Name and scale of each adapter that serves now."""
    baked: tuple[tuple[str, float], ...] = ()
    """Name and scale of each adapter that was merged into the weights when these were saved."""
    non_finite: tuple[tuple[str, int], ...] = ()
    """Adapters with values that are infinite or not a number, and how many values; the weights that they
    change have such values, too.
    """
    recomputed_slots: tuple[str, ...] = _names()
    """Slots that were rebuilt."""
    shared_slots: tuple[str, ...] = _names()
    """Slots that are shared with the generation before."""
    bytes: int = 0
    """Bytes of the slots that were rebuilt."""
    naming: str = ""
    """The rule that matched names of the weights to sources; empty where they are the same."""
    ignored: tuple[tuple[str, str], ...] = ()
    """Names that were given and change nothing, each with the reason: ``constant`` (no state dict holds it),
    ``unread`` by the program, ``counter`` of a batch norm, or ``unknown``.
    """
    fetched: tuple[str, ...] = _names()
    """Sources that were given on a GPU and copied to the host, because their slots are made there."""
    phases: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each phase: match, check, compare, stage, publish, retire."""

    @property
    def milliseconds(self) -> float:
        """Milliseconds of all phases together."""
        return sum(self.phases.values())

    def plot(self) -> Figure:
        """A picture of the phases, with their milliseconds (needs the extra ``plot``: matplotlib)."""
        from regraft.plotting import plot_phases

        return plot_phases(self)

    def __repr__(self) -> str:
        slots = len(self.recomputed_slots)
        return (
            f"regraft.RefitReport({len(self.applied)} of {len(self.applied) + len(self.unchanged)} sources "
            f"changed, {slots} slots rebuilt, {size_text(self.bytes)} in {self.milliseconds:.1f} "
            f"ms{self._adapters()})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def _adapters(self) -> str:
        return "".join(f", {name} x {scale:g}" for name, scale in self.adapters)

    def _repr_html_(self) -> str:
        import html

        phases = "".join(f"<td>{name} {time:.1f} ms</td>" for name, time in self.phases.items())
        return f"<p>{html.escape(repr(self))}</p><table><tr>{phases}</tr></table>"


def report_of(names: ReportNames, facts: Mapping[str, Any]) -> RefitReport:
    """The report that the native module gives: what has the names, and the other fields."""
    report = object.__new__(RefitReport)
    report.__dict__.update(facts, non_finite=_summed(facts["non_finite"]), _names=names)
    return report


def joined(reports: Sequence[RefitReport]) -> RefitReport:
    """The report of a refit of several engines, from the report of each."""

    def union(field: Callable[[RefitReport], tuple[_T, ...]]) -> tuple[_T, ...]:
        # A source that two engines read is one source.
        return tuple(dict.fromkeys(value for report in reports for value in field(report)))

    applied = union(lambda report: report.applied)
    phases: dict[str, float] = {}
    for report in reports:
        for phase, time in report.phases.items():
            phases[phase] = phases.get(phase, 0.0) + time
    return RefitReport(
        applied=applied,
        unchanged=tuple(name for name in union(lambda r: r.unchanged) if name not in set(applied)),
        kept=union(lambda report: report.kept),
        adapted=union(lambda report: report.adapted),
        adapters=union(lambda report: report.adapters),
        baked=union(lambda report: report.baked),
        non_finite=_summed(pair for report in reports for pair in report.non_finite),
        recomputed_slots=tuple(name for report in reports for name in report.recomputed_slots),
        shared_slots=tuple(name for report in reports for name in report.shared_slots),
        bytes=sum(report.bytes for report in reports),
        naming=next((report.naming for report in reports if report.naming), ""),
        ignored=union(lambda report: report.ignored),
        fetched=union(lambda report: report.fetched),
        phases=phases,
    )


def size_text(count: float) -> str:
    """A number of bytes with its unit."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} bytes"
