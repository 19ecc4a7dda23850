"""Sweeps small models of many families: exported, compiled whole, compared with PyTorch, refitted.

    make sweep                                                   # all of them, then docs/models.md
    PYTHONPATH=target/python PYTHON bench/sweep/run.py RESULTS.jsonl
    PYTHONPATH=target/python PYTHON bench/sweep/run.py RESULTS.jsonl --only transformers/decoder --jobs 2
    PYTHONPATH=target/python PYTHON bench/sweep/run.py RESULTS.jsonl --again refused,wrong
    PYTHON bench/sweep/run.py                                    # prints their names

Each model is a line of JSON in RESULTS, and what has one is not run again, so the sweep goes on where it was
stopped; of several lines for one model the last one counts. Every model runs in a process of its own, with a
limit of time and of memory. `page.py` makes a page of the lines; `check.py` says what is done with a model.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import random
import resource
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from zoo.case import Case

ROOT = Path(__file__).resolve().parent.parent.parent
# Libraries whose import takes a model's process longer than the model; the processes have them by a fork.
_PRELOADED = {
    "transformers": "transformers.modeling_utils",
    "diffusers": "diffusers.models.modeling_utils",
    "timm": "timm",
    "torchvision": "torchvision",
}
_TOLD = 400


@dataclass(frozen=True)
class Limits:
    """What one model may take."""

    seconds: float
    bytes: int


@dataclass
class Running:
    """A model that is being checked."""

    case: Case
    process: Any
    pipe: Connection
    log: Any
    started: float


def main() -> None:
    args = arguments()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from zoo import cases

    wanted = args.only.split(",")
    chosen = [case for case in cases() if any(part in case.id for part in wanted)]
    if args.results is None:
        print(*(case.id for case in chosen), sep="\n")
        return
    again = set(args.again.split(","))
    known = {name: record["status"] for name, record in read(args.results).items()}
    todo = [case for case in chosen if case.id not in known or {"all", known[case.id]} & again]
    if args.mixed:
        random.Random(0).shuffle(todo)
    print(f"{len(chosen)} models, {len(todo)} of them to run", flush=True)
    sweep(todo, args)
    found = read(args.results)
    counts = Counter(found[case.id]["status"] for case in chosen if case.id in found)
    print(", ".join(f"{count} {status}" for status, count in counts.most_common()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        help="the file that gets a line for each model; without it they are listed",
    )
    parser.add_argument(
        "--only", default="", help="models whose LIBRARY/KIND/NAME has one of these, by commas"
    )
    parser.add_argument("--again", default="", help="statuses whose models are run again, or `all`")
    parser.add_argument(
        "--mixed", action="store_true", help="in mixed order: a sweep that is stopped has some of everything"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default: 1)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a model (default: 300)")
    parser.add_argument("--memory", type=float, default=6, help="GB for a model (default: 6)")
    parser.add_argument("--commit", help="what the package was built from; default: this checkout's commit")
    return parser.parse_args()


def sweep(todo: Sequence[Case], args: argparse.Namespace) -> None:
    """Runs models, and adds their lines to the results."""
    if not todo:
        return
    about = {"commit": args.commit or commit(), "date": datetime.date.today().isoformat()}
    libraries = {case.library for case in todo}
    versions = {name: of for name in ("torch", *libraries) if (of := version_of(name)) is not None}
    limits = Limits(args.timeout, int(args.memory * 1e9))
    preload(libraries)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("a") as lines:
        if lines.tell() and not args.results.read_bytes().endswith(b"\n"):
            lines.write("\n")
        for number, record in enumerate(run_all(todo, args.jobs, limits), 1):
            used = {name: of for name, of in versions.items() if name in ("torch", record["library"])}
            lines.write(json.dumps(record | about | {"versions": used}) + "\n")
            lines.flush()
            print(f"{number}/{len(todo)} {told(record)}", flush=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each model. A line that was cut off when a sweep was killed does not count."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["id"]] = record
    return found


def version_of(package: str) -> str | None:
    """The version of a package, without its build tag; ``None`` when there is no such package."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def told(record: dict[str, Any]) -> str:
    seconds = sum(record.get("seconds", {}).values())
    reason = record.get("reason", "").replace("\n", " ")
    on_evaluator = sum(group[2] for group in record.get("evaluated", ()))
    notes = [f"{on_evaluator} nodes on the reference evaluator"] if on_evaluator else []
    return f"{record['status']:8} {seconds:5.1f} s  {record['id']}  {reason[:_TOLD]}{'; '.join(notes)}"


def preload(libraries: set[str]) -> None:
    """Imports what models need, and does once what PyTorch and Regraft prepare at their first use."""
    import torch

    torch.set_num_threads(1)
    for library in libraries & _PRELOADED.keys():
        importlib.import_module(_PRELOADED[library])
    import check  # noqa: F401

    import regraft

    layer = torch.nn.Linear(4, 4).eval()
    regraft.compile(layer, (torch.zeros(2, 4),), min_block_size=1, threads=1)


def run_all(todo: Sequence[Case], jobs: int, limits: Limits) -> Iterator[dict[str, Any]]:
    """The record of each model, as they become ready."""
    waiting = list(reversed(todo))
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(waiting.pop(), limits))
            soonest = min(one.started for one in running) + limits.seconds
            ready = wait([one.pipe for one in running], timeout=max(soonest - time.monotonic(), 0))
            for one in list(running):
                late = time.monotonic() - one.started > limits.seconds
                if one.pipe in ready or late:
                    running.remove(one)
                    yield finish(one, limits)
    finally:
        for one in running:
            one.process.kill()


def start(case: Case, limits: Limits) -> Running:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    log = tempfile.TemporaryFile()  # noqa: SIM115  (finish() closes it)
    process = context.Process(target=in_child, args=(case, there, log.fileno(), limits))
    process.start()
    there.close()
    return Running(case, process, here, log, time.monotonic())


def in_child(case: Case, pipe: Connection, log: int, limits: Limits) -> None:
    for stream in (1, 2):
        os.dup2(log, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (limits.bytes, limits.bytes))
    from check import check

    pipe.send(check(case))


def finish(one: Running, limits: Limits) -> dict[str, Any]:
    """What a model's process said, or how it ended."""
    record = {"id": one.case.id, "library": one.case.library, "kind": one.case.kind, "name": one.case.name}
    taken = time.monotonic() - one.started
    try:
        if not one.pipe.poll():
            record |= {"status": "timeout", "reason": f"longer than {limits.seconds:g} s"}
        else:
            record = one.pipe.recv()
    except EOFError:
        one.process.join()
        record |= {"status": "crash", "reason": f"exit status {one.process.exitcode}: {last_words(one.log)}"}
    finally:
        one.process.kill()
        one.process.join()
        one.pipe.close()
        one.log.close()
    return record | {"wall_seconds": round(taken, 1)}


def last_words(log: Any) -> str:
    log.seek(0)
    return " ".join(log.read().decode(errors="replace").split())[-_TOLD:]


if __name__ == "__main__":
    main()
