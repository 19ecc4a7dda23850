//! What a new generation keeps of sources whose tensors exist only during a refit: their memory is borrowed,
//! or they were read back from slots.

use std::{collections::BTreeSet, sync::Arc};

use rayon::prelude::*;
use regraft_adapter::AdapterSet;
use regraft_tensor::{Tensor, TensorError};
use regraft_weights::on_shared_threads;

use super::Parts;
use crate::{RuntimeError, RuntimeErrorKind, Slot, SourceContent, generation::InSlot};

/// Reads the sources that `slots` are made of back from the slots that they are kept in. Returns which those are.
pub(super) fn bring_out(
    parts: &Parts<'_>,
    sources: &mut [Arc<SourceContent>],
    slots: &[usize],
) -> Result<BTreeSet<usize>, RuntimeError> {
    let read = slots.iter().flat_map(|&slot| &parts.map.recipes[slot].sources).map(|&source| source as usize);
    let kept_in_slots: BTreeSet<usize> = read.filter(|&source| sources[source].slot().is_some()).collect();
    let places: Vec<InSlot> = kept_in_slots.iter().filter_map(|&source| sources[source].place().cloned()).collect();
    let kept: Vec<_> = places.iter().map(InSlot::kept).collect();
    let tensors = parts.packer.read_back(&kept)?;
    for (&source, tensor) in kept_in_slots.iter().zip(tensors) {
        sources[source] = Arc::new(SourceContent::new(parts.map.sources[source].dtype, Some(tensor)));
    }
    Ok(kept_in_slots)
}

/// Drops the tensors of `passing` sources: they are kept in one of the generation's `slots` where one holds them bit for
/// bit, and are copied otherwise.
pub(super) fn settle(
    parts: &Parts<'_>,
    sources: &mut [Arc<SourceContent>],
    passing: &BTreeSet<usize>,
    slots: &[Arc<Slot>],
    adapters: &AdapterSet,
) -> Result<(), RuntimeError> {
    if passing.is_empty() {
        return Ok(());
    }
    let readers = parts.map.slots_by_source();
    // Their slots hold what the adapters made of them.
    let adapted = adapters.differing_uses(&AdapterSet::default()).into_iter();
    let adapted: BTreeSet<usize> = adapted.filter_map(|one| parts.map.source_of(one)).collect();
    let mut copied = Vec::new();
    for &source in passing {
        let dtype = parts.map.sources[source].dtype;
        let Some(tensor) = sources[source].held() else { continue };
        let place = |&index: &usize| {
            let local = parts.map.recipes[index].sources.iter().position(|&s| s as usize == source)?;
            let keeps = parts.packer.keeps(index, local);
            let place = || InSlot { slot: slots[index].clone(), index, source: local, packer: parts.packer.clone() };
            keeps.then(place)
        };
        let moved = !adapted.contains(&source) && tensor.dtype() == dtype;
        match readers[source].iter().find_map(place).filter(|_| moved) {
            Some(place) => sources[source] = Arc::new(SourceContent::in_slot(dtype, place)),
            None if tensor.is_borrowed() => copied.push((source, tensor.clone())),
            None => {}
        }
    }
    if copied.is_empty() {
        return Ok(());
    }
    // Each is a pass over memory.
    let copy = |(source, tensor): &(usize, Tensor)| Ok((*source, owned(tensor, &parts.map.sources[*source].name)?));
    let copies: Vec<_> = on_shared_threads(|| copied.par_iter().map(copy).collect::<Result<_, RuntimeError>>())?;
    for (source, tensor) in copies {
        sources[source] = Arc::new(SourceContent::new(parts.map.sources[source].dtype, Some(tensor)));
    }
    Ok(())
}

/// A source's tensor in memory that stays as it is.
pub(crate) fn owned(tensor: &Tensor, name: &str) -> Result<Tensor, RuntimeError> {
    let refused = |error: TensorError| RuntimeErrorKind::Source { name: name.into(), why: error.to_string() };
    Ok(tensor.to_owned_memory().map_err(refused)?)
}
