//! Weights that are given in memory of a device: which stay there, and which come to the host.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use regraft_adapter::AdapterSet;
use regraft_tensor::Tensor;
use regraft_weights::{Matched, RefitReport, StateDict};

use super::Parts;
use crate::{RuntimeError, RuntimeErrorKind, SourceContent};

/// Weights whose values are looked at on the host, all of them there.
pub(super) fn all_fetched(weights: &StateDict) -> Result<Cow<'_, StateDict>, RuntimeError> {
    if !weights.iter().any(|(_, tensor)| tensor.is_remote()) {
        return Ok(Cow::Borrowed(weights));
    }
    let here = weights.iter().map(|(name, tensor)| Ok((name.to_owned(), fetched(name, tensor)?)));
    Ok(Cow::Owned(here.collect::<Result<_, RuntimeError>>()?))
}

/// Brings those to the host that anything but the device's packer reads: where a slot is made on the host or adapters are
/// applied, where nothing on the device keeps the value, or where it is compared with a digest.
pub(super) fn bring(
    parts: &Parts<'_>,
    matched: &mut Matched,
    before: &[Arc<SourceContent>],
    is_compared: bool,
    adapters: &AdapterSet,
    report: &mut RefitReport,
) -> Result<(), RuntimeError> {
    if !matched.values().any(Tensor::is_remote) {
        return Ok(());
    }
    let readers = parts.map.slots_by_source();
    let adapted = adapters.differing_uses(&AdapterSet::default()).into_iter();
    let adapted: BTreeSet<usize> = adapted.filter_map(|one| parts.map.source_of(one)).collect();
    for (&source, tensor) in matched.iter_mut().filter(|(_, tensor)| tensor.is_remote()) {
        let info = &parts.map.sources[source];
        let local = |slot: usize| parts.map.recipes[slot].sources.iter().position(|&s| s as usize == source);
        let is_read = |&slot: &usize| local(slot).is_some_and(|local| parts.packer.reads_remote(slot, local));
        let is_kept = |&slot: &usize| local(slot).is_some_and(|local| parts.packer.keeps(slot, local));
        let stays = tensor.dtype() == info.dtype
            && !adapted.contains(&source)
            && (!is_compared || before[source].is_resident())
            && readers[source].iter().all(is_read)
            && readers[source].iter().any(is_kept);
        if !stays {
            *tensor = fetched(&info.name, tensor)?;
            report.fetched.push(info.name.clone());
        }
    }
    Ok(())
}

fn fetched(name: &str, tensor: &Tensor) -> Result<Tensor, RuntimeError> {
    let failed =
        |error: regraft_tensor::TensorError| RuntimeErrorKind::Source { name: name.into(), why: error.to_string() };
    Ok(tensor.fetched().map_err(failed)?)
}
