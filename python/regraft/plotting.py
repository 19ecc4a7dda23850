"""Pictures of refits and of memory, by matplotlib (the extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regraft.module import Module
    from regraft.report import RefitReport

__all__ = ["plot_memory", "plot_phases"]

_STRONG, _SOFT, _PALE, _GREY = "#1f6f8b", "#99c4d0", "#d9d9d9", "#555555"


def plot_phases(report: RefitReport) -> Figure:
    """The phases of a refit, each with its milliseconds.

    Raises:
        ImportError: without matplotlib.
    """
    phases = [(name, time) for name, time in report.phases.items() if time > 0] or [("nothing", 0.0)]
    title = f"Refit: {report.milliseconds:.1f} ms"
    slots = len(report.recomputed_slots)
    subtitle = f"{slots} slot{'' if slots == 1 else 's'} rebuilt, {report.bytes / 1e6:.1f} MB"
    names, times = zip(*phases, strict=True)
    return _bars(
        title, subtitle, "milliseconds", names, [(times, _STRONG, None)], list(map(_duration, times))
    )


def plot_memory(module: Module) -> Figure:
    """Slots of a module that it shares with forks, and those of its own, next to what all forks use together.

    Raises:
        ImportError: without matplotlib.
    """
    facts = {name: size / 1e6 for name, size in module.memory().items()}
    rows = [
        ("this module", facts["private"], facts["slots"] - facts["private"], 0.0),
        ("it and its forks", 0.0, 0.0, facts["in_use"]),
    ]
    # Most modules have none of these.
    for name, size in (("free for refits", facts["free"]), ("kept by PyTorch", facts["kept"])):
        if size:
            rows.append((name, 0.0, 0.0, size))
    names, own, shared, other = zip(*rows, strict=True)
    labels = [f"{sum(parts):.1f} MB" for _, *parts in rows]
    series = [(own, _STRONG, "its own"), (shared, _SOFT, "shared with forks"), (other, _PALE, None)]
    return _bars("Memory of weights", repr(module), "megabytes", names, series, labels)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.0f} µs"


def _bars(title: str, subtitle: str, unit: str, names: Any, series: Any, labels: list[str]) -> Figure:
    """Horizontal bars, stacked, from top to bottom."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'regraft[plot]'") from error
    figure = Figure(figsize=(8, 1.7 + 0.45 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(names))
    ends = [0.0] * len(names)
    for values, color, label in series:
        axes.barh(rows, values, left=ends, color=color, label=label, height=0.65)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for row, end, text in zip(rows, ends, labels, strict=True):
        axes.text(end, row, f" {text}", va="center", fontsize=9)
    axes.set_yticks(list(rows), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xlim(0, max([*ends, 1e-3]) * 1.15)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold", pad=22)
    axes.annotate(
        subtitle,
        (0, 1),
        (0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=_GREY,
    )
    if any(label for _, _, label in series):
        figure.legend(frameon=False, fontsize=9, loc="outside lower right", ncols=len(series))
    return figure
