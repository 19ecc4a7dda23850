//! Makes slots in fresh memory, all at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;
use regraft_adapter::{AdapterSet, Overlay};
use regraft_backend::{Given, PackError, PackJob, StageObserver};
use regraft_tensor::Tensor;
use regraft_weights::on_shared_threads;

use super::{Parts, RefitObserver};
use crate::{RuntimeError, RuntimeErrorKind, Slot, SourceContent, generation::SlotPool};

/// Something to do while slots are made.
pub(crate) type Meanwhile<'a> = &'a mut (dyn FnMut(&BTreeSet<usize>) + Send);

/// Makes the slots in `which`; memory for all of them is set aside first. One that would hold what another slot does, of
/// those made or of the `others` that stay, is that slot. What there is to do `meanwhile` is done once, and is told which
/// slots take more than one pass.
pub(crate) fn make(
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    adapters: &AdapterSet,
    which: &[usize],
    others: &BTreeMap<usize, Arc<Slot>>,
    pool: &Arc<SlotPool>,
    observer: &dyn RefitObserver,
    meanwhile: Meanwhile<'_>,
) -> Result<Vec<Arc<Slot>>, RuntimeError> {
    let alike = |one, other| adapters.treats_alike(one, other);
    let kept = |slot: usize| others.contains_key(&slot);
    let twins: BTreeMap<usize, usize> =
        which.iter().filter_map(|&slot| Some((slot, parts.map.twin_slot(slot, alike, kept)?))).collect();
    let first: Vec<usize> = which.iter().copied().filter(|slot| !twins.contains_key(slot)).collect();
    let made = make_each(parts, sources, adapters, &first, pool, observer, meanwhile)?;
    let fresh: BTreeMap<usize, &Arc<Slot>> = first.iter().copied().zip(&made).collect();
    let slot = |slot: &usize| {
        let of = twins.get(slot).unwrap_or(slot);
        fresh.get(of).copied().or_else(|| others.get(of)).expect("a slot that is not made is there").clone()
    };
    Ok(which.iter().map(slot).collect())
}

fn make_each(
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    adapters: &AdapterSet,
    which: &[usize],
    pool: &Arc<SlotPool>,
    observer: &dyn RefitObserver,
    meanwhile: Meanwhile<'_>,
) -> Result<Vec<Arc<Slot>>, RuntimeError> {
    let overlays = overlays(parts, sources, adapters, which)?;
    let given = which.iter().map(|&slot| given(parts, slot, sources, &overlays)).collect::<Result<Vec<_>, _>>()?;
    let wanted: Vec<_> = which.iter().map(|&slot| (slot, parts.plan.slots[slot].bytes)).collect();
    let mut slots = pool.reserve(&wanted).map_err(RuntimeErrorKind::Memory)?;
    let one_pass = |(&slot, given): (&usize, &Vec<Given<'_>>)| parts.packer.is_one_pass(slot, given);
    let several: BTreeSet<usize> =
        which.iter().zip(&given).filter(|of| !one_pass(*of)).map(|(&slot, _)| slot).collect();
    let jobs = which.iter().zip(given).zip(&mut slots);
    let jobs = jobs.map(|((&slot, given), out)| PackJob { slot, given, out: out.region_mut() }).collect();
    let mut work = || meanwhile(&several);
    let progress = Progress { observer, meanwhile: Mutex::new(Some(&mut work)) };
    parts.packer.pack(jobs, parts.pace, &progress).map_err(|error| pack_failure(parts, error))?;
    progress.waits();
    Ok(slots.into_iter().map(Arc::new).collect())
}

/// Passes progress on, and does the rest when there is time.
struct Progress<'a> {
    observer: &'a dyn RefitObserver,
    meanwhile: Mutex<Option<&'a mut (dyn FnMut() + Send)>>,
}

impl StageObserver for Progress<'_> {
    fn staged(&self, bytes: usize, of: usize) {
        self.observer.staged(bytes, of);
    }

    fn waits(&self) {
        let work = self.meanwhile.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.into_iter().for_each(|work| work());
    }
}

