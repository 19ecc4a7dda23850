//! A refit: match → check → compare → stage → publish → retire. Everything is checked before anything is computed.

mod compare;
mod keep;
mod loaded;
mod options;
mod phases;
mod remote;
mod request;
mod share;
mod stage;
mod staged;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use regraft_adapter::{Adapter, AdapterErrorKind, AdapterLayer, AdapterProblem, AdapterSet};
use regraft_backend::{Pace, Packer};
use regraft_engine::Plan;
use regraft_tensor::{MappedFiles, Tensor};
use regraft_weights::{
    AdapterReport, BakedAdapter, Digest, MatchOptions, Matched, Phase, Problem, RefitMap, RefitReport, SlotReport,
    StateDict, WeightsErrorKind, match_names,
};

pub use self::options::{Changed, RefitObserver, RefitOptions};
pub use self::request::Refit;
pub use self::staged::{Staged, publish_together};
pub(crate) use self::{
    keep::owned,
    loaded::{loaded, named},
    phases::phase,
    share::slots_alike,
    stage::make,
};
use crate::{
    Generation, Model, RuntimeError, RuntimeErrorKind, Slot, SourceContent, generation::SlotPool, program::WeightReader,
};

/// The parts of a program that a refit works with.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) map: &'a RefitMap,
    pub(crate) identical: Option<&'a [Option<Digest>]>,
    pub(crate) packer: &'a Arc<dyn Packer>,
    pub(crate) reader: &'a WeightReader,
    /// How much of the machine making slots may use.
    pub(crate) pace: Pace,
}

/// Where slots come from besides the generation before.
#[derive(Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) pool: &'a Arc<SlotPool>,
    /// Models that may have some of them.
    pub(crate) siblings: &'a [Model],
}

/// A change that was checked and not computed yet.
pub(crate) struct Change {
    /// Sources of the new generation.
    pub(crate) sources: Vec<Arc<SourceContent>>,
    pub(crate) adapters: Arc<AdapterSet>,
    /// Adapters that are part of the sources.
    baked: Arc<[BakedAdapter]>,
    /// The slots to rebuild.
    pub(crate) stale: Vec<usize>,
    /// Sources that are not kept as the tensors that they are now.
    passing: BTreeSet<usize>,
    told: Told,
}

/// What the report of a change says of sources and adapters.
struct Told {
    matched: Matched,
    is_changed: Vec<bool>,
    adapted: Vec<usize>,
}

impl Change {
    /// Before the slots to rebuild are given up: reads sources that `base` keeps in them back from there. Returns the
    /// sources of `base` with those tensors, of which its slots can be made again.
    pub(crate) fn free_slots_of(
        &mut self,
        parts: &Parts<'_>,
        base: &Generation,
    ) -> Result<Vec<Arc<SourceContent>>, RuntimeError> {
        let mut sources = base.sources.clone();
        for source in keep::bring_out(parts, &mut sources, &self.stale)? {
            if Arc::ptr_eq(&self.sources[source], &base.sources[source]) {
                self.sources[source] = sources[source].clone();
                self.passing.insert(source);
            }
        }
        Ok(sources)
    }
}

