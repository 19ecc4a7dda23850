//! What a new generation keeps of sources whose tensors are there for the time of a refit only: the memory is someone else's,
//! or they were read back from slots.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use regraft_adapter::AdapterSet;
use regraft_tensor::{AlignedVec, Tensor};

use super::Parts;
use crate::generation::{InSlot, Slot, SourceContent};

/// Reads the sources that `slots` are made of back from the slots that they are kept in. Returns which those are.
pub(super) fn bring_out(parts: &Parts<'_>, sources: &mut [Arc<SourceContent>], slots: &[usize]) -> BTreeSet<usize> {
    let read = slots.iter().flat_map(|&slot| &parts.map.recipes[slot].sources).map(|&source| source as usize);
    let kept_in_slots: BTreeSet<usize> = read.filter(|&source| sources[source].slot().is_some()).collect();
    let (order, contents) = (Vec::from_iter(kept_in_slots.iter().copied()), &*sources);
    let tensors: Vec<OnceLock<Option<Tensor>>> = order.iter().map(|_| OnceLock::new()).collect();
    parts.backend.for_each_staged(order.len(), &|i| {
        tensors[i].get_or_init(|| contents[order[i]].tensor());
    });
    for (&source, tensor) in order.iter().zip(tensors) {
        let tensor = tensor.into_inner().flatten();
        sources[source] = Arc::new(SourceContent::new(parts.map.sources[source].dtype, tensor));
    }
    kept_in_slots
}

/// Lets go of the tensors of `passing` sources: they are kept in one of the generation's `slots` where one holds them bit for
/// bit, and in memory of their own otherwise.
pub(super) fn settle(
    parts: &Parts<'_>,
    sources: &mut [Arc<SourceContent>],
    passing: &BTreeSet<usize>,
    slots: &[Arc<Slot>],
    adapters: &AdapterSet,
) {
    let readers = parts.map.slots_by_source();
    // Their slots hold what the adapters made of them.
    let adapted: BTreeSet<usize> = adapters.differing_sources(&AdapterSet::default()).into_iter().collect();
    for &source in passing {
        let info = &parts.map.sources[source];
        let Some(tensor) = sources[source].held() else { continue };
        let place = |slot: &usize| {
            InSlot::find(&parts.map.recipes[*slot], source as u32, info.dtype, &info.shape, &slots[*slot])
        };
        let moved = !adapted.contains(&source) && tensor.dtype() == info.dtype;
        let settled = match readers[source].iter().find_map(place).filter(|_| moved) {
            Some(place) => SourceContent::in_slot(place),
            None if tensor.is_borrowed() => SourceContent::new(info.dtype, Some(copy(parts, tensor))),
            None => continue,
        };
        sources[source] = Arc::new(settled);
    }
}

fn copy(parts: &Parts<'_>, tensor: &Tensor) -> Tensor {
    let mut data = AlignedVec::default();
    data.resize_to_stay(tensor.bytes().len());
    parts.backend.copy_staged(tensor.bytes(), data.bytes_mut());
    Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data.into()).expect("as many bytes as the tensor has")
}
