"""Pictures of refits and of memory, by matplotlib (the extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regraft.module import Module
    from regraft.report import RefitReport

__all__ = ["plot_memory", "plot_phases"]

_STRONG, _SOFT, _PALE = "#1f6f8b", "#99c4d0", "#d9d9d9"


def plot_phases(report: RefitReport) -> Figure:
    """The phases of a refit, each with its milliseconds.

    Raises:
        ImportError: without matplotlib.
    """
    phases = [(name, time) for name, time in report.phases.items() if time > 0] or [("nothing", 0.0)]
    title = f"Refit: {report.milliseconds:.1f} ms"
    subtitle = f"{len(report.recomputed_slots)} slots made anew, {report.bytes / 1e6:.1f} MB"
    names, times = zip(*phases, strict=True)
    return _bars(
        title, subtitle, "milliseconds", names, [(times, _STRONG, None)], [f"{t:.2f}" for t in times]
    )


def plot_memory(module: Module) -> Figure:
    """Slots of a module that it shares with forks, and those of its own, next to what all forks use together.

    Raises:
        ImportError: without matplotlib.
    """
    facts = {name: size / 1e6 for name, size in module.memory().items()}
    names = ["this module", "with all forks", "waiting for refits", "kept by PyTorch"]
    own = [facts["private"], 0.0, 0.0, 0.0]
    shared = [facts["slots"] - facts["private"], 0.0, 0.0, 0.0]
    other = [0.0, facts["in_use"], facts["free"], facts["kept"]]
    labels = [f"{sum(parts):.1f} MB" for parts in zip(own, shared, other, strict=True)]
    series = [(own, _STRONG, "its own"), (shared, _SOFT, "shared with forks"), (other, _PALE, None)]
    return _bars("Memory of weights", repr(module), "megabytes", names, series, labels)


def _bars(title: str, subtitle: str, unit: str, names: Any, series: Any, labels: list[str]) -> Figure:
    """Horizontal bars, stacked, from top to bottom."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'regraft[plot]'") from error
    figure = Figure(figsize=(8, 1.6 + 0.45 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(names))
    ends = [0.0] * len(names)
    for values, colour, label in series:
        axes.barh(rows, values, left=ends, color=colour, label=label, height=0.65)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for row, end, text in zip(rows, ends, labels, strict=True):
        axes.text(end, row, f" {text}", va="center", fontsize=9)
    axes.set_yticks(list(rows), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xlim(0, max([*ends, 1e-3]) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555", wrap=True)
    if any(label for _, _, label in series):
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure
