//! A refit: match → check → compare → stage → publish → retire. Everything is checked before anything is computed.

mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use regraft_backend::Backend;
use regraft_engine::Plan;
use regraft_tensor::Tensor;
use regraft_weights::{
    Digest, Generation, MatchOptions, Phase, Problem, RefitMap, RefitReport, Slot, SlotPool, SlotReport, StateDict,
    match_sources,
};

pub(crate) use self::stage::make_all;
use crate::{RuntimeError, RuntimeErrorKind};

/// What a refit asks of the weights it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefitOptions {
    /// Take the keys that are there and keep the other sources; otherwise all must be given.
    pub partial: bool,
    /// Refuse infinite values and NaN.
    pub reject_non_finite: bool,
}

/// A generation that is ready to serve and does not yet.
#[derive(Debug)]
pub struct Staged {
    pub(crate) generation: Generation,
    /// The generation it was made from; keeps it apart from any other, whatever their numbers.
    pub(crate) base: Option<Arc<Generation>>,
    pub(crate) report: RefitReport,
}

impl Staged {
    /// What staging did; the publish phase is not in it yet.
    pub fn report(&self) -> &RefitReport {
        &self.report
    }
}

/// The parts of a program that a refit works with.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) map: &'a RefitMap,
    pub(crate) identical: Option<&'a [Digest]>,
    pub(crate) backend: &'a dyn Backend,
}

pub(crate) fn stage(
    parts: &Parts<'_>,
    pool: &Arc<SlotPool>,
    base: Option<Arc<Generation>>,
    carried: &[Option<Tensor>],
    weights: &StateDict,
    options: RefitOptions,
) -> Result<Staged, RuntimeError> {
    let map = parts.map;
    let mut report = RefitReport::default();
    // Without a generation to start from there is nothing to keep: everything must be given.
    let matching =
        MatchOptions { partial: options.partial && base.is_some(), reject_non_finite: options.reject_non_finite };
    let (matched, times) = match_sources(map, weights, parts.identical, matching)
        .map_err(|problems| RuntimeErrorKind::fit(problems, map.sources.len()))?;
    report.phases_ms.set(Phase::Match, times.matching);
    let start = Instant::now();
    let before: &[Option<Tensor>] = base.as_ref().map_or(carried, |g| &g.sources);
    let affected = affected_slots(map, base.is_none(), |s| matched.contains_key(&s));
    check_siblings(map, &matched, before, &affected)?;
    report.phases_ms.set(Phase::Check, times.check + start.elapsed());

    let start = Instant::now();
    let changed = compare(parts, &matched, base.as_deref());
    report.phases_ms.set(Phase::Compare, start.elapsed());

    let start = Instant::now();
    let mut sources = before.to_vec();
    for (&index, tensor) in matched.iter().filter(|(i, _)| changed.contains(i)) {
        sources[index] = Some(tensor.clone());
    }
    let stale = affected_slots(map, base.is_none(), |s| changed.contains(&s));
    let slots = match &base {
        Some(base) => {
            let fresh = stage::make(parts, &sources, &stale, pool)?;
            let mut slots = base.slots.clone();
            stale.iter().zip(fresh).for_each(|(&slot, data)| slots[slot] = data);
            slots
        }
        None => make_all(parts, &sources, pool)?,
    };
    report.phases_ms.set(Phase::Stage, start.elapsed());
    fill(&mut report, parts, &matched, &changed, &stale);
    let id = base.as_ref().map_or(0, |base| base.id + 1);
    Ok(Staged { generation: Generation { id, slots, sources }, base, report })
}

/// All slots, or those that depend on a source that `given` names.
fn affected_slots(map: &RefitMap, all: bool, given: impl Fn(usize) -> bool) -> Vec<usize> {
    let depends = |slot: &usize| map.recipes[*slot].sources.iter().any(|&s| given(s as usize));
    (0..map.recipes.len()).filter(|slot| all || depends(slot)).collect()
}

