//! Makes slots in fresh buffers, all at once, on the threads of refits.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use regraft_adapter::{AdapterSet, Overlay};

use super::{Parts, RefitObserver, recipe};
use crate::{
    RuntimeError, RuntimeErrorKind,
    generation::{Slot, SlotPool, SourceContent},
};

/// Slots in the order asked for.
pub(crate) struct Made {
    pub(crate) slots: Vec<Arc<Slot>>,
    /// Those that took more than one pass over memory.
    pub(crate) evaluated: BTreeSet<usize>,
}

/// Makes the slots in `which`; memory for all of them is set aside first.
pub(crate) fn make(
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    adapters: &AdapterSet,
    which: &[usize],
    pool: &Arc<SlotPool>,
    observer: &dyn RefitObserver,
) -> Result<Made, RuntimeError> {
    let overlays = overlays(parts, sources, adapters, which)?;
    let lens: Vec<usize> = which.iter().map(|&slot| parts.plan.slot_bytes(slot)).collect();
    let reserved = pool.reserve(&lens).map_err(RuntimeErrorKind::Memory)?;
    let total: usize = lens.iter().sum();
    let done = AtomicUsize::new(0);
    // The largest first: the threads finish together.
    let mut tasks: Vec<(usize, usize, Slot)> =
        reserved.into_iter().enumerate().map(|(i, slot)| (i, which[i], slot)).collect();
    tasks.sort_by_key(|(i, ..)| std::cmp::Reverse(lens[*i]));
    let tasks: Vec<Mutex<(usize, usize, Slot)>> = tasks.into_iter().map(Mutex::new).collect();
    let failure: Mutex<Option<RuntimeError>> = Mutex::new(None);
    parts.backend.for_each_staged(tasks.len(), &|task| {
        let (i, index, slot) = &mut *tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        match recipe::run(parts, *index, sources, &overlays, slot.bytes_mut()) {
            Ok(()) => observer.staged(done.fetch_add(lens[*i], Ordering::Relaxed) + lens[*i], total),
            Err(error) => *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut made: Vec<_> = tasks.into_iter().map(|t| t.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    made.sort_by_key(|(i, ..)| *i);
    let evaluated = which.iter().copied().filter(|&slot| !recipe::is_one_pass(parts, slot, sources, &overlays));
    Ok(Made { evaluated: evaluated.collect(), slots: made.into_iter().map(|(_, _, slot)| Arc::new(slot)).collect() })
}

/// What the adapters do to each source that these slots are made of.
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
        which.iter().flat_map(|&slot| &parts.map.recipes[slot].sources).map(|&s| s as usize).collect();
    let used: Vec<usize> = used.into_iter().collect();
    let made: Vec<OnceLock<Result<Option<Overlay>, RuntimeError>>> = used.iter().map(|_| OnceLock::new()).collect();
    parts.backend.for_each_staged(used.len(), &|i| {
        let tensor = || sources[used[i]].converted().ok_or_else(|| recipe::missing(parts, used[i]));
        made[i].get_or_init(|| recipe::overlay(parts, used[i], adapters, tensor));
    });
    let made = used.iter().zip(made).filter_map(|(source, made)| Some((*source, made.into_inner()?.transpose()?)));
    made.map(|(source, overlay)| Ok((source, overlay?))).collect()
}