/// Checks a request against what serves. Nothing is computed, and nothing changes, if it does not fit.
pub(crate) fn check(
    parts: &Parts<'_>,
    base: Option<&Generation>,
    carried: &[Arc<SourceContent>],
    request: &Refit<'_>,
    report: &mut RefitReport,
) -> Result<Change, RuntimeError> {
    let mut before = base.map_or(carried, |g| &g.sources).to_vec();
    let mut matched = match request.weights {
        Some((weights, options)) => match_weights(parts, base, weights, options, request.observer, report)?,
        None => Matched::new(),
    };
    let none = Arc::new(AdapterSet::default());
    let adapters_before = base.map_or(&none, |g| &g.adapters);
    let adapters = request.adapters.clone().map_or_else(|| adapters_before.clone(), Arc::new);
    check_adapters(parts.map, &adapters)?;
    if request.rejects_non_finite() {
        none_of(non_finite_of(parts.map, &adapters), parts.map)?;
    }
    let adapted = adapters.differing_uses(adapters_before);
    let is_adapted = marked(parts.map.sources.len() + parts.map.twins.len(), &adapted);
    let detects = request.weights.is_some_and(|(_, options)| matches!(options.changed, Changed::Detect));
    let is_compared = base.is_some() && detects;
    phase(Phase::Check, report, request.observer, |report| {
        let given = marked(parts.map.sources.len(), matched.keys());
        let affected = dependent_slots(parts.map, base.is_none(), &given, &is_adapted);
        let kept = sources_not_given(parts.map, &given, &affected);
        before = loaded(parts, std::mem::take(&mut before), &kept)?;
        check_kept(parts.map, &kept, &before, &affected)?;
        remote::bring(parts, &mut matched, &before, is_compared, &adapters, report)
    })?;
    let changed = phase(Phase::Compare, report, request.observer, |_| {
        let options = request.weights.map(|(_, options)| &options.changed);
        compare::changed(parts, &matched, base, options.unwrap_or(&Changed::All))
    })?;
    let is_changed = marked(parts.map.sources.len(), &changed);
    let stale = dependent_slots(parts.map, base.is_none(), &is_changed, &is_adapted);
    let mut is_read = vec![false; parts.map.sources.len()];
    let read = stale.iter().flat_map(|&slot| &parts.map.recipes[slot].sources);
    read.for_each(|&source| is_read[source as usize] = true);
    let mut sources = before;
    let mut passing = Vec::new();
    for (&index, tensor) in &matched {
        let dtype = parts.map.sources[index].dtype;
        // One that is the same as what a slot keeps need not be read back from there, and one that was released is here again.
        let in_slot = sources[index].slot().is_some() && tensor.dtype() == dtype;
        let let_go = !sources[index].is_resident() && is_read[index];
        if is_changed[index] || in_slot || let_go {
            passing.extend((in_slot || tensor.is_borrowed()).then_some(index));
            sources[index] = Arc::new(SourceContent::new(dtype, Some(tensor.clone())));
        }
    }
    let baked = still_baked(parts.map, base, &changed);
    report.baked = baked.to_vec();
    let passing = passing.into_iter().collect();
    Ok(Change { sources, adapters, baked, stale, passing, told: Told { matched, is_changed, adapted } })
}

/// An adapter names sources by number: one of another engine would change other weights.
fn check_adapters(map: &RefitMap, adapters: &AdapterSet) -> Result<(), RuntimeError> {
    for (adapter, scale) in adapters.iter() {
        let mut problems = adapter.mismatches(map);
        if !scale.is_finite() {
            let why = format!("{scale} is not a scale: give a finite number");
            problems.push(AdapterProblem::Config { field: "scale".into(), why });
        }
        if !problems.is_empty() {
            let (adapter, keys) = (adapter.name.clone(), adapter.layers.len());
            return Err(RuntimeErrorKind::from(AdapterErrorKind::Fit { adapter, problems, keys }).into());
        }
    }
    if let Some((used_as, one, other)) = adapters.conflict() {
        let why = format!("both `{one}` and `{other}` bring values for it; serve one of them at a time");
        return Err(RuntimeErrorKind::Source { name: map.use_name(used_as).to_owned(), why }.into());
    }
    Ok(())
}

/// Values of adapters that are infinite or not a number, by the names of the sources that they are for.
fn non_finite_of(map: &RefitMap, adapters: &AdapterSet) -> Vec<Problem> {
    let of = |adapter: &Adapter| {
        let layers = adapter.layers.iter().zip(adapter.non_finite().1).filter(|(_, count)| **count > 0);
        let name = |source| format!("{} (adapter {})", map.use_name(source), adapter.name);
        layers.map(|(layer, count)| Problem::NonFinite { name: name(layer.source), count: *count }).collect::<Vec<_>>()
    };
    adapters.iter().flat_map(|(adapter, _)| of(adapter)).collect()
}

