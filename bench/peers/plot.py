"""The picture: the times of the other engines next to ours, a panel for each setting."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import log2

from results import LABELS, MODELS, Result, shown

COLORS = {
    "onnxruntime": "#2563eb",
    "openvino": "#7c3aed",
    "eager": "#ea580c",
    "inductor": "#ca8a04",
    "aoti": "#16a34a",
}
WIDTH, LEFT, RIGHT, ROW, HEAD, GAP = 860, 230, 24, 22, 58, 30
# The axis is logarithmic, and what lies beyond its ends is drawn at them.
LOWEST, HIGHEST = 0.25, 8.0
MARKS = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
QUIET, LOUD = 'fill="#4b5563"', 'fill="#111827"'


def draw(results: list[Result]) -> str:
    """SVG that needs no font and no script of its own."""
    settings = list(dict.fromkeys(result.setting() for result in results))
    panels = [[result for result in results if result.setting() == setting] for setting in settings]
    height = HEAD + sum(len(panel) * ROW + GAP + ROW for panel in panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="12">',
        "<title>Times of other engines divided by ours</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(
            8,
            18,
            "Time of each engine ÷ that of Regraft (right of 1: Regraft is faster)",
            f'{LOUD} font-weight="bold"',
        ),
        *legend([name for name in shown(results) if name in COLORS]),
    ]
    top = float(HEAD)
    for setting, panel in zip(settings, panels, strict=True):
        parts += rows(setting, panel, top)
        top += len(panel) * ROW + GAP + ROW
    return "\n".join([*parts, "</svg>", ""])


def legend(names: list[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        x = 14 + 130 * index
        yield circle(x, 36, name)
        yield text(x + 9, 40, LABELS[name], LOUD)


def rows(setting: str, panel: list[Result], top: float) -> Iterator[str]:
    bottom = top + ROW + len(panel) * ROW
    yield text(8, top + 15, setting, f'{LOUD} font-weight="bold"')
    for mark in MARKS:
        color = "#6b7280" if mark == 1.0 else "#e5e7eb"
        yield f'<path d="M{across(mark):.1f} {top + ROW:.0f}V{bottom:.0f}" stroke="{color}"/>'
        yield text(across(mark), bottom + 14, f"{mark:g}", f'text-anchor="middle" {QUIET}')
    for index, result in enumerate(panel):
        y = top + ROW + (index + 0.5) * ROW
        yield text(LEFT - 12, y + 4, MODELS[result.model], f'text-anchor="end" {LOUD}')
        for name in COLORS:
            ratio = result.ratio([name])
            if ratio is not None:
                yield circle(across(ratio), y, name)


def across(ratio: float) -> float:
    share = (log2(min(max(ratio, LOWEST), HIGHEST)) - log2(LOWEST)) / (log2(HIGHEST) - log2(LOWEST))
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def circle(x: float, y: float, name: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{COLORS[name]}" fill-opacity="0.85"/>'


def text(x: float, y: float, content: str, style: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(content)}</text>'