/// A slot made from several sources needs all of them when one changes.
fn check_siblings(
    map: &RefitMap,
    given: &BTreeMap<usize, Tensor>,
    before: &[Option<Tensor>],
    affected: &[usize],
) -> Result<(), RuntimeError> {
    let mut problems: BTreeMap<usize, Problem> = BTreeMap::new();
    for &slot in affected {
        let recipe = &map.recipes[slot];
        for source in recipe.sources.iter().map(|&s| s as usize).filter(|s| !given.contains_key(s)) {
            let name = || map.sources[source].name.clone();
            let problem = match &before[source] {
                None => Some(Problem::SiblingMissing { name: name(), slot: recipe.slot.clone() }),
                Some(tensor) => tensor
                    .buffer()
                    .changed_file()
                    .map(|path| Problem::FileChanged { name: name(), path: path.to_path_buf() }),
            };
            problems.extend(problem.map(|p| (source, p)));
        }
    }
    none_of(problems.into_values().collect(), map)
}

fn none_of(problems: Vec<Problem>, map: &RefitMap) -> Result<(), RuntimeError> {
    if problems.is_empty() { Ok(()) } else { Err(RuntimeErrorKind::fit(problems, map.sources.len()).into()) }
}

/// Refuses when a file that a generation's sources are mapped from has changed.
pub(crate) fn check_intact(map: &RefitMap, generation: &Generation) -> Result<(), RuntimeError> {
    let problems: Vec<_> = (map.sources.iter().zip(&generation.sources))
        .filter_map(|(info, tensor)| {
            let path = tensor.as_ref()?.buffer().changed_file()?.to_path_buf();
            Some(Problem::FileChanged { name: info.name.clone(), path })
        })
        .collect();
    none_of(problems, map)
}

/// The given sources that differ from the serving generation's, bit for bit. One that differs costs hardly any time; one
/// that does not costs one pass, and saves staging its slots.
fn compare(parts: &Parts<'_>, given: &BTreeMap<usize, Tensor>, base: Option<&Generation>) -> BTreeSet<usize> {
    let Some(base) = base else { return given.keys().copied().collect() };
    let given: Vec<(&usize, &Tensor)> = given.iter().collect();
    let differs: Vec<AtomicBool> = given.iter().map(|_| true.into()).collect();
    parts.backend.for_each_staged(given.len(), &|i| {
        let (&index, new) = given[i];
        let same =
            base.sources[index].as_ref().is_some_and(|old| old.buffer().changed_file().is_none() && old.bit_equal(new));
        differs[i].store(!same, Ordering::Relaxed);
    });
    let differing = given.iter().zip(differs).filter(|(_, differs)| differs.load(Ordering::Relaxed));
    differing.map(|((index, _), _)| **index).collect()
}

fn fill(
    report: &mut RefitReport,
    parts: &Parts<'_>,
    given: &BTreeMap<usize, Tensor>,
    changed: &BTreeSet<usize>,
    stale: &[usize],
) {
    let map = parts.map;
    let name = |index: usize| map.sources[index].name.clone();
    report.applied = changed.iter().map(|&i| name(i)).collect();
    report.unchanged = given.keys().filter(|i| !changed.contains(i)).map(|&i| name(i)).collect();
    report.kept = (0..map.sources.len()).filter(|i| !given.contains_key(i)).map(name).collect();
    let mut next = stale.iter().peekable();
    for (slot, recipe) in map.recipes.iter().enumerate() {
        if next.next_if_eq(&&slot).is_none() {
            report.shared_slots.push(recipe.slot.clone());
            continue;
        }
        report.recomputed_slots.push(SlotReport {
            name: recipe.slot.clone(),
            sources: recipe.sources.iter().map(|&s| name(s as usize)).collect(),
            bytes: parts.plan.slot_bytes(slot),
            one_pass: recipe.gather.is_some(),
        });
    }
    report.bytes = report.recomputed_slots.iter().map(|s| s.bytes).sum();
}

/// Slots in the order asked for.
pub(crate) type Slots = Vec<Arc<Slot>>;