/// The sources of a slot's recipe.
fn given<'a>(
    parts: &Parts<'_>,
    slot: usize,
    sources: &'a [Arc<SourceContent>],
    overlays: &'a BTreeMap<usize, Overlay>,
) -> Result<Vec<Given<'a>>, RuntimeError> {
    let given = |(&source, &used_as): (&u32, &u32)| {
        let source = source as usize;
        let tensor = sources[source].held().ok_or_else(|| missing(parts, source))?;
        let overlay = overlays.get(&(used_as as usize));
        let tensor = overlay.and_then(|overlay| overlay.base.as_ref()).unwrap_or(tensor);
        Ok(Given { tensor, overlay: overlay.filter(|overlay| !overlay.terms.is_empty()) })
    };
    let recipe = &parts.map.recipes[slot];
    recipe.sources.iter().zip(&recipe.uses).map(given).collect()
}

/// An error of the packer, with the slot's name.
fn pack_failure(parts: &Parts<'_>, error: PackError) -> RuntimeErrorKind {
    match error {
        PackError::Recipe { slot, why } => RuntimeErrorKind::Recipe { slot: parts.map.recipes[slot].slot.clone(), why },
        error => error.into(),
    }
}

fn missing(parts: &Parts<'_>, source: usize) -> RuntimeError {
    failed(parts, source, "its tensor is not available".into())
}

fn failed(parts: &Parts<'_>, source: usize, why: String) -> RuntimeError {
    RuntimeErrorKind::Source { name: parts.map.sources[source].name.clone(), why }.into()
}

/// What the adapters do to each use of a source that these slots are made of.
fn overlays(
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    adapters: &AdapterSet,
    which: &[usize],
) -> Result<BTreeMap<usize, Overlay>, RuntimeError> {
    if adapters.is_empty() {
        return Ok(BTreeMap::new());
    }
    let used: BTreeSet<usize> =
        which.iter().flat_map(|&slot| &parts.map.recipes[slot].uses).map(|&one| one as usize).collect();
    let of = |used_as: usize| adapters.overlay(used_as, &parts.map.sources[source_of(parts, used_as)]);
    let all = used.into_iter().filter_map(|one| Some((one, of(one)?)));
    let (mut all, incomplete): (BTreeMap<_, _>, BTreeMap<_, _>) = all.partition(|(_, overlay)| is_complete(overlay));
    if incomplete.is_empty() {
        return Ok(all);
    }
    // Each is a pass over its source.
    let complete = |(used_as, overlay): (usize, Overlay)| {
        let source = source_of(parts, used_as);
        let tensor = sources[source].converted()?.ok_or_else(|| missing(parts, source))?;
        Ok((used_as, completed(parts, used_as, overlay, tensor)?))
    };
    let done: Vec<_> =
        on_shared_threads(|| incomplete.into_par_iter().map(complete).collect::<Result<_, RuntimeError>>())?;
    all.extend(done);
    Ok(all)
}

fn source_of(parts: &Parts<'_>, used_as: usize) -> usize {
    parts.map.source_of(used_as).expect("recipes have uses of sources")
}

/// Whether nothing of an overlay depends on the source.
fn is_complete(overlay: &Overlay) -> bool {
    !overlay.has_rewrites() && !overlay.has_norms()
}

/// An overlay with everything filled in; `tensor` is the source in the engine's dtype.
fn completed(parts: &Parts<'_>, used_as: usize, mut overlay: Overlay, tensor: Tensor) -> Result<Overlay, RuntimeError> {
    overlay.rewrite(&tensor);
    if overlay.has_norms() {
        let base = overlay.base.clone().unwrap_or(tensor);
        let filled = parts.packer.fill_norms(&mut overlay, &base);
        filled.map_err(|e| failed(parts, source_of(parts, used_as), e.to_string()))?;
    }
    Ok(overlay)
}

/// A use of a source, in the engine's dtype with `adapters` applied.
pub(super) fn merged(
    parts: &Parts<'_>,
    used_as: usize,
    tensor: &Tensor,
    adapters: &AdapterSet,
) -> Result<Tensor, RuntimeError> {
    let source = source_of(parts, used_as);
    let Some(overlay) = adapters.overlay(used_as, &parts.map.sources[source]) else { return Ok(tensor.clone()) };
    let overlay = if is_complete(&overlay) { overlay } else { completed(parts, used_as, overlay, tensor.clone())? };
    let base = overlay.base.as_ref().unwrap_or(tensor);
    match overlay.terms.is_empty() {
        true => Ok(base.clone()),
        false => parts.packer.merge(&overlay, base).map_err(|e| failed(parts, source, e.to_string())),
    }
}
