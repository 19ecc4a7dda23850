"""The refit of a module whose program is in engines and in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from regraft import _regraft
from regraft._compiled import Compiled, Serving
from regraft.errors import WeightsError
from regraft.given import allows, share_ties, with_kept, with_ties
from regraft.kept import KeptRefit
from regraft.report import RefitReport, joined

__all__ = ["refitted_parts"]


def refitted_parts(
    compiled: Compiled,
    serving: Serving,
    read: Sequence[frozenset[str]],
    weights: Any,
    *,
    partial: bool,
    changed: Any,
    constants: Any,
    adapters: list[tuple[_regraft.Adapter, float]] | None,
    **options: Any,
) -> tuple[Serving, RefitReport]:
    """What serves after a refit of all parts of a module, and its report; nothing serves yet.

    ``read`` has the names of the weights that each engine reads.

    Raises:
        WeightsError: with everything that does not fit, in engines and in PyTorch.

    """
    models, reports = tuple(model.fork() for model in serving.models), []
    given = {} if weights is None else {str(name): weights[name] for name in weights.keys()}  # noqa: SIM118
    # What the program has of its own is only changed on purpose.
    own = {name for name, in_state_dict in compiled.sources.items() if not in_state_dict}
    left_alone = [name for name in given if name in own and not allows(constants, name)]
    given = {name: value for name, value in given.items() if name not in left_alone}
    changed = with_ties(changed, compiled.ties)
    problems = share_ties(given, compiled.ties)
    for index, (model, names) in enumerate(zip(models, read, strict=True)):
        styles = None if adapters is None else [(one.part(index), scale) for one, scale in adapters]
        mine = None if weights is None else {n: v for n, v in given.items() if n in names}
        mine_changed = (
            changed if changed is None or isinstance(changed, str) else [n for n in changed if n in names]
        )
        try:
            reports.append(
                model.refit(
                    mine,
                    partial=partial,
                    changed=mine_changed,
                    constants="all",
                    adapters=styles,
                    **options,
                )
            )
        except WeightsError as error:
            # What is not a list of problems is about something else.
            if not error.problems:
                raise
            problems += error.problems
    home = torch.device(compiled.home)
    kept = KeptRefit(dict(serving.kept), compiled.sources, home, serving.initial.keys(), compiled.identical)
    if weights is not None:
        non_finite = options["reject_non_finite"]
        kept.take(given, partial=partial, changed=changed, reject_non_finite=non_finite)
    problems += kept.problems
    if problems:
        listed = list({(problem.name, problem.what): problem for problem in problems}.values())
        lines = [f"  {problem.name}  {problem.what}" for problem in listed]
        message = f"{len(lines)} weights do not fit; nothing was changed\n" + "\n".join(lines)
        raise WeightsError(message, problems=listed)
    new = {name: kept.kept[name].clone() for name in compiled.written if name in kept.applied}
    initial = {**serving.initial, **new}
    # Parts of a program take the state as inputs: it is among what is kept.
    after = Serving.of(models, kept.kept, [False] * len(models), initial, compiled.device)
    report = with_kept(joined(reports), kept)
    return after, replace(report, ignored=(*report.ignored, *((name, "constant") for name in left_alone)))
