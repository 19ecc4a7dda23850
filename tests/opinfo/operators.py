"""Writes docs/operators.md: every operator that PyTorch tags as core, with what becomes of it.

    PYTHON tests/opinfo/operators.py STATUS RESULTS ONNX docs/operators.md

STATUS is the command that says which operators the importer knows (the example `operators` of the crate
`regraft-import`), RESULTS what `opinfo FOLDER --results RESULTS` wrote, ONNX the same of the node cases of
ONNX. `make operators` runs all of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import onnx.defs
import torch

sys.path.insert(0, str(Path(__file__).parent))
from export import DTYPES, name_of, op_db

HEAD = """\
# Operators

Written by `make operators`; do not edit. The {total} operators that PyTorch {torch} tags as core, and what
the importer of `.pt2` files does with each: {translated} are translated. The others are for training, or
their results have sizes that depend on values, or they draw random numbers.

*Samples* are those of PyTorch's operator database that are calls of the operator, exported, imported, and
run on the reference evaluator and on the CPU backend: how many are right of how many there are, by dtype.
None is wrong (`make opinfo`). Of all {all} samples {right} are right ({of_all:.1f} %). {apart} are of
kinds that no engine for inference can give: random numbers, results whose sizes depend on values, complex
numbers as results, the resizing of memory, and gradients. Of the {applicable} others {right} are right
({of_applicable:.1f} %). What is refused, with the reasons and these kinds, is in
[tests/opinfo/refused.tsv](../tests/opinfo/refused.tsv). An operator for which a backend has no kernel runs
on the reference evaluator, which `regraft inspect` shows.

| operator | status | samples |
|---|---|---|
"""

TAIL = """
## Composite operators

Programs as exported keep operators that are made of others. Of those that the database calls, the importer
knows {known} by name, and {unknown} are not translated: {names}.
"""

ONNX = """
## ONNX

The {total} operators of ONNX up to opset {opset}, and what the importer of `.onnx` files does with each;
*node cases* are those of the `onnx` package that it gets right, of how many there are for these opsets
(`make onnx-cases`, [onnx.md](onnx.md)). None is wrong.

| operator | status | node cases |
|---|---|---|
"""

OPSET = 24
TRAINING = ("backward",)


def core() -> list[str]:
    """Names with overloads of all core operators, as programs spell them."""
    names = []
    for full in torch._C._dispatch_get_all_op_names():
        space, _, name = full.partition("::")
        if space != "aten":
            continue
        base, _, overload = name.partition(".")
        try:
            op = getattr(getattr(torch.ops.aten, base), overload or "default")
        except AttributeError:
            continue
        if torch.Tag.core in op.tags:
            names.append(f"{base}.{overload or 'default'}")
    return sorted(set(names))


def statuses(command: str, names: list[str], space: str = "torch.ops.aten.") -> dict[str, str]:
    text = "".join(f"{space}{name}\n" for name in names)
    out = subprocess.run([command], input=text, capture_output=True, text=True, check=True).stdout
    pairs = (line.split("\t") for line in out.splitlines())
    return {name.removeprefix(space): status for name, status in pairs}


def of_onnx(command: str, results: Path) -> str:
    """The section about the operators of ONNX."""
    schemas = (s for s in onnx.defs.get_all_schemas_with_history() if not s.domain)
    names = sorted({s.name for s in schemas if s.since_version <= OPSET and not s.deprecated})
    rows = map(str.split, results.read_text().splitlines())
    counts = {op: (right, every) for op, _, right, every, *_ in rows}
    lines = [ONNX.format(total=len(names), opset=OPSET)]
    for name, status in statuses(command, names, "ai.onnx.").items():
        what = "not translated" if status == "unknown" else status
        right, every = counts.get(name, ("", ""))
        lines.append(f"| `{name}` | {what} | {f'{right}/{every}' if every else ''} |\n")
    return "".join(lines)


def samples(results: Path) -> dict[str, dict[str, list[int]]]:
    """For each operator of ATen, by dtype: samples that are right, and all."""
    of = {name_of(op): op.aten_name or op.name for op in op_db}
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for line in results.read_text().splitlines():
        operator, dtype, right, every, _ = line.split("\t")
        if operator in of:
            pair = counts[of[operator]][dtype]
            pair[0] += int(right)
            pair[1] += int(every)
    return counts


def totals(results: Path) -> dict[str, float]:
    """The sums over all samples: right, all, and those of kinds that do not apply."""
    rows = [list(map(int, line.split("\t")[2:])) for line in results.read_text().splitlines()]
    right, every, apart = (sum(column) for column in zip(*rows, strict=True))
    return {
        "right": right,
        "all": every,
        "apart": apart,
        "applicable": every - apart,
        "of_all": 100 * right / every,
        "of_applicable": 100 * right / (every - apart),
    }


def main() -> None:
    command, results, cases, target = sys.argv[1:]
    names = core()
    status = statuses(command, names)
    counts = samples(Path(results))
    lines = []
    for name in names:
        what = status[name]
        if what == "unknown":
            what = "training only" if any(word in name for word in TRAINING) else "not translated"
        found = counts.get(name.split(".")[0], {})
        text = ", ".join(f"{d} {found[d][0]}/{found[d][1]}" for d in DTYPES if d in found)
        lines.append(f"| `{name}` | {what} | {text} |\n")
    translated = sum(status[name] == "translated" for name in names)
    composite = sorted(set(counts) - {name.split(".")[0] for name in names})
    overloads = {n: getattr(torch.ops.aten, n).overloads() for n in composite if hasattr(torch.ops.aten, n)}
    other = statuses(command, [f"{n}.{o}" for n, list_ in overloads.items() for o in list_])
    unknown = sorted(
        n for n, list_ in overloads.items() if all(other[f"{n}.{o}"] == "unknown" for o in list_)
    )
    head = HEAD.format(
        total=len(names),
        torch=torch.__version__.split("+")[0],
        translated=translated,
        **totals(Path(results)),
    )
    tail = TAIL.format(
        known=len(overloads) - len(unknown), unknown=len(unknown), names=", ".join(f"`{n}`" for n in unknown)
    )
    Path(target).write_text(head + "".join(lines) + tail + of_onnx(command, Path(cases)))
    print(f"{translated} of {len(names)} core operators are translated")


if __name__ == "__main__":
    main()
