"""Writes docs/models.md from the results of the sweep.

PYTHON bench/sweep/page.py RESULTS.jsonl docs/models.md
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from check import AS_FAR, TOLERANCE
from run import read

Record = dict[str, Any]

HEAD = """\
# Models

Written by `make sweep` ([bench/sweep](../bench/sweep/run.py)); do not edit. Small instances of {total}
models, one of each family or class, with random weights: each is exported by `torch.export`, compiled whole
(nothing may stay in PyTorch), compared with PyTorch, and refitted with the state dict of a second set of
random weights.

A model is *right* when every output is within {tolerance:g} of PyTorch's, relative to the largest value of
the output (integers are equal), with both sets of weights, and when the refitted engine gives, bit for bit,
what an engine built with the second set gives. Where an output is farther from PyTorch, it may be at most
{far:g} times as far as PyTorch from what PyTorch computes in f64.

{ran} of {total} models ran, {dates}, commit {commits}; {versions}.

"""
COUNTS = (
    "| library | models | right | share | refused | not exported by PyTorch | other |\n" + 7 * "|---" + "|\n"
)
MODELS = "| kind | model | result | nodes | on the evaluator | difference | seconds |\n" + 7 * "|---" + "|\n"
RESULTS = {
    "right": "right",
    "refused": "refused",
    "export": "not exported",
    "wrong": "**wrong**",
    "timeout": "took too long",
    "crash": "**crashed**",
    "error": "not swept",
}
_LONGEST = 160
_MOST_NAMES = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    args = parser.parse_args()
    from zoo import cases

    order = [case.id for case in cases()]
    found = read(args.results)
    args.page.write_text(page([found[name] for name in order if name in found], len(order)))


def page(records: Sequence[Record], total: int) -> str:
    return "\n".join(
        part.rstrip("\n") + "\n"
        for part in (
            head(records, total),
            refused(records),
            others(records),
            evaluated(records),
            all_of(records),
        )
        if part
    )


def head(records: Sequence[Record], total: int) -> str:
    dates = sorted({record["date"] for record in records})
    text = HEAD.format(
        total=total,
        ran=len(records),
        tolerance=TOLERANCE,
        far=AS_FAR,
        dates=dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        commits=", ".join(dict.fromkeys(record["commit"] for record in records)),
        versions=", ".join(dict.fromkeys(f"{p} {v}" for r in records for p, v in r["versions"].items())),
    )
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record["library"]].append(record)
    lines = [counts(library, of) for library, of in groups.items()]
    return text + COUNTS + "".join([*lines, counts("**all**", records)])


def counts(library: str, records: Sequence[Record]) -> str:
    of = Counter(record["status"] for record in records)
    other = len(records) - of["right"] - of["refused"] - of["export"]
    share = 100 * of["right"] / len(records)
    return row(library, len(records), of["right"], f"{share:.1f} %", of["refused"], of["export"], other)


def row(*cells: object) -> str:
    return "".join(f"| {cell} " for cell in cells) + "|\n"


def refused(records: Sequence[Record]) -> str:
    """Which operators stand in the way of which models."""
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    places: dict[tuple[str, str], str] = {}
    for record in records:
        if record["status"] != "refused":
            continue
        blame = record.get("refused") or [{"op": "", "why": first_line(record["reason"]), "where": ""}]
        for part in blame:
            key = (part["op"], part["why"])
            if record["name"] not in models[key]:
                models[key].append(record["name"])
            places.setdefault(key, part["where"])
    if not models:
        return ""
    lines = [
        row(code(op), plain(why), listed(names), code(places[op, why]))
        for (op, why), names in sorted(models.items(), key=lambda item: -len(item[1]))
    ]
    return "## What is refused\n\n| operator | reason | models | such as in |\n|---|---|---|---|\n" + "".join(
        lines
    )


def others(records: Sequence[Record]) -> str:
    """Models that did not get as far as the compiler, and those that are wrong."""
    lines = [
        row(record["library"], record["name"], RESULTS[record["status"]], plain(first_line(record["reason"])))
        for record in records
        if record["status"] not in ("right", "refused")
    ]
    if not lines:
        return ""
    return (
        "## What else did not come through\n\n| library | model | what | reason |\n|---|---|---|---|\n"
        + "".join(lines)
    )


def evaluated(records: Sequence[Record]) -> str:
    """What no kernel runs."""
    nodes: Counter[tuple[str, str]] = Counter()
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        for op, dtype, count in record.get("evaluated", ()):
            nodes[op, dtype] += count
            models[op, dtype].append(record["name"])
    if not nodes:
        return "## On the reference evaluator\n\nNo node of any model.\n"
    some = sum(bool(record.get("evaluated")) for record in records)
    lines = [
        row(code(op), dtype, count, listed(models[op, dtype])) for (op, dtype), count in nodes.most_common()
    ]
    return (
        "## On the reference evaluator\n\n"
        f"For these nodes of {some} models there is no kernel: the reference evaluator runs them, slowly\n"
        "(`compile` warns).\n\n"
        "| op | type | nodes | models |\n|---|---|---|---|\n" + "".join(lines)
    )


def all_of(records: Sequence[Record]) -> str:
    text, library = "## All models\n", ""
    for record in records:
        if record["library"] != library:
            library = record["library"]
            text += f"\n### {library}\n\n{MODELS}"
        on_evaluator = sum(group[2] for group in record.get("evaluated", ()))
        difference = f"{record['error']:.1g}" if "error" in record else ""
        seconds = sum(record.get("seconds", {}).values()) or record.get("wall_seconds", 0)
        text += row(
            record["kind"],
            record["name"],
            RESULTS[record["status"]],
            record.get("nodes", ""),
            on_evaluator or "",
            difference,
            f"{seconds:.1f}",
        )
    return text


def first_line(text: str) -> str:
    lines = text.splitlines() or [""]
    return lines[0]


def plain(text: str) -> str:
    """As it can stand in a table."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    for sign in "\\`*_<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return text


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


if __name__ == "__main__":
    main()