/// The adapters that are part of a generation's sources and still are when these change: other weights in their place are
/// without them.
fn still_baked(map: &RefitMap, base: Option<&Generation>, changed: &BTreeSet<usize>) -> Arc<[BakedAdapter]> {
    let Some(base) = base.filter(|base| !base.baked.is_empty()) else { return Arc::default() };
    let gone: HashSet<&str> = changed.iter().flat_map(|&source| map.sources[source].names()).collect();
    let rest = |baked: &BakedAdapter| {
        let sources: Vec<String> = baked.sources.iter().filter(|name| !gone.contains(name.as_str())).cloned().collect();
        (!sources.is_empty()).then(|| BakedAdapter { sources, ..baked.clone() })
    };
    base.baked.iter().filter_map(rest).collect()
}

/// The given tensors by source, without those that the caller says have not changed.
fn match_weights(
    parts: &Parts<'_>,
    base: Option<&Generation>,
    weights: &StateDict,
    options: &RefitOptions,
    observer: &dyn RefitObserver,
    report: &mut RefitReport,
) -> Result<Matched, RuntimeError> {
    let map = parts.map;
    let looks_at_values = options.reject_non_finite || parts.identical.is_some();
    let weights = if looks_at_values { remote::all_fetched(weights)? } else { Cow::Borrowed(weights) };
    let weights = &*weights;
    // Without a generation to start from there is nothing to keep: everything must be given.
    let matching = MatchOptions::new()
        .partial(options.partial && base.is_some())
        .ignore_unknown(options.ignore_unknown)
        .reject_non_finite(options.reject_non_finite)
        .constants(options.constants.clone())
        .renames(options.renames.iter().cloned());
    let names = phase(Phase::Match, report, observer, |_| match_names(map, weights, &matching));
    report.ignored = names.ignored().to_vec();
    if !names.rule().is_identity() {
        report.naming = names.rule().to_string();
    }
    let keys: Option<Vec<(&String, Option<usize>)>> = match &options.changed {
        Changed::Keys(keys) => {
            // A key is a name as it was given, or the name of a source.
            let by_name = map.by_name();
            let source_of = |key: &str| names.source_of(key).or_else(|| by_name.get(key).copied());
            Some(keys.iter().map(|key| (key, source_of(key))).collect())
        }
        Changed::Detect | Changed::All => None,
    };
    let matched = phase(Phase::Check, report, observer, |_| {
        let matched = names.check(&map.sources, parts.identical, &matching);
        let matched = matched.map_err(WeightsErrorKind::Fit)?;
        let not_given = keys.iter().flatten().filter(|(_, source)| source.is_none_or(|s| !matched.contains_key(&s)));
        none_of(not_given.map(|(key, _)| Problem::NotGiven { name: (*key).clone() }).collect(), map)?;
        Ok::<_, RuntimeError>(matched)
    })?;
    Ok(match keys {
        Some(keys) if base.is_some() => {
            let named: BTreeSet<usize> = keys.iter().filter_map(|(_, source)| *source).collect();
            matched.into_iter().filter(|(i, _)| named.contains(i)).collect()
        }
        _ => matched,
    })
}

/// For each of so many numbers whether it is one of `chosen`.
fn marked<'a>(count: usize, chosen: impl IntoIterator<Item = &'a usize>) -> Vec<bool> {
    let mut marks = vec![false; count];
    chosen.into_iter().for_each(|&number| marks[number] = true);
    marks
}

/// All slots, or those that depend on a source that is `chosen` or on a use of one that is `adapted`.
fn dependent_slots(map: &RefitMap, all: bool, chosen: &[bool], adapted: &[bool]) -> Vec<usize> {
    let depends = |slot: &usize| {
        let recipe = &map.recipes[*slot];
        let is_adapted = recipe.uses.iter().any(|&one| adapted[one as usize]);
        is_adapted || recipe.sources.iter().any(|&s| chosen[s as usize])
    };
    (0..map.recipes.len()).filter(|slot| all || depends(slot)).collect()
}

/// The sources of these slots that were not given.
fn sources_not_given(map: &RefitMap, given: &[bool], slots: &[usize]) -> BTreeSet<usize> {
    let sources = slots.iter().flat_map(|&slot| &map.recipes[slot].sources).map(|&source| source as usize);
    sources.filter(|&source| !given[source]).collect()
}

