use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use regraft::{AlignedVec, Model};

use crate::times::time;

/// Copies some slots of the serving generation into memory that is in use already, on the threads of refits.
pub(crate) struct Copier {
    slots: Vec<(usize, Mutex<AlignedVec>)>,
}

impl Copier {
    /// For the slots of these names.
    pub(crate) fn new(model: &Model, names: &BTreeSet<String>) -> Self {
        let plan = model.plan();
        let chosen = (0..plan.slots.len()).filter(|&slot| names.contains(plan.slot_name(slot)));
        let mut slots: Vec<_> = chosen.map(|slot| (slot, Mutex::new(in_use(plan.slot_bytes(slot))))).collect();
        // The largest first, as refits do.
        slots.sort_by_key(|(slot, _)| std::cmp::Reverse(plan.slot_bytes(*slot)));
        Copier { slots }
    }

    /// Milliseconds of one copy.
    pub(crate) fn copy(&self, model: &Model) -> f64 {
        let Some(generation) = model.generation() else { return f64::NAN };
        let backend = model.backend();
        let work = || {
            backend.for_each_staged(self.slots.len(), &|task| {
                let (slot, to) = &self.slots[task];
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                backend.copy_staged(generation.slots[*slot].bytes(), to.bytes_mut());
            });
        };
        time(work).0
    }
}

/// Memory like that of slots, every page of it touched.
fn in_use(bytes: usize) -> AlignedVec {
    let mut memory = AlignedVec::default();
    memory.resize_to_stay(bytes);
    memory.bytes_mut().fill(1);
    memory
}
