"""Names of weights that are given, as names of the weights of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from regraft import _regraft
from regraft.kept import short_name

if TYPE_CHECKING:
    from regraft.module import Module
    from regraft.report import RefitReport

__all__ = ["Named", "renamed"]


@dataclass(frozen=True)
class Named:
    """Weights under the names of a module's."""

    weights: Any
    names: Mapping[str, str]
    """The new name of each that has another one."""
    rule: str = ""
    """How the names were found, in words."""
    ignored: tuple[tuple[str, str], ...] = ()
    """Names that change nothing, with the reason."""

    @classmethod
    def of(
        cls,
        module: Module,
        weights: Any,
        partial: bool,
        ignore_unknown: bool,
        constants: Any,
        rename: Mapping[str, str],
    ) -> Named:
        """Matches names to those of ``module``: as they are, or by one rule for all of them.

        Raises:
            WeightsError: with everything that is wrong with the names.

        """
        if weights is None:
            return cls(weights, {})
        sources = module._compiled.sources
        # A full refit of a module whose names are all known fails on what is missing, as it should.
        if not rename and all(map(sources.__contains__, weights.keys())):
            return cls(weights, {})
        matched, rule, ignored = _regraft.match_names(
            list(_sources_of(module)),
            weights,
            partial=partial and module._serving.is_bound,
            ignore_unknown=ignore_unknown,
            constants=constants,
            rename=list(rename.items()),
        )
        names = dict(matched)
        # What is ignored under a known name is told when the weights are taken.
        unknown = tuple((name, why) for name, why in ignored if name not in names)
        return cls(renamed(weights, names), names, rule, unknown)

    def changed(self, names: Any) -> Any:
        """Names that the caller says have changed, as names of the module."""
        if names is None or isinstance(names, str):
            return names
        return [self.names.get(name, name) for name in names]

    def told(self, report: RefitReport) -> RefitReport:
        """The report, with what was done to names."""
        if not (self.names or self.rule or self.ignored):
            return report
        back = {new: old for old, new in self.names.items()}
        ignored = tuple((back.get(name, name), why) for name, why in report.ignored)
        return replace(report, naming=self.rule or report.naming, ignored=(*ignored, *self.ignored))


def renamed(weights: Any, names: Mapping[str, str]) -> Any:
    """``weights`` under other names; those without one are left out."""
    if isinstance(weights, _regraft.StateDict):
        return weights.renamed(dict(names))
    return {new: weights[old] for old, new in names.items()}


def _sources_of(module: Module) -> Iterable[tuple[str, list[str], str, list[int], bool, bool]]:
    """Names and type of each weight, whether a state dict holds it, and whether anything reads it."""
    compiled, kept = module._compiled, module._serving.kept
    read = {
        name for model in module.models for _, _, sources in model.slots for name in sources
    } | kept.keys()
    types: dict[str, tuple[str, list[int]]] = {
        name: (short_name(str(value.dtype).removeprefix("torch.")), list(value.shape))
        for name, value in kept.items()
    }
    aliases = {group[0]: list(group[1:]) for group in compiled.ties}
    tied = {name for group in compiled.ties for name in group}
    for model in module.models:
        for source in model.sources:
            if tied.isdisjoint((source.name, *source.aliases)):
                aliases[source.name] = list(source.aliases)
            for name in (source.name, *source.aliases):
                types[name] = (source.dtype, source.shape)
    others = {name for group in aliases.values() for name in group}
    for name, in_state_dict in compiled.sources.items():
        if name in others:
            continue
        dtype, shape = types.get(name, ("f32", []))
        is_read = not read.isdisjoint((name, *aliases.get(name, [])))
        yield name, aliases.get(name, []), dtype, shape, in_state_dict, is_read