/// A slot made from several sources needs all of them when one changes.
fn check_kept(
    map: &RefitMap,
    kept: &BTreeSet<usize>,
    before: &[Arc<SourceContent>],
    affected: &[usize],
) -> Result<(), RuntimeError> {
    let mut problems: BTreeMap<usize, Problem> = BTreeMap::new();
    let mut files = MappedFiles::default();
    for &slot in affected {
        let recipe = &map.recipes[slot];
        for source in recipe.sources.iter().map(|&s| s as usize).filter(|s| kept.contains(s)) {
            let name = || map.sources[source].name.clone();
            let changed = before[source].held().is_some_and(|tensor| files.have_changed(tensor.buffer()));
            let problem = match changed.then(|| before[source].changed_file()).flatten() {
                Some(path) => Some(Problem::FileChanged { name: name(), path: path.to_path_buf() }),
                None if before[source].is_resident() => None,
                None => Some(Problem::SiblingMissing { name: name(), slot: recipe.slot.clone() }),
            };
            problems.extend(problem.map(|p| (source, p)));
        }
    }
    none_of(problems.into_values().collect(), map)
}

fn none_of(problems: Vec<Problem>, map: &RefitMap) -> Result<(), RuntimeError> {
    if problems.is_empty() { Ok(()) } else { Err(RuntimeErrorKind::fit(problems, map.sources.len()).into()) }
}

/// Those of a generation's sources that are `wanted`, in the engine's dtypes with its adapters applied: what an engine file
/// holds.
pub(crate) fn merged_sources(
    parts: &Parts<'_>,
    generation: &Generation,
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<Option<Tensor>>, RuntimeError> {
    let used = parts.map.are_read();
    let wanted: BTreeSet<usize> = (0..generation.sources.len()).filter(|&index| wanted(index)).collect();
    let sources = loaded(parts, generation.sources.clone(), &wanted)?;
    let mut problems = Vec::new();
    for (index, content) in wanted.iter().map(|&index| (index, &sources[index])) {
        let name = || parts.map.sources[index].name.clone();
        match content.changed_file() {
            Some(path) => problems.push(Problem::FileChanged { name: name(), path: path.to_path_buf() }),
            None if used[index] && !content.is_resident() => problems.push(Problem::Released { name: name() }),
            None => {}
        }
    }
    none_of(problems, parts.map)?;
    let tensor = |(index, content): (usize, &Arc<SourceContent>)| {
        let tensor = if wanted.contains(&index) { content.converted()? } else { None };
        tensor.map(|tensor| stage::merged(parts, index, &tensor, &generation.adapters)).transpose()
    };
    sources.iter().enumerate().map(tensor).collect()
}

/// The tensor that a use of one of a generation's sources is with its adapters applied; `None` when it is not available.
pub(crate) fn merged_use(
    parts: &Parts<'_>,
    generation: &Generation,
    used_as: usize,
) -> Result<Option<Tensor>, RuntimeError> {
    let source = parts.map.source_of(used_as).expect("a use of a source");
    let sources = loaded(parts, generation.sources.clone(), &BTreeSet::from([source]))?;
    let tensor = sources[source].converted()?;
    tensor.map(|tensor| stage::merged(parts, used_as, &tensor, &generation.adapters)).transpose()
}

/// Computes the slots of a checked change.
pub(crate) fn compute(
    parts: &Parts<'_>,
    to: To<'_>,
    base: Option<&Generation>,
    change: Change,
    observer: &dyn RefitObserver,
    report: &mut RefitReport,
) -> Result<Generation, RuntimeError> {
    phase(Phase::Stage, report, observer, |report| {
        let (mut change, mut staged) = (Some(change), None);
        let mut work = || staged = change.take().map(|change| stage(parts, to, base, change, observer, report));
        match parts.pace {
            Pace::Fast => parts.packer.on_threads(&mut work),
            // Its caller is on a thread whose time may be taken.
            Pace::Background => work(),
        }
        staged.expect("a packer runs what it is given")
    })
}

/// The generation of a checked change. The report is filled while the slots are made.
fn stage(
    parts: &Parts<'_>,
    to: To<'_>,
    base: Option<&Generation>,
    change: Change,
    observer: &dyn RefitObserver,
    report: &mut RefitReport,
) -> Result<Generation, RuntimeError> {
    let Change { mut sources, adapters, baked, stale, mut passing, told } = change;
    passing.extend(keep::bring_out(parts, &mut sources, &stale)?);
    let mut slots = base.map_or_else(BTreeMap::new, |base| slots_besides(&base.slots, &stale));
    slots.extend(share::slots_of_siblings(to.siblings, parts, &sources, &adapters, &stale)?);
    let fresh: Vec<usize> = stale.into_iter().filter(|slot| !slots.contains_key(slot)).collect();
    let mut tell = |evaluated: &BTreeSet<usize>| {
        fill_sources(report, parts.map, &told);
        fill_adapters(report, parts.map, &adapters, &told.adapted);
        fill_slots(report, parts, &fresh, evaluated);
    };
    let made = make(parts, &sources, &adapters, &fresh, &slots, to.pool, observer, &mut tell)?;
    slots.extend(fresh.iter().copied().zip(made));
    let slots: Vec<_> = slots.into_values().collect();
    keep::settle(parts, &mut sources, &passing, &slots, &adapters)?;
    let id = base.map_or(0, |base| base.id + 1);
    Ok(Generation { id, slots, sources, adapters, baked })
}

/// The slots but for the `stale` ones, by number.
pub(crate) fn slots_besides(slots: &[Arc<Slot>], stale: &[usize]) -> BTreeMap<usize, Arc<Slot>> {
    let stays = |(slot, _): &(usize, Arc<Slot>)| stale.binary_search(slot).is_err();
    slots.iter().cloned().enumerate().filter(stays).collect()
}

fn fill_sources(report: &mut RefitReport, map: &RefitMap, told: &Told) {
    let name = |index: usize| map.sources[index].name.clone();
    let (applied, unchanged): (Vec<usize>, Vec<usize>) =
        told.matched.keys().partition(|&&index| told.is_changed[index]);
    report.applied = applied.into_iter().map(name).collect();
    report.unchanged = unchanged.into_iter().map(name).collect();
    let is_kept = |index: &usize| !told.matched.contains_key(index) && map.sources[*index].folded.is_none();
    report.kept = (0..map.sources.len()).filter(is_kept).map(name).collect();
}

fn fill_adapters(report: &mut RefitReport, map: &RefitMap, adapters: &AdapterSet, adapted: &[usize]) {
    report.adapted = adapted.iter().map(|&i| map.use_name(i).to_owned()).collect();
    let read = map.are_read();
    report.adapters = (adapters.iter())
        .map(|(adapter, scale)| {
            let is_unread = |layer: &&AdapterLayer| map.source_of(layer.source).is_none_or(|s| !read[s]);
            AdapterReport {
                name: adapter.name.clone(),
                scale,
                layers: adapter.layers.len(),
                unread: adapter.layers.iter().filter(is_unread).count(),
                non_finite: adapter.non_finite().0,
            }
        })
        .collect();
}

fn fill_slots(report: &mut RefitReport, parts: &Parts<'_>, stale: &[usize], evaluated: &BTreeSet<usize>) {
    let map = parts.map;
    let mut next = stale.iter().peekable();
    for (slot, recipe) in map.recipes.iter().enumerate() {
        if next.next_if_eq(&&slot).is_none() {
            report.shared_slots.push(recipe.slot.clone());
            continue;
        }
        report.recomputed_slots.push(SlotReport {
            name: recipe.slot.clone(),
            sources: recipe.sources.iter().map(|&s| map.sources[s as usize].name.clone()).collect(),
            bytes: parts.plan.slots[slot].bytes,
            one_pass: !evaluated.contains(&slot),
        });
    }
    report.bytes = report.recomputed_slots.iter().map(|s| s.bytes).sum();
}
